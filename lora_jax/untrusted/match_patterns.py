"""What the child of `patterns.py` does: match patterns with Python's own `re`."""

import re
from collections.abc import Sequence
from typing import Any


def answer(question: tuple[list[tuple[str, str]], Sequence[str]]) -> list[Any]:
    """For each pattern the numbers of the names that it matches whole, or why it is no pattern.

    A pattern is given with what is put round it: "{}" for nothing. It must be one by itself, too: "a)|(b" is none.
    """
    patterns, names = question
    return [match(pattern, within, names) for pattern, within in patterns]


def match(pattern: str, within: str, names: Sequence[str]) -> Any:
    """The numbers of the names, or a text."""
    try:
        re.compile(pattern)
        compiled = re.compile(within.format(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        return str(error) or "it is nested too deeply"
    return [number for number, name in enumerate(names) if compiled.fullmatch(name)]
