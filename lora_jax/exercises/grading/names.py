"""Which names a statement binds where it stands, and which it takes from the top level."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable, Iterator

SCOPES = ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


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


def used(node: ast.stmt) -> set[str]:
    """The names that a statement takes from the top level, those inside its functions included."""

    def walk(table: symtable.SymbolTable) -> Iterator[str]:
        top = table.get_type() == "module"
        yield from (s.get_name() for s in table.get_symbols() if (s.is_referenced() if top else s.is_global()))
        for child in table.get_children():
            yield from walk(child)

    return set(walk(symtable.symtable(ast.unparse(node), "answer", "exec")))


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

    return ast.fix_missing_locations(Settle().visit(ast.Module(body, []))).body
