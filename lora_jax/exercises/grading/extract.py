"""What an answer needs of a learner's notebook or file: definitions, imports and assignments, and no more.

A notebook trains models and draws pictures; to mark it takes the functions alone. A file is never run: from its syntax
tree comes the statement that defines the answer, then those that define the names it uses, and so on.
"""

from __future__ import annotations

import ast
import warnings

from lora_jax.exercises.grading import magics
from lora_jax.exercises.grading.cells import Cell, read
from lora_jax.exercises.grading.names import Aside, bound, settled, used

Statement = tuple[frozenset[str], ast.stmt]  # the names that a statement at the top level binds, and the statement


def statements(name: str, data: bytes) -> tuple[list[Statement], list[str]]:
    """The statements of a file of this name (.ipynb, .py), in order, and a sentence for each cell that is not Python.

    IPython's magics, commands and prompts are no fault: `magics.parse` says what comes of them. Raises ValueError where
    the file is not a notebook, or empty.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a string is the learner's, and no reason to stop
        return _statements(*read(name, data))


def _statements(cells: list[Cell], wrong: list[str]) -> tuple[list[Statement], list[str]]:
    body: list[ast.stmt] = []
    for cell in cells:
        try:
            for node in _parsed(cell):
                body += _guarded(node) or [node]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            wrong.append(f"cell {cell.number} is not Python ({_fault(error)}{_place(error, cell)})")
    return [(frozenset(bound(node)), node) for node in settled(body)], wrong


def _fault(error: Exception) -> str:
    if isinstance(error, RecursionError | MemoryError):  # a sum of thousands of terms, or as many `elif`
        return "nested too deep"
    return str(getattr(error, "msg", None) or error).split("; use sys.")[0]  # of Python, whose settings are not theirs


def _parsed(cell: Cell) -> list[ast.stmt]:
    try:
        return magics.parse(cell.uncommented or cell.source)
    except (SyntaxError, ValueError):
        if not cell.uncommented:
            raise
    return magics.parse(cell.source)


def _place(error: Exception, cell: Cell) -> str:
    """The line of a fault, as the learner's editor counts; IPython's transformer may have moved it."""
    text, line = (getattr(error, "text", None) or "").strip(), int(getattr(error, "lineno", None) or 0)
    if not line:
        return ""
    same = [number for number, one in enumerate(cell.source.split("\n"), 1) if text and one.strip() == text]
    line = min(same, key=lambda number: abs(number - line), default=line)
    return f", line {cell.above + line} of the file" if cell.above else f", line {line}"


def _guarded(node: ast.stmt) -> list[ast.stmt]:
    """What stands under `if __name__ == "__main__":`, for a run by hand: another place of a name goes before it."""
    match node:
        case ast.If(
            test=ast.Compare(left=ast.Name("__name__"), ops=[ast.Eq()], comparators=[ast.Constant("__main__")])
            | ast.Compare(left=ast.Constant("__main__"), ops=[ast.Eq()], comparators=[ast.Name("__name__")]),
            orelse=[],
        ):
            return [ast.copy_location(Aside(node.test, [inner], []), inner) for inner in node.body]
    return []


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
    wanted = used(found[at][1]) | {name}
    while wanted - seen:
        new = min(wanted - seen)
        seen.add(new)
        for i in reversed(range(end)):
            if new in found[i][0]:
                chosen.add(i)
                wanted |= used(found[i][1])
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
        names = {getattr(inside, "id", getattr(inside, "attr", "")) for inside in ast.walk(line)}
        if isinstance(line, ast.Raise) and "NotImplementedError" in names:
            return True
        if any(isinstance(inside, ast.Return) for inside in ast.walk(line)):
            return False
    return False


def _replaces(statement: Statement, name: str) -> bool:
    """Whether what the name was before no longer matters after this statement."""
    node = statement[1]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return name not in used(node)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
