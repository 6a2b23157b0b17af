"""Attention in blocks equals the textbook's, values and gradients, and never holds the T x S scores."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from close import close, rounding

from lora_jax import Config, InputError, attention, init, loss

SHAPES = [  # B, T, S, H, K, C: more than a block, less than one, exactly one, keys from a cache, no grouping
    (2, 600, 600, 6, 2, 16),
    (3, 70, 70, 4, 2, 10),
    (2, 256, 256, 3, 1, 8),
    (2, 70, 300, 4, 4, 8),
    (1, 300, 900, 6, 3, 12),
]


def both(B, T, S, H, K, C, dtype=jnp.float32):
    """Outputs and gradients by each way, for random segments, those of padding aside."""
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(x, (B, n, h, C), dtype) for x, n, h in zip(keys, (T, S, S), (H, K, K), strict=False))
    segments = jnp.sort(jax.random.randint(keys[3], (B, S), 0, 4), axis=1)
    own = segments[:, S - T :]
    weight = jax.random.normal(keys[4], (B, T, H, C), dtype) * (own > 0)[..., None, None]

    @functools.partial(jax.jit, static_argnums=0)
    def run(attend, q, k, v):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, own, segments), q, k, v)
        return out * (own > 0)[..., None, None], *pull(weight)

    return zip(("out", "dq", "dk", "dv"), *(run(f, q, k, v) for f in (attention.scores, attention.blocks)), strict=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_equal_the_textbook(shape):
    _, T, S, H, K, C = shape
    for name, want, got in both(*shape):
        close({name: got}, {name: want}, rounding(3 * C + 2 * S + T * H // K))  # scores, softmax, values; back over T


def test_blocks_in_bfloat16_stay_bfloat16():
    for name, want, got in both(*SHAPES[1], dtype=jnp.bfloat16):
        assert got.dtype == jnp.bfloat16
        close({name: got}, {name: want}, rounding(4, jnp.bfloat16))  # scores, chances, their gradients, the result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_derivative_of_all_scores_is_what_autodiff_makes(dtype):
    B, T, S, H, K, C = 2, 70, 90, 6, 2, 10
    q, k, v, d = (
        jax.random.normal(jax.random.key(n), (B, K, *shape), dtype)
        for n, shape in enumerate([(H // K * T, C), (S, C), (S, C), (H // K * T, C)])
    )
    visible = attention._visible(jnp.ones((B, T), int), jnp.ones((B, S), int).at[:, :5].set(2), S - T)
    own, auto = (
        jax.jit(lambda q, k, v, of=of: jax.vjp(lambda *x: of(*x, visible), q, k, v)[1](d))(q, k, v)
        for of in (attention._at_once, lambda *x: attention._mix(*x)[0])
    )
    for name, got, want in zip("qkv", own, auto, strict=True):
        assert got.dtype == want.dtype
        sums = rounding(3 * C + 2 * S + T * H // K) if dtype == "float32" else rounding(4, dtype)
        close({name: got}, {name: want}, sums)


def test_an_unknown_attention_is_refused():
    with pytest.raises(InputError, match="there is no attention 'sparse': choose auto, scores, blocks, cudnn"):
        attention.choose("sparse")


def test_auto_takes_blocks_but_for_a_few_queries_before_a_cache(monkeypatch):
    taken = []
    for name in ("scores", "blocks"):
        monkeypatch.setattr(attention, name, lambda q, *_, name=name: taken.append(name) or q)
    for T, S in ((9, 9), (900, 900), (300, 900), (1, 900), (256, 257)):
        queries, keys = jnp.zeros((1, T, 1, 1)), jnp.zeros((1, S, 1, 1))
        attention.auto(queries, keys, keys, jnp.ones((1, T), jnp.int32), jnp.ones((1, S), jnp.int32))
    assert taken == ["blocks", "blocks", "blocks", "scores", "scores"]


# What the compiled step holds.

T, V = 1280, 1536  # nothing else in the model has so many of anything
CONFIG = Config(
    vocab_size=V,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=12,
)


def plan(kind):
    """The optimized program of the loss and its gradient, by one way of attention."""
    params = jax.eval_shape(lambda: init(jax.random.key(0), CONFIG))
    batch = {"tokens": jax.ShapeDtypeStruct((1, T), jnp.int32)}
    step = jax.jit(jax.value_and_grad(lambda params, batch: loss(CONFIG, params, batch, attention=kind)))
    return step.lower(params, batch).compile().as_text()


def buffers(hlo, *wanted):
    """How many arrays of the program have all the `wanted` dimensions."""
    shapes = (text.split(",") for text in re.findall(r"= \(?\w+\[([\d,]+)\]", hlo))
    return sum(all(shape.count(str(n)) >= wanted.count(n) for n in wanted) for shape in shapes)


def test_no_array_of_time_by_time_with_blocks_and_the_search_finds_it_without():
    assert buffers(plan("blocks"), T, T) == 0
    assert buffers(plan("scores"), T, T) > 0


def test_no_array_of_time_by_vocabulary_is_made_and_the_search_finds_that_of_a_chunk():
    hlo = plan("blocks")
    assert buffers(hlo, T, V) == 0
    assert buffers(hlo, 256, V) > 0


def planned(kind, length):
    """Bytes of temporary memory that the compiler plans for the loss and its gradient of one sequence."""
    params = jax.eval_shape(lambda: init(jax.random.key(0), CONFIG))
    batch = {"tokens": jax.ShapeDtypeStruct((1, length), jnp.int32)}
    step = jax.jit(jax.value_and_grad(lambda params, batch: loss(CONFIG, params, batch, attention=kind)))
    return step.lower(params, batch).compile().memory_analysis().temp_size_in_bytes


def test_planned_memory_grows_in_proportion_to_length_with_blocks_and_faster_with_all_scores():
    def growth(kind):
        short, middle, long = (planned(kind, n) for n in (4096, 8192, 16384))  # beyond where the loss decides
        return (long - middle) / (middle - short)  # 2 where it is linear, 4 where it is quadratic

    assert abs(growth("blocks") - 2) < 0.1
    assert growth("scores") > 3
