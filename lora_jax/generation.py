"""Sampling: read the prompts at once (prefill), then a token at a time with the cache (decode), compiled once.

Letters: B prompts in the batch, T tokens in the padded prompt (or in this call), N new tokens, V vocabulary; of a
cache: L layers, S slots, K key/value heads, C head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lora_jax.errors import InputError
from lora_jax.transformer import Config, Params, head, past_length, read_prompt, run_layers
from lora_jax.weights import pytree

NO_TOKEN = -1  # in the place of a token that was to be drawn from logits that are not finite
PROMPT_BUCKET = 32  # prompts are padded to a multiple of this, so that most lengths share one compiled program


@pytree
class Cache:
    """Keys and values of the tokens so far. A slot is seen only from its own row and segment; segment 0 is empty."""

    k: Any  # (L, B, S, K, C)
    v: Any  # (L, B, S, K, C)
    segments: Any  # (B, S) int32
    length: Any  # () int32, the slots filled: the next call's keys go behind them


def init_cache(config: Config, batch: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with room for `slots` tokens a row: all that will ever be written, since none is let go."""
    shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
    empty = jnp.zeros((batch, slots), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), empty, jnp.zeros((), jnp.int32))


def extend(
    config: Config,
    params: Params,
    inputs: Int[ArrayLike, "B T"] | Float[ArrayLike, "B T D"],
    cache: Cache,
    *,
    positions: Int[ArrayLike, "B T"] | None = None,
    segments: Int[ArrayLike, "B T"] | None = None,
    attention: str = "auto",
) -> tuple[Float[Array, "B T D"], Cache]:
    """The normed stream of inputs that go on from what the cache holds, and the cache with their keys and values.

    Without `positions` they count on from the filled slots. Raises InputError where the cache is too small.
    """
    B, T = jnp.shape(inputs)[:2]
    if (slots := cache.segments.shape[1]) < T:
        raise InputError(f"{T} tokens do not fit a cache of {slots} slots: make it larger")
    segments = jnp.ones((B, T), jnp.int32) if segments is None else jnp.asarray(segments)
    if positions is None:
        positions = cache.length + jnp.broadcast_to(jnp.arange(T), (B, T))  # (B, T)
    x, fresh = run_layers(
        config,
        params,
        inputs,
        positions=positions,
        segments=segments,
        cached=(cache.k, cache.v, cache.segments),
        gather=True,
        attention=attention,
    )
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=cache.length)
    k, v = (write(old, new.astype(old.dtype), axis=2) for old, new in zip((cache.k, cache.v), fresh, strict=True))
    return x, Cache(k, v, write(cache.segments, segments, axis=1), cache.length + T)


def decode(
    config: Config, params: Params, inputs: Any, cache: Cache, **options: Any
) -> tuple[Float[Array, "B T V"], Cache]:
    """Logits, as `forward` gives them, of inputs that go on from what the cache holds, and the cache with theirs added.

    Options are those of `extend`: `positions`, `segments` and `attention`.
    """
    x, cache = extend(config, params, inputs, cache, **options)
    return x @ head(params), cache


def choose(
    key: PRNGKeyArray, logits: Float[Array, "B V"], temperature: Any, top_k: int | None, top_p: Any
) -> Int[Array, " B"]:
    """One token a row: the likeliest at temperature 0, else drawn from softmax(logits / temperature).

    `top_k` keeps the k likeliest; `top_p` then keeps the fewest whose probabilities sum to at least p (nucleus
    sampling, arXiv 1904.09751). NO_TOKEN where a logit of the row is NaN or infinite.
    """
    values, ids = jax.lax.top_k(logits.astype(jnp.float32), top_k or logits.shape[-1])  # (B, k), likeliest first
    scaled = values / jnp.maximum(temperature, 1e-6)  # (B, k)
    if top_p is not None:
        probabilities = jax.nn.softmax(scaled, axis=-1)  # (B, k)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # (B, k)
        scaled = jnp.where(before < top_p, scaled, -jnp.inf)
    drawn = jnp.where(temperature > 0, jax.random.categorical(key, scaled, axis=-1), 0)  # (B,)
    chosen = jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0].astype(jnp.int32)
    return jnp.where(jnp.isfinite(values[:, 0]), chosen, NO_TOKEN)  # a NaN, or infinity, is sorted to the front


@partial(jax.jit, static_argnames=("config", "new_tokens", "top_k"))
def sample(
    config: Config,
    params: Params,
    prompts: Int[ArrayLike, "B T"],
    segments: Int[ArrayLike, "B T"],
    key: PRNGKeyArray,
    *,
    new_tokens: int,
    temperature: Any = 1.0,
    top_k: int | None = None,
    top_p: Any = None,
    end_ids: Any = -1,
) -> Int[Array, "B N"]:
    """`new_tokens` tokens for each prompt; after a row's first of `end_ids`, one or several, it holds only that.

    Prompts are padded on the left: `segments` is 0 on padding and 1 on the prompt. It stops early once all rows ended.
    What stands before all of them (the `past` and the `prompt` of `params`) is read once.
    """
    params = read_prompt(config, params)
    prompts, segments, end_ids = jnp.asarray(prompts), jnp.asarray(segments), jnp.atleast_1d(jnp.asarray(end_ids))
    B, T = prompts.shape
    offset = jnp.argmax(segments, axis=1)  # (B,) the padding before each prompt
    dtype = jax.eval_shape(lambda: params["embed_tokens"][prompts]).dtype
    cache = init_cache(config, B, T + new_tokens, dtype)
    positions = jnp.maximum(jnp.arange(T) - offset[:, None], 0)  # (B, T)
    x, cache = extend(config, params, prompts, cache, positions=positions, segments=segments)
    key, subkey = jax.random.split(key)
    first = choose(subkey, x[:, -1] @ head(params), temperature, top_k, top_p)  # (B,), from the last position alone
    written = jnp.broadcast_to(first[:, None], (B, new_tokens))  # (B, N), all that a row holds if this is its end

    def unfinished(state: Any) -> Any:
        n, _, _, last, _ = state
        return (n < new_tokens) & ~jnp.all(jnp.isin(last, end_ids))

    def one_more(state: Any) -> Any:
        n, cache, written, last, key = state
        key, subkey = jax.random.split(key)
        positions = (T + n - 1 - offset)[:, None]  # (B, 1)
        logits, cache = decode(config, params, last[:, None], cache, positions=positions)
        drawn = choose(subkey, logits[:, -1], temperature, top_k, top_p)  # (B,)
        token = jnp.where(jnp.isin(last, end_ids), last, drawn)  # (B,)
        written = jnp.where(jnp.arange(new_tokens) < n, written, token[:, None])  # and so on, if this is the row's end
        return n + 1, cache, written, token, key

    return jax.lax.while_loop(unfinished, one_more, (1, cache, written, first, key))[2]


def check_ids(ids: Any, vocab_size: int) -> None:
    """Raise InputError where a token id has no row in the embedding: indexing would take the last row in silence."""
    if (top := int(np.max(ids, initial=0))) >= vocab_size:
        raise InputError(
            f"the tokenizer gives the token id {top}, but the model's embedding has {vocab_size} rows, 0 to "
            f"{vocab_size - 1}: tokens were added to the tokenizer and not to the model; take the model's own"
        )


def generate(
    config: Config,
    params: Params,
    tokenizer: Any,
    prompts: str | Sequence[str | Sequence[int]],
    *,
    key: PRNGKeyArray | None = None,
    new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = None,
) -> Any:
    """What the model writes after each prompt: a string for a string, a list for a list.

    A prompt is a text, or the token ids of one (`tokenizer.encode_chat` gives those of a conversation). It ends at the
    first of `tokenizer.end_ids`. The same key gives the same text; without one the key is 0. `temperature` 0 always
    takes the likeliest token. Raises InputError for an empty prompt, a token that the embedding has no row for, more
    tokens than the model has positions, settings outside their range, and logits that are not finite.
    """
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    if not given or not all(map(len, given)):
        raise InputError("there is nothing to continue: give at least one prompt, none of them empty")
    if not 0 <= temperature < float("inf") or new_tokens < 1 or (top_k is not None and top_k < 1):
        raise InputError("temperature must be 0 or more, new_tokens at least 1, and top_k at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1, not {top_p}")
    encoded = [tokenizer.encode(one) if isinstance(one, str) else [int(i) for i in one] for one in given]
    check_ids([i for ids in encoded for i in ids], config.vocab_size)
    longest, past = max(map(len, encoded)), past_length(config, params)
    if past + longest + new_tokens > config.max_position_embeddings:
        before = f"{past} learned positions, " if past else ""
        raise InputError(
            f"{before}a prompt of {longest} tokens and {new_tokens} new ones are {past + longest + new_tokens}, more "
            f"than the {config.max_position_embeddings} positions that this model was made for"
        )
    length = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    tokens, segments = np.zeros((2, len(encoded), length), np.int32)
    for row, ids in enumerate(encoded):
        tokens[row, length - len(ids) :], segments[row, length - len(ids) :] = ids, 1
    ends = tuple(tokenizer.end_ids)
    key = jax.random.key(0) if key is None else key
    top_k = top_k and min(top_k, config.vocab_size)
    options = {"temperature": float(temperature), "top_k": top_k, "top_p": top_p and float(top_p)}
    end_ids = np.asarray(ends or (-1,), np.int32)
    written = sample(config, params, tokens, segments, key, new_tokens=new_tokens, end_ids=end_ids, **options)
    written = np.asarray(written)
    if (written == NO_TOKEN).any():
        raise InputError(
            "the model's logits are not finite numbers, so there is no token to choose: the model or its adapter is "
            "damaged, or its numbers are too large for its dtype"
        )
    texts = []
    for ids, row in zip(encoded, written.tolist(), strict=True):
        end = next((n for n, token in enumerate(row) if token in ends), len(row))
        texts.append(continuation(tokenizer, ids, row[:end]))
    return texts[0] if isinstance(prompts, str) else texts


def continuation(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> str:
    """The text of `new` tokens behind others, as it stands in the text of them all.

    Alone it may read otherwise: a space that opens a text is not written by tokenizers that put one before every text.
    """
    opened, whole = tokenizer.decode(before), tokenizer.decode([*before, *new])
    return whole[len(opened) :] if whole.startswith(opened) else tokenizer.decode(new)
