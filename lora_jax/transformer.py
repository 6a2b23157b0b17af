"""A Llama-style decoder in pure JAX: functions over a dict of arrays, in the order that data flows.

Letters: B batch, T time (tokens in this call), N = B * T (rows of a product), S slots (keys in sight: cached ones, then
this call's), D model width, F feed-forward width, H query heads, K key/value heads, G = H / K, C head size, P = C / 2
pairs that rotate together, V vocabulary, L layers.

A weight is anything you can right-multiply by (`weights.py`); nothing here knows whether one is adapted or quantized.
A `named_scope` changes no number: it says what an operation is for, in a profile and in the compiler's plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as keep
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lora_jax import attention as attentions
from lora_jax.cross_entropy import cross_entropy
from lora_jax.errors import InputError
from lora_jax.rope import RopeScaling, rope, rope_frequencies
from lora_jax.weights import Biased, pytree

Params = dict[str, Any]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """The shape of a model. Names are those of Hugging Face's `config.json`."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int  # L
    num_attention_heads: int  # H
    num_key_value_heads: int  # K, a divisor of H
    head_dim: int  # C, even; H * C need not be D
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    biases: tuple[str, ...] = ()  # the projections that carry a bias: ("q_proj", "k_proj", "v_proj") in Qwen2


def projection_shapes(config: Config) -> dict[str, dict[str, tuple[int, int]]]:
    """The (in, out) of each matrix of a block, under Hugging Face's names, in the order that data flows."""
    D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
    Q, KV = config.num_attention_heads * C, config.num_key_value_heads * C
    return {
        "self_attn": {"q_proj": (D, Q), "k_proj": (D, KV), "v_proj": (D, KV), "o_proj": (Q, D)},
        "mlp": {"gate_proj": (D, F), "up_proj": (D, F), "down_proj": (F, D)},
    }


def init(key: PRNGKeyArray, config: Config, dtype: Any = jnp.float32, std: float = 0.02) -> Params:
    """Fresh parameters: normal(0, std) matrices, zero biases, unit norms; layers stacked on a leading axis L.

    `{"embed_tokens", "layers": {"input_layernorm", "self_attn": {...}, "post_attention_layernorm", "mlp": {...}},
    "norm"}` and, where the head is not tied, `"lm_head"` of (D, V).
    """
    D, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    keys = iter(jax.random.split(key, 9))

    def matrix(*shape: int) -> Array:
        return (std * jax.random.normal(next(keys), shape)).astype(dtype)

    def projection(name: str, shape: tuple[int, int]) -> Any:
        w = matrix(L, *shape)
        return Biased(w, jnp.zeros((L, shape[1]), dtype)) if name in config.biases else w

    blocks: Params = {
        part: {name: projection(name, shape) for name, shape in projections.items()}
        for part, projections in projection_shapes(config).items()
    }
    layers = {"input_layernorm": jnp.ones((L, D), dtype), "post_attention_layernorm": jnp.ones((L, D), dtype)} | blocks
    params = {"embed_tokens": matrix(V, D), "layers": layers, "norm": jnp.ones((D,), dtype)}
    return params if config.tie_word_embeddings else params | {"lm_head": matrix(D, V)}


@pytree
class Cache:
    """Keys and values already computed, or learned. A slot is seen only from its own segment; segment 0 is empty."""

    k: Any  # (L, B, S, K, C)
    v: Any  # (L, B, S, K, C)
    segments: Any  # (B, S) int32
    length: Any  # () int32, the slots filled: the next call's keys go behind them


def init_cache(config: Config, batch: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with room for `slots` tokens a row: all that will ever be written, since none is let go."""
    shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
    empty = jnp.zeros((batch, slots), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), empty, jnp.zeros((), jnp.int32))


@jax.named_scope("norm")
def rms_norm(x: Float[Array, "*b D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*b D"]:
    """`x / rms(x) * scale`, the mean square taken in float32 (arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


# What a block leaves for its backward pass beside its input: what large products made, and the softmax's log-sum-exp.
# The rest (the norms, the gated product, the softmax itself) is worked out again: less work than keeping it.
KEPT = ("q", "k", "v", "mixed", "log_sum_exp", "stream", "gate", "up")


def block(
    config: Config,
    attend: Callable[..., Any],
    layer: Params,
    x: Float[Array, "N D"],
    angles: Float[Array, "B T P"],
    segments: Int[Array, "B T"],
    past: Any,
) -> Any:
    """One layer: attention, then the gated feed-forward, each added to the stream.

    Tokens stand side by side, N = B * T: only attention tells sequences apart, and plain matrices multiply fastest.
    `past` is (keys, values, segments) of the cache or None. Returns the stream and this call's (keys, values).
    """
    B, T = segments.shape
    attn, mlp = layer["self_attn"], layer["mlp"]

    with jax.named_scope("self_attn"):
        h = rms_norm(x, layer["input_layernorm"], config.rms_norm_eps)  # (N, D)
        q = (h @ attn["q_proj"]).reshape(B, T, -1, config.head_dim)  # (B, T, H, C)
        k = (h @ attn["k_proj"]).reshape(B, T, -1, config.head_dim)  # (B, T, K, C)
        v = (h @ attn["v_proj"]).reshape(B, T, -1, config.head_dim)  # (B, T, K, C)
        q, k, v = keep(rope(q, angles), "q"), keep(rope(k, angles), "k"), keep(v, "v")
        keys, values, k_segments = k, v, segments
        if past is not None:
            keys = jnp.concatenate([past[0].astype(k.dtype), k], axis=1)  # (B, S, K, C)
            values = jnp.concatenate([past[1].astype(v.dtype), v], axis=1)  # (B, S, K, C)
            k_segments = jnp.concatenate([past[2], segments], axis=1)  # (B, S)
        mixed = attend(q, keys, values, segments, k_segments).reshape(B * T, -1)  # (N, H * C)
        x = keep(x + mixed @ attn["o_proj"], "stream")  # (N, D)

    with jax.named_scope("mlp"):
        h = rms_norm(x, layer["post_attention_layernorm"], config.rms_norm_eps)  # (N, D)
        g, u = keep(h @ mlp["gate_proj"], "gate"), keep(h @ mlp["up_proj"], "up")  # (N, F)
        return x + (jax.nn.silu(g) * u) @ mlp["down_proj"], (k, v)  # (N, D)


@jax.named_scope("layers")
def hidden_states(
    config: Config,
    params: Params,
    inputs: Int[ArrayLike, "B T"] | Float[ArrayLike, "B T D"],
    *,
    positions: Int[ArrayLike, "B T"] | None = None,
    segments: Int[ArrayLike, "B T"] | None = None,
    cache: Cache | None = None,
    remat: bool = False,
    attention: str = "auto",
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """The normed stream after the last layer, and the cache with this call's keys and values added.

    `params["layers"]` is one stacked run of layers or a tuple of runs, scanned in turn. `remat` keeps only each block's
    input for the backward pass and computes the rest again.
    """
    inputs = jnp.asarray(inputs)
    embedded = jnp.issubdtype(inputs.dtype, jnp.floating)
    x = inputs if embedded else params["embed_tokens"][inputs]  # (B, T, D)
    B, T, _ = x.shape
    segments = jnp.ones((B, T), jnp.int32) if segments is None else jnp.asarray(segments)
    if positions is None:
        positions = (0 if cache is None else cache.length) + jnp.broadcast_to(jnp.arange(T), (B, T))  # (B, T)
    frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)  # (P,)
    angles = jnp.asarray(positions)[..., None] * frequencies  # (B, T, P)

    attend = attentions.choose(attention)

    def body(x: Array, scanned: Any) -> Any:
        layer, past = scanned
        past = None if past is None else (*past, cache.segments)  # type: ignore[union-attr]
        x, kv = block(config, attend, layer, x, angles, segments, past)
        return x, (None if cache is None else kv)

    policy = jax.checkpoint_policies.save_only_these_names(*(() if remat else KEPT))
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    x = x.reshape(B * T, -1)  # (N, D)
    runs = params["layers"] if isinstance(params["layers"], tuple) else (params["layers"],)
    start: int = 0
    fresh: list[Any] = []
    for run in runs:
        stop = start + run["input_layernorm"].shape[0]
        past = None if cache is None else (cache.k[start:stop], cache.v[start:stop])  # (run, B, S, K, C)
        x, kv = jax.lax.scan(body, x, (run, past))
        start, fresh = stop, [*fresh, kv]
    x = rms_norm(x, params["norm"], config.rms_norm_eps).reshape(B, T, -1)  # (B, T, D)
    return x, None if cache is None else _extend(cache, jax.tree.map(lambda *a: jnp.concatenate(a), *fresh), segments)


def _extend(cache: Cache, fresh: tuple[Array, Array], segments: Int[Array, "B T"]) -> Cache:
    """The cache with this call's keys and values (L, B, T, K, C) written behind what it holds."""
    if segments.shape[1] > cache.segments.shape[1]:
        raise InputError(
            f"{segments.shape[1]} tokens do not fit a cache of {cache.segments.shape[1]} slots: make it larger"
        )
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=cache.length)
    k, v = (write(old, new.astype(old.dtype), axis=2) for old, new in zip((cache.k, cache.v), fresh, strict=True))
    return Cache(k, v, write(cache.segments, segments, axis=1), cache.length + segments.shape[1])


def head(params: Params) -> Any:
    """The (D, V) weight that turns the stream into logits: `lm_head` where there is one, else the embedding's twin."""
    return params["lm_head"] if "lm_head" in params else params["embed_tokens"].T


@jax.named_scope("lm_head")
def _logits(params: Params, x: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
    return x @ head(params)


def untie(params: Params) -> Params:
    """`params` with a head of its own: adapting one side of a tied pair then leaves the other as it is."""
    return params if "lm_head" in params else params | {"lm_head": params["embed_tokens"].T}


def forward(config: Config, params: Params, inputs: Any, *, cache: Cache | None = None, **options: Any) -> Any:
    """Logits (B, T, V) for tokens (B, T) or embeddings (B, T, D); with a cache, `(logits, cache)`.

    Options: `positions` (B, T), where they do not simply count on; `segments` (B, T), where a token sees only its own
    segment (documents packed side by side; padding is segment 0); `remat`.
    """
    x, cache = hidden_states(config, params, inputs, cache=cache, **options)
    logits = _logits(params, x)  # (B, T, V)
    return logits if cache is None else (logits, cache)


def target_mask(batch: Batch) -> Float[Array, "B T"]:
    """1 where position t's *next* token is to be learned: it is unmasked, and of the same segment, which is not 0."""
    tokens = batch["tokens"]
    B, T = tokens.shape
    segments = batch.get("segments", jnp.ones((B, T), jnp.int32))
    mask = batch.get("mask", jnp.ones((B, T), jnp.int32))
    learned = (mask[:, 1:] != 0) & (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)  # (B, T-1)
    return jnp.pad(learned.astype(jnp.float32), ((0, 0), (0, 1)))  # (B, T)


@jax.named_scope("loss")
def loss(
    config: Config, params: Params, batch: Batch, *, remat: bool = False, attention: str = "auto"
) -> Float[Array, ""]:
    """Mean cross-entropy of the next token, in nats, in float32; the logits exist a chunk of tokens at a time.

    `batch` holds `tokens` (B, T) and may hold `mask` (B, T), zero for tokens not to be learned (padding, prompts),
    `segments` (B, T) and `positions` (B, T).
    """
    where = {name: batch[name] for name in ("segments", "positions") if name in batch}
    x, _ = hidden_states(config, params, batch["tokens"], remat=remat, attention=attention, **where)  # (B, T, D)
    targets = jnp.roll(batch["tokens"], -1, axis=1)  # (B, T); the last is never learned
    mask = target_mask(batch)  # (B, T)
    name = "lm_head" if "lm_head" in params else "embed_tokens"
    total = cross_entropy(
        _logits, {name: params[name]}, x.reshape(-1, x.shape[-1]), targets.reshape(-1), mask.reshape(-1)
    )
    return total / jnp.maximum(jnp.sum(mask), 1.0)


Loss = Callable[[Any, Any, Batch], Float[Array, ""]]  # loss(trainable, frozen, batch)
