"""Binary formats altered where they keep their lengths, counts, types and offsets, the rest as it was."""

from __future__ import annotations

import contextlib
import pickletools
import struct
from random import Random
from typing import Any

BOUNDARY = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    31,
    32,
    33,
    255,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 8,
    2**64 - 1,
)


# GGUF.

SCALARS = "BbHhIif?sAQqd"  # by type: the letters of `struct`, s a string and A an array


def gguf(data: bytes, rng: Random) -> bytes:
    """A GGUF file: a count, length, type, value or offset of its header at a boundary, or the header written anew."""
    try:
        fields, tensors, places = read_gguf(data)
    except (
        struct.error,
        IndexError,
        ValueError,
        OverflowError,
        RecursionError,
    ):  # an alteration before this one broke it
        return data[: rng.randrange(len(data) + 1)]
    if not fields or rng.random() < 0.5:
        at, width = rng.choice(places if rng.random() < 0.7 else places[:60])
        value = rng.choice(BOUNDARY) % (1 << 8 * width)
        return data[:at] + value.to_bytes(width, "little") + data[at + width :]
    start = places[-1][0] + places[-1][1]
    rest = data[start:].lstrip(b"\0") if tensors else b""
    if tensors and rng.random() < 0.5:
        tensor = rng.choice(tensors)
        match rng.randrange(5):
            case 0:
                tensor[0] = rng.choice((tensor[0] + b"x", b"", tensor[0] * 99, b"\xff", tensors[0][0]))
            case 1:
                tensor[1] = rng.choice((tensor[1][::-1], [], [0], [rng.choice(BOUNDARY) for _ in tensor[1]], [1] * 9))
            case 2:
                tensor[2] = rng.choice((0, 1, 2, 3, 8, 12, 15, 24, 28, 30, 39, 4, 99, 2**31))
            case 3:
                tensor[3] = rng.choice((rng.choice(tensors)[3], rng.choice(BOUNDARY)))
            case _:
                tensors.extend([[tensor[0] + b"%d" % i, *tensor[1:]] for i in range(rng.choice((1, 100, 20_000)))])
    else:
        field = rng.choice(fields)
        match rng.randrange(6):
            case 0:
                field[1:] = rng.choice(OTHERS)
            case 1 if field[1] == 9:
                kind, values = field[2]
                field[2] = (kind, rng.choice((values[::-1], values[:-1], [], values * 2, values[:1] * 100_000)))
            case 2 if field[1] == 9:
                field[1:] = [
                    9,
                    rng.choice(
                        (
                            (5, [1, 2, 3]),
                            (8, [b"a b", b"c"]),
                            (6, [float("nan")] * len(field[2][1])),
                            (9, [(5, [1])]),
                            (7, [1]),
                        )
                    ),
                ]
            case 3:
                fields.remove(field)
            case 4:
                field[0] = rng.choice((field[0] + b"x", b"", b"\xff\xfe", rng.choice(fields)[0]))
            case _:
                fields.append([b"a", 9, rng.choice((deep(3), deep(800), (0, [1] * 300_000), (8, [b""] * 100_000)))])
    return write_gguf(fields, tensors, rest)


OTHERS: tuple[list[Any], ...] = (
    [4, 0],
    [4, 2**32 - 1],
    [5, -1],
    [6, float("nan")],
    [6, float("inf")],
    [6, 0.0],
    [6, -1.0],
    [7, 2],
    [8, b""],
    [8, b"\xff\xfe"],
    [8, b"x" * 100_000],
    [9, (8, [b"a", b"b"])],
    [9, (4, [6, 6, 6])],
    [9, (5, [])],
    [10, 2**63],
    [10, 2**64 - 1],
    [11, -1],
    [12, 1e300],
    [12, float("nan")],
    [0, 0],
    [0, 7],
    [9, (6, [1.0])],
)


def deep(levels: int) -> Any:
    """An array of arrays of ... that many levels."""
    value: Any = (4, [1])
    for _ in range(levels):
        value = (9, [value])
    return value


def read_gguf(data: bytes) -> tuple[list[list[Any]], list[list[Any]], list[tuple[int, int]]]:
    """`(fields, tensors, places)`: [key, type, value], [name, dims, type, offset], and (where, width) of numbers."""
    at, places = 4, []

    def number(letter: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + letter, data, at)
        places.append((at, struct.calcsize(letter)))
        at += struct.calcsize(letter)
        return value

    def string() -> bytes:
        nonlocal at
        size = number("Q")
        if size > len(data):
            raise ValueError("too long")
        at += size
        return data[at - size : at]

    def value(kind: int) -> Any:
        if SCALARS[kind] == "A":
            inner, count = number("I"), number("Q")
            if count > len(data):
                raise ValueError("too many")
            return inner, [value(inner) for _ in range(count)]
        return string() if SCALARS[kind] == "s" else number(SCALARS[kind])

    number("I")
    tensor_count, field_count = number("Q"), number("Q")
    fields = [[string(), kind := number("I"), value(kind)] for _ in range(min(field_count, 10_000))]
    tensors = [
        [string(), [number("Q") for _ in range(min(99, number("I")))], number("I"), number("Q")]
        for _ in range(min(tensor_count, 10_000))
    ]
    return fields, tensors, places


def write_gguf(fields: list[list[Any]], tensors: list[list[Any]], rest: bytes) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]

    def string(text: bytes) -> None:
        parts.extend((struct.pack("<Q", len(text)), text))

    def value(kind: int, found: Any) -> None:
        if kind == 9:
            inner, values = found
            parts.append(struct.pack("<IQ", inner, len(values)))
            for one in values:
                value(inner, one)
        elif kind == 8:
            string(found)
        else:
            parts.append(struct.pack("<" + SCALARS[kind], found))

    for key, kind, found in fields:
        string(key)
        parts.append(struct.pack("<I", kind))
        value(kind, found)
    for name, dims, kind, offset in tensors:
        string(name)
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset % 2**64))
    head = b"".join(parts)
    return head + bytes(-len(head) % 32) + rest


def pickle(data: bytes, rng: Random) -> bytes:
    """A pickle: an operation lost, doubled or exchanged for another, or one's argument overwritten."""
    starts: list[int] = []
    with contextlib.suppress(Exception):  # an alteration before this one broke it
        starts = [at for _, _, at in pickletools.genops(data)]
    if len(starts) < 3:
        return data[: rng.randrange(len(data) + 1)]
    i = rng.randrange(len(starts) - 1)
    start, end = starts[i], starts[i + 1]
    match rng.randrange(5):
        case 0:
            return data[:start] + data[end:]
        case 1:
            return data[:start] + data[start:end] * rng.choice((2, 100, 10_000)) + data[end:]
        case 2:
            return data[:start] + rng.choice(pickletools.opcodes).code.encode("latin-1") + data[start + 1 :]
        case 3:
            return data[: start + 1] + rng.choice(BOUNDARY).to_bytes(8, "little") + data[end:]
        case _:
            value = struct.pack("<I", rng.choice(BOUNDARY) % 2**32)
            return data[:start] + rng.choice((b"X", b"J", b"M", b"B", b"\x8b")) + value + data[end:]
