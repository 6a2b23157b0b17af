"""Two exercises on one layer: what it keeps for the backward pass (4.2), and what it works with there (2.3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_jax.exercises.judging import number
from lora_jax.exercises.registry import Exercise


# 4.2: what one block keeps for the backward pass.
def _block_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """The heads together are wider than the model or narrower; the first of these first, where each mistake shows.

    Then a large block, whose bytes float32 cannot hold, and the smallest: one token, one head.
    """
    cases: list[tuple[Any, ...]] = []
    for size, narrower in ((2, True), (4, True), (2, False)):
        K, group, C = int(rng.integers(2, 5)), int(rng.integers(3, 6)), 8 * int(rng.integers(3, 9))
        D = K * group * C + 8 * int(rng.integers(1, 9)) * (1 if narrower else -1)
        cases.append((int(rng.integers(20, 250)), D, 3 * D + 16, K * group, K, C, size))
    N, D = 2 * int(rng.integers(100, 120)) + 1, 2 * int(rng.integers(10_000, 12_000))
    return [*cases, (N, D, 3 * D + 16, 65, 13, 128, 4), (1, 24, 40, 1, 1, 16, 2), (1, 24, 56, 4, 1, 8, 4)]


def _block(arguments: tuple[Any, ...], **other: float) -> float:
    """The bytes of `kept_by_block`, with some of the counts mistaken: each keyword is how often an array is counted."""
    N, D, F, H, K, C, size = arguments
    counted = {"wide": 2, "heads": 2, "kv": 2, "ff": 2, "sums": 4 * H, "as_wide": H * C, "kv_heads": K} | other
    numbers = counted["wide"] * D + counted["heads"] * counted["as_wide"] + counted["kv"] * counted["kv_heads"] * C
    return N * (size * (numbers + counted["ff"] * F) + counted["sums"])


def _judge_block(arguments: tuple[Any, ...], answer: Any) -> str | None:
    N, D, _, H, _, _, size = arguments
    answer = number(answer)
    if answer == _block(arguments):
        return None
    mistakes = (
        ({"kv_heads": H}, "k and v are too wide: they have K heads, and not H."),
        ({"ff": 3}, "three arrays as wide as F: silu(gate) * up is made again, so that only gate and up are kept."),
        ({"ff": 1}, "one array as wide as F is missing: gate and up are both kept."),
        ({"wide": 1}, "the block's input is missing, or the stream between its halves: both are D wide."),
        ({"wide": 3}, "an array as wide as the stream too many: normed streams are made again and not kept."),
        ({"heads": 1}, "q or mixed is missing: both are H heads of C numbers."),
        ({"sums": 0}, "log_sum_exp is missing: a float32 for each token and each query head."),
        ({"sums": size * H}, "log_sum_exp is off: it is float32, 4 bytes a number, whatever the stream is."),
        ({"sums": 4}, "log_sum_exp is off: one number for each token and each of the H query heads."),
        ({"as_wide": D}, "q and mixed are H * C wide, which need not be D."),
    )  # fmt: skip
    for wrong, sentence in mistakes:
        if answer == _block(arguments, **wrong):
            return sentence
    if answer == _block(arguments) / N:
        return "those are the bytes of one token: there are N."
    if answer == _block(arguments, sums=size * H) / size:
        return "those are numbers: multiply by the bytes of one."
    side = "many" if answer > _block(arguments) else "few"
    return f"you count {abs(answer - _block(arguments)):,.0f} bytes too {side}: go through the table array by array."


# 2.3: what one layer's feed-forward works with, going back.
def _working_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Without and with rematerialized blocks: narrow heads, a large layer, and heads that share nothing.

    The bytes of the large layer are such that float32 cannot hold them.
    """
    cases: list[tuple[Any, ...]] = []
    for size, remat in ((2, False), (2, True), (4, False), (4, True)):
        K, group, C = int(rng.integers(2, 5)), int(rng.integers(3, 6)), 8 * int(rng.integers(3, 9))
        D = K * group * C + 8 * int(rng.integers(1, 9))  # the heads together are not as wide as the model
        cases.append((D + int(rng.integers(100, 3000)), D, 5 * D + 16, K * group * C, K * C, size, remat))
    D = 2 * int(rng.integers(1000, 1100)) + 1
    large, even = (D + 900, D, 5 * D + 16, D + 24 - D % 8, 256, 2), (700, 128, 656, 72, 72, 4)
    return [*cases, *((*one, remat) for one in (large, even) for remat in (False, True))]


def _working(arguments: tuple[Any, ...], **other: float) -> float:
    """The bytes of `working_set`, with some of the counts mistaken: each keyword is how often an array is counted."""
    N, D, F, Q, K, size, remat = arguments
    right = {"wide": 4, "again": 2, "stream": 4, "input": 1, "heads": 2, "kv": 2}
    count = right | {name: number for name, number in other.items() if remat or name in ("wide", "stream")}
    made_again = count["again"] * F + count["input"] * D + count["heads"] * Q + count["kv"] * K
    return N * size * (count["wide"] * F + count["stream"] * D + (made_again if remat else 0))


_WORKING_MISTAKES: tuple[tuple[dict[str, float], str], ...] = (
    ({"again": 0}, "gate and up are missing where blocks are rematerialized: then they are made again, 2 more."),
    ({"again": 1}, "one of gate and up is missing: where blocks are rematerialized both are made again."),
    ({"stream": 0}, "the four arrays as wide as D are missing: the text names them."),
    ({"input": 0}, "the stream between the block's halves is missing where blocks are rematerialized."),
    ({"heads": 1}, "q or mixed is missing where blocks are rematerialized: both are Q wide."),
    ({"kv": 1}, "k or v is missing where blocks are rematerialized: both are K wide."),
    ({"input": 0, "heads": 0, "kv": 0}, "the stream, q, k, v and mixed are missing where blocks are rematerialized."),
    ({"wide": 3}, "an array as wide as F is missing: down_proj trains, and its gradient needs the product once more."),
)


def _judge_working(arguments: tuple[Any, ...], answer: Any) -> str | None:
    N, _, F, _, _, size, remat = arguments
    answer, right = number(answer), _working(arguments)
    if answer == right:
        return None
    if not remat and answer == _working((*arguments[:-1], True)):
        return "nothing is made again where nothing is rematerialized: gate, up and the rest are saved, and counted so."
    if not remat and answer == right + N * size * 2 * F:
        return "gate and up are saved where nothing is rematerialized: they are counted among the saved activations."
    if remat and answer == _working((*arguments[:-1], False)):
        return "with rematerialized blocks what a block keeps otherwise is made again: all in the table but its input."
    for wrong, sentence in _WORKING_MISTAKES:
        if answer == _working(arguments, **wrong):
            return sentence
    if answer == right / N:
        return "those are the bytes of one token: there are N."
    if answer == right / size:
        return "those are numbers: multiply by the bytes of one."
    side = "many" if answer > right else "few"
    return f"you count {abs(answer - right):,.0f} bytes too {side}: go through the feed-forward line by line."


# fmt: off
KEPT_BY_BLOCK = Exercise(
    id="4.2", name="kept_by_block", title="What a block keeps",
    minutes=10, difficulty=2, cases=_block_cases, judge=_judge_block,
    hints=(
        "Sort the arrays of the table by width: as wide as the stream, as the query heads, as K heads, as F.",
        "Two arrays of each of these widths. One more has no width: a float32 for each token and query head.",
    ),
    solution='''def kept_by_block(N, D, F, H, K, C, size):
    """Bytes that a block keeps of N tokens, `size` bytes a number; log_sum_exp is float32 whatever the rest is.

    D width, F feed-forward width; H query heads and K key/value heads of C numbers each.
    """
    numbers = 2 * D + 2 * H * C + 2 * K * C + 2 * F
    return N * (size * numbers + 4 * H)''',
)

WORKING_SET = Exercise(
    id="2.3", name="working_set", title="The working set of one layer",
    minutes=15, difficulty=2, cases=_working_cases, judge=_judge_working,
    hints=(
        "Going back, gate, up and their product get a gradient each: three arrays as wide as F.",
        "down_proj's gradient is product.T @ d_out: what has to be there for it? And was it kept?",
        "With rematerialized blocks a block kept nothing but its input. What of the table has to be made again?",
    ),
    solution='''def working_set(N, D, F, Q, K, size, remat):
    """Bytes that the feed-forward of one layer needs going back, N tokens, `size` bytes a number; everything trains.

    D width, F feed-forward width, Q and K what all heads of queries and of keys are wide; `remat`: blocks made again.
    """
    numbers = 4 * F + 4 * D
    if remat:
        numbers += 2 * F + D + 2 * Q + 2 * K
    return N * size * numbers''',
)
# fmt: on
