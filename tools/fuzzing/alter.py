"""Bytes and text altered by chance, each alteration the same for the same random numbers.

`alter(data, kind, rng)` gives another file of a kind ("json", "safetensors", ...): half of the alterations know nothing
of formats (bits flipped, pieces cut, repeated, swapped), the others know where a format keeps its numbers and names.
"""

from __future__ import annotations

import gzip
import re
from random import Random

from fuzzing import alter_binary, alter_json, alter_safetensors

NUMBERS = (
    "0",
    "-1",
    "1",
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775808",
    "1e400",
    "-1e400",
    "NaN",
    "1e-400",
    "0.5",
    "9" * 5000,
    "true",
    "null",
    '"8"',
)
INTEGERS = (
    0,
    1,
    2**7,
    2**8 - 1,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
LARGE, MOST = 1_000_000, 8_000_000  # bytes of a file that is altered no further, and that a file has at most
ODD = (
    "\0",
    "\ufeff",
    "\ud800",
    "\u202e",
    "\x1b[2J",
    "\u2028",
    "\r",
    "\r\n",
    "\t",
    '"',
    "'",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\U0001f600",
    "\u0301",
    "é" * 300,
)
TEMPLATES = (
    "{% for i in range(10**9) %}{% for j in range(10**9) %}x{% endfor %}{% endfor %}",
    "{{ 'a' * 3000000000 }}",
    "{{ [0] * 10**10 }}",
    "{{ 2 ** 2 ** 40 }}",
    "{{ messages | map('x') | list }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum(100000, 100000) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include 'a' %}",
    "{% generation %}",
    "{{ 1 / 0 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>3000000000}'.format(1) }}",
    "{{ messages | tojson(indent=999999999) }}",
    "{{ 'a' | center(3000000000) }}",
    "{{ raise_exception('a\nb\nc' * 1000) }}",
    "{% set x = x ~ x %}",
    "{{ x.y.z }}",
    "(" * 5000,
    "{{" + "(" * 5000 + ")" * 5000 + "}}",
    "{% if 1 %}" * 3000,
)
PYTHON = (
    "(" * 3000,
    "x = " + "-" * 5000 + "1",
    "while True: pass",
    "import os",
    "%%time",
    "!ls",
    "a" * 10_000 + " = 1",
    "def f(:",
    "\tx",
    "match x:\n case",
    "f'{x!r:{y}}'",
    "x = 1e999999",
    "x = " + "9" * 5000,
    "0777",
    "lambda: (yield)",
    "return",
    "x" + ".y" * 5000,
    "x = " + "[" * 150 + "]" * 150,
    "if x:\n" * 90,
)


def alter(data: bytes, kind: str, rng: Random) -> bytes:
    """Another file, by one to three alterations."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _once(data, kind, rng)
        if len(data) > LARGE:
            break
    return data[:MOST]


def _once(data: bytes, kind: str, rng: Random) -> bytes:
    if kind.endswith(".gz"):
        return _packed(data, kind.removesuffix(".gz"), rng)
    if rng.random() < 0.35:
        return rng.choice(BYTES)(data, rng)
    if rng.random() < 0.15:
        return _number(data, rng)
    known = {
        "json": alter_json.document,
        "notebook": alter_json.document,
        "reply": alter_json.document,
        "jsonl": alter_json.lines,
        "safetensors": alter_safetensors.safetensors,
        "gguf": alter_binary.gguf,
        "pickle": alter_binary.pickle,
        "template": lambda data, rng: _text(data, rng, TEMPLATES),
        "python": lambda data, rng: _text(data, rng, PYTHON),
    }
    return known.get(kind, lambda data, rng: _text(data, rng, ODD))(data, rng)


# Without knowing the format.


def _span(data: bytes, rng: Random, most: int = 4096) -> tuple[int, int]:
    """A piece [start, end) of the data; half of the time in its first thousand bytes, where headers are."""
    start = rng.randrange(min(len(data), 1000 if rng.random() < 0.5 else len(data)) or 1)
    return start, min(len(data), start + int(2 ** rng.uniform(0, most.bit_length())))


def _flip(data: bytes, rng: Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64)) if found else 0):
        found[_span(data, rng)[0]] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: _span(data, rng)[0]]


def _without(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _insert(data: bytes, rng: Random) -> bytes:
    at = _span(data, rng)[0]
    return (
        data[:at] + rng.choice((rng.randbytes(8), b"\0" * 64, rng.choice(ODD).encode("utf-8", "replace"))) + data[at:]
    )


def _repeat(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    times = min(rng.choice((1, 2, 10, 1000)), 1_000_000 // max(1, end - start))
    return data[:end] + data[start:end] * times + data[end:]


def _swap(data: bytes, rng: Random) -> bytes:
    (a, b), (c, d) = sorted((_span(data, rng), _span(data, rng)))
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _boundary(data: bytes, rng: Random) -> bytes:
    at, width = _span(data, rng)[0], rng.choice((1, 2, 4, 8))
    value = rng.choice(INTEGERS) % (1 << 8 * width)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def _fill(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.choice((b"\0", b"\xff", b" ", b"[")) * (end - start) + data[end:]


BYTES = (_flip, _flip, _flip, _cut, _without, _insert, _repeat, _swap, _boundary, _fill)


# Text, and what is packed.


def _number(data: bytes, rng: Random) -> bytes:
    """One number that is written out, replaced by one at a boundary."""
    places = list(re.finditer(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", data[:200_000]))
    if not places:
        return _flip(data, rng)
    place = rng.choice(places)
    return data[: place.start()] + rng.choice(NUMBERS).encode() + data[place.end() :]


def _text(data: bytes, rng: Random, words: tuple[str, ...]) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            lines.insert(at, rng.choice(words).encode("utf-8", "surrogatepass"))
        case 1:
            del lines[at]
        case 2:
            lines[at] = lines[at] * min(rng.choice((2, 10, 2000)), 1 + MOST // (len(lines[at]) + 1))
        case 3:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 4:
            lines[at:at] = [lines[at]] * min(rng.choice((1, 10, 1000)), 1 + MOST // (len(lines[at]) + 1))
        case 5:
            middle = rng.randrange(len(lines[at]) + 1)
            odd = rng.choice((*words, *ODD)).encode("utf-8", "surrogatepass")
            lines[at] = lines[at][:middle] + odd + lines[at][middle:]
        case _:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                return _flip(data, rng)
            return text.encode(rng.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "cp1252")), "replace")
    return b"\n".join(lines)


BOMB = gzip.compress(bytes(10_000_000), mtime=0) * 200  # two gigabytes in two megabytes


def _packed(data: bytes, kind: str, rng: Random) -> bytes:
    """A gzipped file: the bytes as they are, what they hold, or one that holds far more."""
    if rng.random() < 0.02:
        return BOMB
    try:
        inner = gzip.decompress(data) if len(data) < 100_000 else None
    except Exception:  # an alteration before this one broke it
        inner = None
    if inner is None or rng.random() < 0.2:
        return rng.choice(BYTES)(data, rng)
    return gzip.compress(alter(inner, kind, rng), 1, mtime=0)
