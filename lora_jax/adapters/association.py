"""How `x @ W + s * (x @ A) @ B` is put together: the same number, more or less work.

Letters: N rows of x (tokens), R rank; A is (in, R), B is (R, out).

Beside `x @ W`, two thin products a row cost R * (in + out) multiplications each way and run far below a processor's
rate. Forming `W + s * A @ B` once costs R * in * out, and then one product does for both. A derivative of its own keeps
x alone for the backward pass, forms the sum again there, and never stores it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.weights import Weight


def pays_to_form(x: Any, w: Any) -> bool:
    """Whether to form `W + s * A @ B` for `x @ w`: from shapes and dtypes alone.

    It must be float32: in bfloat16 an update of 7e-4 of W loses most of itself to rounding. The rows must be many, so
    that it never is in decoding.
    """
    if isinstance(w, Weight) or not x.dtype == w.dtype == jnp.float32:
        return False
    d_in, d_out = w.shape
    return math.prod(x.shape[:-1]) * (d_in + d_out) > d_in * d_out


@jax.custom_vjp
def formed(
    x: Float[Array, "*n in"],
    w: Float[Array, "in out"],
    a: Float[Array, "in R"],
    b: Float[Array, "R out"],
    s: Float[Array, ""],
) -> Float[Array, "*n out"]:
    """`x @ (w + s * a @ b)`, all float32. The gradient of `w` is there for whoever asks; else XLA drops it."""
    return x @ (w + s * (a @ b))


def _forward(x: Array, w: Array, a: Array, b: Array, s: Array) -> Any:
    return formed(x, w, a, b, s), (x, w, a, b, s)


def _backward(kept: Any, dy: Array) -> Any:
    x, w, a, b, s = kept
    dx = dy @ (w + s * (a @ b)).T  # (*n, in)
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])  # (N, in), (N, out)
    xa, dyb = x @ a, dy @ b.T  # (N, R)
    da, db = s * (x.T @ dyb), s * (xa.T @ dy)  # (in, R), (R, out)
    return dx, x.T @ dy, da.astype(a.dtype), db.astype(b.dtype), jnp.sum(xa * dyb)


formed.defvjp(_forward, _backward)
