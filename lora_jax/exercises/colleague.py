"""Two estimates by a colleague, each with three mistakes to be mended: cards (2.5), and times less memory (4.5).

An answer may still have any of the three in it. Of those that it has, the first is named, and no other: which are
left is for the learner to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np

from lora_jax.exercises.judging import near, number
from lora_jax.exercises.registry import Exercise

Made = tuple[bool, ...]  # three: which of the three mistakes are still in an answer
NONE, SOME = (False,) * 3, [made for made in product((False, True), repeat=3) if any(made)]


def _first(sentences: tuple[str, ...], made: Made) -> str:
    return next(sentence for sentence, one in zip(sentences, made, strict=True) if one)


# 2.5: cards.
_CARD_MISTAKES = (
    "the gradients are missing: 2 bytes a parameter in bfloat16, beside the weights' 2 and the moments' 4.",
    "what lies whole on each card does not come off what that card has: take it off, and share out the rest.",
    "a card's GiB is taken for 1e9 bytes: it is 2**30.",
)


def _cards(parameters: int, whole: int, card_gib: int, made: Made, each: int = 8) -> int:
    """How many cards, with the mistakes that are True."""
    gradients, shared, gigabytes = made
    card, held = card_gib * (10**9 if gigabytes else 2**30), parameters * (each - 2 * gradients)
    return -(-(held + whole) // card) if shared else -(-held // (card - whole))


def _wrong_cards(parameters: int, whole: int, card_gib: int) -> Iterator[tuple[int, str]]:
    """The number that each mistake leads to, and its sentence."""
    for made in SOME:
        yield _cards(parameters, whole, card_gib, made), _first(_CARD_MISTAKES, made)
        if made[1]:  # or it is left out
            yield _cards(parameters, 0, card_gib, made), _first(_CARD_MISTAKES, made)
    right = _cards(parameters, whole, card_gib, NONE)
    yield right - 1, "rounded down, or to the nearest: the last card is needed for what is left over."
    yield right + 1, "one too many: what fits exactly needs no further card."
    twelve = "12 bytes a parameter: moments in the dtype of the weights are 2 bytes each; count 8."
    yield _cards(parameters, whole, card_gib, NONE, each=12), twelve


def _card_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """First cases in which each mistake leads to a number of its own; then exact ones, where rounding shows.

    Of these the first needs all of its cards to the last byte, the second a little more than these, the third only a
    part of one card. The numbers of the first are such that float32 would need one card more.
    """
    cases: list[tuple[Any, ...]] = []
    while len(cases) < 2:
        gib = int(rng.integers(14, 180))
        case = (int(rng.integers(5 * 10**11, 5 * 10**12)), int(gib * 2**30 * rng.uniform(0.1, 0.6)), gib)
        found = [_cards(*case, NONE), *(count for count, _ in _wrong_cards(*case))]
        if len(set(found)) == len(found):
            cases.append(case)
    while True:
        gib, cards = int(rng.integers(14, 180)), int(rng.integers(3, 40))
        whole = 8 * int(gib * 2**27 * rng.uniform(0.1, 0.6))
        room = gib * 2**30 - whole
        P = cards * room // 8
        one, all_of_it = np.float32(room), np.float32(8 * P)
        if float(all_of_it) > 8 * P and float(one) < room and all_of_it / one > cards:
            return [*cases, (P, whole, gib), (P + room // 1000, whole, gib), (room // 20, whole, gib)]


def _judge_cards(arguments: tuple[Any, ...], answer: Any) -> str | None:
    parameters, whole, card_gib = arguments
    answer, right = number(answer), _cards(parameters, whole, card_gib, NONE)
    if answer == right:
        return None
    if answer != round(answer) and near(answer, 8 * parameters / (card_gib * 2**30 - whole)):
        return "cards come whole: round up."
    for wrong, sentence in _wrong_cards(parameters, whole, card_gib):
        if answer == wrong:
            return sentence
    return f"you say {answer:,} cards: divide what is shared out by the room left on a card, and round up."


# 4.5: times less memory.
_COMPARISON_MISTAKES = (
    "LoRA's weights are missing: frozen, they are still read in every step, 2 bytes each.",
    "an adapter's number takes 16 bytes, not 8: it, its gradient and its two moments are float32.",
    "activations still shrink with what trains: LoRA keeps what full fine-tuning keeps.",
)


def _lora(P: int, A: int, kept: int, made: Made) -> float:
    """What LoRA needs, in bytes, with the mistakes that are True."""
    weights, halves, shrinks = made
    return (0 if weights else 2 * P) + (8 if halves else 16) * A + (kept * A / P if shrinks else kept)


def _wrong_times(P: int, A: int, kept: int) -> Iterator[tuple[float, str]]:
    """The ratio that each mistake leads to, and its sentence."""
    full, right = 8 * P + kept, _lora(P, A, kept, NONE)
    yield right / full, "upside down: divide what full fine-tuning needs by what LoRA needs."
    for made in SOME:
        yield full / _lora(P, A, kept, made), _first(_COMPARISON_MISTAKES, made)
    yield full / (right - kept), "LoRA's activations are missing: it keeps what full fine-tuning keeps."
    yield full / (right + 2 * P), "frozen weights have no gradient: 2 bytes each, and not 4."
    yield full // right, "you rounded down: the ratio is a float."


def _times_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Each mistake leads to a ratio of its own. The last has no activations, and is as small as can be."""
    cases: list[tuple[Any, ...]] = []
    while len(cases) < 4:
        P = int(rng.integers(10**8, 10**11))
        case = (P, int(P * rng.uniform(0.004, 0.03)), int(P * rng.uniform(0.5, 6)))
        found = sorted([(8 * P + case[2]) / _lora(*case, NONE), *(ratio for ratio, _ in _wrong_times(*case))])
        if all(b - a > 1e-3 * b for a, b in pairwise(found)):
            cases.append(case)
    return [*cases, (int(rng.integers(50, 100)), 1, 0)]


def _judge_times(arguments: tuple[Any, ...], answer: Any) -> str | None:
    P, A, kept = arguments
    answer, right = number(answer), (8 * P + kept) / _lora(P, A, kept, NONE)
    if near(answer, right):
        return None
    for wrong, sentence in _wrong_times(P, A, kept):
        if near(answer, wrong):
            return sentence
    return f"you say {answer:.4g} times: write down what lies in memory for each method, and divide."


# fmt: off
CARDS_NEEDED = Exercise(
    id="2.5", name="cards_needed", title="The colleague's estimate, mended",
    minutes=10, difficulty=2, cases=_card_cases, judge=_judge_cards,
    hints=(
        "One mistake is in what is counted, one in where it lies, one in the unit.",
        "What every card holds whole does not shrink when cards are added: it leaves less room on each.",
    ),
    solution='''def cards_needed(P, whole, card_gib):
    """Cards for full fine-tuning of P bfloat16 weights with AdamW: an int, rounded up.

    Weights, gradients and both moments, all bfloat16 and with no master copy, are shared out evenly; `whole` bytes
    lie on each card of `card_gib` GiB.
    """
    held = P * (2 + 2 + 2 + 2)
    room = card_gib * 2**30 - whole
    return -(-held // room)''',
)

TIMES_LESS = Exercise(
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
)
# fmt: on
