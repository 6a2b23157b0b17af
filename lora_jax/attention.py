"""Causal attention within segments, by name: the same function computed three ways.

Each way also gives the log-sum-exp of a query's scores. With it two sets of keys can be attended to apart and joined:
those of a row, and those of a past that stands before every row (`over_past`, `join`).

Letters: B batch, T queries, S keys (the last T of them the queries' own, those before from a cache), P keys of a past,
H query heads, K key/value heads, G = H / K, C head size, N a block's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as keep
from jaxtyping import Array, Bool, Float, Int

from lora_jax.errors import InputError
from lora_jax.weights import product_f32

LOWEST = jnp.finfo(jnp.float32).min / 2  # a hidden score: far below any other, and its sums stay finite
BLOCK = 256


def _visible(q_segments: Int[Array, "B T"], k_segments: Int[Array, "B S"], ahead: Any) -> Bool[Array, "B T S"]:
    """Keys no later than the query, of its segment; the first query stands `ahead` positions beyond the first key."""
    T, S = q_segments.shape[1], k_segments.shape[1]
    causal = jnp.arange(S)[None, :] <= jnp.arange(T)[:, None] + ahead  # (T, S)
    return causal & (q_segments[:, :, None] == k_segments[:, None, :])


def dense(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
) -> tuple[Float[Array, "B T H C"], Float[Array, "B T H"]]:
    """The textbook's way: all T x S scores at once, in float32. The result, and the log-sum-exp of the scores.

    H / K query heads share a key/value head (arXiv 2305.13245) and are grouped beside it, so that keys and values are
    never repeated. Heads go in front, and the queries of a group one under the other: each product is then a plain one,
    and nothing of T x S is ever laid out anew.
    """
    B, T, H, C = q.shape
    S, K = k.shape[1:3]
    q = jnp.moveaxis(q.reshape(B, T, K, H // K, C), 1, 3).reshape(B, K, -1, C)  # (B, K, G * T, C)
    k, v = (jnp.moveaxis(x, 1, 2) for x in (k, v))  # (B, K, S, C)
    out, lse = _at_once(q, k, v, _visible(q_segments, k_segments, S - T))  # (B, K, G * T, C), (B, K, G * T)
    out = jnp.moveaxis(out.reshape(B, K, -1, T, C), 3, 1).reshape(B, T, H, C)
    lse = jnp.moveaxis(lse.reshape(B, K, -1, T), 3, 1).reshape(B, T, H)
    return keep(out, "mixed"), lse


@jax.custom_vjp
def _at_once(q: Array, k: Array, v: Array, visible: Array) -> tuple[Array, Array]:
    return _mix(q, k, v, visible)[0]


def _mix(q: Array, k: Array, v: Array, visible: Array) -> Any:
    (B, T, S), (K, C) = visible.shape, (q.shape[1], q.shape[3])
    s = (product_f32(q, k.mT) * C**-0.5).reshape(B, K, -1, T, S)  # (B, K, G, T, S)
    s = jnp.where(visible[:, None, None], s, LOWEST)
    weights = jax.nn.softmax(s, axis=-1).reshape(B, K, -1, S)  # (B, K, G * T, S)
    lse = jax.nn.logsumexp(s, axis=-1).reshape(B, K, -1)  # (B, K, G * T)
    return (weights.astype(v.dtype) @ v, lse), (q, k, v, weights)


def _unmix(kept: Any, d: tuple[Array, Array]) -> Any:
    """What autodiff would do, in one order for every compiler: rounded weights are let go before their gradient is."""
    (d_out, d_lse), (q, k, v, weights) = d, kept
    d_v = weights.astype(d_out.dtype).mT @ d_out  # (B, K, S, C)
    d_v, d_out, weights = jax.lax.optimization_barrier((d_v, d_out, weights))
    d_weights = product_f32(d_out, v.mT)  # (B, K, G * T, S)
    delta = jnp.sum(weights * d_weights, axis=-1) - d_lse  # as blockwise, below
    d_s = (weights * (d_weights - delta[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)  # (B, K, G * T, S)
    return d_s @ k, d_s.mT @ q, d_v, None


_at_once.defvjp(_mix, _unmix)


def blockwise(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
) -> tuple[Float[Array, "B T H C"], Float[Array, "B T H"]]:
    """A block of queries against a block of keys at a time: T x S scores are never held, forward or backward.

    The softmax is kept up as blocks come in (online softmax, arXiv 1805.02867), and the backward pass works the scores
    out again from the saved log-sum-exp (FlashAttention, arXiv 2205.14135). Blocks that no query sees are not visited.
    The derivative is its own: reverse mode alone.
    """
    B, T, H, C = q.shape
    S, K = k.shape[1:3]
    N = math.ceil(S / math.ceil(S / BLOCK))  # as even as can be, so that little is padded
    before, after = -(S - T) % N, -T % N  # empty slots in front, so that the queries' own keys begin a block

    def cut(x: Array, before: int) -> Array:
        x = jnp.pad(x, ((0, 0), (before, after)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, -1, N, *x.shape[2:]), 1, 0)  # (blocks, B, N, ...)

    # Heads in front, and the queries of a group one under the other: each product is then a plain one.
    queries = jnp.moveaxis(cut(q.reshape(B, T, K, H // K, C), 0), 2, 4).reshape(-1, B, K, H // K * N, C)
    keys, values = (jnp.moveaxis(cut(x, before), 2, 3) for x in (k, v))  # (S/N, B, K, N, C)
    out, lse = _blocks(queries, keys, values, cut(q_segments + 1, 0), cut(k_segments + 1, before))

    def join_blocks(x: Array) -> Array:
        x = x.reshape(-1, B, K, H // K, N, *x.shape[4:])  # (T/N, B, K, G, N, ...)
        return jnp.moveaxis(x, (0, 4), (1, 2)).reshape(B, -1, H, *x.shape[5:])[:, :T]  # (B, T, H, ...)

    return join_blocks(out), join_blocks(lse)


# Q = G * N, the queries of a block that share a key/value head.
_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _block_scores(q: Array, k: Array, q_segments: Array, k_segments: Array, ahead: Any) -> Array:
    """The scores of one block of queries against one of keys, `ahead` as in `_visible`."""
    (B, K, Q, C), N = q.shape, k.shape[2]
    visible = _visible(q_segments, k_segments, ahead)  # (B, N, N)
    s = (_product("bkqc,bksc->bkqs", q, k) * C**-0.5).reshape(B, K, Q // N, N, N)
    return jnp.where(visible[:, None, None], s, LOWEST).reshape(B, K, Q, N)


@jax.custom_vjp
def _blocks(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array) -> tuple[Array, Array]:
    return _forward(q, k, v, q_segments, k_segments)[0]


def _forward(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array) -> Any:
    skip, N = k.shape[0] - q.shape[0], k.shape[3]  # blocks of keys from the cache, and the length of one
    start = jnp.full(q.shape[1:4], LOWEST), jnp.zeros(q.shape[1:4]), jnp.zeros(q.shape[1:])

    def one(i: Array) -> tuple[Array, Array]:
        def add(j: Array, state: Any) -> Any:
            top, total, out = state  # (B, K, Q), (B, K, Q), (B, K, Q, C)
            s = _block_scores(q[i], k[j], q_segments[i], k_segments[j], (i + skip - j) * N)
            new_top = jnp.maximum(top, s.max(-1))
            weights, fade = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
            out = out * fade[..., None] + _product("bkqs,bksc->bkqc", weights.astype(v.dtype), v[j])
            return new_top, total * fade + weights.sum(-1), out

        top, total, out = jax.lax.fori_loop(0, i + skip + 1, add, start)
        return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

    out, lse = jax.lax.map(one, jnp.arange(q.shape[0]))  # (T/N, B, K, Q, C), (T/N, B, K, Q)
    out, lse = keep(out, "mixed"), keep(lse, "log_sum_exp")
    return (out, lse), (q, k, v, q_segments, k_segments, out, lse)


def _backward(kept: Any, d: tuple[Array, Array]) -> Any:
    # A query has scores s_j and weights w_j = exp(s_j - lse). Its result, sum_j w_j v_j, moves with s_j by
    # w_j (v_j - out); its log-sum-exp, log sum_j exp(s_j), by w_j. Together, with delta = d_out . out - d_lse:
    # d_s_j = w_j (d_out . v_j - delta).
    (d_out, d_lse), (q, k, v, q_segments, k_segments, out, lse) = d, kept
    skip, N = k.shape[0] - q.shape[0], k.shape[3]
    delta = _product("nbkqc,nbkqc->nbkq", out, d_out) - d_lse  # (T/N, B, K, Q)

    def one(state: tuple[Array, Array], i: Array) -> Any:
        def add(j: Array, state: Any) -> Any:
            dq, dk, dv = state
            s = _block_scores(q[i], k[j], q_segments[i], k_segments[j], (i + skip - j) * N)
            weights = jnp.exp(s - lse[i][..., None])  # (B, K, Q, N)
            d_weights = _product("bkqc,bksc->bkqs", d_out[i], v[j])
            ds = (weights * (d_weights - delta[i][..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)  # (B, K, Q, N)
            dv = dv.at[j].add(_product("bkqs,bkqc->bksc", weights.astype(q.dtype), d_out[i]))
            dk = dk.at[j].add(_product("bkqs,bkqc->bksc", ds, q[i]))
            return dq + _product("bkqs,bksc->bkqc", ds, k[j]), dk, dv

        dq, dk, dv = jax.lax.fori_loop(0, i + skip + 1, add, (jnp.zeros(q.shape[1:]), *state))
        return (dk, dv), dq.astype(q.dtype)

    zeros = (jnp.zeros(k.shape), jnp.zeros(v.shape))
    (dk, dv), dq = jax.lax.scan(one, zeros, jnp.arange(q.shape[0]))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_blocks.defvjp(_forward, _backward)


def cudnn(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array) -> tuple[Array, None]:
    """cuDNN's fused kernel, as JAX offers it, in float16 or bfloat16. Not yet run: that takes an NVIDIA GPU.

    It gives no log-sum-exp: JAX would hand one on rounded to the dtype of `q`, and let go of its gradient.
    """
    S, T = k.shape[1], q.shape[1]
    visible = _visible(q_segments, k_segments, S - T)  # (B, T, S)
    return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None], implementation="cudnn"), None


def auto(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array) -> tuple[Array, Array]:
    """Blockwise, but for a few queries in front of a cache: the scores of decoding are small and have no derivative."""
    few = q.shape[1] < k.shape[1] and q.shape[1] <= BLOCK
    return (dense if few else blockwise)(q, k, v, q_segments, k_segments)


def over_past(
    q: Float[Array, "B T H C"], k: Float[Array, "P K C"], v: Float[Array, "P K C"]
) -> tuple[Float[Array, "B T H C"], Float[Array, "B T H"]]:
    """Attention to keys that every query of every row sees, in float32, and the log-sum-exp of the scores.

    All queries of all rows stand one under the other, so a head's product is a plain one with the one copy of its keys.
    A block of queries goes through at a time, and again in the backward pass: B * T x P scores are never held.
    """
    B, T, H, C = q.shape
    K, count = k.shape[1], math.ceil(T / BLOCK)
    k, v = (jnp.moveaxis(x, 0, 1).astype(jnp.float32) for x in (k, v))  # (K, P, C); in it the blocks' gradients add up
    N = math.ceil(B * T / count)  # as even as can be, so that little is padded

    @partial(jax.checkpoint, prevent_cse=False)
    def one(q: Array) -> tuple[Array, Array]:
        q = jnp.moveaxis(q, 1, 0).reshape(K, -1, C)  # (K, N * G, C)
        s = product_f32(q, k.mT) * C**-0.5  # (K, N * G, P)
        lse = jax.nn.logsumexp(s, axis=-1)  # (K, N * G)
        out = product_f32(jnp.exp(s - lse[..., None]).astype(q.dtype), v)  # (K, N * G, C)
        return jnp.moveaxis(out.reshape(K, N, -1, C), 0, 1), jnp.moveaxis(lse.reshape(K, N, -1), 0, 1)

    queries = jnp.pad(q.reshape(B * T, H, C), ((0, count * N - B * T), (0, 0), (0, 0)))
    out, lse = jax.lax.map(one, queries.reshape(count, N, K, H // K, C))  # (count, N, K, G, C), (count, N, K, G)
    return out.reshape(-1, H, C)[: B * T].reshape(B, T, H, C), lse.reshape(-1, H)[: B * T].reshape(B, T, H)


def join(one: tuple[Array, Array], other: tuple[Array, Array]) -> Float[Array, "B T H C"]:
    """Attention to two sets of keys at once, from (result, log-sum-exp) of each: their mean, in float32.

    A result weighs as much as the exponentials of its scores sum to: exp(a) / (exp(a) + exp(b)) = sigmoid(a - b).
    """
    share = jax.nn.sigmoid(one[1] - other[1])[..., None]  # (B, T, H, 1), of the first
    return share * one[0].astype(jnp.float32) + (1 - share) * other[0].astype(jnp.float32)


ATTENTIONS: dict[str, Callable[..., Any]] = {"auto": auto, "dense": dense, "blockwise": blockwise, "cudnn": cudnn}


def choose(name: str) -> Callable[..., Array]:
    """`attend(q, k, v, q_segments, k_segments, past=None)` by that name; a `past` has `k` and `v`, each (P, K, C).

    Raises InputError where there is no such attention, and where it cannot look at a past.
    """
    if name not in ATTENTIONS:
        raise InputError(f"there is no attention {name!r}: choose {', '.join(ATTENTIONS)}")

    @jax.named_scope("attention")
    def attend(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array, past: Any = None) -> Array:
        out, lse = ATTENTIONS[name](q, k, v, q_segments, k_segments)  # (B, T, H, C), (B, T, H)
        if past is None:
            return out
        if lse is None:
            raise InputError(
                f"attention {name!r} cannot look at a past (a prompt, a prefix): choose blockwise or dense"
            )
        return join((out, lse), over_past(q, past.k, past.v)).astype(q.dtype)  # (B, T, H, C)

    return attend
