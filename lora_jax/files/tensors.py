"""Named arrays in a safetensors file, read and written through its library: one sentence where that fails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.errors import InputError
from lora_jax.files import atomic


def write(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write arrays of any dtype that JAX has, atomically. Raises InputError where the disk refuses."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with atomic.writing(path) as file:
        try:
            save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, file.name, dict(metadata))
        except SafetensorError as error:  # it reports a full disk as its own kind of error
            raise OSError(str(error).removeprefix("Error while serializing: ")) from error
        atomic.sync(Path(file.name))  # the library put a file of its own under this name


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """`(arrays, metadata)` of a file; the arrays are JAX's, in the file's dtypes. Raises InputError if it is broken."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safe_open(path, framework="flax") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}): fetch or write it again") from error


def metadata(path: str | Path) -> dict[str, str]:
    """What stands in a file beside its arrays. Raises InputError if it is broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}): fetch or write it again") from error
