"""What a learner's function returned, as plain data; and plain data as JSON, to hand from process to process.

Plain data are None, bools, ints, floats, strings, NumPy arrays of numbers, and lists, tuples and dicts of these. A
judge sees nothing else, so that no object of the learner's can answer for itself; and nothing in JSON runs when read.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lora_jax.untrusted import json_text

MAX_BYTES = 8_000_000  # of all arrays and strings in one answer
MAX_ITEMS = 20_000  # arrays, numbers, strings, lists and dicts in one answer
MAX_DEPTH = 30
# The names that an array's dtype may have. NumPy itself does not know bfloat16.
DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "bfloat16", "float16", "float32", "float64",
    )
}  # fmt: skip


class NotPlain(ValueError):
    """The value holds something that is not plain data, or too much: the message completes "your answer ..."."""


def to_plain(value: Any) -> Any:
    """`value` with every array a NumPy array and every pytree dataclass a dict of its fields.

    JAX arrays and NumPy numbers are arrays; a 0-d array becomes a Python number. Raises NotPlain.
    """
    return _Reader().read(value, 0)


class _Reader:
    def __init__(self) -> None:
        self.items, self.bytes = 0, 0

    def read(self, value: Any, depth: int) -> Any:
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise NotPlain(f"holds more than {MAX_ITEMS:,} things, or is nested more than {MAX_DEPTH} deep")
        kind = type(value)
        if value is None or kind in (bool, float):
            return value
        if kind is int:
            if abs(value) >= 10**300:
                raise NotPlain("holds a whole number of more than 300 digits")
            return value
        if kind is str:
            self._grow(4 * len(value))
            return value
        if isinstance(value, Mapping):
            return {self._key(key): self.read(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.read(item, depth + 1) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: self.read(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value)}
        return self._array(value)

    def _key(self, key: Any) -> str | int:
        if type(key) not in (str, int):
            raise NotPlain(f"holds a dict with a key of type {type(key).__name__}: use strings")
        return self.read(key, 0)

    def _array(self, value: Any) -> Any:
        # By what it offers, since this file must not need JAX: its arrays and NumPy's say their dtype and size.
        dtype, size = getattr(value, "dtype", None), getattr(value, "size", None)
        if isinstance(value, type) or str(dtype) not in DTYPES or not isinstance(size, int):
            what = "a function" if callable(value) and dtype is None else f"a {type(value).__name__}"
            raise NotPlain(f"holds {what}{'' if dtype is None else f' of dtype {dtype}'}: return arrays or numbers")
        self._grow(size * DTYPES[str(dtype)].itemsize)
        array = np.array(value, DTYPES[str(dtype)])  # a copy: nothing of the learner's can change it later
        return array.item() if array.ndim == 0 and array.dtype != DTYPES["bfloat16"] else array

    def _grow(self, size: int) -> None:
        self.bytes += size
        if self.bytes > MAX_BYTES:
            raise NotPlain(f"holds more than {MAX_BYTES / 1e6:.0f} MB")


def dumps(value: Any) -> str:
    """Plain data as JSON: what JSON lacks is a dict with one key, "array", "float", "tuple" or "dict"."""
    return json.dumps(_encode(value))


def loads(text: str | bytes) -> Any:
    """The inverse of `dumps`, for text that anybody may have written. Raises NotPlain for what `dumps` never writes."""
    try:
        return _decode(json_text.loads(text, "the answer", depth=4 * MAX_DEPTH, values=10 * MAX_ITEMS))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, MemoryError) as error:
        raise NotPlain("is not plain data") from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [str(value.dtype), list(value.shape), data]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item)] for key, item in value.items()]}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, found),) = value.items()
    if kind == "array":
        name, shape, data = found
        array = np.frombuffer(base64.b64decode(data, validate=True), DTYPES[name])
        return array.reshape([int(n) for n in shape]).copy()
    if kind == "float":
        return float({"nan": "nan", "inf": "inf", "-inf": "-inf"}[found])
    if kind == "tuple":
        return tuple(_decode(item) for item in found)
    if kind == "dict":
        return {_string_or_int(key): _decode(item) for key, item in found}
    raise NotPlain("is not plain data")


def _string_or_int(key: Any) -> str | int:
    if type(key) not in (str, int):
        raise NotPlain("is not plain data")
    return key
