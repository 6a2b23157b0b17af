"""Adapters in Hugging Face PEFT's format: `adapter_config.json` beside `adapter_model.safetensors`.

What is the same for every method stands here; how a method's own tensors and settings are laid out is its row's to say.
A name here, "layers.3.self_attn.q_proj", is the module's path in Hugging Face's model without the leading "model.".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.adapters import METHODS, placement
from lora_jax.adapters.base import Tree, partition
from lora_jax.adapters.method import PeftFormat
from lora_jax.errors import InputError
from lora_jax.files import atomic, peft_config, tensors
from lora_jax.weights import dense

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapter(
    folder: str | Path, adapters: Tree, constants: Tree, *, base: Tree, base_name: str | None = None
) -> None:
    """Write one method's adapters so that `peft.PeftModel.from_pretrained` opens them on Hugging Face's form of `base`.

    Raises InputError where there is no adapter, or adapters of several methods, where `base` has a tied embedding that
    an adapter stands on (PEFT adapts one side of the pair only: give an untied base), or where the disk refuses.
    """
    arrays, config = as_files(adapters, constants, base=base)
    with atomic.writing_folder(folder) as target:
        tensors.write(target / WEIGHTS, arrays, {"format": "pt"})
        text = json.dumps(config | {"base_model_name_or_path": base_name}, indent=2, sort_keys=True) + "\n"
        atomic.write_bytes(target / CONFIG, text.encode())


def as_files(adapters: Tree, constants: Tree, *, base: Tree) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `save_adapter` writes: the tensors by key, and the configuration. Raises InputError as it does."""
    named = placement.unstack(base, adapters, constants)
    form = _format(named)
    refuse_tied(base, named)
    by_path = {_path(name): adapter for name, adapter in named.items()}
    arrays = {_key(path, part): np.asarray(array) for path, adapter in by_path.items()
              for part, array in form.tensors(path, adapter).items()}  # fmt: skip
    targets = _targets(base, named)
    config = {
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
        **({"target_modules": targets} if targets else {}),
        **form.settings(by_path, targets),
        **form.marks,
    }
    return arrays, config


def load_adapter(folder: str | Path, *, base: Tree) -> tuple[Tree, Tree]:
    """`(adapters, constants)` for `base` from a folder in PEFT's format, of any method that has a row.

    Raises InputError for a missing or broken file, another method, a missing or unexpected tensor, and a base that the
    adapter does not fit.
    """
    form, settings = peft_config.read(Path(folder) / CONFIG)
    places = {form.entry: lambda: base["embed_tokens"]} if form.entry else placement.matrices(base)
    settings = peft_config.at(settings, [_path(name) for name in places], Path(folder) / CONFIG)
    arrays, _ = tensors.read(Path(folder) / WEIGHTS, tensors.FLOATING)
    _take_copies(folder, base, arrays)
    named = {}
    for name, weight in places.items():
        path = _path(name)
        own = {key.removeprefix(_key(path, "")): key for key in arrays if key.startswith(_key(path, ""))}
        if not own and path and path not in settings["targeted"]:
            continue
        found = {part: arrays.pop(key) for part, key in own.items()}
        try:
            named[name] = form.adapter(path, found, settings)
            named[name].check(name, jax.eval_shape(weight).shape)
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(named[name])):
                raise InputError(f"{name}: with the settings in {CONFIG}, its numbers are not finite in float32")
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error
        arrays |= {own[part]: array for part, array in found.items()}
    if "lm_head" not in base and any(key.startswith(_key("lm_head", "")) for key in arrays):
        raise InputError(
            f"{folder}: it stands on lm_head, which is tied to embed_tokens in this base, and PEFT adapts the head "
            "alone: give a base with its own lm_head, as `untie(params)` makes it"
        )
    if arrays:
        raise InputError(
            f"{folder}: the tensor {min(arrays)} ({len(arrays)} in all) belongs to nothing in this base: another base?"
        )
    if not named:
        raise InputError(f"{folder}: there is no tensor in {WEIGHTS}")
    refuse_tied(base, named)
    return partition(placement.stack(base, named), lambda field: field in form.trains)


def _format(named: Mapping[str, Any]) -> PeftFormat:
    """The format of the one method that all these adapters are of, known by their type."""
    kinds = {type(adapter): name for name, adapter in named.items()}
    rows = [method.peft for method in METHODS.values() if method.adapter in kinds]
    if len(kinds) != 1 or not rows:
        found = "; ".join(f"{name} is a {kind.__name__}" for kind, name in kinds.items())
        raise InputError(f"a folder in PEFT's format holds the adapters of one method: {found or 'there is none here'}")
    return rows[0]


def _path(name: str) -> str:
    """The module's path in Hugging Face's model; "" for what stands at none."""
    return {"lm_head": name, **dict.fromkeys(placement.NO_WEIGHTS, "")}.get(name, f"model.{name}")


def _key(path: str, part: str) -> str:
    return f"{PREFIX}{path}.{part}" if path else part


def refuse_tied(base: Tree, named: Iterable[str]) -> None:
    """Raise InputError where adapters by name stand on a tied embedding: PEFT's files cannot say so."""
    if "embed_tokens" in named and "lm_head" not in base:
        raise InputError(
            "embed_tokens is tied to the head in this base, and PEFT would adapt the embedding alone: "
            "give a base with its own lm_head, as `untie(params)` makes it"
        )


def _take_copies(folder: str | Path, base: Tree, arrays: dict[str, Any]) -> None:
    """Take out the tensors that merely repeat the embedding or the head of the base, as PEFT adds them on request.

    Where the two are tied, both repeat the embedding. Raises InputError where one differs: it was trained too, the
    vocabulary was changed, or the base is another.
    """
    for name in ("embed_tokens", "lm_head"):
        for key in {_key(_path(name), part) for part in ("base_layer.weight", "weight")} & set(arrays):
            ours = dense(base["lm_head"]).T if name in base and name == "lm_head" else dense(base["embed_tokens"])
            theirs = arrays.pop(key)
            if theirs.shape != ours.shape:
                raise InputError(
                    f"{folder}: the tensor {key} is {theirs.shape}, and {name} of this base is {ours.shape}: the "
                    "adapter was trained on a model whose vocabulary had been changed: give that model"
                )
            kinds = (ours.dtype, theirs.dtype)
            if not any(jnp.array_equal(ours.astype(dtype), theirs.astype(dtype)) for dtype in kinds):
                raise InputError(
                    f"{folder}: the tensor {key} differs from {name} of this base: it was trained too, which is not "
                    "supported, or this is another base"
                )


def _targets(base: Tree, named: Mapping[str, Any]) -> list[str]:
    """PEFT's `target_modules`: the last part of a path where it is adapted in every layer, else whole paths."""
    at_weights = [name for name, adapter in named.items() if not adapter.adds]
    missing = {name.rsplit(".", 1)[-1] for name in placement.matrices(base) if name not in named}
    short = {name.rsplit(".", 1)[-1] for name in at_weights} - missing
    return sorted(short) + [_path(name) for name in at_weights if name.rsplit(".", 1)[-1] in missing]
