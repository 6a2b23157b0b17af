"""What stands before every sequence: a prompt (embeddings) or a past (keys and values), one copy for the whole batch.

It must give what the same tokens give when they are written in front of each sequence, and must never be copied a row.
B 3 rows, D 24, H 6, K 2, C 10, V 61, L 3; P tokens of the prompt and T of the text, no two alike.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import bfloat16_pass, close, difference, forward_pass, rounding, stated

from lora_jax import METHODS, InputError, attach, generation, merge
from lora_jax.generation import Cache, generate, sample
from lora_jax.quantize import quantize_layers
from lora_jax.transformer import Config, Past, forward, init, loss, past_length, read, untie

CONFIG = Config(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    rope_theta=300.0,
)
B, P, T = 3, 5, 9
PROMISED = stated(1e-5, "the promise of the design: the same sums in another order")
logits = jax.jit(forward, static_argnums=0, static_argnames=("remat", "attention"))
reading = jax.jit(read, static_argnums=0, static_argnames=("remat", "attention"))


@functools.cache
def model(dtype=jnp.float32, **changes):
    """Parameters with which every token before it matters to a token, and norms away from 1."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: init(jax.random.key(0), CONFIG))

    def leaf(path, x):
        return jnp.asarray(rng.normal("norm" in jax.tree_util.keystr(path), 0.15, x.shape), dtype)

    return jax.tree.map_with_path(leaf, shapes)


PARAMS = model()


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape), jnp.int32)


def embeddings(*shape, seed=1, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 0.2, (*shape, CONFIG.hidden_size)), dtype)


def in_front(prompt, params, text):
    """Embeddings (B, P + T, D): the prompt, (P, D) or one a row, and then the text."""
    prompt = jnp.broadcast_to(prompt, (text.shape[0], *prompt.shape[-2:]))
    return jnp.concatenate([prompt, params["embed_tokens"][text]], axis=1)


def plain_loss(logits, text):
    """The mean of -log p of each next token, straight from the definition."""
    chances = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.mean(jnp.take_along_axis(chances, text[:, 1:, None], axis=-1))


def draw_past(length, seed=2):
    shape = (CONFIG.num_hidden_layers, length, CONFIG.num_key_value_heads, CONFIG.head_dim)
    return Past(*jax.random.normal(jax.random.key(seed), (2, *shape)))


# A prompt equals the same embeddings in front.


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("P", "T"), [(P, T), (300, 270), (2, 530)])  # less than a block of 256, more, and more yet
def test_a_prompt_gives_the_loss_and_the_gradients_of_the_same_embeddings_in_front(P, T, remat, attention):
    prompt, text, options = embeddings(P), tokens(B, T), {"remat": remat, "attention": attention}

    def ours(prompt, params):
        return loss(CONFIG, params | {"prompt": prompt}, {"tokens": text}, **options)

    def expected(prompts, params):
        return plain_loss(forward(CONFIG, params, in_front(prompts, params, text), **options)[:, P:], text)

    value, (d_prompt, d_params) = jax.jit(jax.value_and_grad(ours, (0, 1)))(prompt, PARAMS)
    rows = jnp.broadcast_to(prompt, (B, *prompt.shape))  # a prompt of its own for each row: their gradients add up
    wanted, (d_rows, d_expected) = jax.jit(jax.value_and_grad(expected, (0, 1)))(rows, PARAMS)
    close(value, wanted, PROMISED)
    close(d_prompt, d_rows.sum(0), PROMISED)
    close(d_params, d_expected, PROMISED)
    assert jnp.abs(d_prompt).max() > 1e-4


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
@pytest.mark.parametrize(("P", "T"), [(P, T), (300, 270)])
def test_a_prompt_gives_the_logits_of_the_same_embeddings_in_front(P, T, attention):
    prompt, text = embeddings(P), tokens(B, T)
    found = logits(CONFIG, PARAMS | {"prompt": prompt}, text, attention=attention)
    expected = logits(CONFIG, PARAMS, in_front(prompt, PARAMS, text), attention=attention)[:, P:]
    close(found, expected, PROMISED)
    assert difference(found, logits(CONFIG, PARAMS, text)) > 0.01  # without the prompt it is another text
    embedded = logits(CONFIG, PARAMS | {"prompt": prompt}, PARAMS["embed_tokens"][text], attention=attention)
    close(embedded, found, PROMISED)


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
def test_each_segment_of_a_packed_row_sees_the_prompt_as_if_it_stood_in_front_of_it_alone(attention):
    prompt, one, other = embeddings(P), tokens(1, 7), tokens(1, 4, seed=3)
    row = {
        "tokens": jnp.concatenate([one, other, jnp.zeros((1, 2), jnp.int32)], axis=1),
        "segments": jnp.asarray([[1] * 7 + [2] * 4 + [0] * 2]),
        "positions": jnp.asarray([[*range(7), *range(4), 0, 1]]),
    }

    def ours(prompt):
        return loss(CONFIG, PARAMS | {"prompt": prompt}, row, attention=attention)

    def expected(prompt):
        alone = [forward(CONFIG, PARAMS, in_front(prompt, PARAMS, x), attention=attention)[:, P:] for x in (one, other)]
        return (6 * plain_loss(alone[0], one) + 3 * plain_loss(alone[1], other)) / 9, alone

    (wanted, alone), d_expected = jax.jit(jax.value_and_grad(expected, has_aux=True))(prompt)
    where = {"segments": row["segments"], "positions": row["positions"]}
    found = logits(CONFIG, PARAMS | {"prompt": prompt}, row["tokens"], attention=attention, **where)
    close([found[:, :7], found[:, 7:11]], alone, PROMISED)
    assert jnp.isfinite(found).all()  # padding too
    close(jax.jit(jax.value_and_grad(ours))(prompt), (wanted, d_expected), PROMISED)


# A past equals the textbook, its gradients too.


def textbook(params, past, text):
    """Logits (B, T, V) by the definition: the past's keys and values are repeated for every row and every head."""
    rows, (L, P, K, C) = text.shape[0], past.k.shape
    time = P + jnp.arange(text.shape[1])
    angles = time[:, None] * CONFIG.rope_theta ** (-jnp.arange(0, C, 2) / C)  # (T, C / 2)

    def norm(x, scale):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + CONFIG.rms_norm_eps) * scale

    def rotate(x):
        cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = params["embed_tokens"][text]
    for i in range(L):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        attn, mlp = layer["self_attn"], layer["mlp"]
        h = norm(x, layer["input_layernorm"])
        q, k, v = ((h @ attn[f"{name}_proj"]).reshape(*text.shape, -1, C) for name in "qkv")
        k = jnp.concatenate([jnp.stack([past.k[i]] * rows), rotate(k)], axis=1)  # (B, P + T, K, C)
        v = jnp.concatenate([jnp.stack([past.v[i]] * rows), v], axis=1)
        k, v = (jnp.repeat(y, CONFIG.num_attention_heads // K, axis=2) for y in (k, v))  # (B, P + T, H, C)
        scores = jnp.einsum("bthc,bshc->bhts", rotate(q), k) / jnp.sqrt(C)
        scores = jnp.where(jnp.arange(P + text.shape[1]) <= time[:, None], scores, -jnp.inf)
        mixed = jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores, axis=-1), v).reshape(*text.shape, -1)
        x = x + mixed @ attn["o_proj"]
        h = norm(x, layer["post_attention_layernorm"])
        x = x + (jax.nn.silu(h @ mlp["gate_proj"]) * (h @ mlp["up_proj"])) @ mlp["down_proj"]
    return norm(x, params["norm"]) @ params["embed_tokens"].T


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("P", "T"), [(P, T), (2, 300)])
def test_a_past_gives_the_textbooks_loss_and_its_keys_and_values_their_gradients(P, T, remat, attention):
    past, text = draw_past(P), tokens(B, T)

    def ours(past):
        return loss(CONFIG, PARAMS | {"past": past}, {"tokens": text}, remat=remat, attention=attention)

    found = jax.jit(jax.value_and_grad(ours))(past)
    expected = jax.jit(jax.value_and_grad(lambda past: plain_loss(textbook(PARAMS, past, text), text)))(past)
    close(found, expected, PROMISED)
    assert min(jnp.abs(x).max(axis=(1, 2, 3)).min() for x in jax.tree.leaves(found[1])) > 1e-4  # in every layer


# A prompt of tokens that is read beforehand.

SYSTEM = tokens(P, seed=4)
LENGTHS = np.asarray([9, 2, 6])
PADDED = jnp.asarray(np.arange(T) >= T - LENGTHS[:, None], jnp.int32)  # (B, T): texts padded on the left


def with_system(text):
    """The same texts with the system's tokens in front of each, behind the padding; and their segments."""
    rows = [[*row[: T - n], *SYSTEM, *row[T - n :]] for row, n in zip(np.asarray(text), LENGTHS, strict=True)]
    return jnp.asarray(rows, jnp.int32), jnp.asarray(np.arange(P + T) >= T - LENGTHS[:, None], jnp.int32)


def counted(segments):
    """Positions that count from the first real token of each row."""
    return jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)


def test_a_system_prompt_that_was_read_gives_the_logits_of_one_in_front_of_each_padded_text():
    text = tokens(B, T)
    whole, segments = with_system(text)
    expected = logits(CONFIG, PARAMS, whole, segments=segments, positions=counted(segments))[:, P:]
    params = PARAMS | {"past": reading(CONFIG, PARAMS, SYSTEM)}
    found = logits(CONFIG, params, text, segments=PADDED, positions=counted(PADDED))
    close(found[PADDED == 1], expected[PADDED == 1], PROMISED)
    assert jnp.isfinite(found).all()


@pytest.mark.parametrize("kind", ["past", "prompt", "both"])
def test_generation_writes_what_it_writes_with_the_tokens_in_front_of_each_text(kind):
    text, new = tokens(B, T), 12
    whole, segments = with_system(text)
    plain = untie(PARAMS) | {"lm_head": embeddings(CONFIG.vocab_size).T}  # tied, it would repeat what it reads
    past, prompt = {"past": (P, 0), "prompt": (0, P), "both": (2, P - 2)}[
        kind
    ]  # how much of the system is read as which
    params = plain | ({"past": reading(CONFIG, plain, SYSTEM[:past])} if past else {})
    params |= {"prompt": plain["embed_tokens"][SYSTEM[past:]]} if prompt else {}
    greedy = functools.partial(sample, CONFIG, key=jax.random.key(0), new_tokens=new, temperature=0.0)
    found = np.asarray(greedy(params, text, PADDED))
    np.testing.assert_array_equal(found, greedy(plain, whole, segments))
    assert (found != greedy(plain, text, PADDED)).any()  # the system prompt is heard
    assert len({tuple(row) for row in found}) == B and len(set(found.flat)) > 8


def test_decoding_in_parts_gives_the_logits_of_the_whole_behind_a_past():
    params, text = PARAMS | {"past": draw_past(P)}, tokens(B, T)
    cache, parts = generation.init_cache(CONFIG, B, T + 1), []
    for at in (slice(0, 6), slice(6, 7), slice(7, T)):
        part, cache = jax.jit(generation.decode, static_argnums=0)(CONFIG, params, text[:, at], cache)
        parts.append(part)
    close(jnp.concatenate(parts, axis=1), logits(CONFIG, params, text), PROMISED)


def test_the_prompt_stands_behind_the_past():
    prompt, text = embeddings(4), tokens(B, T)
    both = PARAMS | {"past": reading(CONFIG, PARAMS, SYSTEM), "prompt": prompt}
    front = jnp.concatenate([PARAMS["embed_tokens"][SYSTEM], prompt])
    close(logits(CONFIG, both, text), logits(CONFIG, PARAMS, in_front(front, PARAMS, text))[:, P + 4 :], PROMISED)
    assert past_length(CONFIG, both) == P + 4


def test_what_is_read_stands_behind_the_past_and_before_the_prompt():
    whole = reading(CONFIG, PARAMS, SYSTEM)
    params = PARAMS | {"past": reading(CONFIG, PARAMS, SYSTEM[:2]), "prompt": embeddings(4)}
    close(reading(CONFIG, params, SYSTEM[2:]), whole, PROMISED)
    close(reading(CONFIG, PARAMS, PARAMS["embed_tokens"][SYSTEM]), whole, PROMISED)


# Beside quantized weights, adapters, a head of its own, and in bfloat16.


def test_a_quantized_base_reads_a_prompt_too():
    params, prompt, text = quantize_layers(PARAMS, "nf4"), embeddings(P), tokens(B, T)
    found = logits(CONFIG, params | {"prompt": prompt}, text)
    close(found, logits(CONFIG, params, in_front(prompt, params, text))[:, P:], PROMISED)


def test_adapters_and_a_head_of_its_own_leave_past_and_prompt_where_they_are():
    params, text = PARAMS | {"past": draw_past(P), "prompt": embeddings(4)}, tokens(B, T)
    adapters, constants = METHODS["lora"].init(jax.random.key(1), params, rank=2)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    attached, merged = attach(params, adapters, constants), merge(params, adapters, constants)
    tolerance = rounding(forward_pass(CONFIG, P + T + 4, rank=2))
    close(logits(CONFIG, merged, text), logits(CONFIG, attached, text), tolerance)
    assert difference(logits(CONFIG, merged, text), logits(CONFIG, params, text)) > 0.01
    close(logits(CONFIG, untie(params), text), logits(CONFIG, params, text), PROMISED)
    for tree in (attached, merged, untie(params)):
        assert tree["past"].k is params["past"].k and tree["prompt"] is params["prompt"]


def test_a_bfloat16_model_stays_so_and_a_float32_prompt_gets_its_gradient_in_float32():
    halved, prompt, text = model(jnp.bfloat16), embeddings(P), tokens(B, T)
    found = logits(CONFIG, halved | {"prompt": prompt}, text)
    assert found.dtype == jnp.bfloat16
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), halved)
    close(found, logits(CONFIG, rounded | {"prompt": prompt}, text), rounding(bfloat16_pass(CONFIG), jnp.bfloat16))
    assert reading(CONFIG, halved, SYSTEM).k.dtype == jnp.bfloat16

    def gradient(entry, params):
        return jax.jit(jax.grad(lambda entry: loss(CONFIG, params | entry, {"tokens": text})))(entry)

    for entry in ({"prompt": prompt}, {"past": draw_past(P)}):
        found = gradient(entry, halved)
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
        close(found, gradient(entry, rounded), rounding(bfloat16_pass(CONFIG), jnp.bfloat16))


# What the compiled programs hold.

ROWS, BEFORE, TEXT = 7, 37, 70  # two primes, so that a copy a row shows: no other dimension is a multiple of either
WIDE = dataclasses.replace(CONFIG, num_hidden_layers=2, num_key_value_heads=3)


def copies(text):
    """The shapes in a program that hold the past once a row: beside the rows' own keys, or broadcast to them."""
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)}
    heads = WIDE.num_attention_heads
    scores = {heads * ROWS * n * BEFORE for n in (1, TEXT)}  # of all queries of a call with the one copy of the keys

    def is_copy(shape):
        every_row = any(n % BEFORE == 0 for n in shape) and np.prod(shape) % (ROWS * BEFORE) == 0
        return (every_row and np.prod(shape) not in scores) or any(n % (BEFORE + TEXT) == 0 for n in shape)

    return {shape for shape in shapes if is_copy(shape)}


def programs(function, *arrays):
    """A function's text as it is traced, and as it is optimized."""
    traced = jax.jit(function).trace(*arrays)
    return str(traced.jaxpr), traced.lower().compile().as_text()


def abstract():
    params = jax.eval_shape(lambda: init(jax.random.key(0), WIDE))
    past = Past(*[jax.ShapeDtypeStruct((2, BEFORE, 3, 10), jnp.float32)] * 2)
    prompt = jax.ShapeDtypeStruct((BEFORE, 24), jnp.float32)
    return params, past, prompt, jax.ShapeDtypeStruct((ROWS, TEXT), jnp.int32)


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
@pytest.mark.parametrize("remat", [False, True])
def test_no_step_holds_the_past_once_a_row(remat, attention):
    params, past, prompt, text = abstract()

    def step(name):
        def value(entry, params, text):
            return loss(WIDE, params | {name: entry}, {"tokens": text}, remat=remat, attention=attention)

        return jax.value_and_grad(value)

    for name, entry in (("past", past), ("prompt", prompt)):
        for program in programs(step(name), entry, params, text):
            assert f"{BEFORE}," in program and copies(program) == set()


def test_the_search_finds_the_copies_of_a_prompt_in_front_and_of_a_past_in_the_cache():
    params, past, prompt, text = abstract()

    def front(prompt, params, text):
        return forward(WIDE, params, in_front(prompt, params, text)).sum()

    def in_cache(past, params, text):
        k, v = (jnp.broadcast_to(x[:, None], (2, ROWS, *x.shape[1:])) for x in (past.k, past.v))
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, TEXT), (0, 0), (0, 0))) for x in (k, v))
        segments = jnp.pad(jnp.ones((ROWS, BEFORE), jnp.int32), ((0, 0), (0, TEXT)))
        return generation.extend(WIDE, params, text, Cache(k, v, segments, jnp.int32(BEFORE)))[0].sum()

    for function, entry in ((front, prompt), (in_cache, past)):
        for program in programs(jax.grad(function), entry, params, text):
            assert copies(program)


def loops(jaxpr, inside=False):
    """Of a traced program, how many scans over layers stand outside the loop over tokens and how many inside."""
    found = np.zeros(2, int)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan" and eqn.params["length"] == WIDE.num_hidden_layers:
            found[int(inside)] += 1
        for sub in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            if hasattr(sub, "jaxpr") or hasattr(sub, "eqns"):
                body = sub.jaxpr if hasattr(sub, "jaxpr") else sub
                found += loops(body, inside or eqn.primitive.name == "while")
    return found


def test_generation_reads_a_prompt_once_and_holds_no_copy_a_row():
    params, past, prompt, text = abstract()
    key = jax.eval_shape(lambda: jax.random.key(0))

    def write(params, text, key):
        return sample(WIDE, params, text, text, key, new_tokens=6)

    for entry, outside in (({}, 1), ({"past": past}, 1), ({"prompt": prompt}, 2)):
        traced = jax.jit(write).trace(params | entry, text, key)
        np.testing.assert_array_equal(loops(traced.jaxpr.jaxpr), [outside, 1])
        assert copies(traced.lower().compile().as_text()) == set()


# Mistakes.


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"past": Past(*jnp.zeros((2, 3, 4, 2, 8)))},
            r"past holds keys \(3, 4, 2, 8\) and values \(3, 4, 2, 8\): for",
        ),
        (
            {"past": Past(jnp.zeros((3, 4, 2, 10)), jnp.zeros((3, 5, 2, 10)))},
            r"model both are \(3, P, 2, 10\)",
        ),
        ({"prompt": jnp.zeros((4, 20))}, r"the prompt is \(4, 20\): for this model it is \(P, 24\)"),
    ],
)
def test_a_past_or_a_prompt_of_another_model_is_refused(entry, message):
    with pytest.raises(InputError, match=message):
        forward(CONFIG, PARAMS | entry, tokens(B, T))


def test_an_attention_that_cannot_look_at_a_past_says_so(monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **__: q)  # there is no GPU here
    message = "attention 'cudnn' cannot look at a past .*: choose blockwise or dense"
    with pytest.raises(InputError, match=message):
        forward(CONFIG, PARAMS | {"past": draw_past(P)}, tokens(B, T), attention="cudnn")


class Letters:
    """One token a letter."""

    end_ids = ()

    def encode(self, text):
        return [ord(letter) - ord("A") for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("A") + i) for i in ids)


def test_what_stands_before_every_text_counts_among_the_positions_that_the_model_was_made_for():
    config, params = dataclasses.replace(CONFIG, max_position_embeddings=50), PARAMS | {"past": draw_past(P)}
    write = functools.partial(generate, config, tokenizer=Letters(), prompts="HELLO")
    assert len(write(PARAMS, new_tokens=45)) == 45  # 5 for the prompt and 45 are 50
    assert len(write(params, new_tokens=40)) == 40
    message = "5 learned positions, a prompt of 5 tokens and 41 new ones are 51, more than the 50 positions"
    with pytest.raises(InputError, match=message):
        write(params, new_tokens=41)
    with pytest.raises(InputError, match="9 learned positions, a prompt of 5 tokens and 37 new ones"):
        write(params | {"prompt": embeddings(4)}, new_tokens=37)
