"""The loss in chunks of tokens, so that tokens x vocabulary is never held, forward or backward.

Letters: N tokens, P tokens in a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK = 256


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    x: Float[Array, "N D"], w: Any, targets: Int[Array, "N"], weights: Float[Array, "N"], chunk: int = CHUNK
) -> Float[Array, ""]:
    """The sum over tokens of weight * -log softmax(x @ w)[target], in float32.

    The loss is one number, so its gradient is known up to a factor as soon as a chunk's logits are: it is formed then,
    and the logits are let go, neither kept nor worked out again (as in Liger Kernel, arXiv 2410.10989).
    """
    return _forward(x, w, targets, weights, chunk)[0]


def _forward(x: Array, w: Any, targets: Array, weights: Array, chunk: int) -> Any:
    def one(d_w: Any, part: Any) -> Any:
        x, targets, weights = part
        logits, pull = jax.vjp(lambda x, w: x @ w, x, w)  # (P, V)
        z = logits.astype(jnp.float32)
        lse = jax.nn.logsumexp(z, axis=-1, keepdims=True)  # (P, 1)
        hit = jnp.arange(z.shape[-1]) == targets[:, None]  # (P, V)
        nats = lse[:, 0] - jnp.sum(jnp.where(hit, z, 0.0), axis=-1)  # (P,)
        dx, more = pull(((jnp.exp(z - lse) - hit) * weights[:, None]).astype(logits.dtype))
        return _add(d_w, more), (dx, jnp.sum(nats * weights))

    N, D = x.shape
    parts = jax.tree.map(lambda a: jnp.pad(a, ((0, -N % chunk),) + ((0, 0),) * (a.ndim - 1)), (x, targets, weights))
    parts = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), parts)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32) if _floats(a) else None, w)
    d_w, (dx, sums) = jax.lax.scan(one, zero, parts)
    return jnp.sum(sums), (dx.reshape(-1, D)[:N], d_w, w)


def _backward(chunk: int, kept: Any, d: Array) -> Any:
    dx, d_w, w = kept
    d_w = jax.tree.map(lambda a, g: (d * g).astype(a.dtype) if _floats(a) else None, w, d_w)
    return (d * dx).astype(dx.dtype), d_w, None, None


def _floats(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def _add(total: Any, more: Any) -> Any:
    return jax.tree.map(lambda t, m: t if t is None else t + m, total, more, is_leaf=lambda t: t is None)


cross_entropy.defvjp(_forward, _backward)
