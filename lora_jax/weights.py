"""A weight is anything you can right-multiply by.

The transformer only ever writes `x @ w`, `w[ids]` and `w.T`. A plain array does all three. So does every subclass of
`Weight`: a pytree dataclass whose fields are ordinary arrays, so that `jit`, `grad`, `scan` over stacked layers, `vmap`
and donation see nothing special. Adapters and quantized matrices are weights too, and combine by nesting.

A weight's matrix is (in, out). Stacked weights carry leading axes in front of it: (L, in, out) for L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


@dataclass_transform(frozen_default=True)
def pytree(cls: type) -> type:
    """Make `cls` a frozen dataclass that JAX sees as a tree of its fields, each of them data and none static."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class Weight:
    """What a weight offers. Laws, for every weight `w` with matrix `W = w.dense()`:

    - `x @ w` equals `x @ W` (plus a bias where it has one), has `x.dtype`, and sums in float32;
    - `w[ids]` equals `W[ids]`, and `w.T.dense()` equals `W.T`;
    - `w.shape` and `w.dtype` are those of `W`, leading axes included.
    """

    # Without this line `numpy_array @ weight` would try to make an array of the weight and fail.
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, ...]:
        raise TypeError(f"{type(self).__name__} does not say its shape")

    @property
    def dtype(self) -> Any:
        raise TypeError(f"{type(self).__name__} does not say its dtype")

    def __rmatmul__(self, x: Float[ArrayLike, "... in"]) -> Float[Array, "... out"]:
        raise TypeError(f"{type(self).__name__} cannot be multiplied")

    def __getitem__(self, ids: Int[ArrayLike, "..."]) -> Float[Array, "... out"]:
        raise TypeError(f"{type(self).__name__} has no rows to look up: it cannot serve as an embedding")

    @property
    def T(self) -> Any:
        raise TypeError(f"{type(self).__name__} has no transpose: it cannot serve as a tied head")

    def dense(self, dtype: Any = None) -> Float[Array, " ... in out"]:
        """The matrix as a plain array, without any bias."""
        raise TypeError(f"{type(self).__name__} has no dense form")


@pytree
class Biased(Weight):
    """`x @ w + b`: a weight with a bias, as Qwen2's q, k and v have."""

    w: Any  # (..., in, out)
    b: Any  # (..., out)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w.shape

    @property
    def dtype(self) -> Any:
        return self.w.dtype

    def __rmatmul__(self, x: Float[ArrayLike, "... in"]) -> Float[Array, "... out"]:
        return matmul_f32(x, self.w, self.b.astype(jnp.float32))

    def dense(self, dtype: Any = None) -> Float[Array, " ... in out"]:
        return dense(self.w, dtype)


@jax.custom_vjp
def product_f32(x: Float[Array, "... in"], w: Float[Array, "*many in out"]) -> Float[Array, "... out"]:
    """`x @ w` in the dtype of `x`, summed and left in float32; `w` is one matrix, or as many as `x` is.

    Its gradient comes in float32 therefore, and autodiff would multiply it in float32 too: with `w`, `x` and the
    gradient as float32 copies beside the bfloat16 ones, and slowly. Here it is rounded to the dtype of `x` first, which
    it had before it was rounded up, and multiplied in that, sums again in float32; the gradient of `w` is not rounded.
    """
    return jnp.matmul(x, w.astype(x.dtype), preferred_element_type=jnp.float32)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return product_f32(x, w), (x, w)


def _backward(kept: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, w = kept
    d = d.astype(x.dtype)  # (..., n, out)
    d_x = jnp.matmul(d, w.astype(x.dtype).mT, preferred_element_type=jnp.float32)  # (..., n, in)
    many = "...ni,...no->...io" if w.ndim > 2 else "...i,...o->io"
    d_w = jnp.einsum(many, x, d, preferred_element_type=jnp.float32)  # (..., in, out)
    return d_x.astype(x.dtype), d_w.astype(w.dtype)


product_f32.defvjp(_forward, _backward)


def rows(w: Any, ids: Int[Array, "..."]) -> Float[Array, "... out"]:
    """`w[ids]`. A row's gradient is summed in float32, over all the places where it is read, and rounded once.

    Autodiff sums it in the dtype of `w`. In bfloat16 the sum stops growing after a few hundred terms, and of a token
    that a batch holds thousands of times most is lost.
    """
    return _rows(w, ids) if not isinstance(w, Weight) and w.dtype.itemsize < 4 else w[ids]


@jax.custom_vjp
def _rows(w: Array, ids: Array) -> Array:
    return w[ids]


def _rows_forward(w: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return w[ids], (w, ids[..., None])  # (..., 1): where autodiff keeps them


def _rows_backward(kept: tuple[Array, Array], d: Array) -> tuple[Array, None]:
    w, ids = kept
    # As many sums as there are tokens, N, and not as there are rows: less to hold in float32.
    which, place = jnp.unique(ids, return_inverse=True, size=ids.size, fill_value=w.shape[0])  # (N,) each
    flat = d.reshape(ids.size, -1).astype(jnp.float32)  # (N, out)
    sums = jax.ops.segment_sum(flat, place.ravel(), ids.size).astype(w.dtype)  # (N, out)
    return jnp.zeros_like(w).at[which].add(sums, mode="drop"), None


_rows.defvjp(_rows_forward, _rows_backward)


def matmul_f32(x: Any, w: Any, add: Any) -> Any:
    """`x @ w + add` for a float32 `add`, summed in float32 and rounded to `x.dtype`.

    It is rounded once where `w` is an array. A `Weight` hands back a product that is in `x.dtype` already.
    """
    x = jnp.asarray(x)
    product = x @ w if isinstance(w, Weight) else product_f32(x, w)
    return (product.astype(jnp.float32) + add).astype(x.dtype)


def dense(w: Any, dtype: Any = None) -> Any:
    """The matrix of `w`, which is an array or a `Weight`, in `dtype` (its own where none is given)."""
    matrix = w.dense(dtype) if isinstance(w, Weight) else w
    return matrix if dtype is None else matrix.astype(dtype)


def split_bias(w: Any) -> tuple[Any, Any]:
    """`(matrix, bias)` of a weight; the bias is None where there is none."""
    return (w.w, w.b) if isinstance(w, Biased) else (w, None)


def is_weight(node: Any) -> bool:
    """Where a walk over a tree of parameters should stop: at weights, not at the arrays inside them."""
    return isinstance(node, Weight)
