"""Which run a checkpoint is of: all that decides its numbers, in a few words that are compared when it is gone on with.

What is large (weights, texts) is told by a digest: the first 16 hex digits of a sha256 over every byte of it. How often
a run is evaluated and saved does not decide what it learns, and may change from one day to the next.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.errors import InputError
from lora_jax.files import checkpoint as checkpoints
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.text.packing import Packed
from lora_jax.transformer import Config
from lora_jax.tuning.jobs import Job

Texts = Mapping[str, tuple[Packed, Packed]]  # what a run learns from and is judged by; then what is watched
LATELY = ("base_weights", "start", "config", "tokenizer", "chat_template", "held_out", "watch", "remat")


def of_model(config: Config, job: Job, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a run starts from: the base as it is held (quantized, if it is), fresh adapters, shapes, tokenizer."""
    base, start = (job.trainable, None) if job.frozen is None else (job.frozen[0], (job.trainable, job.frozen[1]))
    files = tokenizer.files()
    return {
        "config": of_text(json.dumps(dataclasses.asdict(config), sort_keys=True)),
        "base_weights": of_tree(base),
        "start": of_tree(start),
        "tokenizer": of_text(files["tokenizer.json"] + json.dumps([tokenizer.named, tokenizer.end_ids])),
        "chat_template": None if tokenizer.chat_template is None else of_text(tokenizer.chat_template),
    }


def of_texts(packed: Texts) -> dict[str, Any]:
    """What a run learns from, by tokens, masks, segments and positions; what it is judged by; what it watches."""
    (learned, kept), *_ = packed.values()
    _, *watched = packed
    return {
        "data": of_tree(learned.rows(slice(None))),
        "held_out": of_tree(kept.rows(slice(None))),
        "watch": {name: of_tree(packed[name][1].rows(slice(None))) for name in watched},
    }


def of_tree(tree: Any) -> str:
    """The digest of every leaf's path, dtype, shape and bytes."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        for part in _parts(leaf):
            found.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    return found.hexdigest()[:16]


def _parts(leaf: Any) -> Iterator[np.ndarray]:
    """The leaf as NumPy's: whole where that costs nothing, else a layer at a time, since JAX keeps what it copies."""
    shared = isinstance(leaf, np.ndarray) or all(device.platform == "cpu" for device in leaf.devices())
    if shared or leaf.ndim < 3:
        yield np.asarray(leaf)
    else:
        yield from (np.asarray(leaf[i]) for i in range(len(leaf)))


def of_text(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def refuse_older(checkpoint: Path) -> None:
    """Raise InputError where a checkpoint does not say all of this, as those of earlier versions did not."""
    if not checkpoint.exists():
        return
    run = checkpoints.about(checkpoint).get("run")
    missing = [name for name in LATELY if not isinstance(run, dict) or name not in run]
    if missing:
        raise InputError(
            f"{checkpoint} does not say which {', '.join(missing)} its run has, as checkpoints of an earlier version "
            "of this package did not, so whether it is this run cannot be told: give --out another place to start "
            "anew, or end it with that version"
        )
