"""What judges share: is an answer right within rounding, is it a known mistake's result, has it the right shape?

How far a right answer may be off is never guessed. Each rounding to float32 moves a number by at most `EPS` of its
size, whatever the order of the operations; so an answer is right where it is off by no more than as many roundings as
its longest way of computing has. Twice that is allowed, for functions such as exp that are a little less exact. An
answer computed in 16 bits is off by thousands of times as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

EPS = 2.0**-24  # the most that one rounding to float32 moves a number by, as a share of it
TINY = 2.0**-126  # below it float32 may say zero
SIXTEEN_BITS = "the numbers are near, but off by more than float32's rounding: is something computed in 16 bits?"


def within_rounding(found: Any, expected: Any, size: Any, roundings: int) -> bool:
    """Whether every number found is the expected one but for so many roundings of numbers as large as `size`.

    `size` is, for each number, the sum of the absolute values of all that is added up to make it.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return False
    return bool(np.all(np.abs(found - expected) <= 2 * roundings * EPS * np.asarray(size, np.float64) + TINY))


def is_close(found: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two arrays are equal to a share of the largest number expected: to tell which mistake was made."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not expected.size:
        return False
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


def nearly(found: Any, expected: Any, size: Any) -> str | None:
    """A sentence where an answer that is not right is off by no more than one computed in 16 bits would be."""
    return SIXTEEN_BITS if within_rounding(found, expected, size, 2**17) else None  # 17 bits more than float32's 2**-24


def number(answer: Any) -> int | float:
    """The answer as a number. Raises TypeError for anything else, which the check explains."""
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise TypeError(f"not a number: {answer!r}")
    return answer


def near(answer: float, value: float, roundings: int = 8) -> bool:
    """Whether a number is another but for so many roundings to float32."""
    return abs(answer - value) <= 2 * roundings * EPS * abs(value)


def named(answer: Any, mistakes: Iterable[tuple[str, Any]], tolerance: float = 1e-4) -> str | None:
    """The sentence of the first mistake, a (sentence, result), whose result the answer is."""
    return next((sentence for sentence, result in mistakes if is_close(answer, result, tolerance)), None)


def wrong_shape(what: str, found: Any, expected: tuple[int, ...], advice: str) -> str | None:
    """A sentence where the shape of `found` is not the `expected` one."""
    shape = np.shape(found)
    return None if shape == expected else f"{what} has shape {shape} and should have {expected}: {advice}"
