"""What autodiff keeps, against what the formula says it keeps: array by array, to the byte."""

import dataclasses
import itertools
import math
from collections import Counter

import jax
import pytest

from lora_jax import attention, cross_entropy
from lora_jax.adapters import METHODS as METHODS_OF_THE_PACKAGE
from lora_jax.memory import activations, residuals
from lora_jax.memory.setup import Setup
from lora_jax.memory.steps import build
from lora_jax.transformer import KEPT, Config

METHODS = {
    "full": {"method": "full"},
    "LoRA on q and v": {"options": {"rank": 3, "targets": ["q_proj", "v_proj"]}},
    "LoRA on all": {"options": {"rank": 3}},
    "A frozen": {"options": {"rank": 3, "freeze_a": True}},
    "QLoRA": {"options": {"rank": 3}, "quantize": "nf4"},
}
# Dimensions that all differ; a batch of one and of more; lengths below, at and beyond a block, not multiples of it.
SHAPES = {
    "grouped, tied": (Config(31, 12, 20, 3, 6, 2, 8), 2, 7),
    "biases": (Config(37, 24, 40, 2, 4, 4, 6, biases=("q_proj", "k_proj", "v_proj")), 1, 256),
    "blocks of a padded length": (Config(29, 40, 48, 2, 3, 1, 10, tie_word_embeddings=False), 3, 773),
}
EACH = [*itertools.product(("float32", "bfloat16"), ("blockwise", "dense"))]
FORMS = {"grouped, tied": EACH, "biases": EACH[3:], "blocks of a padded length": EACH[1:3]}
CASES = [
    (method, shape, remat, *form)
    for method, shape, remat in itertools.product(METHODS, SHAPES, (False, True))
    for form in FORMS[shape]
]


def case(method, shape="grouped, tied", remat=False, dtype="float32", attention="blockwise"):
    config, batch, length = SHAPES[shape]
    words = {"remat": remat, "dtype": dtype, "attention": attention, **METHODS[method]}
    return Setup(config, batch=batch, length=length, **words)


def by_role(setup):
    """The bytes that autodiff keeps, by role."""
    totals = Counter()
    for one in residuals.kept(setup):
        totals[one.role] += one.bytes
    return totals


def by_hand(setup):
    return activations.kept(setup, build(setup).trainable)


@pytest.mark.parametrize("names", CASES, ids=[" ".join(map(str, names)) for names in CASES])
def test_the_formula_keeps_what_autodiff_keeps(names):
    setup = case(*names)
    assert sorted(residuals.kept(setup), key=str) == sorted(by_hand(setup), key=str)


REGISTRY = [
    (method, quantize, remat, attention)
    for method in METHODS_OF_THE_PACKAGE
    for quantize, remat, attention in ((None, False, "blockwise"), ("nf4", True, "blockwise"), ("int8", False, "dense"))
]


@pytest.mark.parametrize(("method", "quantize", "remat", "attention"), REGISTRY)
def test_the_count_is_what_autodiff_keeps_for_every_method(method, quantize, remat, attention):
    words = {"method": method, "quantize": quantize, "remat": remat, "attention": attention}
    setup = dataclasses.replace(case("full"), **words)
    assert sorted(residuals.kept(setup), key=str) == sorted(by_hand(setup), key=str)


@pytest.mark.parametrize(
    "targets",
    [["up_proj"], ["o_proj"], "mlp", ["layers.1.self_attn.o_proj"], ["layers.2.mlp.down_proj", "k_proj"]],
    ids=str,
)
def test_targets_of_some_layers_keep_the_same_of_all(targets):
    """Whether o_proj trains is read off what trains, in whichever layer; the rest is kept for any target."""
    setup = dataclasses.replace(case("LoRA on all", attention="dense"), options={"rank": 3, "targets": targets})
    found = [one for one in residuals.kept(setup) if one.role != "spread adapters"]
    assert sorted(found, key=str) == sorted(by_hand(setup), key=str)


def test_what_adapters_keep_of_themselves_stands_apart():
    """On one layer of three they are spread over all: A, B and scaling, with zeros and an index. Dropout has keys."""
    plain = case("LoRA on all")
    D, F, L, R = 12, 20, 3, 3
    one = dataclasses.replace(plain, options={"rank": R, "targets": ["layers.1.mlp.up_proj"]})
    assert by_role(one)["spread adapters"] == 4 * (2 * L * R * (D + F) + L + 2)
    dropped = dataclasses.replace(plain, options={"rank": R, "dropout": 0.1})
    assert by_role(dropped)["dropout's keys"] == 8 * L * 7
    for setup in (one, dropped):
        ledger = residuals.residuals(setup)
        assert ledger["kept of adapters"] > 0
        assert ledger["saved activations"] == activations.saved_bytes(setup, build(setup).trainable)


def test_the_ledger_sums_them_up():
    setup = case("full", "biases")
    ledger, step = residuals.residuals(setup), build(setup)
    assert ledger["saved activations"] == activations.saved_bytes(setup, step.trainable)
    assert ledger.total == sum(one.bytes for one in by_hand(setup))


def test_the_cases_meet_the_hard_ones():
    assert {activations.even(length) for _, _, length in SHAPES.values()} == {(1, 7), (1, 256), (4, 194)}
    assert 4 * 194 > 773


@pytest.mark.parametrize("method", METHODS)
def test_with_arguments_and_constants_it_is_all_that_a_vjp_holds(method):
    """`jax.eval_shape` of the vjp, with no look at the program: its other leaves are arguments, or NF4's tables."""
    setup = case(method, "blocks of a padded length", remat=True)
    step = build(setup)

    def pull(trainable, frozen, batch):
        return jax.vjp(lambda trainable: step.loss(trainable, frozen, batch), trainable)[1]

    held = jax.tree.leaves(jax.eval_shape(pull, step.trainable, step.frozen, step.batch))
    arguments = {(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves((step.trainable, step.frozen, step.batch))}
    tables = {((256,), "float32"), ((16,), "float32")}
    kept = [(one.shape, one.dtype) for one in residuals.kept(setup)]
    rest = [(leaf.shape, leaf.dtype.name) for leaf in held]
    for one in kept:
        rest.remove(one)
    assert set(rest) <= arguments | tables
    assert not {one.role for one in residuals.kept(setup)} & {"gate", "up"}


def test_roles_are_the_blocks_own_names():
    found = by_role(case("LoRA on all"))
    around = {"block input", "angles", "segments", "final norm", *activations.LOSS}
    assert set(found) == {*KEPT, *around}
    B, T, L, H, C = 2, 7, 3, 6, 8
    assert found["q"] == 4 * L * B * T * H * C
    assert found["log_sum_exp"] == 4 * L * B * T * H


def test_lora_saves_no_activation_memory():
    """The third trap. Full fine-tuning keeps two things more, outside the blocks: token ids and a normed stream."""
    full, lora = (by_role(case(method, dtype="bfloat16")) for method in ("full", "LoRA on all"))
    B, T, D = 2, 7, 12
    assert full["token ids"] == 4 * B * T
    assert full["final norm"] - lora["final norm"] == 2 * B * T * D
    assert {role: full[role] for role in lora if role != "final norm"} == {
        role: lora[role] for role in lora if role != "final norm"
    }


def test_a_dequantized_weight_is_never_kept():
    """The second trap: a QLoRA keeps what a LoRA keeps."""
    lora, qlora = case("LoRA on all", dtype="bfloat16"), case("QLoRA", dtype="bfloat16")
    assert residuals.kept(qlora) == residuals.kept(lora)


def test_rematerialized_blocks_keep_their_input_alone():
    plain, remat = (by_role(case("LoRA on all", remat=remat)) for remat in (False, True))
    assert set(plain) - set(remat) == set(KEPT)
    assert remat == {role: size for role, size in plain.items() if role not in KEPT}


def test_the_constants_are_the_packages():
    """One rule cuts the sequence and the loss's tokens: `activations.even`."""
    assert activations.BLOCK is attention.BLOCK and cross_entropy.CHUNK == attention.BLOCK


def test_one_array_by_hand():
    setup = dataclasses.replace(case("full"), batch=3, length=300, dtype="bfloat16")
    mixed = next(one for one in by_hand(setup) if one.role == "mixed")
    # 300 tokens are two blocks of 150; three query heads share each of two key/value heads; C is 8; three layers.
    assert mixed.shape == (3, 2, 3, 2, 3 * 150, 8)
    assert mixed.bytes == 2 * math.prod(mixed.shape)
