"""A model by name: one that is built in, a GGUF file, a Hugging Face directory, or a hub id."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lora_jax.errors import InputError
from lora_jax.files import assets, gguf, huggingface
from lora_jax.transformer import Config, Params
from lora_jax.untrusted import files
from lora_jax.untrusted.json_text import shown

FETCHED = {"smollm2-135m": assets.SMOLLM2}
BESIDE = {"stories-2.8m": Path(__file__).parents[1] / "data" / "stories-2.8m"}  # part of the package (`pretraining.py`)
SUMS = "SHA256SUMS"  # beside such a model's files, as `sha256sum` writes and checks it
BUILT_IN = (*FETCHED, *BESIDE)


def load_model(name: str | Path, dtype: Any = jnp.float32) -> tuple[Config, Params]:
    """`(config, params)` in `dtype`, of a model by name.

    "smollm2-135m" (fetched once), "stories-2.8m" (beside the package), a .gguf file, a model directory, or a hub id.

    Raises InputError where there is no such model, it cannot be fetched, or its files are not whole.
    """
    source = _source(name)
    return (gguf if _is_gguf(source) else huggingface).load(source, dtype)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of the model of that name (see `load_model`)."""
    source = _source(name)
    return (gguf if _is_gguf(source) else huggingface).load_tokenizer(source)


def _source(name: str | Path) -> str | Path:
    if str(name) in FETCHED:
        return assets.fetch(FETCHED[str(name)])
    if str(name) in BESIDE:
        return _unchanged(BESIDE[str(name)])
    said = shown(str(name))
    if not files.exists(name) and (_is_gguf(name) or str(name).count("/") != 1 or str(name).startswith((".", "/"))):
        raise InputError(
            f"there is no model {said}: give {', '.join(BUILT_IN)}, a .gguf file, a folder with config.json "
            "and model.safetensors, or a hub id such as owner/name"
        )
    return name


def _unchanged(folder: Path) -> Path:
    """The folder of a model that came with the package, its files held against the checksums beside them."""
    sums = folder / SUMS
    for line in files.read_text(sums).splitlines() if sums.exists() else ():
        summed, name = line.split()
        if hashlib.sha256(files.read_bytes(folder / name)).hexdigest() != summed:
            raise InputError(f"{folder / name} is not what came with the package: install the package again")
    return folder


def _is_gguf(name: str | Path) -> bool:
    return Path(name).suffix == ".gguf"
