"""What the two ideas carry, a weight is anything you can right-multiply by and the adapters are a tree of their own."""

import dataclasses
import functools
from typing import Any

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
from lora_jax.adapters.base import Adapted, Adapter, ByLayer, attach, combine, count, merge, num_bytes
from lora_jax.adapters.placement import stack, unstack
from lora_jax.errors import InputError
from lora_jax.training import make_step
from lora_jax.tuning.loop import fit
from lora_jax.weights import Biased, Weight, dense, matmul_f32, pytree, split_bias

CONFIG, PARAMS = tiny.model()
TOKENS = tiny.tokens()
KEY = jax.random.key(11)
forward = jax.jit(functools.partial(transformer.forward, CONFIG))


def made(params=PARAMS, seed=0, **options):
    """LoRA with no B zero."""
    adapters, constants = lora.init(jax.random.key(seed), params, **{"rank": 3, "alpha": 5.0, **options})
    return tiny.shaken(adapters, seed), constants


def logits(params, *adapters, config=CONFIG):
    run = forward if config is CONFIG else jax.jit(functools.partial(transformer.forward, config))
    return run(attach(params, *adapters) if adapters else params, TOKENS)


def expected_logits(params, adapters, constants, config=CONFIG):
    return logits(tiny.with_changes(params, tiny.lora_changes(params, adapters, constants)), config=config)


# Layers that differ.

PATTERNS = {
    "targets": ["layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj", "down_proj"],
    "rank": 4,
    "rank_pattern": {r"layers\.0\..*": 2, r"layers\.2\.mlp\..*": 7},
}


def test_ranks_and_targets_differ_by_layer_and_counts_stay_exact():
    adapters, constants = made(**PATTERNS)
    by_hand = {
        "layers.0.self_attn.q_proj": 2 * (24 + 56),
        "layers.2.self_attn.q_proj": 4 * (24 + 56),
        "layers.0.mlp.down_proj": 2 * (36 + 24),
        "layers.1.mlp.down_proj": 4 * (36 + 24),
        "layers.2.mlp.down_proj": 7 * (36 + 24),
    }
    named = unstack(PARAMS, adapters, constants)
    assert {name: adapter.a.size + adapter.b.size for name, adapter in named.items()} == by_hand
    assert count(adapters) == sum(by_hand.values()) == 1260
    assert num_bytes(adapters) == 4 * 1260
    assert count(constants) == 5  # a scaling each


def test_absent_layers_and_targets_stay_absent():
    adapters, _ = made(**PATTERNS)
    found = {part: set(node) for part, node in adapters["layers"].items()}
    assert found == {"self_attn": {"q_proj"}, "mlp": {"down_proj"}}
    q = adapters["layers"]["self_attn"]["q_proj"]
    assert isinstance(q, ByLayer)
    assert sorted(q.layers) == [(0,), (2,)]
    assert sorted(part.a.shape for part in q.parts) == [(1, 24, 2), (1, 24, 4)]
    one, _ = made(targets=[*PATTERNS["targets"][:2]])
    assert [part.a.shape for part in one["layers"]["self_attn"]["q_proj"].parts] == [(2, 24, 3)]


@pytest.mark.parametrize("options", [PATTERNS, {"targets": ["layers.0.mlp.up_proj", "layers.2.mlp.up_proj"]}])
def test_adapters_that_differ_by_layer_equal_dense_algebra_layer_by_layer(options):
    """Several parts, and one part over several layers, each of which must land on its own."""
    adapters, constants = made(**options)
    expected = expected_logits(PARAMS, adapters, constants)
    close(logits(PARAMS, adapters, constants), expected, tiny.FORWARD)
    close(logits(merge(PARAMS, adapters, constants)), expected, tiny.FORWARD)


def test_stacking_is_undone_by_unstacking():
    adapters, constants = made(**PATTERNS)
    again = stack(PARAMS, unstack(PARAMS, adapters, constants))
    assert jax.tree.structure(again) == jax.tree.structure(combine(adapters, constants))
    assert tiny.raw(again) == tiny.raw(combine(adapters, constants))


# Two trees.


def test_a_frozen_a_is_a_constant_and_receives_no_gradient():
    adapters, constants = made(targets=["q_proj", "up_proj"], freeze_a=True)
    assert adapters["layers"]["self_attn"]["q_proj"].a is None
    assert constants["layers"]["self_attn"]["q_proj"].a.shape == (3, 24, 3)
    assert constants["layers"]["self_attn"]["q_proj"].b is None
    assert count(adapters) == 3 * 3 * (56 + 36)
    _, scalings = made(targets=["q_proj", "up_proj"])  # the twin of factors that both train

    def factors(whole):
        return dataclasses.replace(whole, scaling=None)

    both = jax.tree.map(factors, combine(adapters, constants), is_leaf=lambda x: isinstance(x, lora.LoRA))
    loss, batch = tiny.adapter_loss(CONFIG), {"tokens": TOKENS}
    found = jax.jit(jax.grad(loss))(adapters, (PARAMS, constants), batch)
    whole = jax.jit(jax.grad(loss))(both, (PARAMS, scalings), batch)
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    for part, name in (("self_attn", "q_proj"), ("mlp", "up_proj")):
        close(found["layers"][part][name].b, whole["layers"][part][name].b, tiny.BACKWARD)


def test_two_nested_adapters_each_get_their_own_gradient():
    """Against s * dW @ B^T and s * A^T @ dW, with dW from the base with both changes added."""
    first, second = made(seed=1, targets=["q_proj", "down_proj"]), made(seed=2, rank=4, targets=["q_proj", "v_proj"])

    def loss(both):
        params = attach(attach(PARAMS, both[0], first[1]), both[1], second[1])
        return transformer.loss(CONFIG, params, {"tokens": TOKENS})

    found = jax.jit(jax.grad(loss))((first[0], second[0]))
    summed = tiny.with_changes(PARAMS, tiny.lora_changes(PARAMS, *first))
    summed = tiny.with_changes(summed, tiny.lora_changes(PARAMS, *second))
    whole = jax.jit(jax.grad(tiny.full_loss(CONFIG)))(summed, None, {"tokens": TOKENS})
    for (adapters, constants), gradient in zip((first, second), found, strict=True):
        gradients = unstack(PARAMS, gradient, constants)
        for name, adapter in unstack(PARAMS, adapters, constants).items():
            d_w = np.asarray(tiny.matrix(whole, name), np.float64)
            close(gradients[name].a, float(adapter.scaling) * d_w @ np.asarray(adapter.b, np.float64).T, tiny.BACKWARD)
            close(gradients[name].b, float(adapter.scaling) * np.asarray(adapter.a, np.float64).T @ d_w, tiny.BACKWARD)
    both = merge(attach(PARAMS, *first), *second)
    close(both, summed, rounding(3 + 4 + 4))  # two low-rank sums, scaled and added


def test_adapters_stacked_over_n_run_under_vmap_as_one_by_one():
    several = [made(seed=seed, alpha=2.0 + seed, targets=["q_proj", "down_proj"]) for seed in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)

    @jax.jit
    def run(adapters, constants):
        return transformer.forward(CONFIG, attach(PARAMS, adapters, constants), TOKENS)

    found = jax.vmap(run)(*stacked)  # (N, B, T, V)
    for i, one in enumerate(several):
        close(found[i], expected_logits(PARAMS, *one), tiny.FORWARD)


@pytree
class Bank(Adapter):
    """N low-rank changes over one weight, a row of the batch choosing its own: nothing but the contract is used."""

    a: Any  # (L, N, in, R)
    b: Any  # (L, N, R, out)
    scaling: Any  # (L, N)
    ids: Any  # (L, B) broadcast: every leaf that a scan sees leads with L

    def matmul(self, x, w):
        a, b, scaling = (leaf[self.ids] for leaf in (self.a, self.b, self.scaling))  # (B, in, R), (B, R, out), (B,)
        sequences = x.reshape(len(self.ids), -1, x.shape[-1])  # (B, T, in): x is (B * T, in), sequence after sequence
        change = scaling[:, None, None] * jnp.einsum("bti,bir,bro->bto", sequences, a, b)  # (B, T, out)
        return matmul_f32(x, w, change.reshape(len(x), -1))


def test_the_contract_is_open_rows_of_one_batch_may_each_have_an_adapter_of_their_own():
    several = [made(seed=seed, alpha=2.0 + seed, targets=["q_proj", "down_proj"]) for seed in range(4)]
    ids = jnp.asarray([2, 0, 3, 1, 2])  # one a row of the batch

    def bank(*adapters):
        a, b, scaling = (jnp.stack([getattr(x, name) for x in adapters], axis=1) for name in ("a", "b", "scaling"))
        return Bank(a, b, scaling, jnp.broadcast_to(ids, (3, 5)))

    wholes = [combine(*one) for one in several]
    tree = jax.tree.map(bank, *wholes, is_leaf=lambda x: isinstance(x, lora.LoRA))
    constants = jax.tree.map(lambda x: Bank(None, None, None, None), tree, is_leaf=lambda x: isinstance(x, Bank))
    found = logits(PARAMS, tree, constants)
    for row, i in enumerate(ids):
        close(found[row], expected_logits(PARAMS, *several[int(i)])[row], tiny.FORWARD)


def test_maps_over_adapters_bear_leaves_that_are_no_arrays():
    adapters, constants = made(**PATTERNS)
    said = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", adapters)
    assert "float32[1, 24, 2]" in jax.tree.leaves(said)
    assert jax.tree.structure(said) == jax.tree.structure(adapters)
    shapes = jax.eval_shape(lambda key: lora.init(key, PARAMS, **PATTERNS), KEY)
    assert jax.tree.structure(shapes) == jax.tree.structure((adapters, constants))
    assert (count(shapes[0]), num_bytes(shapes[0])) == (1260, 5040)
    attached = jax.eval_shape(attach, PARAMS, *shapes)
    assert isinstance(attached["layers"]["mlp"]["down_proj"], Adapted)
    numbers = jax.tree.map(lambda leaf: leaf.size, adapters)
    assert sum(jax.tree.leaves(numbers)) == 1260


# Steps.


def test_a_bfloat16_base_trains_float32_adapters_and_carries_keep_their_dtype():
    _, params = tiny.model(jnp.bfloat16)
    adapters, constants = lora.init(KEY, params, rank=3, targets=["q_proj", "embed_tokens"])
    state = fit(
        tiny.adapter_loss(CONFIG),
        trainable=adapters,
        frozen=(params, constants),
        batches=[{"tokens": TOKENS}] * 6,
        optimizer=optax.adam(1e-2),
        steps=6,
        progress=False,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    assert state.losses[-1] < state.losses[0] - 0.1
    attached = attach(params, state.trainable, constants)
    assert jax.eval_shape(functools.partial(transformer.forward, CONFIG), attached, TOKENS).dtype == jnp.bfloat16
    merged = merge(params, state.trainable, constants)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


def test_two_alphas_need_one_compilation():
    traces = []

    @jax.jit
    def run(params, adapters, constants):
        traces.append(1)
        up = attach(params, adapters, constants)["layers"]["mlp"]["up_proj"]
        return jnp.ones((2, 24)) @ jax.tree.map(lambda leaf: leaf[0], up)

    adapters, constants = made(alpha=3.0, targets=["up_proj"])
    _, doubled = made(alpha=6.0, targets=["up_proj"])
    one, other = run(PARAMS, adapters, constants), run(PARAMS, adapters, doubled)
    base = jnp.ones((2, 24)) @ PARAMS["layers"]["mlp"]["up_proj"][0]
    close(other - base, 2 * (one - base), rounding(2 * 24 + 3), of=one)
    assert traces == [1]


def toy_loss(trainable, frozen, batch):
    return jnp.mean((batch["x"] @ trainable["w"] - batch["x"] @ frozen["w"]) ** 2)


TOY = {"x": np.random.default_rng(0).standard_normal((4, 3)).astype("float32"), "tokens": np.ones((4, 3), np.int32)}


def test_fit_leaves_the_callers_arrays_alive_and_make_step_donates():
    optimizer = optax.adam(1e-2)
    trainable, frozen = {"w": jnp.ones((3, 2))}, {"w": jnp.zeros((3, 2))}
    options = {"frozen": frozen, "batches": [TOY] * 3, "steps": 3, "progress": False}
    state = fit(toy_loss, trainable=trainable, optimizer=optimizer, **options)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((trainable, frozen, state.trainable)))
    opt_state = optimizer.init(trainable)
    step = make_step(toy_loss, optimizer)
    # A donated buffer that fits no output is not deleted, so what is promised is read from the program as well.
    given = step.lower(trainable, opt_state, frozen, TOY).args_info[0]
    donated = [{leaf.donated for leaf in jax.tree.leaves(argument)} for argument in given]
    assert donated == [{True}, {True}, {False}, {False}]
    step(trainable, opt_state, frozen, TOY)
    assert trainable["w"].is_deleted()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(opt_state))
    assert not frozen["w"].is_deleted()


def test_fit_copies_what_an_optimizer_remembers_of_the_start():
    """An optimizer whose state is the start itself, such as one that decays towards it."""

    def pull(gradient, start, params):
        return jax.tree.map(lambda g, s, p: -0.1 * (g + p - s), gradient, start, params), start

    towards = optax.GradientTransformation(lambda params: params, pull)
    trainable = {"w": jnp.ones((3, 2))}
    for _ in range(2):  # the second time fails where the first has donated the caller's arrays
        options = {"frozen": {"w": jnp.zeros((3, 2))}, "batches": [TOY] * 3, "steps": 3, "progress": False}
        state = fit(toy_loss, trainable=trainable, optimizer=towards, **options)
        np.testing.assert_array_equal(state.opt_state["w"], np.ones((3, 2)))
        assert not trainable["w"].is_deleted()


# Tied and untied heads, biases.


def test_an_adapter_on_a_tied_embedding_changes_both_sides():
    config, params = tiny.model(tie_word_embeddings=True)
    adapters, constants = made(params, targets=["embed_tokens", "v_proj"])
    assert adapters["embed_tokens"].a.shape == (50, 3)
    expected = expected_logits(params, adapters, constants, config)
    close(logits(params, adapters, constants, config=config), expected, tiny.FORWARD)
    close(logits(merge(params, adapters, constants), config=config), expected, tiny.FORWARD)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_side_of_an_untied_pair_leaves_the_other(target):
    adapters, constants = made(targets=[target])
    expected = expected_logits(PARAMS, adapters, constants)
    close(logits(PARAMS, adapters, constants), expected, tiny.FORWARD)
    merged = merge(PARAMS, adapters, constants)
    other = {"embed_tokens": "lm_head", "lm_head": "embed_tokens"}[target]
    assert merged[other] is PARAMS[other]
    close(logits(merged), expected, tiny.FORWARD)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_merging_into_one_side_of_a_tied_pair_unties_it(target):
    config, tied = tiny.model(tie_word_embeddings=True)
    with pytest.raises(InputError, match="no weight matches the target 'lm_head'"):
        lora.init(KEY, tied, targets=["lm_head"])
    params = transformer.untie(tied)
    assert "lm_head" not in tied
    adapters, constants = made(params, targets=[target])
    merged = merge(params, adapters, constants)
    embed, table = np.asarray(merged["embed_tokens"]), np.asarray(tied["embed_tokens"])
    head = np.asarray(merged["lm_head"])
    assert (np.array_equal(embed, table), np.array_equal(head, table.T)) == (target == "lm_head", target != "lm_head")
    expected = expected_logits(params, adapters, constants, config)
    close(logits(merged, config=config), expected, tiny.FORWARD)
    close(logits(params, adapters, constants, config=config), expected, tiny.FORWARD)


def test_a_biased_weight_keeps_its_bias_attached_and_merged():
    config, params = tiny.model(biases=("q_proj", "k_proj", "v_proj"))
    adapters, constants = made(params, targets=["q_proj", "o_proj"])
    plain = params | {"layers": params["layers"] | {"self_attn": dict(params["layers"]["self_attn"])}}
    attn = plain["layers"]["self_attn"]
    for name in ("q_proj", "o_proj"):
        changes = tiny.lora_changes(params, adapters, constants).items()
        change = np.stack([change for site, change in sorted(changes) if site.endswith(name)])
        whole = jnp.asarray(np.asarray(dense(attn[name]), np.float64) + change, jnp.float32)
        attn[name] = Biased(whole, attn[name].b) if name == "q_proj" else whole
    expected = logits(plain, config=config)
    close(logits(params, adapters, constants, config=config), expected, tiny.FORWARD)
    merged = merge(params, adapters, constants)
    assert isinstance(merged["layers"]["self_attn"]["q_proj"], Biased)
    assert tiny.raw(merged["layers"]["self_attn"]["q_proj"].b) == tiny.raw(params["layers"]["self_attn"]["q_proj"].b)
    close(merged, plain, rounding(3 + 2))


# Dropout.

UP = ("layers", "mlp", "up_proj")


def first_layer(tree, layer=0, path=UP):
    for name in path:
        tree = tree[name]
    return jax.tree.map(lambda leaf: leaf[layer], tree)


def test_dropout_is_off_without_a_key_and_on_with_one():
    adapters, constants = made(dropout=0.4, targets=["up_proj"])
    x = jnp.ones((2, 24))
    without = x @ first_layer(attach(PARAMS, adapters, constants))
    change = tiny.lora_changes(PARAMS, adapters, constants)["layers.0.mlp.up_proj"]
    expected = np.asarray(x, np.float64) @ (np.asarray(PARAMS["layers"]["mlp"]["up_proj"][0], np.float64) + change)
    close(without, expected, rounding(2 * 24 + 3))
    keys = (KEY, KEY, jax.random.key(12))
    one, again, other = (x @ first_layer(attach(PARAMS, adapters, constants, key)) for key in keys)
    np.testing.assert_array_equal(one, again)
    assert difference(one, without) > 1e-2
    assert difference(one, other) > 1e-2
    assert difference(one[0], one[1]) > 1e-2  # rows drop their own


def test_dropout_keeps_the_mean_and_drops_the_share_it_says():
    """On an identity for A and B: an input of one comes out as 1 / (1 - 0.4) or nothing."""
    eye = jnp.eye(6)
    adapter = lora.LoRA(eye, eye, jnp.asarray(1.0), jnp.asarray(0.4))
    drawn = jax.vmap(lambda key: jnp.ones((6,)) @ Adapted(jnp.zeros((6, 6)), adapter.randomize(key)))(
        jax.random.split(KEY, 4000)
    )
    values, counts = np.unique(np.asarray(drawn), return_counts=True)
    close(values, np.asarray([0, 1 / 0.6]), rounding(6 + 6 + 2))
    close(counts[0] / counts.sum(), 0.4, stated(5 * (0.6 / 0.4 / 24_000) ** 0.5, "5 standard errors of 24,000 draws"))
    error = stated(5 * (0.4 / 0.6 / 4_000) ** 0.5, "5 standard errors of 4,000 draws")
    close(drawn.mean(axis=0), np.ones(6), error)


def test_dropout_differs_by_layer_by_target_and_by_part():
    ranks = {r".*\.1\..*q_proj": 2}
    adapters, constants = made(dropout=0.5, targets=["up_proj", "gate_proj", "q_proj"], rank_pattern=ranks)
    attached = attach(PARAMS, adapters, constants, KEY)

    def keys(w):
        return list(jax.random.key_data(w.adapter.key)) + (keys(w.w) if isinstance(w.w, Adapted) else [])

    nodes = [attached["layers"]["mlp"]["up_proj"], attached["layers"]["mlp"]["gate_proj"]]
    nodes.append(attached["layers"]["self_attn"]["q_proj"])
    assert isinstance(nodes[2].w, Adapted)  # two ranks, two parts
    found = [tuple(map(int, key)) for node in nodes for key in keys(node)]
    assert len(set(found)) == len(found) == 3 * (1 + 1 + 2)


def test_no_dropout_has_no_field():
    adapters, constants = made(dropout=0.0, targets=["up_proj"])
    assert constants["layers"]["mlp"]["up_proj"].dropout is None
    assert adapters["layers"]["mlp"]["up_proj"].dropout is None
    with_key, without = attach(PARAMS, adapters, constants, KEY), attach(PARAMS, adapters, constants)
    assert jax.tree.structure(with_key) == jax.tree.structure(without)


# The laws of weights.

DRAW = np.random.default_rng(3)
PRODUCT = rounding(2 * 5 + 2 + 3)  # through W and A, and through B of rank 2 and of rank 3


def array(*shape):
    return jnp.asarray(DRAW.standard_normal(shape), jnp.float32)


def low_rank(rank=2):
    return lora.LoRA(array(5, rank), array(rank, 7), jnp.asarray(0.5))


WEIGHTS = {
    "biased": Biased(array(5, 7), array(7)),
    "adapted": Adapted(array(5, 7), low_rank()),
    "adapted twice": Adapted(Adapted(array(5, 7), low_rank()), low_rank(3)),
    "adapted and biased": Adapted(Biased(array(5, 7), array(7)), low_rank()),
}


def by_hand(w):
    """`(matrix, bias)` in float64."""
    if isinstance(w, Biased):
        return np.asarray(w.w, np.float64), np.asarray(w.b, np.float64)
    if isinstance(w, Adapted):
        matrix, bias = by_hand(w.w)
        a, b = (np.asarray(x, np.float64) for x in (w.adapter.a, w.adapter.b))
        return matrix + float(w.adapter.scaling) * a @ b, bias
    return np.asarray(w, np.float64), 0.0


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_numpy_and_jax_arrays_multiply_any_weight(name, kind):
    w, x = WEIGHTS[name], kind(DRAW.standard_normal((3, 4, 5)).astype("float32"))
    matrix, bias = by_hand(w)
    close(x @ w, np.asarray(x, np.float64) @ matrix + bias, PRODUCT)
    assert w.shape == matrix.shape == (5, 7)
    close(w.dense(), matrix, PRODUCT)
    assert w.dense(jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_product_is_summed_in_float32_and_has_the_dtype_of_x(name):
    w = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), WEIGHTS[name])
    x = array(3, 5).astype(jnp.bfloat16)
    matrix, bias = by_hand(w)
    found = x @ w
    assert found.dtype == w.dtype == w.dense().dtype == jnp.bfloat16
    close(found, np.asarray(x, np.float64) @ matrix + bias, rounding(2, jnp.bfloat16))  # x @ A and the result


@pytest.mark.parametrize("name", ["adapted", "adapted twice"])
def test_rows_and_the_transpose_are_those_of_the_matrix(name):
    w, ids = WEIGHTS[name], jnp.asarray([[4, 0, 4], [1, 2, 3]])
    matrix, _ = by_hand(w)
    close(w[ids], matrix[np.asarray(ids)], PRODUCT)
    close(w.T.dense(), matrix.T, PRODUCT)
    x = array(2, 7)
    close(x @ w.T, np.asarray(x, np.float64) @ matrix.T, rounding(2 * 7 + 2 + 3))


def test_dense_and_split_bias_bear_arrays_too():
    w = array(5, 7)
    assert dense(w) is w
    assert dense(w, jnp.bfloat16).dtype == jnp.bfloat16
    assert split_bias(w)[0] is w
    assert split_bias(w)[1] is None
    assert split_bias(WEIGHTS["biased"])[1] is WEIGHTS["biased"].b


@pytest.mark.parametrize(
    "use, words",
    [
        (lambda w: w.shape, "Half does not say its shape"),
        (lambda w: w.dtype, "Half does not say its dtype"),
        (lambda w: jnp.ones(5) @ w, "Half cannot be multiplied"),
        (lambda w: w[jnp.asarray([0])], "Half has no rows to look up: it cannot serve as an embedding"),
        (lambda w: w.T, "Half has no transpose: it cannot serve as a tied head"),
        (lambda w: w.dense(), "Half has no dense form"),
    ],
)
def test_a_weight_says_what_it_lacks(use, words):
    class Half(Weight):
        pass

    with pytest.raises(TypeError, match=words):
        use(Half())


@pytest.mark.parametrize(
    "use, words",
    [
        (lambda a, w: jnp.ones(5) @ Adapted(w, a), "Half has no forward rule"),
        (lambda a, w: Adapted(w, a).dense(), "Half cannot be merged"),
        (lambda a, w: a.neutral(w), "Half cannot stand on some layers only"),
        (lambda a, w: Adapted(w, a).T, "Half cannot be transposed: it cannot stand on a tied embedding"),
    ],
)
@pytree
class Doubled(Adapter):
    """The least that a method at a weight is: a merge."""

    factor: Any

    def merge(self, w):
        return self.factor * w


def test_all_that_an_adapter_at_a_weight_must_have_is_a_merge():
    w, x, factor = array(5, 7), array(3, 5), jnp.asarray(2.0)
    adapted = Adapted(w, Doubled(factor))
    close(x @ adapted, 2 * np.asarray(x, np.float64) @ np.asarray(w), rounding(5))
    close(adapted[jnp.asarray([4, 1])], 2 * w[jnp.asarray([4, 1])], rounding(1))
    close(x @ adapted.T.T, x @ adapted, rounding(5))
    biased = Doubled(factor).onto(Biased(w, array(7)))  # the adapter stands inside, and never sees the bias
    close(x @ biased, 2 * np.asarray(x, np.float64) @ np.asarray(w) + np.asarray(biased.b), rounding(6))
    with pytest.raises(TypeError, match="Doubled cannot stand on some layers only"):
        Doubled(factor).identity(w)
    with pytest.raises(TypeError, match="Adapter cannot be merged"):
        Adapted(w, Adapter()).dense()


# Mistakes get a sentence.


def test_another_width_is_another_base():
    adapters, constants = made(targets=["q_proj"])
    _, wider = tiny.model(hidden_size=32)
    words = r"layers\.self_attn\.q_proj: the adapter is for a \(24, 56\) matrix and the base's is \(32, 56\)"
    with pytest.raises(InputError, match=words):
        attach(wider, adapters, constants)


@pytest.mark.parametrize("targets", [["up_proj"], ["layers.2.mlp.up_proj"]])
def test_another_depth_is_another_base(targets):
    adapters, constants = made(targets=targets)
    _, shallower = tiny.model(num_hidden_layers=2)
    words = r"layers\.mlp\.up_proj: the adapter's layers do not match the base's 2 layers: another base\?"
    with pytest.raises(InputError, match=words):
        attach(shallower, adapters, constants)
    with pytest.raises(InputError, match=words):
        merge(shallower, adapters, constants)


def test_a_missing_name_is_another_base():
    adapters, constants = made(targets=["lm_head", "q_proj"])
    _, tied = tiny.model(tie_word_embeddings=True)
    with pytest.raises(InputError, match="the adapters have lm_head, which this base lacks: another base"):
        attach(tied, adapters, constants)
    headless = PARAMS | {"layers": {"mlp": PARAMS["layers"]["mlp"]}}
    with pytest.raises(
        InputError, match=r"the adapters have layers\.self_attn\.q_proj, which this base lacks: another"
    ):
        attach(headless, adapters, constants)


def test_matching_nothing_lists_what_could_have_been_matched():
    listed = ["embed_tokens", "lm_head", *(f"layers.N.self_attn.{x}_proj" for x in "qkvo"), "layers.N.mlp.down_proj"]
    for targets, named in (("q_prj", "'q_prj'"), (["q_proj", "query"], "'query'"), ([], r"\[\]")):
        with pytest.raises(InputError, match=f"no weight matches the target {named}; there are: ") as caught:
            lora.init(KEY, PARAMS, targets=targets)
        assert all(kind in str(caught.value) for kind in listed)
    with pytest.raises(InputError, match=r"targets='\(' is not a regular expression: "):
        lora.init(KEY, PARAMS, targets="(")


@pytest.mark.parametrize("rank", [0, -1, 25])
def test_an_impossible_rank_is_refused(rank):
    words = rf"layers\.0\.self_attn\.q_proj: rank must be 1 to 24 for a 24 x 56 matrix, not {rank}"
    with pytest.raises(InputError, match=words):
        lora.init(KEY, PARAMS, rank=rank, targets=["q_proj"])


@pytest.mark.parametrize("dropout", [1.0, -0.1])
def test_an_impossible_dropout_is_refused(dropout):
    with pytest.raises(InputError, match=f"dropout must be at least 0 and below 1, not {dropout}"):
        lora.init(KEY, PARAMS, dropout=dropout)


def test_trees_that_are_not_twins_are_refused():
    adapters, _ = made(targets=["q_proj"])
    for targets in (["k_proj"], ["layers.1.self_attn.q_proj"]):
        _, constants = made(targets=targets)
        with pytest.raises(InputError, match="adapters and constants are not twins: "):
            attach(PARAMS, adapters, constants)
