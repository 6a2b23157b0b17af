"""Names for the matrices of a model, and adapters given by name as a tree that mirrors it.

A name is one matrix of one layer: "layers.3.self_attn.q_proj"; or "embed_tokens", "lm_head". Methods make and files
hold one adapter a name, or make those of a matrix's layers at once; `stack` and `build` turn them into the stacked tree
that `attach` takes, `unstack` back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.adapters.base import ByLayer, Tree, combine
from lora_jax.errors import InputError

SHORTHANDS = {"all-linear": "layers.", "attention": ".self_attn.", "mlp": ".mlp."}


def _stacks(params: Tree) -> Iterator[tuple[tuple[Any, ...], Any, int | None]]:
    """Each matrix in `params` as (path, weight, number of its first layer); None where it is not stacked."""

    def walk(node: Any, path: tuple[Any, ...], first: int | None) -> Iterator[Any]:
        if isinstance(node, Mapping):
            for name, child in node.items():
                yield from walk(child, (*path, name), first)
        elif len(node.shape) == (2 if first is None else 3):
            yield path, node, first

    yield from walk({k: v for k, v in params.items() if k != "layers"}, (), None)
    runs, first = params["layers"], 0
    for i, run in enumerate(runs if isinstance(runs, tuple) else (runs,)):
        yield from walk(run, ("layers", i) if isinstance(runs, tuple) else ("layers",), first)
        first += jax.tree.leaves(run)[0].shape[0]


def _each(params: Tree) -> Iterator[tuple[str, Any, int | None]]:
    """Each matrix by its name, with the weight that it is a layer of and which one; None where it is not stacked."""
    for path, w, first in _stacks(params):
        if first is None:
            yield ".".join(path), w, None
        else:
            yield from ((_name(path, first + i), w, i) for i in range(w.shape[0]))


def matrices(params: Tree) -> dict[str, Callable[[], Any]]:
    """Every matrix by its name; the value, when called, is that layer's weight of (in, out)."""
    return {name: partial(_layer, w, i) for name, w, i in _each(params)}


def shapes(params: Tree) -> dict[str, tuple[int, int]]:
    """The (in, out) of every matrix by its name."""
    return {name: tuple(w.shape[-2:]) for name, w, _ in _each(params)}


def _layer(w: Any, i: int | None) -> Any:
    return w if i is None else jax.tree.map(lambda leaf: leaf[i], w)


def _name(path: tuple[Any, ...], layer: int) -> str:
    return ".".join(["layers", str(layer), *(part for part in path[1:] if isinstance(part, str))])


def _is_called(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def select(params: Tree, targets: str | Sequence[str]) -> list[str]:
    """The names that `targets` picks, in order.

    A list holds names, whole or their last part ("q_proj"). A string is "all-linear" (every matrix of every block),
    "attention", "mlp", or a regular expression that must match a whole name. Raises InputError when a target matches
    nothing, listing what could have been matched.
    """
    names = list(shapes(params))
    if isinstance(targets, str) and targets in SHORTHANDS:
        tests: dict[str, Callable[[str], bool]] = {targets: lambda name: SHORTHANDS[targets] in name}
    elif isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise InputError(f"targets={targets!r} is not a regular expression: {error}") from error
        tests = {targets: lambda name: pattern.fullmatch(name) is not None}
    else:
        tests = {target: partial(_is_called, target) for target in targets}
    unmatched = [target for target, test in tests.items() if not any(map(test, names))]
    if unmatched or not tests:
        kinds = dict.fromkeys(re.sub(r"^layers\.\d+\.", "layers.N.", name) for name in names)
        raise InputError(
            f"no weight matches the target {', '.join(map(repr, unmatched)) or '[]'}; there are: {', '.join(kinds)}"
        )
    return [name for name in names if any(test(name) for test in tests.values())]


def build(params: Tree, kinds: Mapping[str, Hashable], make: Callable[[list[str]], Any]) -> Tree:
    """Adapters for the names in `kinds`, as a tree that mirrors `params`: stacked over layers, unpadded if they differ.

    `make(names)` gives those of some layers of one matrix at once, every leaf with these layers in front: of all that
    are of one kind, which is whatever decides their shapes.
    """
    tree: Tree = {"layers": tuple({} for _ in params["layers"])} if isinstance(params.get("layers"), tuple) else {}
    for path, w, first in _stacks(params):
        names = [".".join(path)] if first is None else [_name(path, first + i) for i in range(w.shape[0])]
        groups: dict[Hashable, list[int]] = {}
        for i, name in enumerate(names):
            if name in kinds:
                groups.setdefault(kinds[name], []).append(i)
        if not groups:
            continue
        parts = tuple(make([names[i] for i in at]) for at in groups.values())
        node: Any = ByLayer(parts, tuple(map(tuple, groups.values())))
        if first is None:
            node = jax.tree.map(lambda leaf: leaf[0], parts[0])
        elif [*groups.values()] == [[*range(len(names))]]:
            node = parts[0]
        parent = tree
        for part in path[:-1]:
            parent = parent[part] if isinstance(part, int) else parent.setdefault(part, {})
        parent[path[-1]] = node
    return tree


def stack(params: Tree, named: Mapping[str, Any]) -> Tree:
    """One adapter a name, as such a tree."""

    def kind(adapter: Any) -> Hashable:
        leaves, structure = jax.tree.flatten(adapter)
        return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)

    def make(names: list[str]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(named[name] for name in names))

    return build(params, {name: kind(adapter) for name, adapter in named.items()}, make)


def unstack(params: Tree, adapters: Tree, constants: Tree) -> dict[str, Any]:
    """One whole adapter a name: the inverse of `stack`, for files."""
    whole, named = combine(adapters, constants), {}
    for path, w, first in _stacks(params):
        node = whole
        for part in path:
            node = node[part] if isinstance(node, tuple) else node.get(part) if node else None
        if node is None:
            continue
        if first is None:
            named[".".join(path)] = node
            continue
        by_layer = node if isinstance(node, ByLayer) else ByLayer((node,), (tuple(range(w.shape[0])),))
        for part, layers in zip(by_layer.parts, by_layer.layers, strict=True):
            for row, i in enumerate(layers):
                named[_name(path, first + i)] = jax.tree.map(lambda leaf, row=row: leaf[row], part)
    return named
