"""Changes a program in one place, as somebody does who gets it almost right: `mutants(source)` gives all such programs.

An operator, a comparison or a constant becomes another; a term, a call, a condition, a slice or a statement is left
out; two names, arguments or results change places; something is computed, or handed back, in another dtype or rounded.
"""

import ast
import copy
from collections.abc import Iterator

import jax
import ml_dtypes
import numpy as np

OPERATORS = {
    ast.Add: (ast.Sub, ast.Mult), ast.Sub: (ast.Add,), ast.Mult: (ast.Add, ast.Div),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div, ast.Mod, ast.Mult), ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.BitAnd: (ast.BitOr, ast.BitXor), ast.BitOr: (ast.BitAnd,), ast.LShift: (ast.RShift,),
}  # fmt: skip
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult, ast.LShift)  # the others commute
NAMES = {  # of functions and attributes
    "sum": ("max", "min", "mean", "prod", "len"), "max": ("min", "sum"), "min": ("max", "sum"), "mean": ("sum",),
    "cumsum": ("cumprod", "sort"), "argmax": ("argmin", "max"), "argmin": ("argmax",), "all": ("any",), "any": ("all",),
    "ceil": ("floor", "round"), "log": ("log2", "log10", "log1p"), "exp": ("expm1", "exp2", "square"),
    "sqrt": ("square",),
    "log_softmax": ("softmax",), "softmax": ("log_softmax", "sigmoid"), "logsumexp": ("log_softmax",),
    "zeros": ("ones",), "zeros_like": ("ones_like",), "uniform": ("normal",), "hstack": ("vstack",),
    "vstack": ("hstack",), "sorted": ("list", "reversed"), "sort": ("asarray",), "argsort": ("argmax",),
    "float32": ("float16", "bfloat16"), "float64": ("float16",), "inf": ("nan",), "add": ("subtract",),
    "multiply": ("divide",), "prod": ("sum",), "square": ("abs",), "append": ("insert",), "items": ("keys", "values"),
    "roll": ("flip",), "outer": ("inner",), "searchsorted": ("argmax",), "dot": ("multiply",),
}  # fmt: skip
HALVES = ("float16", "bfloat16")


def cast(value, dtype):
    """Every number and array of numbers in it, in that dtype; truth values and words stay as they are."""
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)

    def one(leaf):
        if isinstance(leaf, bool | str | np.bool_) or getattr(leaf, "dtype", None) == np.bool_:
            return leaf
        array = np.asarray(leaf).astype(kind)
        return array if array.ndim else array[()]

    return jax.tree.map(one, value)


def changed(value, how):
    """Every number in it, floored, rounded, negated, one more, and so on."""
    ways = {"floor": np.floor, "round": np.round, "ceil": np.ceil, "abs": np.abs, "minus": lambda v: -v,
            "more": lambda v: v + 1, "twice": lambda v: 2 * v, "a little more": lambda v: v * 1.01}  # fmt: skip
    return jax.tree.map(lambda v: v if isinstance(v, str | bool) else ways[how](np.asarray(v, np.float64)), value)


def mutants(source: str, cases: list[tuple], results: list) -> Iterator[tuple[str, str]]:
    """(what was changed, the changed source) for every one. Sources may call `cast` and `changed` above.

    `cases` and the right `results` of them say which casts and changes are any: of whole numbers, floor is none.
    """
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for what, mutant in (*_inside(tree), *_at_the_edges(tree, cases, results)):
        text = ast.unparse(ast.fix_missing_locations(mutant))
        if text not in seen:  # some changes lead to the same program
            seen.add(text)
            yield what, text


def _inside(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    nodes = list(ast.walk(tree))
    names = _names(tree)
    for number, node in enumerate(nodes):
        for new in _instead(node, names):
            mutant = copy.deepcopy(tree)
            old = list(ast.walk(mutant))[number]
            _replace(mutant, old, new)
            yield f"{getattr(node, 'lineno', 0)}: {ast.unparse(node)}  ->  {ast.unparse(new)}", mutant


def _names(tree: ast.Module) -> list[str]:
    """The names of values: parameters and what is assigned to, in order."""
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    found = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    found += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return [name for name in dict.fromkeys(found) if name not in called]


def _replace(tree: ast.Module, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list):
                value[:] = [new if one is old else one for one in value]


def _instead(node: ast.AST, names: list[str]) -> Iterator[ast.AST]:
    """Nodes that may stand in the place of a node."""
    if isinstance(node, ast.BinOp):
        for other in OPERATORS.get(type(node.op), ()):
            yield ast.BinOp(node.left, other(), node.right)
        yield node.left
        yield node.right
        if isinstance(node.op, ORDERED):
            yield ast.BinOp(node.right, node.op, node.left)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        for other in COMPARISONS:
            yield ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        yield from node.values
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value = node.value
        others = (not value,) if isinstance(value, bool) else (value + 1, value - 1, 0, 2 * value, -value, value / 2)
        for other in others:
            yield ast.Constant(int(other) if other == int(other) and isinstance(value, int) else other)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        for other in names:
            yield ast.Name(other, ast.Load())
    elif isinstance(node, ast.Name) and node.id in NAMES:
        for other in NAMES[node.id]:
            yield ast.Name(other, ast.Load())
    elif isinstance(node, ast.Attribute):
        for other in NAMES.get(node.attr, ()):
            yield ast.Attribute(node.value, other, ast.Load())
        if node.attr == "T":
            yield node.value
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        yield node.value
    elif isinstance(node, ast.Slice):
        yield ast.Slice()
        if node.lower and node.upper:
            yield ast.Slice(upper=node.upper)
            yield ast.Slice(lower=node.lower)
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse, ast.IfExp(node.test, node.orelse, node.body))
    elif isinstance(node, ast.If):
        for test in (ast.Constant(True), ast.Constant(False), ast.UnaryOp(ast.Not(), node.test)):
            yield ast.If(test, node.body, node.orelse)
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield ast.comprehension(node.target, node.iter, [], 0)
    elif isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
        yield ast.Tuple(node.elts[::-1], ast.Load())
        yield ast.Tuple(node.elts[:-1], ast.Load())
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
        keys, values = node.value.keys, node.value.values
        yield ast.Return(ast.Dict(keys, values[1:] + values[:1]))
        yield ast.Return(ast.Dict(keys[1:], values[1:]))
    elif isinstance(node, ast.List) and len(node.elts) > 1:
        yield ast.List(node.elts[:-1], ast.Load())
    elif isinstance(node, ast.AugAssign):
        yield ast.AugAssign(node.target, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.value)
        yield ast.Pass()
    elif isinstance(node, ast.Assign | ast.Expr | ast.For | ast.While) and not _docstring(node):
        yield ast.Pass()


def _docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    """The call left out; its first two arguments swapped; one argument left out."""
    method = isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name)
    yield from node.args[:1]
    if method or (isinstance(node.func, ast.Attribute) and node.func.attr in ("astype", "sum", "max", "ravel")):
        yield node.func.value
    if len(node.args) > 1:
        yield ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
        yield ast.Call(node.func, node.args[:-1], node.keywords)
    for keyword in node.keywords:
        yield ast.Call(node.func, node.args, [one for one in node.keywords if one is not keyword])


def _at_the_edges(tree: ast.Module, cases: list[tuple], results: list) -> Iterator[tuple[str, ast.Module]]:
    """Arguments that are cast or replaced on the way in, and results that are cast or changed on the way out."""
    whole = all(np.array_equal(leaf, np.round(leaf)) for leaf in jax.tree.leaves(results) if not isinstance(leaf, str))
    kinds = [f"cast({{}}, {kind!r})" for kind in (*HALVES, *(("float32",) if whole else ()))]
    ways = [
        *kinds,
        *(f"changed({{}}, {how!r})" for how in ("floor", "round", "minus", "more", "twice", "a little more")),
    ]
    for number, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.Return) and node.value is not None:
            for way in (*(way for way in ways if _matters(way, results)), "[{}]", "str({})"):
                yield (
                    f"{node.lineno}: {way.format('the result')}",
                    _with(tree, number, way.format(ast.unparse(node.value)), returned=True),
                )
        if isinstance(node, ast.FunctionDef) and len(node.args.args) == len(cases[0]):
            for parameter, given in zip((one.arg for one in node.args.args), zip(*cases, strict=True), strict=True):
                for way in (
                    "0",
                    "1",
                    *(way for way in (*kinds, "changed({}, 'minus')", "abs({})") if _matters(way, given)),
                ):
                    text = f"{parameter} = {way.format(parameter)}"
                    yield f"first {text}", _with(tree, number, text, returned=False)


def _matters(way: str, values: tuple | list) -> bool:
    """Whether it changes any number of any of the values."""
    space = {"cast": cast, "changed": changed}
    try:
        made = [eval(way.format("value"), space | {"value": value}) for value in values]  # our own text
    except (TypeError, ValueError, OverflowError):
        return False
    pairs = zip(jax.tree.leaves(made), jax.tree.leaves(values), strict=True)
    return any(not isinstance(old, str | bool) and not np.array_equal(new, old, equal_nan=True) for new, old in pairs)


def _with(tree: ast.Module, number: int, text: str, returned: bool) -> ast.Module:
    mutant = copy.deepcopy(tree)
    node = list(ast.walk(mutant))[number]
    if returned:
        node.value = ast.parse(text, mode="eval").body
    else:
        node.body.insert(1 if _docstring(node.body[0]) else 0, ast.parse(text).body[0])
    return mutant
