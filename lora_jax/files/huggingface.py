"""Model directories as Hugging Face writes them: `config.json`, `model.safetensors` (or shards) and the tokenizer."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.errors import InputError
from lora_jax.files import atomic, tensors
from lora_jax.files.assemble import Tensors, as_it_is, assemble, check_config, disassemble
from lora_jax.files.huggingface_config import read_config, write_config
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.transformer import Config, Params
from lora_jax.untrusted import files, json_text
from lora_jax.untrusted.json_text import shown

__all__ = ["load", "load_tokenizer", "read_config", "save", "write_config"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
FLOATING = ("F32", "F16", "BF16")
SETTINGS = ["config.json", GENERATION, INDEX]  # what is fetched from a hub, by name, beside the weights
TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]


def load(name_or_folder: str | Path, dtype: Any = jnp.float32) -> tuple[Config, Params]:
    """`(config, params)` of a model directory or a hub id, of type llama, mistral or qwen2, its weights in `dtype`.

    Raises InputError in one sentence where a file is missing, damaged or malformed, where the model has an option that
    the transformer lacks, or where the tensors are not exactly the model's.
    """
    folder = _folder(name_or_folder, weights=True)
    config = read_config(folder / "config.json")
    check_config(config, str(folder / "config.json"))
    with ExitStack() as stack:
        shards: dict[str, tensors.Tensors] = {}  # tensor -> the open file that holds it
        for path in _weight_files(folder):
            shard = stack.enter_context(tensors.opened(path, word="readable"))
            shards |= dict.fromkeys(shard.entries, shard)
        # Old checkpoints carry a table that follows from the configuration.
        shards = {name: shard for name, shard in shards.items() if not name.endswith("rotary_emb.inv_freq")}
        if config.tie_word_embeddings and "lm_head.weight" in shards:
            _check_tied(shards, folder)
        found = Tensors(
            where=str(folder),
            shapes={name: shard.entries[name].shape for name, shard in shards.items()},
            read=lambda name: shards[name].read(name, FLOATING),
        )
        return config, assemble(config, found, dtype)


def load_tokenizer(name_or_folder: str | Path) -> Tokenizer:
    """The tokenizer of a model directory or a hub id. Raises InputError where there is no `tokenizer.json`."""
    return Tokenizer.load(_folder(name_or_folder))


def save(folder: str | Path, config: Config, params: Params, tokenizer: Tokenizer | None = None) -> None:
    """Write a model directory that `transformers` opens, atomically, in the dtype that the weights have.

    Whether the head is tied and which projections have biases is read off the tree, not the configuration. Raises
    InputError where a weight is not a plain array, the tree holds what a model directory has no place for, the disk
    refuses, or the folder holds other files.
    """
    config = as_it_is(config, params)
    arrays = disassemble(config, params)
    written = write_config(config) | {"torch_dtype": arrays["model.embed_tokens.weight"].dtype.name}
    ids = _special_ids(tokenizer, config.vocab_size)
    written |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | ids
    with atomic.writing_folder(folder) as place:
        (place / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if ids:
            (place / GENERATION).write_text(json.dumps(ids, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tensors.write(place / WEIGHTS, arrays, {"format": "pt"})
        for name, text in (tokenizer.files() if tokenizer is not None else {}).items():
            (place / name).write_text(text, encoding="utf-8")


def _special_ids(tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, Any]:
    """The ids that `config.json` and `generation_config.json` name: of the ends one, or a list of several.

    A token that the embedding has no row for is named by its text alone: with its id the model would not open.
    """
    if tokenizer is None:
        return {}
    ends = [i for i in tokenizer.end_ids if i < vocab_size]
    single = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    ids = {name: i for name, i in single.items() if i is not None and i < vocab_size}
    return ids | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def _folder(name_or_folder: str | Path, *, weights: bool = False) -> Path:
    """The directory itself, or that of a hub id after a download (or from the hub's cache).

    Files are fetched by their names: the settings and the tokenizer, and with `weights` the one file of weights, or
    where there is none the shards that the index names. A repository holds much else.
    """
    if files.is_folder(name_or_folder):
        return Path(name_or_folder)
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(str(name_or_folder), allow_patterns=[*SETTINGS, *TOKENIZER]))
        if weights and not (folder / WEIGHTS).is_file():
            folder = Path(huggingface_hub.snapshot_download(str(name_or_folder), allow_patterns=[WEIGHTS]))
        if weights and not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
            folder = Path(huggingface_hub.snapshot_download(str(name_or_folder), allow_patterns=_shards(folder)))
        return folder
    except InputError:
        raise
    except Exception as error:  # the hub's library has many, for one outcome
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name_or_folder} is not a folder here, and fetching it from the Hugging Face hub did not work "
            f"({reason}): give a folder with config.json and {WEIGHTS}, or a hub id and a network."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or the shards that the index names, each checked to be there."""
    if files.exists(folder / WEIGHTS):
        files.require(folder / WEIGHTS)
        return [folder / WEIGHTS]
    if not files.exists(folder / INDEX):
        raise InputError(f"{folder} has neither {WEIGHTS} nor {INDEX}: give a model directory with safetensors.")
    for name in (names := _shards(folder)):
        if not files.is_file(folder / name):
            raise InputError(f"{folder / INDEX} names the shard {name}, which is not in {folder}.")
    return [folder / name for name in names]


def _shards(folder: Path) -> list[str]:
    """The names of the shards in the index. A name that is none, or would lead out of the folder, is refused."""
    index = folder / INDEX
    found = json_text.load_object(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InputError(f"{index} is not a readable index of shards (its weight_map is {shown(found)}).")
    for tensor, name in found.items():
        if not isinstance(name, str):
            raise InputError(f"{index}: the shard of {shown(tensor)} is {shown(name)}, but must be a file's name")
        if not files.is_name(name):
            said = name if name.isprintable() and len(name) < 100 else shown(name)
            raise InputError(f"{index} names the shard {said}, which is not in {folder}.")
    return sorted(set(found.values()))


def _check_tied(shards: dict[str, tensors.Tensors], folder: Path) -> None:
    """Drop a head that repeats the embedding, as some tied checkpoints carry; refuse one that differs."""
    head = shards.pop("lm_head.weight").read("lm_head.weight")
    embedding = shards.get("model.embed_tokens.weight")
    if embedding is None or not np.array_equal(head, embedding.read("model.embed_tokens.weight")):
        raise InputError(
            f"{folder}: config.json ties the head to the embedding, but lm_head.weight differs from "
            "model.embed_tokens.weight: set tie_word_embeddings to false."
        )
