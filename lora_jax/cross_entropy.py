"""The loss in chunks of tokens, so that tokens x vocabulary is never held, forward or backward.

Letters: N tokens, P tokens in a chunk (at most `chunk`), D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK = 256


@partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def cross_entropy(
    head: Callable[[Any, Array], Array],
    w: Any,
    x: Float[Array, "N D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    chunk: int = CHUNK,
) -> Float[Array, ""]:
    """The sum over tokens of weight * -log softmax(head(w, x))[target], in float32; `head` makes the logits (P, V).

    The loss is one number, so its gradient is known up to a factor as soon as a chunk's logits are: it is formed then,
    and the logits are let go, neither kept nor worked out again (as in Liger Kernel, arXiv 2410.10989). The head is a
    function of its weights, so that a tied embedding is transposed where it is multiplied, which costs nothing: outside
    the loop XLA copies it.
    """
    return _forward(head, w, x, targets, weights, chunk)[0]


def _forward(head: Any, w: Any, x: Array, targets: Array, weights: Array, chunk: int) -> Any:
    def one(d_w: Any, part: Any) -> Any:
        x, targets, weights = part
        logits, pull = jax.vjp(head, w, x)  # (P, V)
        z = logits.astype(jnp.float32)
        top = jnp.max(z, axis=-1, keepdims=True)  # (P, 1)
        odds = jnp.exp(z - top)  # (P, V): the one exponential serves the loss and its gradient
        total = jnp.sum(odds, axis=-1, keepdims=True)  # (P, 1)
        nats = (jnp.log(total) + top - jnp.take_along_axis(z, targets[:, None], axis=-1))[:, 0]  # (P,)
        hit = jnp.arange(z.shape[-1]) == targets[:, None]  # (P, V)
        more, dx = pull(((odds / total - hit) * weights[:, None]).astype(logits.dtype))
        return _add(d_w, more), (dx, jnp.sum(nats * weights))

    N, D = x.shape
    chunk = math.ceil(N / math.ceil(N / chunk))  # as even as can be, so that little is padded
    parts = jax.tree.map(lambda a: jnp.pad(a, ((0, -N % chunk),) + ((0, 0),) * (a.ndim - 1)), (x, targets, weights))
    parts = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), parts)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32) if _floats(a) else None, w)
    d_w, (dx, sums) = jax.lax.scan(one, zero, parts)
    return jnp.sum(sums), (w, dx.reshape(-1, D)[:N], d_w)


def _backward(head: Any, chunk: int, kept: Any, d: Array) -> Any:
    w, dx, d_w = kept
    d_w = jax.tree.map(lambda a, g: (d * g).astype(a.dtype) if _floats(a) else None, w, d_w)
    return d_w, (d * dx).astype(dx.dtype), None, None


def _floats(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def _add(total: Any, more: Any) -> Any:
    return jax.tree.map(lambda t, m: t if t is None else t + m, total, more, is_leaf=lambda t: t is None)


cross_entropy.defvjp(_forward, _backward)
