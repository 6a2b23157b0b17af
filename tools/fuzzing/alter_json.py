"""JSON altered as JSON: types swapped, keys lost, doubled and renamed, nesting deepened, strings stretched."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any


class Raw(str):
    """Text that stands in JSON as it is, whether JSON or not."""


Pairs = type("Pairs", (list,), {"__doc__": "An object as a list of [key, value], so that a key may stand twice."})

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    0.5,
    -0.0,
    1e-320,
    "",
    "a",
    [],
    [0],
    [None],
    [[]],
    Pairs(),
    Pairs([["", 0]]),
    Pairs([["a", Pairs()]]),
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63) - 1,
    Raw("1e400"),
    Raw("-1e400"),
    Raw("NaN"),
    Raw("Infinity"),
    Raw("9" * 5000),
    Raw('"\\ud800"'),
    "\0",
    "\x1b[31m",
    "a\nb",
    "x" * 300,
    "(.+)+#",
    "(a|a)*b",
    "(",
    "[",
    "..",
    "../../x",
    "/etc/passwd",
    "con",
    "0",
    "8",
    "true",
    ["a"] * 1000,
    [1, "a", None, [], True],
)


def document(data: bytes, rng: Random) -> bytes:
    """One JSON text, altered in one place; broken or very deep text is given a bracket more."""
    try:
        found = json.loads(data, object_pairs_hook=lambda pairs: Pairs([list(pair) for pair in pairs]))
        return dumps(change(found, rng)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        at = rng.randrange(len(data) + 1)
        return data[:at] + rng.choice((b"[", b"}", b'"', b",", b"[" * 5000)) + data[at:]


def lines(data: bytes, rng: Random) -> bytes:
    """One line of JSON lines, altered; or lines lost, doubled and joined."""
    rows = data.split(b"\n")
    at = rng.randrange(len(rows))
    if rng.random() < 0.7:
        rows[at] = document(rows[at], rng)
    else:
        rows[at : at + 1] = rng.choice(([], [rows[at]] * 2, [rows[at] * 2], [b""], [b" "], [rows[at] + b","]))
    return b"\n".join(rows)


def change(root: Any, rng: Random) -> Any:
    """The value with one place of it altered; places near the top are as likely as the many below."""
    holder: list[Any] = [root]
    node, key = holder, 0
    while True:
        value = node[key]
        keys = range(len(value)) if isinstance(value, list) and value else ()
        if not keys or (node is not holder and rng.random() < 0.25):
            break
        if isinstance(value, Pairs):
            node, key = value[rng.choice(keys)], 1
        else:
            node, key = value, rng.choice(keys)
    node[key] = rng.choice(CHANGES)(node[key], rng)
    return holder[0]


def _other(value: Any, rng: Random) -> Any:
    return rng.choice(VALUES)


def _deep(value: Any, rng: Random) -> Any:
    depth = rng.choice((1, 3, 120, 900, 5000, 100_000))
    start, end = rng.choice((("[", "]"), ('{"a":', "}")))
    return Raw(start * depth + dumps(value) + end * depth)


def _stretched(value: Any, rng: Random) -> Any:
    if isinstance(value, str):
        return value * rng.choice((2, 100, 10_000)) or "x" * 100_000
    if isinstance(value, list):
        return type(value)((value * (2000 // max(1, len(value)) + 1))[:5000])
    return [value] * rng.choice((1, 2, 1000))


def _keys(value: Any, rng: Random) -> Any:
    """An object with a key lost, doubled with another value, or renamed; a list with an element lost."""
    if not isinstance(value, list) or not value:
        return rng.choice(VALUES)
    at = rng.randrange(len(value))
    if not isinstance(value, Pairs) or rng.random() < 0.4:
        del value[at]
    elif rng.random() < 0.5:
        value.insert(rng.randrange(len(value) + 1), [value[at][0], rng.choice(VALUES)])
    else:
        name = value[at][0]
        value[at][0] = rng.choice((name + "x", name.upper(), "", name * 1000, "\0", "\ud800", "1", value[0][0]))
    return value


def _within(value: Any, rng: Random) -> Any:
    """A string that is JSON itself is altered inside; other strings get odd characters."""
    if not isinstance(value, str) or isinstance(value, Raw):
        return rng.choice(VALUES)
    if value[:1] in ("{", "["):
        return document(value.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "surrogatepass")
    at = rng.randrange(len(value) + 1)
    return (
        value[:at]
        + rng.choice(("\0", "\ud800", "\u202e", "\n", "(.*)*", "é", " ", "\ufdd0", "{{", "9" * 20))
        + value[at:]
    )


CHANGES: tuple[Callable[[Any, Random], Any], ...] = (_other, _other, _keys, _keys, _deep, _stretched, _within, _within)


def dumps(value: Any) -> str:
    """JSON text of what `change` gives."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{dumps(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumps, value)) + "]"
    return json.dumps(value)
