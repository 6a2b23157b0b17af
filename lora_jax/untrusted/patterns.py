"""Regular expressions that anybody may have written, matched with names: by Python's own `re`, in bounded time.

A pattern such as "(.+)+#" tries every way to cut a name into pieces, and no name ends that. What is more than letters,
digits and dots is therefore matched in a process of its own (see `child.py`), all patterns and names at once. A library
with a time limit (`regex`) was not taken: it reads some patterns in another way, such as "a{e}", and PEFT, whose files
these are, uses `re`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.untrusted.child import Child, Ended
from lora_jax.untrusted.json_text import shown

SECONDS = 1.0  # of the processor's time, for all patterns of one file together
LONGEST = 100_000  # characters of a pattern: room for one that lists every module of a large model
PROGRAM = Path(__file__).with_name("match_patterns.py")
_PLAIN = re.compile(r"(?:[\w.-]|\\\.)*+")  # there is one way to match it, if there is any


def fullmatch(pattern: str, names: Sequence[str], what: str = "") -> list[str]:
    """The names that a pattern matches whole, as `re.fullmatch` does.

    Raises InputError, which begins with `what`, where it is no regular expression, or takes more than a second of the
    processor's time.
    """
    try:
        return [names[i] for i in _matched((pattern,), ("{}",), tuple(names))[0]]
    except InputError as error:
        raise InputError(f"{what}{error}") from error


def resolve(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values that a mapping by patterns gives to names: to each name that of the first key that matches it.

    A key is a name, its last parts, or a regular expression for either, as PEFT reads `rank_pattern`. Raises InputError
    as `fullmatch` does.
    """
    found: dict[str, Any] = {}
    matched = _matched(tuple(values), (r"(.*\.)?({})",) * len(values), tuple(names))
    for value, numbers in zip(values.values(), matched, strict=True):
        for i in numbers:
            found.setdefault(names[i], value)
    return found


@lru_cache(maxsize=64)
def _matched(patterns: tuple[str, ...], within: tuple[str, ...], names: tuple[str, ...]) -> list[list[int]]:
    """For each pattern, put into what is round it, the numbers of the names that it matches whole."""
    for pattern in patterns:
        if len(pattern) > LONGEST:
            raise InputError(f"{shown(pattern)} has {len(pattern):,} characters, and a pattern may have {LONGEST:,}")
    open_ended = [i for i, pattern in enumerate(patterns) if not _PLAIN.fullmatch(pattern)]
    answers = {}
    if open_ended:
        asked = [(patterns[i], within[i]) for i in open_ended]
        try:
            with Child(PROGRAM) as child:
                answers = dict(zip(open_ended, child.ask((asked, names), SECONDS), strict=True))
        except Ended as ended:
            said = shown(asked[0][0]) if len(asked) == 1 else f"one of {', '.join(shown(p) for p, _ in asked[:3])}"
            raise InputError(f"{said} cannot be matched with names of modules: {ended}") from ended
    for i, answer in answers.items():
        if isinstance(answer, str):
            raise InputError(f"{shown(patterns[i])} is not a regular expression: {answer}")
    return [answers[i] if i in answers else _match(within[i].format(pattern), names)
            for i, pattern in enumerate(patterns)]  # fmt: skip


def _match(pattern: str, names: Sequence[str]) -> list[int]:
    compiled = re.compile(pattern)
    return [i for i, name in enumerate(names) if compiled.fullmatch(name)]
