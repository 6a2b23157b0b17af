"""IPython's syntax made plain Python, for a process that has no IPython running.

IPython's own transformer writes `%time y = f(x)` as `get_ipython().run_line_magic("time", "y = f(x)")`. Here such calls
go: a magic that runs Python becomes that Python, a value that a command would have printed an empty list, any other
nothing at all.
"""

from __future__ import annotations

import ast
import contextlib
import getopt
import re
from typing import Any

from lora_jax.exercises.grading.names import Aside, settled

# What runs its line or its cell as Python, with the options before it as getopt reads them.
RUNS = {"time": "", "timeit": "n:r:tcp:qov:", "prun": "D:l:rs:T:q", "debug": "b:", "capture": ""}
# Cells for another program, or a file. A magic of an extension may run Python: it does if that is what it holds.
ELSEWHERE = frozenset({
    "!", "HTML", "R", "SVG", "bash", "cmd", "code_wrap", "file", "html", "javascript", "js", "julia", "latex",
    "markdown", "perl", "pypy", "python", "python2", "python3", "ruby", "script", "sh", "shell", "sql", "svg", "sx",
    "system", "writefile",
})  # fmt: skip
# What people type alone in a cell, without the %.
AUTOMAGIC = frozenset({
    "cat", "cd", "conda", "cp", "env", "history", "load_ext", "ls", "matplotlib", "mkdir", "mv", "pip", "prun", "pwd",
    "reload_ext", "rm", "run", "set_env", "time", "timeit", "uv", "who", "whos",
})  # fmt: skip
# Characters of a cell that IPython may read, and in all: for each magic in it, it reads the whole again.
MAX_SOURCE, MAX_READ = 50_000, 1_000_000
ITS_OWN = re.compile(r"^[ \t]*[%!?]|=[ \t]*[%!]|\?[ \t]*$", re.MULTILINE)
PYLAB = "import numpy as np\nimport matplotlib.pyplot as plt\nfrom numpy import *"


def parse(source: str) -> list[ast.stmt]:
    """The statements of a cell as plain Python, some of them an Aside. Raises SyntaxError, ValueError and others."""
    return [new for node in _tree(source) for new in (_replaced(node) if _asks(node) else [node])]


def _asks(statement: ast.stmt) -> bool:
    return any(_call(node) is not None for node in ast.walk(statement))


def _replaced(statement: ast.stmt) -> list[ast.stmt]:
    found: Any = _Plain().visit(statement)
    return found if isinstance(found, list) else [found]


def _tree(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:
        transformed = _transformed(source)
    try:
        return ast.parse(transformed).body
    except SyntaxError:
        lines = source.strip().splitlines()
        if len(lines) == 1 and lines[0].split()[0] in AUTOMAGIC:
            return ast.parse(_transformed(f"%{lines[0]}")).body
        raise


def _transformed(source: str) -> str:
    if len(source) > MAX_SOURCE:
        raise ValueError(f"IPython does not read more than {MAX_SOURCE:,} characters, and it is not plain Python")
    if (lines := len(ITS_OWN.findall(source))) * len(source) > MAX_READ and lines > 1:
        raise ValueError(f"{lines} lines that only IPython reads are too many in {len(source):,} characters")
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return TransformerManager().transform_cell(source)
    except Exception as error:  # after 500 magics in a cell IPython, too, stops
        raise ValueError(f"IPython cannot read it: {error}") from error


class _Plain(ast.NodeTransformer):
    """Puts plain Python in the place of every call of `get_ipython()`."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.stmt]:
        if (call := _call(node.value)) is None:
            return self.generic_visit(node)
        name, body = _runs(*call)
        if name == "timeit":
            return ast.copy_location(Aside(ast.Constant(True), body or [ast.Pass()], []), node)
        return body or [ast.copy_location(ast.Pass(), node)]

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if (call := _call(node)) is None:
            return self.generic_visit(node)
        name, body = _runs(*call)
        if name == "time" and len(body) == 1 and isinstance(body[0], ast.Expr):
            return body[0].value
        prints = call[0] in ("getoutput", "getoutput_pexpect") or name in ("sx", "system", "sc")
        return ast.copy_location(ast.List([], ast.Load()) if prints else ast.Constant(None), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body = settled(node.body, {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}, function=True)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815


def _call(node: ast.AST) -> tuple[str, list[str]] | None:
    """`(method, arguments)` of a call of a method of `get_ipython()`, with those arguments that are strings."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Call(func=asked, args=[]), attr=method), args=given):
            if "get_ipython" not in (getattr(asked, "id", ""), getattr(asked, "attr", "")):
                return None
            return method, [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return None


def _runs(method: str, given: list[str]) -> tuple[str, list[ast.stmt]]:
    """The name of the magic ("" where it is none), and the Python that it runs.

    A fault in a cell's Python is the cell's; a line that is none is left out.
    """
    if method == "magic" and given:  # as nbconvert once wrote it
        method, given = "run_line_magic", [*given[0].lstrip("%").split(" ", 1), ""]
    if method not in ("run_line_magic", "run_cell_magic") or len(given) < 2:
        return "", []
    # A tab behind the name is part of it, for the transformer.
    name, _, first = f"{given[0].strip()} {given[1]}".replace("\t", " ", 1).partition(" ")
    if method == "run_line_magic":
        if name == "pylab":
            return name, parse(PYLAB)
        return name, _line(name, first) if name in RUNS and name != "capture" else []
    cell = given[2] if len(given) > 2 else ""
    if name in ELSEWHERE:
        return name, []
    if name in RUNS:
        return name, [*(_line(name, first) if name in ("timeit", "prun") else []), *parse(cell)]
    try:
        return name, parse(cell)
    except (SyntaxError, ValueError):
        return name, []


def _line(name: str, line: str) -> list[ast.stmt]:
    """The Python in a magic's line, behind its options; none where it is not Python."""
    words = line.strip().split(" ")
    with contextlib.suppress(getopt.GetoptError):  # -x is an option for some, and for others a number's sign
        _, words = getopt.getopt(words, RUNS[name], ["no-raise-error", "breakpoint="])
    try:
        return parse(" ".join(words))
    except (SyntaxError, ValueError):
        return []
