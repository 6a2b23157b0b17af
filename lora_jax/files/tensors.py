"""Named arrays in a safetensors file: written with a checksum, and read only where they are what was written.

The checksum is the sha256 of the tensors' names, dtypes, shapes and bytes, and of what the file says of a run. It
stands in the metadata, as text, which other programs leave alone; a file of theirs has none, and none is missed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lora_jax.errors import InputError
from lora_jax.files import atomic
from lora_jax.untrusted import binary, json_text

DTYPES = {  # the format's name -> NumPy's
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"{letter}{bits}": np.dtype(f"{kind}{bits}") for letter, kind in (("I", "int"), ("U", "uint"))
       for bits in (64, 32, 16, 8)},
    "BOOL": np.dtype(bool),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATING = ("F64", "F32", "F16", "BF16")
HEADER_BYTES = 16_000_000  # the headers of the largest models in use have less than a tenth of it
LONGEST = 1000  # letters in a name
CHECKSUM, SUMMED = "lora_jax_sha256", "about"  # fields of the metadata: the checksum, and what it is of beside tensors


@dataclass(frozen=True)
class Entry:
    """Where a tensor stands in the file."""

    dtype: str  # as the format names it
    shape: tuple[int, ...]
    start: int
    count: int  # of bytes


@dataclass(frozen=True)
class Tensors:
    """An open file: its tensors by name, none of them read yet, and what stands beside them."""

    file: binary.Binary
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def read(self, name: str, dtypes: Iterable[str] = DTYPES) -> np.ndarray:
        """One tensor. Raises InputError where its dtype is none of `dtypes`, or the file was cut short meanwhile."""
        entry = self.entries[name]
        if entry.dtype not in dtypes:
            raise InputError(f"{self.file.path}: {name} is stored as {entry.dtype}; supported are {', '.join(dtypes)}")
        return np.frombuffer(self.file.read(entry.start, entry.count), DTYPES[entry.dtype]).reshape(entry.shape)


def write(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write arrays of the dtypes in `DTYPES`, with their checksum, atomically.

    Raises InputError where a number is not finite, naming the tensor, and where the disk refuses.
    """
    found = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in found.items():
        if array.dtype not in NAMES:
            raise InputError(f"{path}: {name} is of dtype {array.dtype}; written are {', '.join(map(str, NAMES))}")
        check_finite(array, name, path)
    written = (
        (name, NAMES[array.dtype], array.shape, (array.reshape(-1).view(np.uint8),)) for name, array in found.items()
    )
    # The library writes the metadata in another order each time; a run gone on with ends in the same bytes.
    header: dict[str, Any] = {"__metadata__": dict(metadata) | {CHECKSUM: _checksum(written, metadata)}}
    order, end = sorted(found, key=lambda name: (-found[name].itemsize, name)), 0  # so each is aligned
    for name in order:
        start, end = end, end + found[name].nbytes
        header[name] = {"dtype": NAMES[found[name].dtype], "shape": found[name].shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic.writing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(found[name].reshape(-1).view(np.uint8).data)


def read(path: str | Path, dtypes: Iterable[str] = DTYPES) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """`(arrays, metadata)` of a file, the arrays NumPy's, in the file's dtypes.

    Raises InputError where the file is broken or not what was written, and naming the tensor where one is of none of
    `dtypes` or holds numbers that are not finite.
    """
    with opened(path) as file:
        binary.fits_memory(path, sum(entry.count for entry in file.entries.values()))
        arrays = {name: file.read(name, dtypes) for name in file.entries}
        for name, array in arrays.items():
            check_finite(array, name, path)
        return arrays, dict(file.metadata)


def metadata(path: str | Path) -> dict[str, str]:
    """What stands in a file beside its arrays. Raises InputError if it is broken."""
    with opened(path, check=False) as file:
        return dict(file.metadata)


def check_finite(array: np.ndarray, name: str, where: str | Path) -> None:
    """Raise InputError where an array has numbers that are none: NaN, or infinities, also as JAX's float32."""
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    if floating and not np.isfinite(array).all():
        raise InputError(f"{where}: {name} holds numbers that are not finite (NaN or infinity): train or fetch it anew")


@contextmanager
def opened(path: str | Path, *, check: bool = True, word: str = "whole") -> Iterator[Tensors]:
    """The tensors of a file, its header checked against the file's size, and its checksum where it has one.

    Raises InputError: that it is not a `word` safetensors file, or not what was written.
    """
    with binary.opened(path) as file:
        try:
            entries, metadata = _header(file)
        except ValueError as error:
            why = json_text.shown(str(error))[1:-1]
            raise InputError(f"{path} is not a {word} safetensors file ({why}): fetch or write it again") from error
        found = Tensors(file, entries, metadata)
        if check and CHECKSUM in metadata:
            stored = (
                (name, entry.dtype, entry.shape, file.pieces(entry.start, entry.count))
                for name, entry in entries.items()
            )
            if _checksum(stored, metadata) != metadata[CHECKSUM]:
                raise InputError(
                    f"{path} is not what was written (its checksum is another): copy or fetch it again, or train anew"
                )
        yield found


def _header(file: binary.Binary) -> tuple[dict[str, Entry], dict[str, str]]:
    """What the file says of its tensors and of itself. The library checks that the tensors fill the file, side by side.

    Raises ValueError where that is not so.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if file.size < 8 or (count := int.from_bytes(file.read(0, 8), "little")) > file.size - 8:
            raise ValueError("it ends before its header does")
        if count > HEADER_BYTES:
            raise ValueError(f"its header has {count:,} bytes, and at most {HEADER_BYTES:,} are read")
        said = json_text.an_object(json_text.loads(bytes(file.read(8, count)), "its header"), "its header")
        metadata = said.pop("__metadata__", None) or {}
        if sum(one["data_offsets"][1] - one["data_offsets"][0] for one in said.values()) != file.size - 8 - count:
            raise ValueError("its tensors and the bytes behind its header are not as many")
        with safe_open(file.path, framework="np"):  # it maps the file, and reads no more than the header
            pass
        entries = {}
        for name, one in said.items():
            if not name.isprintable() or len(name) > LONGEST:
                raise ValueError(f"a tensor has the name {json_text.shown(name)}, which is none")
            start, end = one["data_offsets"]
            entry = Entry(one["dtype"], tuple(one["shape"]), 8 + count + start, end - start)
            if entry.dtype in DTYPES and math.prod(entry.shape) * DTYPES[entry.dtype].itemsize != entry.count:
                raise ValueError(f"{name} is {entry.dtype}{list(entry.shape)} and has {entry.count} bytes")
            entries[name] = entry
        return entries, metadata
    except (SafetensorError, OSError, KeyError, IndexError, TypeError) as error:
        raise ValueError(str(error)) from error


def _checksum(tensors: Iterable[tuple[str, str, tuple[int, ...], Iterable[Any]]], metadata: Mapping[str, str]) -> str:
    """The sha256 of tensors, each (name, dtype, shape, its bytes in pieces), in the order of their names."""
    summed = hashlib.sha256(json.dumps(metadata.get(SUMMED)).encode())
    for name, dtype, shape, pieces in sorted(tensors, key=lambda one: one[0]):
        summed.update(json.dumps([name, dtype, list(shape)]).encode())
        for piece in pieces:
            summed.update(piece)
    return summed.hexdigest()
