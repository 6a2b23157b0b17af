"""Masters of notebooks: .py files in the percent format that Jupytext reads, and the notebooks that come of them.

A cell begins with `# %%`, or `# %% [markdown]`, and may carry `tags=["exercise"]` behind it. What the learner writes
stands between `# solution` and `# end of solution`; a prediction is one line, `guess = 1.0  # solution`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TAGS = {"exercise", "sampled", "timing", "trained", "figure"}
START = re.compile(r"# %%(?P<markdown> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?\s*")
STUB = "raise NotImplementedError  # your code here"


@dataclass(frozen=True)
class Cell:
    """One cell of a master, as it is with the solution in it."""

    kind: str  # "markdown" or "code"
    source: str
    tags: tuple[str, ...] = ()


def masters() -> list[Path]:
    return sorted((NOTEBOOKS / "src").glob("[0-9][0-9]_*.py"))


def parse(text: str) -> list[Cell]:
    """The cells of a master. Raises ValueError for a line that begins no cell, or a tag that is not known."""
    cells: list[tuple[str, list[str], tuple[str, ...]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("# %%"):
            found = START.fullmatch(line)
            tags = tuple(json.loads(found["tags"] or "[]")) if found else ("?",)
            if not set(tags) <= TAGS:
                raise ValueError(f"line {number}: {line!r} does not begin a cell; tags are {', '.join(sorted(TAGS))}")
            cells.append(("markdown" if found["markdown"] else "code", [], tags))
        elif cells:
            cells[-1][1].append(line)
        elif line.strip() and not line.startswith("#"):
            raise ValueError(f"line {number}: {line!r} stands before the first cell")
    return [Cell(kind, _source(kind, lines), tags) for kind, lines, tags in cells]


def _source(kind: str, lines: list[str]) -> str:
    if kind == "markdown":
        if wrong := [line for line in lines if line and not line.startswith("#")]:
            raise ValueError(f"a line of a markdown cell must begin with '# ': {wrong[0]!r}")
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    return "\n".join(lines).strip("\n")


def solved(cell: Cell) -> str:
    """The cell's source with the solution, and without the marks around it."""
    lines = [line for line in cell.source.splitlines() if line.strip() not in ("# solution", "# end of solution")]
    return "\n".join(re.sub(r"\s+# solution$", "", line) for line in lines)


def unsolved(cell: Cell) -> str:
    """The cell's source as the learner gets it: a stub, or a prediction that is None."""
    kept: list[str] = []
    inside = False
    for line in cell.source.splitlines():
        if line.strip() == "# solution":
            inside = True
            kept.append(line.replace("# solution", STUB))
        elif line.strip() == "# end of solution":
            inside = False
        elif not inside:
            kept.append(re.sub(r"=.*\S\s+# solution$", "= None  # your prediction", line))
    if inside:
        raise ValueError(f"a solution has no end: {cell.source!r}")
    return "\n".join(kept)


def notebook(cells: list[Cell], *, with_solutions: bool) -> nbformat.NotebookNode:
    """The notebook, not executed."""
    made = nbformat.v4.new_notebook()
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(cells):
        source = cell.source if cell.kind == "markdown" else (solved if with_solutions else unsolved)(cell)
        new = nbformat.v4.new_markdown_cell if cell.kind == "markdown" else nbformat.v4.new_code_cell
        made.cells.append(new(source, id=f"cell-{i:02d}", metadata={"tags": list(cell.tags)} if cell.tags else {}))
    return made


def built(master: Path) -> dict[Path, nbformat.NotebookNode]:
    """What a master makes: the learner's notebook and the solved one, by path, not executed."""
    cells = parse(master.read_text())
    name = f"{master.stem}.ipynb"
    return {
        NOTEBOOKS / name: notebook(cells, with_solutions=False),
        NOTEBOOKS / "solutions" / name: notebook(cells, with_solutions=True),
    }


def stale(path: Path, made: nbformat.NotebookNode) -> str | None:
    """Why the notebook at `path` is not what its master makes, executed; None where it is. Nothing is run."""
    if not path.exists():
        return "is not there"
    found = nbformat.read(path, as_version=4)
    if [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in found.cells] != [
        (c.cell_type, c.source, c.metadata.get("tags", [])) for c in made.cells
    ]:
        return "differs from its master"
    for number, cell in enumerate(c for c in found.cells if c.cell_type == "code"):
        if cell.execution_count != number + 1:
            return "was not run from top to bottom"
        if any(output.output_type == "error" for output in cell.outputs):
            return "holds an error"
    return None
