"""What stands before the weights of a GGUF file: its fields, and where each tensor lies.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header says how many things follow and how long
they are, and anybody may have written it: each length is held against the bytes that are there before anything of that
size is made, and tensors may neither leave the file nor lie over each other, so that a small file never becomes a large
model. The `gguf` library's own reader, which makes an object of every number, took a minute and gigabytes for a header
of four megabytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.errors import InputError
from lora_jax.untrusted import binary
from lora_jax.untrusted.fields import Fields

HEADER_BYTES = 64_000_000  # the largest vocabularies in use, of 262,144 tokens, take 20 million with their merges
TEXTS, OTHERS = 3_000_000, 20_000  # in arrays, where those vocabularies have 800,000; fields, tensors, and inner arrays
DIMENSIONS, DEPTH = 4, 4  # of a tensor, as GGML has them; of arrays inside arrays
VERSIONS = (2, 3)
SCALARS = "BbHhIif?  Qqd"  # by type, in the letters of `struct`
STRING, ARRAY = 8, 9
ALIGNMENT = "general.alignment"


class Damaged(ValueError):
    """The bytes are no whole header: what is wrong with them."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file, and as what."""

    name: str
    kind: Any  # a gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # as NumPy has it: rows first
    start: int
    count: int  # of bytes


@dataclass(frozen=True)
class Header:
    """The fields by name, and the tensors by name.

    A field is a number, a truth value, a text, a NumPy array of numbers, or a list of the others; a text that is not
    UTF-8 stays bytes.
    """

    said: Fields
    tensors: Mapping[str, Tensor]


def read(path: str | Path) -> Header:
    """The header of a GGUF file. Raises InputError in one sentence where it is none, or not whole."""
    if not Path(path).exists():
        raise InputError(f"could not open {path} (No such file or directory): give the path of a GGUF file.")
    with binary.opened(path) as file:
        data = file.read(0, min(file.size, HEADER_BYTES))
        try:
            fields, infos, end = _Reader(data).header()
            alignment = fields.get(ALIGNMENT, 32)
            if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
                raise Damaged(f"its {ALIGNMENT} is no power of two")
            tensors = [_tensor(info, -(-end // alignment) * alignment) for info in infos]
            _check_places(tensors, file.size)
            return Header(Fields(fields, str(path)), {tensor.name: tensor for tensor in tensors})
        except Damaged as error:
            raise InputError(f"{path} is not a readable GGUF file ({error}).") from error


class _Reader:
    """A place in the header's bytes, which moves on with each thing that is read."""

    def __init__(self, data: bytearray) -> None:
        self.data, self.at, self.texts, self.others = data, 0, 0, 0

    def header(self) -> tuple[dict[str, Any], list[tuple[Any, ...]], int]:
        """The fields, `(name, dimensions, type, offset)` of each tensor, and where the header ends."""
        if self._take(4) != b"GGUF":
            raise Damaged("it does not begin with GGUF")
        if (version := self._number("I")) not in VERSIONS:
            big = version in (one << 24 for one in VERSIONS)
            what = "the order of its bytes is that of another kind of machine" if big else f"its version is {version}"
            raise Damaged(f"{what}, and versions 2 and 3 are read, of little-endian machines")
        tensors, count = self._number("Q"), self._number("Q")
        fields: dict[str, Any] = {}
        for _ in self._count(count):
            key = self._name("a field")
            if key in fields:
                raise Damaged(f"the field {key} stands there twice")
            fields[key] = self._value(self._number("I"), 0)
        infos = [self._info() for _ in self._count(tensors)]
        return fields, infos, self.at

    def _info(self) -> tuple[Any, ...]:
        name = self._name("a tensor")
        if not 1 <= (count := self._number("I")) <= DIMENSIONS:
            raise Damaged(f"{name} has {count} dimensions, and 1 to {DIMENSIONS} are possible")
        return name, [self._number("Q") for _ in range(count)], self._number("I"), self._number("Q")

    def _value(self, kind: int, depth: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(self._letter(kind))
        kind, count = self._number("I"), self._number("Q")
        if kind not in (STRING, ARRAY):
            dtype = np.dtype("<" + self._letter(kind))
            return np.frombuffer(self._take(count * dtype.itemsize), dtype)
        if kind == STRING:
            return self._strings(count)
        if depth == DEPTH:
            raise Damaged(f"arrays are nested more than {DEPTH} deep")
        return [self._value(kind, depth + 1) for _ in self._count(count)]

    def _letter(self, kind: int) -> str:
        if kind >= len(SCALARS) or kind in (STRING, ARRAY):
            raise Damaged(f"there is no type {kind} of a field")
        return SCALARS[kind]

    def _count(self, count: int) -> range:
        """That many things, each of which takes eight bytes at least."""
        self.others += count
        if 8 * count > len(self.data) - self.at:
            raise self._short()
        if self.others > OTHERS:
            raise Damaged(f"it holds more than {OTHERS:,} fields, tensors and arrays")
        return range(count)

    def _string(self) -> str | bytes:
        return _decoded(self._take(self._number("Q")))

    def _strings(self, count: int) -> list[str | bytes]:
        """That many texts, one behind the other: the one loop here that goes round a million times."""
        self.texts += count
        if 8 * count > len(self.data) - self.at:
            raise self._short()
        if self.texts > TEXTS:
            raise Damaged(f"it holds more than {TEXTS:,} texts")
        data, at, end, unpack = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            if at + 8 > end or (size := unpack(data, at)[0]) > end - at - 8:
                raise self._short()
            found.append(data[at + 8 : at + 8 + size])
            at += 8 + size
        self.at = at
        try:
            return [one.decode() for one in found]
        except UnicodeDecodeError:
            return [_decoded(one) for one in found]

    def _name(self, what: str) -> str:
        if not isinstance(name := self._string(), str) or not name.isprintable() or len(name) > 1000:
            raise Damaged(f"{what} has a name that is none")
        return name

    def _number(self, letter: str) -> Any:
        try:
            (value,) = struct.unpack_from("<" + letter, self.data, self.at)
        except struct.error:
            raise self._short() from None
        self.at += struct.calcsize("<" + letter)
        return value

    def _take(self, count: int) -> bytearray:
        if count > len(self.data) - self.at:
            raise self._short()
        self.at += count
        return self.data[self.at - count : self.at]

    def _short(self) -> Damaged:
        if len(self.data) == HEADER_BYTES:
            return Damaged(f"its header has more than {HEADER_BYTES:,} bytes, or a length in it is wrong")
        return Damaged("it ends too early: was it cut short?")


def _decoded(data: bytearray) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return bytes(data)


def _tensor(info: tuple[Any, ...], begin: int) -> Tensor:
    """A tensor whose offset is counted from `begin`."""
    import gguf

    name, dimensions, kind, offset = info
    try:
        kind = gguf.GGMLQuantizationType(kind)
        block, size = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise Damaged(f"{name} is stored as type {kind}, which the gguf library does not know") from None
    if dimensions[0] % block:
        raise Damaged(f"{name} has rows of {dimensions[0]} numbers, and {kind.name} holds {block} at a time")
    count = math.prod(dimensions) // block * size
    return Tensor(name, kind, tuple(reversed(dimensions)), begin + offset, count)


def _check_places(tensors: list[Tensor], size: int) -> None:
    """Raise Damaged where a name stands twice, or tensors do not lie in the file, one behind the other."""
    names: set[str] = set()
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.count)):
        if tensor.name in names:
            raise Damaged(f"the tensor {tensor.name} stands there twice")
        names.add(tensor.name)
        if tensor.start + tensor.count > size:
            raise Damaged(f"{tensor.name} reaches beyond its end: was it cut short?")
        if tensor.start < end and tensor.count:
            raise Damaged(f"{tensor.name} lies over {before}")
        end, before = max(end, tensor.start + tensor.count), tensor.name
