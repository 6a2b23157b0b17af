"""A Llama-style decoder in pure JAX: functions over a dict of arrays, in the order that data flows.

Letters: B batch, T time (tokens in this call), N = B * T (rows of a product), S slots (keys in sight: cached ones, then
this call's), P positions of the past, D model width, F feed-forward width, H query heads, K key/value heads, G = H / K,
C head size (C / 2 pairs of features rotate together), V vocabulary, L layers.

A weight is anything you can right-multiply by (`weights.py`); nothing here knows whether one is adapted or quantized.
A `named_scope` changes no number: it says what an operation is for, in a profile and in the compiler's plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from lora_jax.weights import Biased, pytree, rows

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

    Two more entries may be put beside them: `"past"`, a `Past`, which stands before every sequence, and `"prompt"`,
    embeddings (P, D) of tokens with which every sequence begins, behind the past where there are both.
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
class Past:
    """Keys and values at positions 0 to P - 1, before every segment of every row: one copy for all, only read.

    Learned ones are a prefix (arXiv 2101.00190). Those of a prompt that all sequences share are what `read` gives.
    """

    k: Any  # (L, P, K, C), already rotated
    v: Any  # (L, P, K, C)


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
    angles: Float[Array, "B T pairs"],
    segments: Int[Array, "B T"],
    past: Any = None,
    cached: Any = None,
) -> tuple[Float[Array, "N D"], Any]:
    """One layer: attention, then the gated feed-forward, each added to the stream.

    Tokens stand side by side, N = B * T: only attention tells sequences apart, and plain matrices multiply fastest.
    `past` is one layer of a `Past`, `cached` (keys, values, segments) of (B, S, ...), one layer of a cache; each may be
    None. Returns the stream and this call's (keys, values).
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
        if cached is not None:
            keys = jnp.concatenate([cached[0].astype(k.dtype), k], axis=1)  # (B, S, K, C)
            values = jnp.concatenate([cached[1].astype(v.dtype), v], axis=1)  # (B, S, K, C)
            k_segments = jnp.concatenate([cached[2], segments], axis=1)  # (B, S)
        mixed = attend(q, keys, values, segments, k_segments, past).reshape(B * T, -1)  # (N, H * C)
        x = keep(x + mixed @ attn["o_proj"], "stream")  # (N, D)

    with jax.named_scope("mlp"):
        h = rms_norm(x, layer["post_attention_layernorm"], config.rms_norm_eps)  # (N, D)
        g, u = keep(h @ mlp["gate_proj"], "gate"), keep(h @ mlp["up_proj"], "up")  # (N, F)
        return x + (jax.nn.silu(g) * u) @ mlp["down_proj"], (k, v)  # (N, D)


@jax.named_scope("layers")
def run_layers(
    config: Config,
    params: Params,
    inputs: Int[ArrayLike, "B T"] | Float[ArrayLike, "B T D"],
    *,
    positions: Int[ArrayLike, "B T"] | None = None,
    segments: Int[ArrayLike, "B T"] | None = None,
    cached: Any = None,
    gather: bool = False,
    remat: bool = False,
    attention: str = "auto",
) -> tuple[Float[Array, "B T D"], Any]:
    """The normed stream after the last layer; and this call's (keys, values), each (L, B, T, K, C), to `gather` them.

    `cached` is (keys, values, segments) of a cache, (L, B, S, K, C) twice and (B, S). The other options: see `forward`.
    """
    params = read_prompt(config, params, remat=remat, attention=attention)
    inputs = jnp.asarray(inputs)
    x = inputs if jnp.issubdtype(inputs.dtype, jnp.floating) else rows(params["embed_tokens"], inputs)  # (B, T, D)
    B, T, _ = x.shape
    segments = jnp.ones((B, T), jnp.int32) if segments is None else jnp.asarray(segments)
    positions = jnp.broadcast_to(jnp.arange(T), (B, T)) if positions is None else jnp.asarray(positions)
    frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)  # (C / 2,)
    angles = (past_length(config, params) + positions)[..., None] * frequencies  # (B, T, C / 2)
    attend = attentions.choose(attention)

    def body(x: Array, scanned: Any) -> Any:
        layer, past, kv = scanned
        x, kv = block(config, attend, layer, x, angles, segments, past, kv and (*kv, cached[2]))
        return x, kv if gather else None

    policy = jax.checkpoint_policies.save_only_these_names(*(() if remat else KEPT))
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    scanned = params["layers"], params.get("past"), cached and cached[:2]
    x, kv = jax.lax.scan(body, x.reshape(B * T, -1), scanned)  # (N, D)
    return rms_norm(x, params["norm"], config.rms_norm_eps).reshape(B, T, -1), kv


def hidden_states(config: Config, params: Params, inputs: Any, **options: Any) -> Float[Array, "B T D"]:
    """The normed stream after the last layer, of which `head` makes logits; inputs and options as in `forward`."""
    return run_layers(config, params, inputs, **options)[0]


def read(
    config: Config,
    params: Params,
    inputs: Int[ArrayLike, " P"] | Float[ArrayLike, "P D"],
    *,
    remat: bool = False,
    attention: str = "auto",
) -> Past:
    """What tokens (P,) or embeddings (P, D) leave for all that follows them: their keys and values, as a `Past`.

    They depend on nothing that follows, so a prompt that many sequences share is read once, and not once a sequence:
    `params | {"past": read(config, params, tokens)}`. What `params` hold as their past stays in front of the new keys;
    their `prompt` stands behind them, and is not read.
    """
    params = {name: leaf for name, leaf in params.items() if name != "prompt"}
    row = jnp.asarray(inputs)[None]  # (1, P) or (1, P, D)
    _, kv = run_layers(config, params, row, gather=True, remat=remat, attention=attention)  # (L, 1, P, K, C) each
    new = Past(*(x[:, 0] for x in kv))  # (L, P, K, C) each
    if "past" not in params:
        return new
    return jax.tree.map(lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=1), params["past"], new)


def read_prompt(config: Config, params: Params, **options: Any) -> Params:
    """`params` with their prompt, where they have one, read into their past."""
    if "prompt" not in params:
        return params
    past_length(config, params)  # the shapes are right
    past = read(config, params, params["prompt"].astype(params["embed_tokens"].dtype), **options)
    return {name: leaf for name, leaf in params.items() if name != "prompt"} | {"past": past}


def past_length(config: Config, params: Params) -> int:
    """P: how many positions the past and the prompt of `params` take. Raises InputError for those of another model."""
    L, K, C, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.hidden_size
    k, v = (params["past"].k.shape, params["past"].v.shape) if "past" in params else ((L, 0, K, C),) * 2
    prompt = params["prompt"].shape if "prompt" in params else (0, D)
    if not k == v == (L, k[1], K, C):
        raise InputError(f"the past holds keys {k} and values {v}: for this model both are ({L}, P, {K}, {C})")
    if prompt != (prompt[0], D):
        raise InputError(f"the prompt is {prompt}: for this model it is (P, {D})")
    return k[1] + prompt[0]


def head(params: Params) -> Any:
    """The (D, V) weight that turns the stream into logits: `lm_head` where there is one, else the embedding's twin."""
    return params["lm_head"] if "lm_head" in params else params["embed_tokens"].T


@jax.named_scope("lm_head")
def _logits(params: Params, x: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
    return x @ head(params)


def untie(params: Params) -> Params:
    """`params` with a head of its own: adapting one side of a tied pair then leaves the other as it is."""
    return params if "lm_head" in params else params | {"lm_head": params["embed_tokens"].T}


def forward(config: Config, params: Params, inputs: Any, **options: Any) -> Float[Array, "B T V"]:
    """Logits for tokens (B, T) or embeddings (B, T, D), behind the past and the prompt of `params`.

    Options: `positions` (B, T), where they do not simply count on from the end of the past; `segments` (B, T), where a
    token sees only its own segment and the past (documents packed side by side; padding is segment 0); `remat`, to keep
    only each block's input for the backward pass and compute the rest again; `attention`, by name.
    """
    return _logits(params, hidden_states(config, params, inputs, **options))


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
    x = hidden_states(config, params, batch["tokens"], remat=remat, attention=attention, **where)  # (B, T, D)
    targets = jnp.roll(batch["tokens"], -1, axis=1)  # (B, T); the last is never learned
    mask = target_mask(batch)  # (B, T)
    name = "lm_head" if "lm_head" in params else "embed_tokens"
    total = cross_entropy(
        _logits, {name: params[name]}, x.reshape(-1, x.shape[-1]), targets.reshape(-1), mask.reshape(-1)
    )
    return total / jnp.maximum(jnp.sum(mask), 1.0)


Loss = Callable[[Any, Any, Batch], Float[Array, ""]]  # loss(trainable, frozen, batch)
