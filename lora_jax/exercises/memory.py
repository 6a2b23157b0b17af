"""Exercises of notebook 04: what full fine-tuning, LoRA and QLoRA hold, and what a batch brings to all three."""

from __future__ import annotations

from functools import partial
from itertools import product
from math import ceil
from typing import Any

import numpy as np

from lora_jax.adapters import DEFAULT
from lora_jax.exercises.judging import near, number
from lora_jax.exercises.layer import KEPT_BY_BLOCK
from lora_jax.exercises.registry import Exercise
from lora_jax.memory import planner, zoo
from lora_jax.memory.estimate import estimate
from lora_jax.memory.ledger import Ledger
from lora_jax.memory.setup import Setup, ways

# 4.1: what LoRA puts in place of a gradient and two moments for every weight.
_ROWS = ("adapters", "gradients", "optimizer state")


def _rows_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    cases: list[tuple[Any, ...]] = []
    for names in (("q_proj", "v_proj"), ("down_proj",), ("q_proj", "o_proj", "up_proj")):
        D, Q, KV, F = (int(n) for n in rng.permutation(np.arange(5, 30))[:4] * 8)
        shapes = {"q_proj": (D, Q), "v_proj": (D, KV), "o_proj": (Q, D), "up_proj": (D, F), "down_proj": (F, D)}
        cases.append((shapes, int(rng.integers(3, 40)), list(names), int(rng.integers(3, 9))))
    return cases


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
    """Blocks are cut short at the end of a column, and constants do not fill their last group."""
    cases = [(64 * int(rng.integers(5, 30)) + 2 * int(rng.integers(3, 30)), 64 * int(rng.integers(5, 20)) + 7)
             for _ in range(4)]  # fmt: skip
    return [(*case, double) for case, double in zip(cases, (False, True, False, True), strict=True)]


def _constants(blocks: int, double: bool) -> int:
    return blocks + 4 * ceil(blocks / 256) + 4 if double else 4 * blocks


def _judge_nf4(arguments: tuple[Any, ...], answer: Any) -> str | None:
    rows, columns, double = arguments
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
    known = {
        _constants(rows // 64 * columns, double): "the last block of a column is left out: round rows / 64 up.",
        _constants(rows * ceil(columns / 64), double): "blocks run down a column: columns * ceil(rows / 64) of them.",
        _constants(ceil(rows * columns / 64), double): "no block runs on into the next column: round up in each.",
        n
        + 4 * ceil(n / 256): "the constants are 4 bytes short: one more float32, their mean, is shared by all; or the "
        "last group of 256 is left out, and must be rounded up.",
        n + 4: "with double quantization 256 constants share a float32 of their own, which is missing.",
        5 * n + 4 * ceil(n / 256) + 4: "the quantized constants stand in place of the float32 ones, not beside them.",
        4 * n: "double quantization is missing: each constant becomes a byte, and 256 of them share a float32.",
    }
    plain = "without double quantization each constant is a float32, 4 bytes, and nothing is added."
    other = "the constants are off: count the blocks of 64 first, and then the bytes that each one's constant takes."
    return plain if not double and constants in (n, _constants(n, True)) else known.get(int(constants), other)


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
    if near(answer, LENGTH * right, 0.1):
        return "those are tokens: the axis counts sequences."
    if abs(answer - below) <= 1.5:
        return "that is where they pass what LoRA holds: find where they pass what it saves, the upper level line."
    if near(answer, saved / 1e9, 0.05):
        return "those are the GB that LoRA saves, on the upright axis: read the batch below the crossing."
    side = "small" if answer < right else "large"
    return f"too {side} a batch: find where the rising line meets the upper level one, and look straight down."


# 4.5: a colleague's comparison.
_COMPARISON_MISTAKES = (
    "LoRA's weights are missing: frozen, they are still read in every step, 2 bytes each",
    "an adapter's number takes 16 bytes, not 8: it, its gradient and its two moments are float32",
    "activations still shrink with what trains: LoRA keeps what full fine-tuning keeps",
)


def _times(P: int, A: int, kept: int, weights: bool = False, halves: bool = False, shrinks: bool = False) -> float:
    """How many times less LoRA needs, with the mistakes that are True."""
    adapters = (0 if weights else 2 * P) + (8 if halves else 16) * A + (kept * A / P if shrinks else kept)
    return (8 * P + kept) / adapters


def _times_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    cases = []
    for _ in range(4):
        P = int(rng.integers(10**8, 10**11))
        cases.append((P, int(P * rng.uniform(0.004, 0.03)), int(P * rng.uniform(0.5, 6))))
    return cases


def _judge_times(arguments: tuple[Any, ...], answer: Any) -> str | None:
    P, A, kept = arguments
    answer, right = number(answer), _times(P, A, kept)
    if near(answer, right):
        return None
    if near(answer, 1 / right):
        return "upside down: divide what full fine-tuning needs by what LoRA needs."
    for made in product((False, True), repeat=3):
        if any(made) and near(answer, _times(P, A, kept, *made)):
            return "; ".join(s for s, one in zip(_COMPARISON_MISTAKES, made, strict=True) if one) + "."
    others = {
        (8 * P + kept) / (2 * P + 16 * A): "LoRA's activations are missing: it keeps what full fine-tuning keeps.",
        (8 * P + kept) / (4 * P + 16 * A + kept): "frozen weights have no gradient: 2 bytes each, and not 4.",
    }
    for wrong, sentence in others.items():
        if near(answer, wrong):
            return sentence
    return f"you say {answer:.4g} times: write down what lies in memory for each method, and divide."


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
    Exercise(
        id="4.5", name="times_less", title="The colleague's comparison, mended",
        minutes=10, difficulty=2, cases=_times_cases, judge=_judge_times,
        hints=(
            "One mistake is about what is frozen, one about a dtype, one about what the batch brings.",
            "A frozen weight is read in every step. Does it lie anywhere else than in memory?",
        ),
        solution='''def times_less(P, A, kept):
    """How many times less memory LoRA needs than full fine-tuning: a float. Counts of steps are left aside.

    P bfloat16 weights; A numbers in float32 adapters; `kept` bytes of saved activations; AdamW.
    """
    full = 2 * P + 2 * P + 4 * P + kept
    lora = 2 * P + (4 + 4 + 8) * A + kept
    return full / lora''',
    ),
)
# fmt: on
