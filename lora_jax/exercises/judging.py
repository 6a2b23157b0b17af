"""What judges share: is an answer right within rounding, is it a known mistake's result, has it the right shape?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def is_close(found: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two arrays are equal to a share of the largest number expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


def number(answer: Any) -> int | float:
    """The answer as a number. Raises TypeError for anything else, which the check explains."""
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise TypeError(f"not a number: {answer!r}")
    return answer


def near(answer: float, value: float, share: float = 1e-6) -> bool:
    """Whether a number is another to a share of that one."""
    return abs(answer - value) <= share * abs(value)


def named(answer: Any, mistakes: Iterable[tuple[str, Any]], tolerance: float = 1e-4) -> str | None:
    """The sentence of the first mistake, a (sentence, result), whose result the answer is."""
    return next((sentence for sentence, result in mistakes if is_close(answer, result, tolerance)), None)


def wrong_shape(what: str, found: Any, expected: tuple[int, ...], advice: str) -> str | None:
    """A sentence where the shape of `found` is not the `expected` one."""
    shape = np.shape(found)
    return None if shape == expected else f"{what} has shape {shape} and should have {expected}: {advice}"
