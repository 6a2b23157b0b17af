"""JSON that anybody may have written: what it may hold is counted before it is parsed, and what is wrong is a sentence.

Refused are: other encodings than UTF-8, deep nesting, more values than memory is good for, a name that stands twice in
an object, NaN and infinities (unless they are asked for), numbers that overflow, and half of a surrogate pair.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.errors import InputError
from lora_jax.untrusted import files

MAX_DEPTH = 64  # lists and objects inside each other; those that are in use have fewer than 20
MAX_VALUES = 4_000_000  # a tokenizer.json of 262,144 tokens and 514,906 merges has 2 million
MAX_DIGITS = 1000

# A string, or the rest of the text where it does not end. It never goes back, so that it takes one pass.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = re.compile(r"[^\[\]{}]++")
_STEP = np.array([{"[": 1, "{": 1, "]": -1, "}": -1}.get(chr(i), 0) for i in range(256)], np.int32)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def load(path: str | Path, *, non_finite: bool = False, limit: int = files.FILE_BYTES) -> Any:
    """What the JSON in a file says. Raises InputError, with file and line, where it cannot be read or is refused."""
    return loads(files.read_bytes(path, limit), str(path), non_finite=non_finite)


def load_object(path: str | Path, *, non_finite: bool = False) -> dict[str, Any]:
    """The object that the JSON in a file is. Raises InputError as `load` does, and for anything else than an object."""
    return an_object(load(path, non_finite=non_finite), str(path))


def an_object(found: Any, where: str) -> dict[str, Any]:
    """`found`, if it is an object. Raises InputError for anything else."""
    if not isinstance(found, dict):
        raise InputError(f"{where} holds a {type(found).__name__}, where a JSON object should be")
    return found


def read_numbers(text: str) -> dict[str, Any]:
    """The object on a command line that gives numbers to names. Raises InputError for anything else."""
    found = an_object(loads(text, "it"), "it")
    if odd := [value for value in found.values() if type(value) not in (int, float)]:
        raise InputError(f"it gives {shown(odd[0])}, where a number should be")
    return found


def loads(
    text: str | bytes, where: str, *, non_finite: bool = False, depth: int = MAX_DEPTH, values: int = MAX_VALUES
) -> Any:
    """What a JSON text says. `where` names it in the InputError that is raised for all that is refused."""
    try:
        text = files.decode(text, where) if isinstance(text, bytes) else text
        if not text.isascii():
            text.encode()
        check_structure(text, where, depth=depth, values=values)
        found = (_ANY if non_finite else _FINITE).decode(text)
        check_letters(text, found)
        return found
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not readable JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from error
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half of a surrogate pair stands in it, which is no letter") from error
    except RecursionError as error:
        raise InputError(f"{where}: lists and objects are nested too deeply") from error
    except MemoryError as error:
        raise InputError(f"{where}: more than memory holds") from error
    except InputError:
        raise
    except ValueError as error:  # of a hook below
        raise InputError(f"{where}: {error}") from error


def parse(text: str, at: int | None) -> tuple[Any, int]:
    """The value that begins at `at`, or is the whole text, and where it ends, for who reads values one by one.

    Raises what `json` raises (ValueError, RecursionError, MemoryError). NaN and letters that are none are taken.
    """
    return (_ANY.decode(text), len(text)) if at is None else _ANY.raw_decode(text, at)


def check_letters(text: str, found: Any) -> None:
    """Raise UnicodeEncodeError where a text in what was found holds half of a surrogate pair."""
    if _SURROGATE.search(text):  # an emoji, most likely, of two escapes
        json.dumps(found, ensure_ascii=False).encode()


def check_structure(text: str, where: str, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> None:
    """Raise InputError where a JSON text is nested deeper, or may hold more values, than is said: before it is parsed.

    Every value but the first of each list or object stands behind a comma, so that commas and opening brackets are at
    least as many as values. Those inside strings are left out where there are many.
    """
    opened = text.count("[") + text.count("{")
    if opened <= depth and opened + text.count(",") <= values:
        return
    bare = _STRING.sub("", text)
    opened = bare.count("[") + bare.count("{")
    if opened + bare.count(",") > values:
        raise InputError(f"{where}: more than {values:,} values, which is more than is read")
    if opened > depth:
        brackets = np.frombuffer(_BRACKETS.sub("", bare).encode("ascii"), np.uint8)
        if np.cumsum(_STEP[brackets], dtype=np.int32).max() > depth:
            raise InputError(f"{where}: lists and objects are nested more than {depth} deep")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its names and values. Raises ValueError where a name stands there twice: which one is meant?"""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {shown(twice)} stands there twice: keep one")
    return fields


def finite(text: str) -> float:
    """A number as JSON writes it. Raises ValueError where it is larger than a float can be."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {shown(text)} is larger than a float can be")
    return number


def whole(text: str) -> int:
    """A whole number as JSON writes it. Raises ValueError where it has thousands of digits, whatever Python allows."""
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {shown(text)} has thousands of digits")
    return int(text)


def constant(text: str) -> float:
    """Raise ValueError for NaN, Infinity and -Infinity, which are no JSON."""
    raise ValueError(f"{text} is not a finite number")


_ANY = json.JSONDecoder(object_pairs_hook=once, parse_int=whole)
_FINITE = json.JSONDecoder(object_pairs_hook=once, parse_int=whole, parse_float=finite, parse_constant=constant)


def printable(text: str) -> str:
    """A text on one line that does nothing to a terminal: what is no printable letter is written as in Python."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: Any) -> str:
    """A value as it stands in a sentence: its `repr`, cut where it is long or deep."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, 80, 80, 60
    short.maxlist = short.maxdict = 6
    return short.repr(value)
