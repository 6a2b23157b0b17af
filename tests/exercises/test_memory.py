"""The exercises of notebook 04: right answers pass, plausible wrong ones are told what is wrong with them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from answers import is_told, written

from lora_jax import quantize, transformer
from lora_jax.adapters import lora
from lora_jax.adapters.base import num_bytes
from lora_jax.exercises.outcomes import CORRECT, outcome
from lora_jax.exercises.registry import find
from lora_jax.memory import residuals, zoo
from lora_jax.memory.estimate import estimate
from lora_jax.memory.setup import Setup


def another_lora(shapes, layers, targets, rank):
    """By the package's own adapters, one after the other."""
    one = sum(4 * rank * side for name in targets for side in shapes[name])
    rows = {"gradients": 0, "adapters": 0, "optimizer state": 4.0}
    for _ in range(layers):
        rows = {"gradients": rows["gradients"] + one, "adapters": rows["adapters"] + one,
                "optimizer state": rows["optimizer state"] + 2 * one}  # fmt: skip
    return rows


def another_block(N, D, F, H, K, C, size):
    """By what autodiff keeps of the package's own step, for one layer and one sequence."""
    config = transformer.Config(11, D, F, 1, H, K, C)
    setup = Setup(config, "full", length=N, dtype="bfloat16" if size == 2 else "float32")
    names = ("block input", "q", "k", "v", "mixed", "log_sum_exp", "stream", "gate", "up")
    return sum(one.bytes for one in residuals.kept(setup) if one.role in names)


def another_nf4(rows, columns, double):
    """By the shapes of the package's own quantized weight."""
    shape = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
    found = jax.eval_shape(lambda w: quantize.nf4(w, double_quantization=double), shape)
    return [num_bytes(found.codes), num_bytes(found) - num_bytes(found.codes)]


def another_ratio(P, A, kept):
    """What is saved, taken off."""
    full = 8 * P + kept
    return full / (full - (6 * P - 16 * A))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("id", "answer"),
    [("4.1", another_lora), ("4.2", another_block), ("4.3", another_nf4), ("4.4", 15.5), ("4.5", another_ratio)],
)
def test_another_way_to_the_same_answer_is_correct(id, answer, seed):
    assert outcome(find(id), answer, seed).status == CORRECT


NUMBERS = "layers * sum(rank * (shapes[name][0] + shapes[name][1]) for name in targets)"
CONSTANTS = "blocks + 4 * -(-blocks // 256) + 4 if double else 4 * blocks"
BLOCKS = "-(-rows // 64) * columns"
WRONG = {
    "4.1": [
        (('"adapters": 4 * n', '"adapters": 2 * n'), "they are float32"),
        (('"adapters": 4 * n', '"adapters": n'), "those are numbers"),
        (("layers * sum", "sum"), "you count one layer"),
        (("rank * (shapes[name][0] + shapes[name][1])", "rank * shapes[name][0]"), "B is missing"),
        (("rank * (shapes[name][0] + shapes[name][1])", "rank * shapes[name][1]"), "A is missing"),
        (("shapes[name][0] + shapes[name][1]", "shapes[name][0] * shapes[name][1]"), "add up"),
        (("for name in targets", "for name in shapes"), "you count every matrix"),
        (("layers * sum", "7 + sum"), "R * (in + out)"),
        (('"gradients": 4 * n', '"gradients": 4 * layers * sum(i * o for i, o in shapes.values())'), "frozen matrix"),
        (('"gradients": 4 * n', '"gradients": 2 * n'), "the gradients are off: one for each number that trains"),
        (("2 * 4 * n + 4", "2 * 4 * n"), "counts its steps"),
        (("2 * 4 * n + 4", "4 * n + 4"), "two moments for each number"),
        (("2 * 4 * n + 4", "3 * 4 * n + 4"), "no master copy"),
        (("2 * 4 * n + 4", "2 * 2 * n"), "a count of 4 bytes"),
        (("2 * 4 * n + 4", "2 * 2 * n + 4"), "two moments"),
        (('"optimizer state":', '"state":'), "return a dict with the keys"),
    ],
    "4.2": [
        (("2 * K * C", "2 * H * C"), "k and v are too wide"),
        (("2 * F", "3 * F"), "silu(gate) * up is made again"),
        (("2 * F", "F"), "gate and up are both kept"),
        (("2 * D +", "D +"), "the block's input is missing"),
        (("2 * D +", "3 * D +"), "normed streams are made again"),
        (("2 * H * C", "H * C"), "q or mixed is missing"),
        (("2 * H * C", "2 * D"), "which need not be D"),
        ((" + 4 * H", ""), "log_sum_exp is missing"),
        (("+ 4 * H", "+ size * H"), "it is float32"),
        (("+ 4 * H", "+ 4"), "one number for each token"),
        (("N * (size * numbers + 4 * H)", "size * numbers + 4 * H"), "those are the bytes of one token"),
        (("size * numbers + 4 * H", "numbers + H"), "those are numbers"),
        (("return N", "return 7 + N"), "you count 7 bytes too many"),
    ],
    "4.3": [
        (("rows * columns // 2", "rows * columns"), "a code has 4 bits"),
        (("rows * columns // 2", "rows * columns // 8"), "half a byte"),
        ((BLOCKS, "rows // 64 * columns"), "the last block of a column"),
        ((BLOCKS, "-(-columns // 64) * rows"), "blocks run down a column"),
        ((BLOCKS, "-(-rows * columns // 64)"), "no block runs on into the next column"),
        ((CONSTANTS, "4 * blocks"), "double quantization is missing"),
        ((" + 4 if double", " if double"), "4 bytes short"),
        (("blocks + 4 * -(-blocks // 256) + 4 if", "blocks + 4 if"), "share a float32 of their own"),
        (("-(-blocks // 256)", "(blocks // 256)"), "must be rounded up"),
        (("blocks + 4 * -", "5 * blocks + 4 * -"), "in place of the float32 ones"),
        ((" if double else 4 * blocks", ""), "nothing is added"),
        (("4 * blocks", "blocks"), "without double quantization each constant is a float32"),
        (("else 4 * blocks", "else 7"), "count the blocks of 64 first"),
        (("return rows * columns // 2, constants", "return rows * columns // 2 + constants"), "return two numbers"),
    ],
    "4.5": [
        (("lora = 2 * P + ", "lora = "), "LoRA's weights are missing"),
        (("4 + 4 + 8", "2 + 2 + 4"), "16 bytes, not 8"),
        (("* A + kept", "* A + kept * A / P"), "activations still shrink"),
        (("4 + 4 + 8", "8"), ("* A + kept", "* A + kept * A / P"), "not 8: it, its gradient and its two moments are"),
        (
            ("lora = 2 * P + ", "lora = "),
            ("4 + 4 + 8", "8"),
            ("* A + kept", "* A + kept * A / P"),
            "LoRA's weights are missing",
        ),
        (("* A + kept", "* A"), "LoRA's activations are missing"),
        (("lora = 2 * P", "lora = 4 * P"), "frozen weights have no gradient"),
        (("full / lora", "lora / full"), "upside down"),
        (("full / lora", "full - lora"), "write down what lies in memory"),
    ],
}


@pytest.mark.parametrize(("id", "wrong"), [(id, wrong) for id, cases in WRONG.items() for wrong in cases])
def test_a_wrong_answer_is_told_why(id, wrong):
    *changes, reason = wrong
    is_told(id, written(id, *changes), reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (16 * 1024, "those are tokens"),
        (6, "they pass what LoRA holds"),
        (47.5, "those are the GB"),
        (11, "too small a batch"),
        (21, "too large a batch"),
    ],
)
def test_a_wrong_reading_is_told_why(answer, reason):
    is_told("4.4", answer, reason)


def test_the_reading_is_where_the_shapes_of_the_step_put_it():
    setup = Setup(zoo.config("llama3.1-8b"), options={"rank": 16}, length=1024)
    params, adapters = 8_030_261_248, 41_943_040
    saved = (2 + 4) * params - (4 + 4 + 8) * adapters
    kept = {batch: estimate(dataclasses.replace(setup, batch=batch))["saved activations"] for batch in (15, 16)}
    assert kept[15] < saved < kept[16]
    assert outcome(find("4.4"), 16).status == CORRECT


def test_the_other_way_to_count_adapters_is_the_package_s():
    config = transformer.Config(31, 48, 112, 5, 3, 1, 16)
    make = lambda: lora.init(jax.random.key(0), transformer.init(jax.random.key(0), config), rank=4, targets=["q_proj"])  # noqa: E731
    adapters, _ = jax.eval_shape(make)
    assert another_lora({"q_proj": (48, 48)}, 5, ["q_proj"], 4)["adapters"] == num_bytes(adapters)
