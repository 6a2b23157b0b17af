"""Which names a statement binds where it stands, and which it takes from the top level."""

from __future__ import annotations

import ast
import dis
import functools
import warnings
from collections.abc import Container, Iterable, Iterator
from types import CodeType

SCOPES = ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


LOADS = frozenset({"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"})


class Aside(ast.If):
    """What `%timeit` ran, in a scope of its own: the names that it binds are there where nothing else binds them."""


def bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement binds where it stands, not inside a function or class."""
    nodes: list[ast.AST] = [statement]  # and no recursion: a sum may have thousands of terms
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                yield node.id
        elif not isinstance(node, SCOPES | Aside):
            nodes += ast.iter_child_nodes(node)


@functools.lru_cache(maxsize=10_000)
def used(node: ast.stmt) -> frozenset[str]:
    """The names that a statement takes from the top level, those inside its functions included.

    Read from the code that Python makes of it. Where Python makes none, since it is nested too deep or a `return`
    stands outside of any function, all the names that are written in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `x is 1` is the learner's
            module = ast.Module([node], [])
            code = compile(module, "answer", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, OverflowError):
        return frozenset(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
    found = _loaded(code)
    codes = [one for one in code.co_consts if isinstance(one, CodeType)]
    while codes:
        code = codes.pop()
        found |= _loaded(code) - _loaded(code, ("STORE_NAME",))  # what a class stores is its own
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
    return frozenset(found)


def _loaded(code: CodeType, instructions: Container[str] = LOADS) -> set[str]:
    # Without its constants, since `dis` would write them all out, numbers of a million digits included.
    bare = code.replace(co_consts=(None,) * len(code.co_consts))
    return {one.argval for one in dis.get_instructions(bare) if one.opname in instructions}


def settled(body: list[ast.stmt], given: Iterable[str] = (), *, function: bool = False) -> list[ast.stmt]:
    """The statements of a scope, each Aside in it replaced by its body where that alone binds a name, or by `pass`.

    `given` are names that the scope has from elsewhere. In a function, which runs as a whole, an Aside stays only where
    something mentions that name, since it may have been left to fail.
    """
    asides = [node for statement in body for node in ast.walk(statement) if isinstance(node, Aside)]
    if not asides:
        return body
    elsewhere = {*given, *(name for statement in body for name in bound(statement))}
    within = {id(node) for aside in asides for node in ast.walk(aside)}
    mentioned = {
        node.id
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and id(node) not in within
    }

    class Settle(ast.NodeTransformer):
        def visit_Aside(self, node: Aside) -> ast.AST | list[ast.stmt]:
            names = {name for statement in node.body for name in bound(statement)}
            if names and not names & elsewhere and (not function or names & mentioned):
                return node.body
            return ast.copy_location(ast.Pass(), node)

    found: list[ast.stmt] = []
    for statement in body:
        # The others are left alone, since one may be nested too deep to be visited.
        new = Settle().visit(statement) if any(isinstance(node, Aside) for node in ast.walk(statement)) else statement
        found += new if isinstance(new, list) else [new]
    return found
