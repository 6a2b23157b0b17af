"""Blockwise attention equals the textbook's, values and gradients, and never holds the T x S scores.

Beside its result each gives the log-sum-exp of its scores, by which keys that were attended to apart are joined.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from close import close, rounding

from lora_jax import Config, InputError, Past, attention, init, loss

SHAPES = [  # B, T, S, H, K, C: more than a block, less than one, exactly one, keys from a cache, no grouping
    (2, 600, 600, 6, 2, 16),
    (3, 70, 70, 4, 2, 10),
    (2, 256, 256, 3, 1, 8),
    (2, 70, 300, 4, 4, 8),
    (1, 300, 900, 6, 3, 12),
]


def draw(B, T, S, H, K, C, dtype=jnp.float32):
    """Queries, keys, values; random segments of the queries and of the keys."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(x, (B, n, h, C), dtype) for x, n, h in zip(keys, (T, S, S), (H, K, K), strict=False))
    segments = jnp.sort(jax.random.randint(keys[3], (B, S), 0, 4), axis=1)
    return q, k, v, segments[:, S - T :], segments


def both(*shape, dtype=jnp.float32):
    """Outputs, log-sum-exps and gradients through the two by each way, those of padding aside."""
    q, k, v, own, segments = draw(*shape, dtype)
    real = (own > 0)[..., None]  # (B, T, 1)
    keys = jax.random.split(jax.random.key(1))
    weights = (
        jax.random.normal(keys[0], q.shape, dtype) * real[..., None],
        jax.random.normal(keys[1], q.shape[:3]) * real,
    )

    @functools.partial(jax.jit, static_argnums=0)
    def run(attend, q, k, v):
        (out, lse), pull = jax.vjp(lambda q, k, v: attend(q, k, v, own, segments), q, k, v)
        return out * real[..., None], lse * real, *pull(weights)

    results = (run(attend, q, k, v) for attend in (attention.dense, attention.blockwise))
    return zip(("out", "lse", "dq", "dk", "dv"), *results, strict=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_equal_the_textbook(shape):
    _, T, S, H, K, C = shape
    for name, want, got in both(*shape):
        close({name: got}, {name: want}, rounding(3 * C + 2 * S + T * H // K))  # scores, softmax, values; back over T


def test_blocks_in_bfloat16_stay_bfloat16():
    for name, want, got in both(*SHAPES[1], dtype=jnp.bfloat16):
        assert got.dtype == (jnp.float32 if name == "lse" else jnp.bfloat16)
        close({name: got}, {name: want}, rounding(4, jnp.bfloat16))  # scores, chances, their gradients, the result


@pytest.mark.parametrize("name", ["dense", "blockwise"])
def test_the_log_sum_exps_gradient_is_the_slope_of_the_log_of_the_summed_exponentials(name):
    """One row, one segment, one head, straight from the definition: d/dk_j of log sum_j exp(q . k_j / sqrt(C))."""
    T, C = 300, 8
    q, k, v, *_ = draw(1, T, T, 1, 1, C)
    ones, weight = jnp.ones((1, T), jnp.int32), jax.random.normal(jax.random.key(2), (T,))

    def ours(q, k):
        return jnp.vdot(weight, getattr(attention, name)(q, k, v, ones, ones)[1])

    def defined(q, k):
        exponentials = jnp.exp(q[0, :, 0] @ k[0, :, 0].T / C**0.5) * jnp.tri(T)  # (T, T)
        return jnp.vdot(weight, jnp.log(exponentials.sum(1)))

    found, expected = (jax.jit(jax.grad(f, (0, 1)))(q, k) for f in (ours, defined))
    close(found, expected, rounding(3 * C + 2 * T))


@pytest.mark.parametrize("name", ["auto", "dense", "blockwise"])
@pytest.mark.parametrize("shape", [(2, 600, 600, 6, 2, 16), (3, 70, 70, 4, 2, 10), (2, 1, 41, 6, 3, 12)])
def test_a_past_is_attended_to_as_if_it_stood_in_every_segment_of_every_row(shape, name):
    """Against one softmax over the past's keys, repeated for each row, and those of the row."""
    B, T, S, H, K, C = shape
    q, k, v, own, segments = draw(*shape)
    keys = jax.random.split(jax.random.key(3))
    past = Past(*jax.random.normal(keys[0], (2, 23, K, C)))
    weight = jax.random.normal(keys[1], q.shape)

    def together(q, k, v, past):
        k, v = (jnp.concatenate([jnp.stack([x] * B), y], axis=1) for x, y in ((past.k, k), (past.v, v)))
        k, v = (jnp.repeat(x, H // K, axis=2) for x in (k, v))  # (B, P + S, H, C)
        causal = jnp.arange(S) <= jnp.arange(T)[:, None] + S - T  # (T, S)
        visible = causal & (own[:, :, None] == segments[:, None])  # (B, T, S)
        visible = jnp.pad(visible, ((0, 0), (0, 0), (23, 0)), constant_values=True)
        scores = jnp.where(visible[:, None], jnp.einsum("bthc,bshc->bhts", q, k) / C**0.5, -jnp.inf)
        return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores, axis=-1), v)

    def joined(q, k, v, past):
        return attention.choose(name)(q, k, v, own, segments, past)

    def run(attend):
        out, pull = jax.vjp(attend, q, k, v, past)
        return out, *pull(weight)

    close(
        jax.jit(run, static_argnums=0)(joined),
        jax.jit(run, static_argnums=0)(together),
        rounding(3 * C + 2 * S + B * T * H // K),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_derivative_of_all_scores_is_what_autodiff_makes(dtype):
    B, T, S, H, K, C = 2, 70, 90, 6, 2, 10
    q, k, v, d = (
        jax.random.normal(jax.random.key(n), (B, K, *shape), dtype)
        for n, shape in enumerate([(H // K * T, C), (S, C), (S, C), (H // K * T, C)])
    )
    d_lse = jax.random.normal(jax.random.key(4), (B, K, H // K * T))
    visible = attention._visible(jnp.ones((B, T), int), jnp.ones((B, S), int).at[:, :5].set(2), S - T)
    own, auto = (
        jax.jit(lambda q, k, v, of=of: jax.vjp(lambda *x: of(*x, visible), q, k, v)[1]((d, d_lse)))(q, k, v)
        for of in (attention._at_once, lambda *x: attention._mix(*x)[0])
    )
    for name, got, want in zip("qkv", own, auto, strict=True):
        assert got.dtype == want.dtype
        sums = rounding(3 * C + 2 * S + T * H // K) if dtype == "float32" else rounding(4, dtype)
        close({name: got}, {name: want}, sums)


def test_an_unknown_attention_is_refused():
    with pytest.raises(InputError, match="there is no attention 'sparse': choose auto, dense, blockwise, cudnn"):
        attention.choose("sparse")


def test_auto_takes_blocks_but_for_a_few_queries_before_a_cache(monkeypatch):
    taken = []
    for name in ("dense", "blockwise"):
        monkeypatch.setattr(attention, name, lambda q, *_, name=name: taken.append(name) or (q, q))
    for T, S in ((9, 9), (900, 900), (300, 900), (1, 900), (256, 257)):
        queries, keys = jnp.zeros((1, T, 1, 1)), jnp.zeros((1, S, 1, 1))
        attention.auto(queries, keys, keys, jnp.ones((1, T), jnp.int32), jnp.ones((1, S), jnp.int32))
    assert taken == ["blockwise", "blockwise", "blockwise", "dense", "dense"]


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
    assert buffers(plan("blockwise"), T, T) == 0
    assert buffers(plan("dense"), T, T) > 0


def test_no_array_of_time_by_vocabulary_is_made_and_the_search_finds_that_of_a_chunk():
    hlo = plan("blockwise")
    assert buffers(hlo, T, V) == 0
    assert buffers(hlo, 256, V) > 0


def test_the_scores_of_a_past_are_held_a_block_of_queries_at_a_time(monkeypatch):
    """Forward and backward; with one block for all queries the search finds them."""
    P = 700
    params = jax.eval_shape(lambda: init(jax.random.key(0), CONFIG))
    past = Past(*[jax.ShapeDtypeStruct((3, P, 1, 12), jnp.float32)] * 2)
    batch = {"tokens": jax.ShapeDtypeStruct((1, T), jnp.int32)}

    def largest():
        """The numbers in the largest array of the program."""

        def step(past, params, batch):
            return loss(CONFIG, params | {"past": past}, batch)

        hlo = jax.jit(jax.value_and_grad(step)).lower(past, params, batch).compile().as_text()
        return max(math.prod(map(int, dims.split(","))) for dims in re.findall(r"= \(?\w+\[([\d,]+)\]", hlo))

    assert largest() < 2 * T * P
    monkeypatch.setattr(attention, "BLOCK", T)
    assert largest() >= 2 * T * P


def planned(kind, length):
    """Bytes of temporary memory that the compiler plans for the loss and its gradient of one sequence."""
    params = jax.eval_shape(lambda: init(jax.random.key(0), CONFIG))
    batch = {"tokens": jax.ShapeDtypeStruct((1, length), jnp.int32)}
    step = jax.jit(jax.value_and_grad(lambda params, batch: loss(CONFIG, params, batch, attention=kind)))
    return step.lower(params, batch).compile().memory_analysis().temp_size_in_bytes


def test_planned_memory_grows_in_proportion_to_length_blockwise_and_faster_dense():
    def growth(kind):
        short, middle, long = (planned(kind, n) for n in (4096, 8192, 16384))  # beyond where the loss decides
        return (long - middle) / (middle - short)  # 2 where it is linear, 4 where it is quadratic

    assert abs(growth("blockwise") - 2) < 0.1
    assert growth("dense") > 3
