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

from lora_jax.adapters.base import ByLayer, Tree, combine, is_adapter
from lora_jax.adapters.method import Option
from lora_jax.errors import InputError
from lora_jax.untrusted import patterns

NO_WEIGHTS = ("prompt", "past")  # what `params` may hold beside the weights
SHORTHANDS = {"all-linear": "layers.", "attention": ".self_attn.", "mlp": ".mlp."}


def read_targets(text: str) -> str | list[str]:
    """Targets from the command line: plain names with commas between, else a shorthand or a regular expression."""
    names = text.split(",")
    plain = all(name.replace("_", "").isalnum() for name in names)
    return names if plain and text not in SHORTHANDS else text


TARGETS = Option(
    "all-linear, attention, mlp, names with commas between, or a regular expression",
    read=read_targets,
    examples=(r"layers\.(0|2)\.(self_attn\.(q|v)|mlp\.down)_proj", ["lm_head", "k_proj"], "attention", "mlp"),
)


def _stacks(params: Tree) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each matrix in `params` as (path, weight); a weight of the layers is stacked over them."""

    def walk(node: Any, path: tuple[str, ...]) -> Iterator[Any]:
        if isinstance(node, Mapping):
            for name, child in node.items():
                yield from walk(child, (*path, name))
        elif len(node.shape) == (3 if path[0] == "layers" else 2):
            yield path, node

    yield from walk({name: node for name, node in params.items() if name not in ("layers", *NO_WEIGHTS)}, ())
    yield from walk(params["layers"], ("layers",))


def _names(path: tuple[str, ...], w: Any) -> list[str]:
    """The names of the matrices that stand at a path: one a layer where they are stacked."""
    if path[0] != "layers":
        return [".".join(path)]
    return [".".join(("layers", str(layer), *path[1:])) for layer in range(w.shape[0])]


def matrices(params: Tree) -> dict[str, Callable[[], Any]]:
    """Every matrix by its name; the value, when called, is that layer's weight of (in, out)."""
    return {
        name: partial(_layer, w, i if path[0] == "layers" else None)
        for path, w in _stacks(params)
        for i, name in enumerate(_names(path, w))
    }


def _layer(w: Any, i: int | None) -> Any:
    return w if i is None else jax.tree.map(lambda leaf: leaf[i], w)


def shapes(params: Tree) -> dict[str, tuple[int, int]]:
    """The (in, out) of every matrix by its name."""
    return {name: tuple(w.shape[-2:]) for path, w in _stacks(params) for name in _names(path, w)}


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
        tests = {targets: set(patterns.fullmatch(targets, names, "targets=")).__contains__}
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
    tree: Tree = {}
    for path, w in _stacks(params):
        names = _names(path, w)
        groups: dict[Hashable, list[int]] = {}
        for i, name in enumerate(names):
            if name in kinds:
                groups.setdefault(kinds[name], []).append(i)
        if not groups:
            continue
        parts = tuple(make([names[i] for i in at]) for at in groups.values())
        node: Any = ByLayer(parts, tuple(map(tuple, groups.values())))
        if path[0] != "layers":
            node = jax.tree.map(lambda leaf: leaf[0], parts[0])
        elif [*groups.values()] == [[*range(len(names))]]:
            node = parts[0]
        parent = tree
        for part in path[:-1]:
            parent = parent.setdefault(part, {})
        parent[path[-1]] = node
    return tree


def stack(params: Tree, named: Mapping[str, Any]) -> Tree:
    """One adapter a name, as such a tree; what stands at no matrix keeps its name."""

    def kind(adapter: Any) -> Hashable:
        leaves, structure = jax.tree.flatten(adapter)
        return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)

    def make(names: list[str]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(named[name] for name in names))

    added = {name: adapter for name, adapter in named.items() if adapter.adds}
    return build(params, {name: kind(adapter) for name, adapter in named.items() if name not in added}, make) | added


def unstack(params: Tree, adapters: Tree, constants: Tree) -> dict[str, Any]:
    """One whole adapter a name: the inverse of `stack`, for files."""
    whole = combine(adapters, constants)
    named = {name: node for name, node in whole.items() if is_adapter(node) and node.adds}
    for path, w in _stacks(params):
        node = whole
        for part in path:
            node = (node or {}).get(part)
        if node is None:
            continue
        if path[0] != "layers":
            named[".".join(path)] = node
            continue
        names = _names(path, w)
        by_layer = node if isinstance(node, ByLayer) else ByLayer((node,), (tuple(range(len(names))),))
        for part, layers in zip(by_layer.parts, by_layer.layers, strict=True):
            for row, i in enumerate(layers):
                named[names[i]] = jax.tree.map(lambda leaf, row=row: leaf[row], part)
    return named
