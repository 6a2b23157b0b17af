"""What an answer needs of a learner's notebook or file: definitions, imports and assignments, and no more.

A notebook trains models and draws pictures; to mark it takes the functions alone. A file is never run: from its syntax
tree comes the statement that defines the answer, then those that define the names it uses, and so on.
"""

from __future__ import annotations

import ast
import json
import symtable
from collections.abc import Iterator
from pathlib import Path

Statement = tuple[frozenset[str], ast.stmt]  # the names that a statement at the top level binds, and the statement


def statements(path: Path) -> tuple[list[Statement], list[str]]:
    """The statements of a .ipynb or .py file, in order, and a sentence for each cell that is not Python.

    Raises ValueError where the file is not a notebook, or not text.
    """
    found: list[Statement] = []
    wrong: list[str] = []
    for number, source in enumerate(_cells(path), 1):
        try:
            body = ast.parse(_without_magics(source)).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None)
            wrong.append(
                f"cell {number} is not Python ({getattr(error, 'msg', error)}{f', line {line}' if line else ''})"
            )
            continue
        found += [(frozenset(_bound(node)), node) for node in body]
    return found, wrong


def _cells(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".ipynb":
        try:
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            return ["".join(cell["source"]) for cell in cells]
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError("it is not a notebook") from error
    # A fault in one cell of a percent-format file must not hide the others.
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("# %%"):
            parts.append([])
        parts[-1].append(line)
    return ["\n".join(part) for part in parts]


def _without_magics(source: str) -> str:
    """The source without lines that only Jupyter knows (%magic, !command)."""
    return "\n".join("" if line.startswith(("%", "!")) else line for line in source.splitlines())


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a statement binds where it stands, not inside a function or class."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
    elif isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Store):
            yield node.id
    elif not isinstance(node, ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def answer_of(found: list[Statement], name: str, is_function: bool) -> ast.Module | None:
    """The program that defines `name` as the file does, with what it needs; None where it is not there, or a stub."""
    places = [i for i, (names, _) in enumerate(found) if name in names]
    if is_function and (written := [i for i in places if isinstance(found[i][1], ast.FunctionDef)]):
        places = written  # the notebook may go on with another function of that name
    places = [i for i in places if not is_stub(found[i][1])]
    if not places:
        return None
    at = places[-1]
    chosen = {at}
    # A function sees the names as they are at the end of the file; a value, as they were when it was worked out.
    end = len(found) if isinstance(found[at][1], ast.FunctionDef) else at
    seen = {name} if end > at or _replaces(found[at], name) else set()
    wanted = _used(found[at][1]) | {name}
    while wanted - seen:
        new = min(wanted - seen)
        seen.add(new)
        for i in reversed(range(end)):
            if new in found[i][0]:
                chosen.add(i)
                wanted |= _used(found[i][1])
                if _replaces(found[i], new):
                    break
    stars = {i for i, (names, _) in enumerate(found) if "*" in names}  # from jax.numpy import *: any name may be theirs
    return ast.Module([found[i][1] for i in sorted(chosen | stars)], [])


def is_stub(node: ast.stmt) -> bool:
    """Whether nothing has been written: a body that raises NotImplementedError before any return; or `name = None`."""
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant) and node.value.value is None
    if not isinstance(node, ast.FunctionDef):
        return False
    for line in node.body:
        if isinstance(line, ast.Raise) and "NotImplementedError" in ast.unparse(line):
            return True
        if any(isinstance(inside, ast.Return) for inside in ast.walk(line)):
            return False
    return False


def _replaces(statement: Statement, name: str) -> bool:
    """Whether what the name was before no longer matters after this statement."""
    node = statement[1]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return name not in _used(node)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)


def _used(node: ast.stmt) -> set[str]:
    """The names that a statement takes from the top level, those inside its functions included."""

    def walk(table: symtable.SymbolTable) -> Iterator[str]:
        top = table.get_type() == "module"
        yield from (s.get_name() for s in table.get_symbols() if (s.is_referenced() if top else s.is_global()))
        for child in table.get_children():
            yield from walk(child)

    return set(walk(symtable.symtable(ast.unparse(node), "answer", "exec")))
