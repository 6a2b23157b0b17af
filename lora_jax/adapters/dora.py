"""DoRA (Liu et al. 2024, arXiv 2402.09353): LoRA turns each column of W, and a trained magnitude sets its length.

`x @ (W + s * A @ B) * m / ||W + s * A @ B||`, the norm of each column held out of the gradient (section 4.3 there). It
costs forming W + s * A @ B, a layer at a time, in every pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lora_jax.adapters import lora, placement
from lora_jax.adapters.base import Adapter, Tree, partition
from lora_jax.errors import InputError
from lora_jax.weights import dense, pytree


@pytree
class DoRA(lora.LoRA):
    """LoRA's fields, and the length of each column of the adapted matrix."""

    magnitude: Any = None  # (..., out)

    def matmul(self, x: Float[Array, "... in"], w: Any) -> Float[Array, "... out"]:
        return (super().matmul(x, w).astype(jnp.float32) * self._ratio(w)).astype(x.dtype)

    def merge(self, w: Any) -> Any:
        return (self._sum(w) * self._ratio(w)[..., None, :]).astype(w.dtype)  # (..., in, out)

    def identity(self, w: Any) -> Any:
        none = super().identity(w)  # factors that change nothing, so that the lengths are those of w
        return dataclasses.replace(none, magnitude=jax.lax.map(lengths, w).astype(self.magnitude.dtype))  # type: ignore[call-arg]

    rows = Adapter.rows  # a column's length needs the whole column: there is no shorter way than to merge
    transposed = Adapter.transposed

    def _sum(self, w: Any) -> Float[Array, "*L in out"]:
        return dense(w, jnp.float32) + self.scaling[..., None, None] * (self.a @ self.b)

    def _ratio(self, w: Any) -> Float[Array, "*L out"]:
        return self.magnitude / lengths(self._sum(w))


def lengths(w: Any) -> Float[Array, "*L out"]:
    """The length of each column of a matrix, in float32, as a number that nothing is learned through."""
    return jax.lax.stop_gradient(jnp.linalg.norm(dense(w, jnp.float32), axis=-2))


@wraps(lora.init, assigned=())  # the same options
def init(key: PRNGKeyArray, params: Tree, **options: Any) -> tuple[Tree, Tree]:
    """Fresh `(adapters, constants)`: LoRA's, and the lengths of W's columns as magnitudes. It starts as the base.

    Takes and refuses what LoRA's `init` does.
    """
    named, weights = placement.unstack(params, *lora.init(key, params, **options)), placement.matrices(params)
    whole = {
        name: DoRA(one.a, one.b, one.scaling, one.dropout, magnitude=lengths(weights[name]()).astype(one.b.dtype))
        for name, one in named.items()
    }
    trains = {"b", "magnitude"} if options.get("freeze_a") else PEFT.trains
    return partition(placement.stack(params, whole), lambda field: field in trains)


def tensors(path: str, adapter: Any) -> dict[str, Any]:
    """LoRA's, and PEFT's `lora_magnitude_vector` (out,)."""
    return lora.tensors(path, adapter) | {"lora_magnitude_vector": np.asarray(adapter.magnitude)}


def from_peft(path: str, tensors: dict[str, Any], settings: Mapping[str, Any]) -> DoRA:
    """The adapter of one module, in float32."""
    one = lora.from_peft(path, tensors, settings)
    if "lora_magnitude_vector" not in tensors:
        raise InputError(f"the tensor {path}.lora_magnitude_vector is missing, which DoRA needs")
    magnitude = jnp.asarray(tensors.pop("lora_magnitude_vector"), jnp.float32)
    if magnitude.shape != one.b.shape[-1:]:
        raise InputError(f"{path} has magnitudes {magnitude.shape}, and lora_B is for {one.b.shape[-1]} outputs")
    return DoRA(one.a, one.b, one.scaling, one.dropout, magnitude=magnitude)


PEFT = dataclasses.replace(
    lora.PEFT,
    marks={**lora.PEFT.marks, "use_dora": True},
    tensors=tensors,
    adapter=from_peft,
    trains=lora.PEFT.trains | {"magnitude"},
    refused=tuple(name for name in lora.PEFT.refused if name != "use_dora"),
)

METHOD = dataclasses.replace(
    lora.METHOD,
    title="DoRA",
    paper="Liu et al. 2024, arXiv 2402.09353",
    change="x @ (W + s * A @ B) * m / ||W + s * A @ B||",
    init=init,
    adapter=DoRA,
    peft=PEFT,
)
