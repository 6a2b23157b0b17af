"""The contract of an adaptation method, and everything that is the same for all of them.

A method is one file: an `Adapter` (a pytree dataclass: the method's data at one place of the model), an `init` that
makes them, and a row of data about both (`method.py`). The laws, each tested over every row of the registry:

1. At the start the adapted model equals the base; one that has a prompt equals the base with the prompt in front.
2. The merged model gives the same logits as the attached one.
3. Gradients reach everything in `adapters`, and nothing else exists to receive one; the base never changes.
4. `x @ adapted` has the dtype of `x`; values (alpha, dropout rate, ...) are data, so that others do not compile again.
5. Every leaf of a stacked adapter leads with L; `identity` makes the adapter that changes nothing.

Two twin trees hold the adapters. `adapters` holds what trains and has None where its twin, `constants`, holds what is
data but does not train; both mirror the parts of `params` that they change. R is the rank, L the layers.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lora_jax.errors import InputError
from lora_jax.weights import Biased, Weight, dense, pytree

Tree = Any  # nested dicts that mirror `params`


class Adapter:
    """One method's data at one place of the model: a weight `w`, which is an array or another `Weight`.

    `merge` is all that a method at a weight must have: the others follow from it. A method overrides those that it can
    do without forming the matrix.
    """

    adds: ClassVar[bool] = False  # whether it stands where the base has nothing
    over_bias: ClassVar[bool] = False  # whether it changes `x @ w + b`; else `x @ w`, and never sees a bias

    def merge(self, w: Any) -> Any:
        """The adapted weight as a plain array in the dtype of `w`: `Biased` where the method makes or has a bias."""
        raise TypeError(f"{type(self).__name__} cannot be merged")

    def identity(self, w: Any) -> Any:
        """An adapter of this one's shapes, stacked over all layers of the stacked `w`, that leaves `w` as it is."""
        raise TypeError(f"{type(self).__name__} cannot stand on some layers only")

    def matmul(self, x: Float[Array, "... in"], w: Any) -> Float[Array, "... out"]:
        """`x @ (w, adapted)`, in the dtype of `x`."""
        return x @ self.merge(w)

    def rows(self, ids: Int[Array, "..."], w: Any) -> Float[Array, "... out"]:
        """Rows of the adapted matrix, for an embedding."""
        return self.merge(w)[ids]

    def transposed(self, w: Any) -> Any:
        """The adapted weight's transpose, for a tied head."""
        return self.merge(w).T

    def onto(self, w: Any) -> Any:
        """What stands in the place of `w` in the attached tree."""
        return _inside_bias(lambda w: Adapted(w, self), w, self.over_bias)

    def randomize(self, key: PRNGKeyArray) -> Any:
        """This adapter with the randomness of one training step in it (dropout); itself where it has none."""
        return self

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise InputError where this adapter cannot stand on a weight of (..., in, out) `shape`; where the base has
        nothing, the shape is that of the embedding, (V, D)."""


@pytree
class Adapted(Weight):
    """A frozen weight with an adapter on it. Nests: `Adapted(Adapted(w, one), other)`."""

    w: Any
    adapter: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w.shape

    @property
    def dtype(self) -> Any:
        return self.w.dtype

    def __rmatmul__(self, x: Float[ArrayLike, "... in"]) -> Float[Array, "... out"]:
        return self.adapter.matmul(jnp.asarray(x), self.w)

    def __getitem__(self, ids: Int[ArrayLike, "..."]) -> Float[Array, "... out"]:
        return self.adapter.rows(jnp.asarray(ids), self.w)

    @property
    def T(self) -> Any:
        return self.adapter.transposed(self.w)

    def merged(self) -> Any:
        w = _inside_bias(_merged, self.w)
        return _inside_bias(self.adapter.merge, w, self.adapter.over_bias)

    def dense(self, dtype: Any = None) -> Float[Array, " ... in out"]:
        return dense(self.merged(), dtype)


def _merged(w: Any) -> Any:
    return w.merged() if isinstance(w, Adapted) else w


def _inside_bias(change: Callable[[Any], Any], w: Any, over: bool = False) -> Any:
    """`change(w)`; of a biased weight the matrix alone is changed, unless the change stands over the bias too."""
    return Biased(change(w.w), w.b) if isinstance(w, Biased) and not over else change(w)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class ByLayer:
    """Adapters that differ from layer to layer: `parts[i]` is stacked over the layers `layers[i]`, unpadded."""

    parts: tuple[Any, ...]
    layers: tuple[tuple[int, ...], ...]  # static

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], Any]:
        # The key says the layers, so that a checkpoint of other layers' adapters is seen not to fit.
        keys = (jax.tree_util.DictKey("layers_" + "_".join(map(str, at))) for at in self.layers)
        return tuple(zip(keys, self.parts, strict=True)), self.layers

    @classmethod
    def tree_unflatten(cls, layers: Any, parts: Any) -> ByLayer:
        return cls(tuple(parts), layers)

    def spread(self, i: int, w: Any) -> Any:
        """Part i scattered over all layers of `w`, which the parts before it stand on, onto the method's identity."""
        part, at = self.parts[i], jnp.asarray(self.layers[i])
        return jax.tree.map(lambda whole, leaf: whole.at[at].set(leaf, unique_indices=True), part.identity(w), part)


def parts_of(node: Any) -> tuple[Any, ...]:
    """The adapters of one place: one, or one for each group of layers."""
    return node.parts if isinstance(node, ByLayer) else (node,)


def is_adapter(node: Any) -> bool:
    return isinstance(node, Adapter | ByLayer)


def combine(adapters: Tree, constants: Tree) -> Tree:
    """The twins as one tree of whole adapters."""
    try:
        return jax.tree.map(lambda a, c: c if a is None else a, adapters, constants, is_leaf=lambda x: x is None)
    except ValueError as error:
        raise InputError(f"adapters and constants are not twins: {error}") from error


def partition(tree: Tree, trains: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Whole adapters as twins: `(adapters, constants)`, by whether the field's name `trains`."""

    def keep(adapter: Any, kept: Callable[[str], bool]) -> Any:
        fields = (field.name for field in dataclasses.fields(adapter))
        return dataclasses.replace(adapter, **{name: None for name in fields if not kept(name)})

    def side(kept: Callable[[str], bool]) -> Tree:
        return jax.tree.map(lambda a: keep(a, kept), tree, is_leaf=lambda x: isinstance(x, Adapter))

    return side(trains), side(lambda name: not trains(name))


def attach(params: Tree, adapters: Tree, constants: Tree, key: PRNGKeyArray | None = None) -> Tree:
    """`params` with each adapter in its place, a targeted weight wrapped in `Adapted`: nothing is computed or copied.

    `params` itself is left as it is, and may carry adapters already. A `key` turns on what is random in training
    (dropout); without one there is none. Raises InputError where the adapters belong to another base.
    """

    def place(here: Any, node: Any, path: str) -> Any:
        if not isinstance(node, Mapping):
            return _adapt(here, node, path, key, params)
        if not isinstance(here, Mapping):
            raise InputError(f"the adapters have {_join(path, next(iter(node)))}, which this base lacks: another base?")
        return {**here, **{name: place(here.get(name), child, _join(path, name)) for name, child in node.items()}}

    return place(params, combine(adapters, constants), "")


def _adapt(w: Any, node: Any, path: str, key: PRNGKeyArray | None, params: Tree) -> Any:
    parts = parts_of(node)
    if w is None and not all(adapter.adds for adapter in parts):
        raise InputError(f"the adapters have {path}, which this base lacks: another base?")
    stacked = w is not None and len(w.shape) == 3
    for i, adapter in enumerate(parts):
        layers = node.layers[i] if isinstance(node, ByLayer) else range(w.shape[0]) if stacked else ()
        if stacked and (
            max(layers) >= w.shape[0] or any(x.shape[:1] != (len(layers),) for x in jax.tree.leaves(adapter))
        ):
            raise InputError(f"{path}: the adapter's layers do not match the base's {w.shape[0]} layers: another base?")
        adapter.check(path, params["embed_tokens"].shape if w is None else w.shape)
    for i, adapter in enumerate(parts):
        if isinstance(node, ByLayer):
            adapter = node.spread(i, w)
        if key is not None:
            adapter = adapter.randomize(jax.random.fold_in(key, zlib.crc32(f"{path}/{i}".encode())))
        w = adapter.onto(w)
    return w


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def is_adapted(node: Any) -> bool:
    return isinstance(node, Adapted)


@jax.jit
def _merge(adapted: list[Adapted]) -> list[Any]:
    return [jax.lax.map(Adapted.merged, w) if len(w.shape) == 3 else w.merged() for w in adapted]  # a layer at a time


def merge(params: Tree, adapters: Tree, constants: Tree) -> Tree:
    """`params` with the adapters folded in: plain arrays, no latency left. Untouched weights are shared, not copied."""
    leaves, structure = jax.tree.flatten(attach(params, adapters, constants), is_leaf=is_adapted)
    merged = iter(_merge([w for w in leaves if is_adapted(w)]))
    return jax.tree.unflatten(structure, [next(merged) if is_adapted(w) else w for w in leaves])


def count(tree: Tree) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Tree) -> int:
    """How many bytes a tree holds (arrays or shapes)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
