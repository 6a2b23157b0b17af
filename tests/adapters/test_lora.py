"""LoRA against dense algebra: its start, its gradients, what it can reach, and what its compiled step does not hold."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small as tiny
from close import close, difference, rounding, stated
from small import quick_compilation  # noqa: F401

from lora_jax import transformer
from lora_jax.adapters import lora
from lora_jax.adapters.base import attach, combine, merge
from lora_jax.adapters.placement import matrices, unstack
from lora_jax.training import make_step
from lora_jax.tuning.loop import fit

CONFIG, PARAMS = tiny.model()
ALL = ["lm_head", *tiny.MATRICES]
SHAPES = {"q_proj": (24, 56), "k_proj": (24, 28), "v_proj": (24, 28), "o_proj": (56, 24), "gate_proj": (24, 36)}
SHAPES |= {"up_proj": (24, 36), "down_proj": (36, 24), "lm_head": (24, 50), "embed_tokens": (50, 24)}
TOKENS = tiny.tokens()
forward = jax.jit(functools.partial(transformer.forward, CONFIG))


def init(**options):
    return lora.init(jax.random.key(4), PARAMS, **options)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_start_is_the_base(dtype):
    """Merged it is so to the bit. Attached, nothing but zeros is added, in a program that may round otherwise."""
    _, params = tiny.model(dtype)
    adapters, constants = init(targets=[*ALL, "embed_tokens"], rank=3)
    assert tiny.raw(merge(params, adapters, constants)) == tiny.raw(params)
    base = forward(params, TOKENS)
    adapted = forward(attach(params, adapters, constants), TOKENS)
    shaken = forward(attach(params, tiny.shaken(adapters), constants), TOKENS)
    assert adapted.dtype == base.dtype == dtype
    tolerance = tiny.FORWARD if dtype == jnp.float32 else tiny.IN_BFLOAT16
    close(adapted, base, tolerance)
    assert difference(shaken, base) > 3 * tolerance.share


def test_gradients_of_the_factors_are_those_of_the_dense_matrix():
    """dA = s * dW @ B^T and dB = s * A^T @ dW, for every target and layer, with dW from W + s * A @ B given whole."""
    patterns = {"alpha_pattern": {"q_proj": 2.0}, "rank_pattern": {"up_proj": 4}}
    adapters, constants = init(targets=ALL, rank=3, alpha=5.0, **patterns)
    adapters = tiny.shaken(adapters)
    batch = {"tokens": TOKENS}
    dense = tiny.with_changes(PARAMS, tiny.lora_changes(PARAMS, adapters, constants))
    whole = jax.jit(jax.grad(tiny.full_loss(CONFIG)))(dense, None, batch)
    gradient = jax.jit(jax.grad(tiny.adapter_loss(CONFIG)))(adapters, (PARAMS, constants), batch)
    found = unstack(PARAMS, gradient, constants)
    assert len(found) == 1 + 7 * 3
    for name, adapter in unstack(PARAMS, adapters, constants).items():
        kind = name.split(".")[-1]
        scaling = {"q_proj": 2.0 / 3, "up_proj": 5.0 / 4}.get(kind, 5.0 / 3)
        d_w = np.asarray(tiny.matrix(whole, name), np.float64)
        assert d_w.shape == SHAPES[kind]
        assert np.abs(d_w).max() > 0
        close(found[name].a, scaling * d_w @ np.asarray(adapter.b, np.float64).T, tiny.BACKWARD)
        close(found[name].b, scaling * np.asarray(adapter.a, np.float64).T @ d_w, tiny.BACKWARD)


def test_attached_and_merged_equal_the_dense_sum():
    adapters, constants = init(targets=ALL, rank=3, alpha=5.0)
    adapters = tiny.shaken(adapters)
    dense = tiny.with_changes(PARAMS, tiny.lora_changes(PARAMS, adapters, constants))
    merged = merge(PARAMS, adapters, constants)
    close(merged, dense, rounding(3 + 2))
    expected = forward(dense, TOKENS)
    close(forward(attach(PARAMS, adapters, constants), TOKENS), expected, tiny.FORWARD)
    close(forward(merged, TOKENS), expected, tiny.FORWARD)
    assert merged["norm"] is PARAMS["norm"]
    assert merged["embed_tokens"] is PARAMS["embed_tokens"]  # untouched weights are shared


def test_full_rank_reaches_any_change_of_a_matrix():
    """Factors from the singular value decomposition of random changes; at rank 24, the smaller side of every matrix."""
    draw = np.random.default_rng(2)
    adapters, constants = init(targets="all-linear", rank=24, alpha=7.0)
    shapes = {name: SHAPES[name.split(".")[-1]] for name in matrices(PARAMS) if "layers" in name}
    changes = {name: 0.1 * draw.standard_normal(shape) for name, shape in shapes.items()}

    def solve(path, node):
        parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
        names = [f"layers.{i}.{parts[1]}.{parts[2]}" for i in range(3)]
        u, s, vt = np.linalg.svd(np.stack([changes[name] for name in names]), full_matrices=False)
        root = np.sqrt(s)
        factors = (u * root[:, None, :] / (7.0 / 24), root[:, :, None] * vt)
        return lora.LoRA(*(jnp.asarray(x, jnp.float32) for x in factors), None)

    solved = jax.tree_util.tree_map_with_path(solve, adapters, is_leaf=lambda x: isinstance(x, lora.LoRA))
    assert jax.tree.map(jnp.shape, solved) == jax.tree.map(jnp.shape, adapters)
    expected = tiny.with_changes(PARAMS, changes)
    close(merge(PARAMS, solved, constants), expected, rounding(24 + 3))
    close(forward(attach(PARAMS, solved, constants), TOKENS), forward(expected, TOKENS), tiny.FORWARD)


def test_after_training_the_base_is_bit_for_bit_what_it_was():
    adapters, constants = init(targets="attention", rank=2)
    before = tiny.raw((PARAMS, adapters, constants))
    state = fit(
        tiny.adapter_loss(CONFIG),
        trainable=adapters,
        frozen=(PARAMS, constants),
        batches=[{"tokens": TOKENS}] * 8,
        optimizer=optax.adamw(1e-2),
        steps=8,
        progress=False,
    )
    assert state.losses[-1] < state.losses[0] - 0.1
    assert tiny.raw((PARAMS, adapters, constants)) == before
    assert forward(attach(PARAMS, state.trainable, constants), TOKENS).shape == (5, 9, 50)


# The compiled step holds no gradient of a frozen weight.

RANK = 3  # and 3 layers; nothing else in the model has 3 of anything, or 45 but its tokens


def equations(jaxpr):
    """Every equation of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def stacked(jaxpr):
    """The kinds of matrices of which some equation makes all layers' at once."""
    made = {out.aval.shape for equation in equations(jaxpr) for out in equation.outvars}
    return {kind for kind, shape in SHAPES.items() if (3, *shape) in made}


def weight_shaped_products(hlo):
    """The matrices of the model whose shape a product of the optimized program has: over tokens it would be a weight's
    gradient, over the rank W + s * A @ B."""
    made = {name: tuple(map(int, dims.split(","))) for name, dims in re.findall(r"%(\S+) = \w+\[([\d,]+)\]", hlo)}
    wanted = set(SHAPES.values()) | {shape[::-1] for shape in SHAPES.values()}
    products = re.findall(r"%(\S+) = \S+ dot\(", hlo)
    scattered = {made[name] for name in re.findall(r"%(\S+) = \S+ scatter\(", hlo)}
    return ({made[name] for name in products} | scattered) & wanted


@pytest.fixture(scope="module")
def steps():
    """The traced step of LoRA on every matrix, and of full fine-tuning."""
    adapters, constants = init(targets=[*ALL, "embed_tokens"], rank=RANK)
    optimizer, batch = optax.adam(1e-3), {"tokens": TOKENS}
    lora_step = make_step(tiny.adapter_loss(CONFIG), optimizer)
    full_step = make_step(tiny.full_loss(CONFIG), optimizer)
    return {
        "lora": lora_step.trace(adapters, jax.eval_shape(optimizer.init, adapters), (PARAMS, constants), batch),
        "full": full_step.trace(PARAMS, jax.eval_shape(optimizer.init, PARAMS), None, batch),
    }


def test_the_step_stores_no_array_shaped_like_a_stacked_weight(steps):
    """Neither a gradient of a frozen weight nor W + s * A @ B; in full fine-tuning the search finds every matrix."""
    assert stacked(steps["lora"].jaxpr.jaxpr) == set()
    assert stacked(steps["full"].jaxpr.jaxpr) == set(SHAPES) - {"lm_head", "embed_tokens"}


def test_the_compiled_step_multiplies_out_neither_a_frozen_weights_gradient_nor_the_sum(steps):
    jax.config.update("jax_disable_most_optimizations", False)  # as users run it; the module's fixture restores it
    assert weight_shaped_products(steps["lora"].lower().compile().as_text()) == set()
    found = weight_shaped_products(steps["full"].lower().compile().as_text())
    assert {frozenset(shape) for shape in found} == {frozenset(shape) for shape in SHAPES.values()}


# Options.


def test_scaling_is_alpha_over_rank_or_over_its_root():
    assert lora.scaling(32, 16) == 2.0
    assert lora.scaling(32, 16, rank_stabilized=True) == 8.0
    _, constants = init(rank=4, alpha=6.0, rank_stabilized=True, targets=["q_proj"])
    np.testing.assert_array_equal(constants["layers"]["self_attn"]["q_proj"].scaling, [3.0] * 3)
    _, constants = init(rank=4, targets=["q_proj"])  # twice the rank, where no alpha is given
    np.testing.assert_array_equal(constants["layers"]["self_attn"]["q_proj"].scaling, [2.0] * 3)


def test_patterns_are_read_as_peft_reads_them():
    """By hand from PEFT: the first key that is the end of the name from a dot on, or a regex for the whole of it."""
    adapters, constants = init(
        targets=["q_proj", "up_proj", "down_proj"],
        rank=8,
        alpha=4.0,
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 2, "q_proj": 3, "proj": 5, r".*\.[0-1]\.mlp\.up_proj": 6},
        alpha_pattern={"mlp.down_proj": 10.0, "q_proj": 9.0, r"layers\.1\..*": 1.0},
    )
    named = unstack(PARAMS, adapters, constants)
    ranks = {name: adapter.a.shape[1] for name, adapter in named.items()}
    assert ranks == {
        "layers.0.self_attn.q_proj": 3,
        "layers.1.self_attn.q_proj": 2,  # the first key that matches
        "layers.2.self_attn.q_proj": 3,
        "layers.0.mlp.up_proj": 6,
        "layers.1.mlp.up_proj": 6,
        "layers.2.mlp.up_proj": 8,
        "layers.0.mlp.down_proj": 8,  # "proj" is not a whole part of the name
        "layers.1.mlp.down_proj": 8,
        "layers.2.mlp.down_proj": 8,
    }
    alphas = {name: float(adapter.scaling) * ranks[name] for name, adapter in named.items()}
    expected = {"q_proj": [9.0] * 3, "up_proj": [4.0, 1.0, 4.0], "down_proj": [10.0] * 3}
    for name, alpha in alphas.items():
        close(alpha, expected[name.split(".")[-1]][int(name.split(".")[1])], rounding(2))


def test_a_starts_uniform_within_one_over_the_root_of_its_inputs_and_b_at_zero():
    adapters, constants = init(targets="all-linear", rank=20)
    for name, adapter in unstack(PARAMS, adapters, constants).items():
        a, bound = np.asarray(adapter.a), 1 / math.sqrt(SHAPES[name.split(".")[-1]][0])
        assert 0.95 * bound < np.abs(a).max() <= bound, name
        spread = bound / math.sqrt(3)
        close(a.std(), spread, stated(5 * math.sqrt(0.2 / a.size), f"5 standard errors of {a.size} draws"))
        close(a.mean(), 0.0, stated(5 / math.sqrt(a.size), f"5 standard errors of {a.size} draws"), of=spread)
        assert not np.asarray(adapter.b).any()
        assert a.dtype == adapter.b.dtype == np.float32


def test_one_seed_gives_one_start_and_no_two_matrices_share_theirs():
    first, again = init(targets="attention"), init(targets="attention")
    other = lora.init(jax.random.key(5), PARAMS, targets="attention")
    assert tiny.raw(first) == tiny.raw(again)
    starts = [np.asarray(a.a).tobytes() for tree in (first, other) for a in unstack(PARAMS, *tree).values()]
    assert len(set(starts)) == len(starts) == 2 * 4 * 3


def test_the_start_does_not_depend_on_the_order_of_names_nor_on_the_other_targets():
    """A tree map sorts the names: a model that went through one must still get the same start from the same seed."""

    def turned(node):
        return {name: turned(child) for name, child in reversed(node.items())} if isinstance(node, dict) else node

    one = lora.init(jax.random.key(4), PARAMS, targets=["q_proj", "up_proj"])
    assert tiny.raw(one) == tiny.raw(lora.init(jax.random.key(4), turned(PARAMS), targets=["q_proj", "up_proj"]))
    alone = lora.init(jax.random.key(4), PARAMS, targets=["up_proj"])
    assert tiny.raw(alone[0]["layers"]["mlp"]) == tiny.raw(one[0]["layers"]["mlp"])


def test_the_factors_take_the_dtype_asked_for():
    adapters, constants = init(targets=["q_proj"], dtype=jnp.bfloat16)
    whole = combine(adapters, constants)["layers"]["self_attn"]["q_proj"]
    assert (whole.a.dtype, whole.b.dtype, whole.scaling.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
