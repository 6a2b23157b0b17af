"""Quantized weights against bitsandbytes, dense algebra and bytes counted by hand; what training over them learns."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small as tiny
from close import close, difference, rounding
from scipy.stats import norm
from small import quick_compilation  # noqa: F401

from lora_jax import load_model, load_tokenizer, transformer
from lora_jax.adapters import lora
from lora_jax.adapters.base import attach, merge, num_bytes
from lora_jax.adapters.placement import matrices
from lora_jax.errors import InputError
from lora_jax.files import peft
from lora_jax.quantize import DYNAMIC_VALUES, NF4, NF4_VALUES, Int8, int8, nf4, quantize_layers
from lora_jax.text import datasets, packing
from lora_jax.training import evaluate, make_step
from lora_jax.tuning import jobs
from lora_jax.weights import Biased, dense

GOLDEN = Path(__file__).parent / "golden"
CONFIG, PARAMS = tiny.model(biases=("q_proj", "k_proj"))
forward = jax.jit(functools.partial(transformer.forward, CONFIG))
single = functools.partial(nf4, double_quantization=False)


@functools.cache
def quantized(kind):
    return quantize_layers(PARAMS, kind)


@jax.jit
def plain_again(params):
    """`params` with each quantized matrix as the array that it stands for."""
    codes = NF4 | Int8
    return jax.tree.map(
        lambda w: w.dense() if isinstance(w, codes) else w, params, is_leaf=lambda w: isinstance(w, codes)
    )


def golden(name):
    """bitsandbytes' arrays, (out, in), and the same matrix as ours."""
    table = np.load(GOLDEN / f"nf4_{name}.npz")
    return table, jnp.asarray(table["w"].T, jnp.bfloat16 if name == "bfloat16" else jnp.float32)


def rows_of_codes(w):
    """One code a number, (out, in), taken out of the bytes here once more."""
    upper, lower = np.asarray(w.codes) // 16, np.asarray(w.codes) % 16
    return np.vstack([upper, lower])[: w.shape[0]].T


def sure(table):
    """Which constants lie so far from the middle between two values that no rounding decides on their code."""
    groups = np.pad(table["absmax"] - table["offset"], (0, -table["absmax"].size % 256)).reshape(-1, 256)
    scaled = (groups / table["scale"][:, None]).reshape(-1)[: table["absmax"].size]
    midpoints = (DYNAMIC_VALUES[:-1] + DYNAMIC_VALUES[1:]) / 2
    return np.abs(scaled[:, None] - midpoints).min(axis=1) > 1e-5


def random(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "odd", "ties"])
def test_codes_constants_and_values_are_those_of_bitsandbytes(name):
    """`odd`: 141 rows, blocks of 64, 64 and 13. `ties`: on every midpoint of two values, and just beside it."""
    table, w = golden(name)
    found = single(w)
    np.testing.assert_array_equal(rows_of_codes(found), table["codes"])
    np.testing.assert_array_equal(found.constants.T, table["absmax"].reshape(w.shape[1], -1))
    np.testing.assert_array_equal(np.asarray(found.dense(), np.float32).T, table["plain"])


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_quantized_constants_are_those_of_bitsandbytes(name):
    """270 constants are a whole group and a part of one; 68 are a part."""
    table, w = golden(name)
    found = nf4(w)
    np.testing.assert_array_equal(DYNAMIC_VALUES, table["map"])
    np.testing.assert_array_equal(rows_of_codes(found), table["codes"])
    close(found.constants.offset, table["offset"], rounding(table["constants"].size))  # a mean: its sum has an order
    largest = np.abs(table["absmax"]).max()
    close(found.constants.scale, table["scale"], rounding(table["constants"].size), of=largest)
    assert sure(table).mean() > 0.95
    codes = np.asarray(found.constants.codes).reshape(-1)
    np.testing.assert_array_equal(codes[sure(table)], table["constants"][sure(table)])
    np.testing.assert_array_equal(np.abs(codes - table["constants"].astype(int)) <= 1, True)
    plain, dtype = np.asarray(found.dense(), np.float32).T, found.dtype
    numbers = np.repeat(sure(table), 64).reshape(plain.shape)
    close(plain[numbers], table["double"][numbers], rounding(4 + 2 * (dtype == jnp.bfloat16), dtype))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_int8_is_that_of_bitsandbytes(name):
    table, w = golden(name)
    found = int8(w)
    np.testing.assert_array_equal(found.codes.T, table["int8_codes"])
    np.testing.assert_array_equal(found.scale, table["int8_scale"])
    step = np.asarray(found.scale, np.float64) / 127
    close(found.dense(jnp.float32), table["int8_codes"].T * step, rounding(2))


def test_the_sixteen_values_are_the_papers_quantiles():
    """QLoRA, appendix E: even quantiles of a normal, 8 below zero and 9 from it on, each half's ends at 1."""
    end = 0.9677083
    below, above = -norm.ppf(np.linspace(end, 0.5, 8)[:-1]), norm.ppf(np.linspace(end, 0.5, 9)[:-1])
    expected = np.array(sorted([*below, 0.0, *above])) / norm.ppf(end)
    close(NF4_VALUES, expected, rounding(2))


def test_bits_a_weight():
    """Where sizes divide: 4.5; with quantized constants 4.126953125 and a float32 a layer; 8 and a float32 a column."""
    L, I, O = 3, 128, 384  # 2 blocks a column, 768 constants and so 3 groups a layer
    w = jax.ShapeDtypeStruct((L, I, O), jnp.bfloat16)
    assert 8 * num_bytes(jax.eval_shape(single, w)) == 4.5 * L * I * O
    assert 8 * num_bytes(jax.eval_shape(nf4, w)) == (4 + 8 / 64 + 32 / (64 * 256)) * L * I * O + 32 * L
    assert num_bytes(jax.eval_shape(int8, w)) == L * I * O + 4 * L * O


def test_bytes_where_nothing_divides():
    """131 rows of 201: 66 rows of bytes; 3 blocks a column, 603 constants, 3 groups."""
    w = jax.ShapeDtypeStruct((131, 201), jnp.float32)
    assert num_bytes(jax.eval_shape(single, w)) == 66 * 201 + 4 * 3 * 201
    assert num_bytes(jax.eval_shape(nf4, w)) == 66 * 201 + 603 + 4 * 3 + 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("quantize", [nf4, single, int8])
def test_the_laws_of_a_weight(quantize, dtype):
    w, x = random(67, 35, dtype=dtype), random(2, 5, 67, seed=1, dtype=dtype)
    found = quantize(w)
    matrix = found.dense()
    assert (found.shape, found.dtype, matrix.shape, matrix.dtype) == (w.shape, dtype, w.shape, dtype)
    assert found.dense(jnp.float32).dtype == jnp.float32
    product = jax.jit(lambda x, w: x @ w)(x, found)
    exact = np.asarray(x, np.float64) @ np.asarray(matrix, np.float64)
    assert product.dtype == dtype
    tolerance = rounding(67) if dtype == jnp.float32 else rounding(1, dtype)
    close(product, exact, tolerance)
    with_bias = quantize(Biased(w, b := random(35, seed=2, dtype=dtype)))
    assert type(with_bias) is Biased and with_bias.b is b and tiny.raw(with_bias.w) == tiny.raw(found)
    close(
        x @ with_bias, exact + np.asarray(b, np.float64), rounding(68) if dtype == jnp.float32 else rounding(2, dtype)
    )
    with pytest.raises(TypeError, match="has no transpose"):
        found.T  # noqa: B018


def test_sums_are_in_float32():
    """256 and 64 ones: in bfloat16 each 1 would be lost beside 256."""
    w = int8(jnp.concatenate([jnp.full((1, 2), 256), jnp.ones((64, 2)) * 256 / 127]).astype(jnp.bfloat16))
    x = jnp.concatenate([jnp.ones(1), jnp.full(64, 0.5)]).astype(jnp.bfloat16)
    expected = np.asarray(w.dense(), np.float64).T @ np.asarray(x, np.float64)
    close(x @ w, expected, rounding(1, jnp.bfloat16))
    assert difference(np.full(2, 256.0), expected) > 0.15


@pytest.mark.parametrize("quantize", [nf4, single, int8])
def test_stacked_layers_are_quantized_one_by_one(quantize):
    """Every leaf leads with L, and layer i of it is layer i quantized; also as shapes, and inside jit."""
    w = random(3, 67, 35)
    stacked = quantize(w)
    assert stacked.shape == w.shape and stacked.dense().shape == w.shape
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), stacked) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(quantize, w)
    )
    close(jax.jit(quantize)(w).dense(), stacked.dense(), rounding(8))
    for i in range(3):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        close(layer.dense(), quantize(w[i]).dense(), rounding(8))
        close(stacked.dense()[i], layer.dense(), rounding(3))


@pytest.mark.parametrize("quantize", [nf4, single, int8])
def test_the_gradient_of_x_is_that_of_the_dense_matrix_and_the_codes_get_none(quantize):
    w, x, d = quantize(random(67, 35)), random(5, 67, seed=1), random(5, 35, seed=2)
    found, into = jax.vjp(lambda x, w: x @ w, x, w)[1](d)
    close(found, np.asarray(d, np.float64) @ np.asarray(w.dense(), np.float64).T, rounding(35))
    assert not any(np.asarray(g).astype(bool).any() for g in jax.tree.leaves(into))
    stacked = quantize(random(4, 67, 35))
    mapped = jax.vmap(jax.grad(lambda x, w: jnp.sum((x @ w) * d)), in_axes=(None, 0))(x, stacked)
    for i in range(4):
        expected = np.asarray(d, np.float64) @ np.asarray(stacked.dense()[i], np.float64).T
        close(mapped[i], expected, rounding(35))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_matrices_of_blocks_are_quantized_and_nothing_else_is(kind):
    params = quantized(kind)
    for name in ("embed_tokens", "norm", "lm_head"):
        assert params[name] is PARAMS[name]
    plain, wanted = PARAMS["layers"], {"nf4": NF4, "int8": Int8}[kind]
    for part in ("self_attn", "mlp"):
        for name, w in params["layers"][part].items():
            assert type(w.w if name in CONFIG.biases else w) is wanted
            assert (w.shape, w.dtype) == (plain[part][name].shape, jnp.float32)
    assert params["layers"]["input_layernorm"] is plain["input_layernorm"]
    assert params["layers"]["self_attn"]["q_proj"].b is plain["self_attn"]["q_proj"].b
    close(forward(params, tiny.tokens()), forward(plain_again(params), tiny.tokens()), tiny.FORWARD)


def test_mistakes_are_named():
    with pytest.raises(InputError, match=re.escape("there is no quantization 'fp4': choose nf4 or int8")):
        quantize_layers(PARAMS, "fp4")
    with pytest.raises(InputError, match="a weight that is Int8 already cannot be quantized: start from plain arrays"):
        quantize_layers(quantized("int8"), "nf4")
    with pytest.raises(
        InputError, match=re.escape("only (in, out) or (L, in, out) floats can be quantized, not int32")
    ):
        nf4(jnp.ones((2, 3), jnp.int32))
    with pytest.raises(InputError, match=re.escape("not float32 of (3,)")):
        int8(jnp.ones(3))


EVERYWHERE = {"targets": "all-linear", "rank": 5}
HERE_AND_THERE = {"targets": r"layers\.(0|2)\.(self_attn\.(q|o)|mlp\.down)_proj", "rank_pattern": {"o_proj": 2}}


@pytest.mark.parametrize(("kind", "options"), [("nf4", EVERYWHERE), ("nf4", HERE_AND_THERE), ("int8", EVERYWHERE)])
def test_lora_trains_over_a_quantized_base(kind, options, tmp_path):
    params = quantized(kind)
    adapters, constants = lora.init(jax.random.key(3), params, **options)
    before, batch = tiny.raw(params), {"tokens": tiny.tokens()}
    optimizer = optax.adam(1e-2)
    step, state, losses = make_step(tiny.adapter_loss(CONFIG), optimizer), optimizer.init(adapters), []
    for _ in range(12):
        adapters, state, loss, _ = step(adapters, state, (params, constants), batch)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5 and step._cache_size() == 1
    assert tiny.raw(params) == before
    attached, merged = attach(params, adapters, constants), merge(params, adapters, constants)
    whole = plain_again(params)
    for name, change in tiny.lora_changes(params, adapters, constants).items():
        exact = np.asarray(dense(matrices(whole)[name]()), np.float64) + change
        close(dense(matrices(merged)[name]()), exact, rounding(5 + 2))
    close(forward(attached, tiny.tokens()), forward(merged, tiny.tokens()), tiny.FORWARD)
    peft.save_adapter(tmp_path / "adapter", adapters, constants, base=params)
    again = attach(params, *peft.load_adapter(tmp_path / "adapter", base=params))
    close(forward(again, tiny.tokens()), forward(attached, tiny.tokens()), tiny.FORWARD)


@pytest.mark.slow
@pytest.mark.assets
def test_smollm2_learns_verse_over_an_nf4_base():
    config, params = load_model("smollm2-135m")
    train, held_out = datasets.verse(load_tokenizer("smollm2-135m"), 48, 128, held_out=16)
    base = quantize_layers(params, "nf4")
    D, F, KV, L = 576, 1536, 192, 30
    numbers = 2 * D * D + 2 * D * KV + 3 * D * F  # a layer
    constants, groups = numbers // 64, 2 * 21 + 2 * 7 + 3 * 54  # 5184, 1728 and 13824 constants a matrix
    assert num_bytes(base["layers"]) == L * (numbers // 2 + constants + 4 * groups + 4 * 7 + 2 * 4 * D)
    before, batches = tiny.raw(base["layers"]), list(packing.Batches.in_order(held_out, 8))
    whole = jobs.make_job("lora", config, params, key=jax.random.key(0), options={"rank": 16})
    job = jobs.make_job("lora", config, base, key=jax.random.key(0), options={"rank": 16})
    state = jobs.tune(
        job, packing.Batches(train, 4), rate=1.5e-3, steps=12, warmup=4, held_out=batches, evaluate_every=12
    )
    start, end = (loss for _, loss in state.evaluations)
    exact = evaluate(whole.loss, whole.trainable, whole.frozen, batches)
    print(f"held out: {exact:.3f} in float32, {start:.3f} in NF4, {end:.3f} after 12 steps")
    assert 0.1 < start - exact < 0.4 and end < start - 0.3
    assert tiny.raw(base["layers"]) == before
