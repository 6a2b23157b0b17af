"""Causal attention within segments, by name: the same function computed three ways.

Letters: B batch, T queries, S keys (the last T of them the queries' own, those before from a cache), H query heads,
K key/value heads, G = H / K, C head size, P a block's length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.errors import InputError

LOWEST = jnp.finfo(jnp.float32).min / 2  # a hidden score: far below any other, and its sums stay finite
BLOCK = 256


def scores(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
) -> Float[Array, "B T H C"]:
    """The textbook's way: all T x S scores at once, in float32.

    H / K query heads share a key/value head (arXiv 2305.13245) and are grouped beside it, so that keys and values are
    never repeated.
    """
    B, T, H, C = q.shape
    S, K = k.shape[1:3]
    q = q.reshape(B, T, K, H // K, C)
    s = jnp.einsum("btkgc,bskc->bkgts", q, k, preferred_element_type=jnp.float32) * C**-0.5  # (B, K, G, T, S)
    causal = jnp.arange(S)[None, :] <= jnp.arange(T)[:, None] + (S - T)  # (T, S)
    visible = causal & (q_segments[:, :, None] == k_segments[:, None, :])  # (B, T, S)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], s, LOWEST), axis=-1).astype(v.dtype)  # (B, K, G, T, S)
    return jnp.einsum("bkgts,bskc->btkgc", weights, v).reshape(B, T, H, C)


def blocks(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
) -> Float[Array, "B T H C"]:
    """A block of queries against a block of keys at a time: T x S scores are never held, forward or backward.

    The softmax is kept up as blocks come in (online softmax, arXiv 1805.02867), and the backward pass works the scores
    out again from the saved log-sum-exp (FlashAttention, arXiv 2205.14135). Blocks that no query sees are not visited.
    """
    B, T, H, C = q.shape
    S, K = k.shape[1:3]
    before = -(S - T) % BLOCK  # empty slots in front, so that the queries' own keys begin a block
    k, v, k_segments = (_pad(x, before, -T % BLOCK) for x in (k, v, k_segments + 1))
    q, q_segments = (_pad(x, 0, -T % BLOCK) for x in (q, q_segments + 1))
    q = q.reshape(B, -1, K, H // K, C)
    out = _blocks(_cut(q), _cut(k), _cut(v), _cut(q_segments), _cut(k_segments))  # (T/P, B, P, K, G, C)
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, H, C)[:, :T]


def _pad(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, ((0, 0), (before, after)) + ((0, 0),) * (x.ndim - 2))


def _cut(x: Array) -> Array:
    return jnp.moveaxis(x.reshape(x.shape[0], -1, BLOCK, *x.shape[2:]), 1, 0)  # (T/P, B, P, ...)


def _block_scores(q: Array, k: Array, q_segments: Array, k_segments: Array, ahead: Any) -> Array:
    """The scores of one block; `ahead` is how many positions its first query stands beyond its first key."""
    s = jnp.einsum("btkgc,bskc->bkgts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    causal = jnp.arange(BLOCK)[None, :] <= jnp.arange(BLOCK)[:, None] + ahead  # (P, P)
    visible = causal & (q_segments[:, :, None] == k_segments[:, None, :])  # (B, P, P)
    return jnp.where(visible[:, None, None], s, LOWEST)  # (B, K, G, P, P)


@jax.custom_vjp
def _blocks(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array) -> Array:
    return _forward(q, k, v, q_segments, k_segments)[0]


def _forward(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array) -> Any:
    skip = k.shape[0] - q.shape[0]  # blocks of keys from the cache
    _, B, P, K, G, C = q.shape

    def one(i: Array) -> tuple[Array, Array]:
        def add(j: Array, state: Any) -> Any:
            top, total, out = state  # (B, K, G, P), (B, K, G, P), (B, K, G, P, C)
            s = _block_scores(q[i], k[j], q_segments[i], k_segments[j], (i + skip - j) * BLOCK)
            new_top = jnp.maximum(top, s.max(-1))
            weights, fade = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
            out = out * fade[..., None] + jnp.einsum(
                "bkgts,bskc->bkgtc", weights.astype(v.dtype), v[j], preferred_element_type=jnp.float32
            )
            return new_top, total * fade + weights.sum(-1), out

        start = (jnp.full((B, K, G, P), LOWEST), jnp.zeros((B, K, G, P)), jnp.zeros((B, K, G, P, C)))
        top, total, out = jax.lax.fori_loop(0, i + skip + 1, add, start)
        return jnp.moveaxis(out / total[..., None], 3, 1).astype(q.dtype), top + jnp.log(total)

    out, lse = jax.lax.map(one, jnp.arange(q.shape[0]))  # (T/P, B, P, K, G, C), (T/P, B, K, G, P)
    return out, (q, k, v, q_segments, k_segments, out, lse)


def _backward(kept: Any, d_out: Array) -> Any:
    q, k, v, q_segments, k_segments, out, lse = kept
    skip, scale = k.shape[0] - q.shape[0], q.shape[-1] ** -0.5
    delta = jnp.einsum("nbtkgc,nbtkgc->nbkgt", out.astype(jnp.float32), d_out.astype(jnp.float32))

    def one(state: tuple[Array, Array], i: Array) -> Any:
        def add(j: Array, state: Any) -> Any:
            dq, dk, dv = state
            s = _block_scores(q[i], k[j], q_segments[i], k_segments[j], (i + skip - j) * BLOCK)
            weights = jnp.exp(s - lse[i][..., None])  # (B, K, G, P, P)
            d_weights = jnp.einsum("btkgc,bskc->bkgts", d_out[i], v[j], preferred_element_type=jnp.float32)
            ds = (weights * (d_weights - delta[i][..., None]) * scale).astype(q.dtype)  # (B, K, G, P, P)
            dv = dv.at[j].add(_f32("bkgts,btkgc->bskc", weights.astype(q.dtype), d_out[i]))
            dk = dk.at[j].add(_f32("bkgts,btkgc->bskc", ds, q[i]))
            return dq + _f32("bkgts,bskc->btkgc", ds, k[j]), dk, dv

        dq, dk, dv = jax.lax.fori_loop(0, i + skip + 1, add, (jnp.zeros(q.shape[1:]), *state))
        return (dk, dv), dq.astype(q.dtype)

    zeros = (jnp.zeros(k.shape), jnp.zeros(v.shape))
    (dk, dv), dq = jax.lax.scan(one, zeros, jnp.arange(q.shape[0]))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_f32 = partial(jnp.einsum, preferred_element_type=jnp.float32)
_blocks.defvjp(_forward, _backward)


def cudnn(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array) -> Array:
    """cuDNN's fused kernel, as JAX offers it, in float16 or bfloat16. Not yet run: that takes an NVIDIA GPU."""
    S, T = k.shape[1], q.shape[1]
    causal = jnp.arange(S)[None, :] <= jnp.arange(T)[:, None] + (S - T)  # (T, S)
    visible = causal & (q_segments[:, :, None] == k_segments[:, None, :])  # (B, T, S)
    return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None], implementation="cudnn")


def choose(name: str, T: int) -> Callable[..., Array]:
    """The function of that name; "auto" takes blocks where T fills more than one. Raises InputError for another."""
    if name == "auto":
        name = "blocks" if T > BLOCK else "scores"
    if name not in ATTENTIONS:
        raise InputError(f"there is no attention {name!r}: choose auto, {', '.join(ATTENTIONS)}")
    return ATTENTIONS[name]


ATTENTIONS: dict[str, Callable[..., Array]] = {"scores": scores, "blocks": blocks, "cudnn": cudnn}
