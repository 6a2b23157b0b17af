"""Exercises of notebook 04: what full fine-tuning, LoRA and QLoRA hold, and what a batch brings to all three."""

from __future__ import annotations

from functools import partial
from math import ceil, isfinite
from typing import Any

import numpy as np

from lora_jax.adapters import DEFAULT
from lora_jax.exercises.colleague import TIMES_LESS
from lora_jax.exercises.judging import number
from lora_jax.exercises.layer import KEPT_BY_BLOCK
from lora_jax.exercises.registry import Exercise
from lora_jax.memory import planner, zoo
from lora_jax.memory.estimate import estimate
from lora_jax.memory.ledger import Ledger
from lora_jax.memory.setup import Setup, ways

# 4.1: what LoRA puts in place of a gradient and two moments for every weight.
_ROWS = ("adapters", "gradients", "optimizer state")


def _rows_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Some targets, one, and all, in another order than the shapes; two of a shape; a count beyond float32."""

    def case(names: tuple[str, ...], layers: int, rank: int) -> tuple[Any, ...]:
        D, Q, KV, F = (int(n) * 8 for n in rng.permutation(np.arange(5, 30))[:4])
        shapes = {"q_proj": (D, Q), "v_proj": (D, KV), "o_proj": (Q, D), "up_proj": (D, F), "down_proj": (F, D)}
        return shapes, layers, list(names), rank

    D, Q, F = (128 * int(n) for n in rng.choice(np.arange(20, 60), 3, replace=False))
    large = {"q_proj": (D, Q + 1), "k_proj": (D, Q), "gate_proj": (D, F), "up_proj": (D, F)}
    return [
        *(case(names, int(rng.integers(3, 40)), int(rng.integers(3, 9)))
          for names in (("q_proj", "v_proj"), ("down_proj",), ("q_proj", "o_proj", "up_proj"))),
        (large, 61, ["up_proj", "q_proj", "gate_proj"], 77),
        case(("down_proj", "up_proj", "o_proj", "v_proj", "q_proj"), 1, 1),
    ]  # fmt: skip


def _judge_rows(arguments: tuple[Any, ...], answer: Any) -> str | None:
    shapes, layers, targets, rank = arguments
    if not isinstance(answer, dict) or set(answer) != set(_ROWS):
        return f"return a dict with the keys {', '.join(map(repr, _ROWS))}, bytes under each."
    adapters, gradients, state = (number(answer[row]) for row in _ROWS)
    picked = [shapes[name] for name in targets]
    n = layers * rank * sum(i + o for i, o in picked)
    each = 4 * layers * rank
    mistakes = {
        2 * n: "they are float32, 4 bytes a number, whatever the base is stored in.",
        n: "those are numbers; a float32 takes 4 bytes.",
        4 * n // layers: "you count one layer; each layer has factors of its own.",
        each * sum(i for i, _ in picked): "B is missing, R x out for each target.",
        each * sum(o for _, o in picked): "A is missing, in x R for each target.",
        each * sum(i * o for i, o in picked): "the sizes of two factors, R * in and R * out, add up.",
        each * sum(i + o for i, o in shapes.values()): "you count every matrix, and only the targets have factors.",
    }
    if adapters != 4 * n:
        other = "count R * (in + out) for each target, in every layer."
        return f"the adapters are off: {mistakes.get(int(adapters), other)}"
    if gradients != 4 * n:
        base = 4 * layers * sum(i * o for i, o in shapes.values())
        if gradients in (base, base // 2, base + 4 * n):
            return "the gradients are off: no gradient of a frozen matrix exists; only the adapters have one."
        return "the gradients are off: one for each number that trains, in its dtype, float32."
    if state == 8 * n + 4:
        return None
    mistakes = {
        8 * n: "it is 4 bytes short: AdamW counts its steps in an int32.",
        4 * n + 4: "AdamW keeps two moments for each number that trains, mu and nu.",
        12 * n + 4: "the adapters are float32 already and need no master copy.",
    }
    other = "mu and nu of what trains, in float32, and a count of 4 bytes."
    return f"the optimizer state is off: {mistakes.get(int(state), other)}"


# 4.3: NF4, with and without double quantization.
def _nf4_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """First whole blocks and groups; then both cut short, at the end of a column and of all; whole, few, very many.

    Of the large matrix the bytes of the codes, and those of the constants, are odd: float32 cannot hold them.
    """
    cases = [(64 * int(rng.integers(5, 30)) + 2 * int(rng.integers(3, 30)), 64 * int(rng.integers(5, 20)) + 7)
             for _ in range(4)]  # fmt: skip
    whole = (64 * int(rng.integers(2, 6)), 256 * int(rng.integers(1, 4)))
    few = (2 * int(rng.integers(1, 32)), 1)
    large = (2 * (32_769 + 2 * int(rng.integers(0, 15))), 16_501 + 4 * int(rng.integers(0, 100)))
    cases = [whole, *cases, whole, few, few, large, large]
    return [(*case, i % 2 == 0) for i, case in enumerate(cases)]


def _constants(blocks: int, double: bool) -> int:
    return blocks + 4 * ceil(blocks / 256) + 4 if double else 4 * blocks


def _judge_nf4(arguments: tuple[Any, ...], answer: Any) -> str | None:
    rows, columns, double = arguments
    answer = answer.tolist() if isinstance(answer, np.ndarray) and answer.shape == (2,) else answer
    if not isinstance(answer, list | tuple) or len(answer) != 2:
        return "return two numbers: the bytes of the codes, and those of the constants."
    codes, constants = (number(part) for part in answer)
    if codes == rows * columns:
        return "the codes are twice too large: a code has 4 bits, so that two share a byte."
    if codes != rows * columns // 2:
        return "the codes are off: half a byte for each of rows * columns weights."
    n = ceil(rows / 64) * columns
    if constants == _constants(n, double):
        return None
    one_more = (rows % 64 == 0 and constants == _constants((rows // 64 + 1) * columns, double),
                double and n % 256 == 0 and constants == _constants(n, True) + 4)  # fmt: skip
    if any(one_more):
        return "the constants are too many: 64 rows are one block and 256 blocks one group; only what is left adds one."
    known = {
        _constants(rows // 64 * columns, double): "the last block of a column is left out: round rows / 64 up.",
        _constants(rows * ceil(columns / 64), double): "blocks run down a column: columns * ceil(rows / 64) of them.",
        _constants(ceil(rows * columns / 64), double): "no block runs on into the next column: round up in each.",
        # The first case has whole groups: an answer that leaves the last group out is right there.
        n + 4 * ceil(n / 256): "the constants are 4 bytes short: one more float32, their mean, is shared by all."
        if n % 256 == 0
        else "the last group of 256 is left out where it is not full: it must be rounded up.",
        n + 4: "with double quantization 256 constants share a float32 of their own, which is missing.",
        5 * n + 4 * ceil(n / 256) + 4: "the quantized constants stand in place of the float32 ones, not beside them.",
        4 * n: "double quantization is missing: each constant becomes a byte, and 256 of them share a float32.",
    }
    other = "the constants are off: count the blocks of 64 first, and then the bytes that each one's constant takes."
    if not double and constants == n:
        return "without double quantization each constant is a float32, 4 bytes, and not one byte."
    if not double and constants == _constants(n, True):
        return "without double quantization the constants are plain float32, and nothing is added."
    return known.get(int(constants), other)


LENGTH = 1024  # tokens of a sequence in the picture of 4.4


# 4.4: where the batch drowns what LoRA saves, read off the picture. Exact rows alone.
def at_batch(batch: int) -> dict[str, Ledger]:
    """The ledgers of a step of the model in the picture, with a batch of so many sequences, by every method.

    Full fine-tuning is counted without a master copy, as notebooks 02 and 04 do.
    """
    setup = Setup(zoo.config("llama3.1-8b"), "full", rounding="nearest", batch=batch, length=LENGTH)
    return {way: estimate(one) for way, one in ways(setup).items()}


def brought(batch: int) -> int:
    """The exact bytes that a batch brings to a step of LoRA: itself, and the saved activations."""
    ledger = at_batch(batch)[DEFAULT]
    return ledger["batch"] + ledger["saved activations"]


def _under(most: int, batch: int) -> bool:
    return brought(batch) < most


def _judge_drowning(arguments: tuple[Any, ...], answer: Any) -> str | None:
    answer, static = number(answer), {way: ledger.static for way, ledger in at_batch(1).items()}
    saved, held = static["full"] - static[DEFAULT], static[DEFAULT]
    right, below = (1 + planner.largest(partial(_under, most)) for most in (saved, held))
    if abs(answer - right) <= 1.5:
        return None
    if not isfinite(answer):
        return "a batch is a number of sequences, read off the axis."
    if abs(answer - LENGTH * right) <= 0.1 * LENGTH * right:
        return "those are tokens: the axis counts sequences."
    if abs(answer - below) <= 1.5:
        return "that is where they pass what LoRA holds: find where they pass what it saves, the upper level line."
    if abs(answer - saved / 1e9) <= 0.05 * saved / 1e9:
        return "those are the GB that LoRA saves, on the upright axis: read the batch below the crossing."
    side = "small" if answer < right else "large"
    return f"too {side} a batch: find where the rising line meets the upper level one, and look straight down."


# fmt: off
EXERCISES = (
    Exercise(
        id="4.1", name="lora_rows", title="What LoRA trains, in bytes",
        minutes=10, difficulty=1, cases=_rows_cases, judge=_judge_rows,
        hints=(
            "Each target has A (in x R) and B (R x out) in each layer. How many numbers is that?",
            "All of it is float32: the adapters, one gradient for each number, and AdamW's mu and nu.",
        ),
        solution='''def lora_rows(shapes, layers, targets, rank):
    """Bytes of what LoRA trains: a dict of "adapters", "gradients", "optimizer state" (AdamW, all float32).

    `shapes`: (in, out) of each matrix of a block by name; `targets`: the names that get a LoRA, in every layer.
    """
    n = layers * sum(rank * (shapes[name][0] + shapes[name][1]) for name in targets)
    return {"adapters": 4 * n, "gradients": 4 * n, "optimizer state": 2 * 4 * n + 4}''',
    ),
    KEPT_BY_BLOCK,
    Exercise(
        id="4.3", name="nf4_bytes", title="The bytes of an NF4 matrix",
        minutes=15, difficulty=3, cases=_nf4_cases, judge=_judge_nf4,
        hints=(
            "How many blocks does one column have, the last one perhaps short? How many have all columns?",
            "Double quantization: a byte for each block, a float32 for each 256 of these bytes, and one for all.",
        ),
        solution='''def nf4_bytes(rows, columns, double):
    """(bytes of the codes, bytes of the constants) of one NF4 matrix; `rows` is even.

    Blocks of 64 run down a column, the last one perhaps short. `double`: whether the constants are quantized too.
    """
    blocks = -(-rows // 64) * columns
    constants = blocks + 4 * -(-blocks // 256) + 4 if double else 4 * blocks
    return rows * columns // 2, constants''',
    ),
    Exercise(
        id="4.4", name="drowned", title="Where a batch drowns what LoRA saves",
        minutes=5, difficulty=1, cases=lambda rng: [()], judge=_judge_drowning,
        hints=(
            "The upper level line is what LoRA saves: it does not depend on the batch.",
            "Follow the rising line up to that level, and read the batch below.",
        ),
        solution="drowned = 16",
    ),
    TIMES_LESS,
)
# fmt: on
