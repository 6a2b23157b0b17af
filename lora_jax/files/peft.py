"""LoRA adapters in Hugging Face PEFT's format: `adapter_config.json` beside `adapter_model.safetensors`.

PEFT's matrices are (out, in), so its `lora_A` is our A transposed. A name here, "layers.3.self_attn.q_proj", is the
module path in Hugging Face's model without the leading "model.".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.adapters import placement
from lora_jax.adapters.base import Tree, partition
from lora_jax.adapters.lora import LoRA, lookup, scaling
from lora_jax.errors import InputError
from lora_jax.files import atomic, tensors
from lora_jax.weights import dense

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What PEFT can put into a LoRA's configuration that would change the model and that this reader does not do.
REFUSED = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
)
PLAIN_STARTS = (
    True,
    False,
    None,
    "gaussian",
    "orthogonal",
    "eva",
)  # PEFT's other starts change the base or the method too
FIELDS: dict[str, tuple[Any, Any]] = {  # what is read: PEFT's default and the type that it must have
    "r": (8, int),
    "lora_alpha": (8, int | float),
    "lora_dropout": (0.0, int | float),
    "use_rslora": (False, bool),
    "rank_pattern": ({}, dict),
    "alpha_pattern": ({}, dict),
    "target_modules": ([], list | str),
    "exclude_modules": ([], list | str),
    "layers_to_transform": ([], list | int),
}


def save_adapter(
    folder: str | Path, adapters: Tree, constants: Tree, *, base: Tree, base_name: str | None = None
) -> None:
    """Write LoRA adapters so that `peft.PeftModel.from_pretrained` opens them on the Hugging Face form of `base`.

    Raises InputError where an adapter is not LoRA, where `base` has a tied embedding that an adapter stands on (PEFT
    adapts one side of the pair only: give an untied base), or where the disk refuses.
    """
    named = placement.unstack(base, adapters, constants)
    odd = [name for name, adapter in named.items() if not isinstance(adapter, LoRA)]
    if not named or odd:
        raise InputError(f"there is no LoRA to save{f': {odd[0]} is a {type(named[odd[0]]).__name__}' if odd else ''}")
    refuse_tied(base, named)
    arrays: dict[str, np.ndarray] = {}
    for name, adapter in named.items():
        key_a, key_b = _keys(name)
        arrays[key_a], arrays[key_b] = np.asarray(adapter.a).T, np.asarray(adapter.b).T
    with atomic.writing_folder(folder) as target:
        tensors.write(target / WEIGHTS, arrays, {"format": "pt"})
        config = _config(base, named, base_name)
        atomic.write_bytes(target / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def load_adapter(folder: str | Path, *, base: Tree) -> tuple[Tree, Tree]:
    """`(adapters, constants)` for `base` from a folder in PEFT's format; the factors become float32.

    Raises InputError for a missing or broken file, another method than plain LoRA, a missing or unexpected tensor, and
    a base that the adapter does not fit.
    """
    config = _read_config(Path(folder) / CONFIG)
    arrays, _ = tensors.read(Path(folder) / WEIGHTS)
    weights, named, used = placement.matrices(base), {}, set()
    for name in weights:
        key_a, key_b = _keys(name)
        used |= _check_copies(folder, name, weights[name], arrays)
        if key_a not in arrays and key_b not in arrays and not _targeted(config, _path(name)):
            continue
        if missing := [key for key in (key_a, key_b) if key not in arrays]:
            raise InputError(f"{folder}: the tensor {missing[0]} is missing; {name} needs both factors")
        used |= {key_a, key_b}
        a, b = (jnp.asarray(arrays[key], jnp.float32).T for key in (key_a, key_b))
        rank, path = lookup(config["rank_pattern"], _path(name), config["r"]), Path(folder) / WEIGHTS
        if rank < 1 or a.shape[1:] != (rank,) or b.shape[:-1] != (rank,):
            raise InputError(
                f"{path}: {name} has factors {a.shape} and {b.shape}, and its configuration says rank {rank}"
            )
        s = scaling(lookup(config["alpha_pattern"], _path(name), config["lora_alpha"]), rank, config["use_rslora"])
        dropout = jnp.float32(config["lora_dropout"]) if config["lora_dropout"] else None
        named[name] = LoRA(a, b, jnp.float32(s), dropout)
        named[name].check(name, jax.eval_shape(weights[name]).shape)
    if odd := sorted(set(arrays) - used):
        raise InputError(
            f"{folder}: the tensor {odd[0]} ({len(odd)} in all) belongs to nothing in this base: another base?"
        )
    if not named:
        raise InputError(f"{folder}: there is no tensor in {WEIGHTS}")
    refuse_tied(base, named)
    return partition(placement.stack(base, named), lambda field: field in {"a", "b"})


def _path(name: str) -> str:
    return name if name == "lm_head" else f"model.{name}"


def _keys(name: str) -> tuple[str, str]:
    if name == "embed_tokens":
        return f"{PREFIX}model.embed_tokens.lora_embedding_A", f"{PREFIX}model.embed_tokens.lora_embedding_B"
    return f"{PREFIX}{_path(name)}.lora_A.weight", f"{PREFIX}{_path(name)}.lora_B.weight"


def refuse_tied(base: Tree, named: Mapping[str, LoRA]) -> None:
    """Raise InputError where adapters by name stand on a tied embedding: PEFT's files cannot say so."""
    if "embed_tokens" in named and "lm_head" not in base:
        raise InputError(
            "embed_tokens is tied to the head in this base, and PEFT would adapt the embedding alone: "
            "give a base with its own lm_head, as `untie(params)` makes it"
        )


def _check_copies(folder: str | Path, name: str, weight: Any, arrays: Mapping[str, Any]) -> set[str]:
    """The tensors that merely repeat this embedding or head of the base, as PEFT adds them where it adapts either.

    Raises InputError where one differs: it was trained too, or the base is another.
    """
    if name not in ("embed_tokens", "lm_head"):
        return set()
    copies = {f"{PREFIX}{_path(name)}{ending}" for ending in (".base_layer.weight", ".weight")} & set(arrays)
    for key in copies:
        ours = dense(weight()) if name == "embed_tokens" else dense(weight()).T
        theirs = arrays[key]
        if not any(jnp.array_equal(ours.astype(dtype), theirs.astype(dtype)) for dtype in (ours.dtype, theirs.dtype)):
            raise InputError(f"{folder}: the tensor {key} differs from {name} of this base: another base?")
    return copies


def _targeted(config: Mapping[str, Any], path: str) -> bool:
    """Whether PEFT adapts the module: targets are names, whole or their last parts, or one regex for the whole path."""

    def among(targets: str | list[str]) -> bool:
        if isinstance(targets, str):
            return re.fullmatch(targets, path) is not None
        return any(path == target or path.endswith(f".{target}") for target in targets)

    targets, layers = config["target_modules"], config["layers_to_transform"]
    if among(config["exclude_modules"]) or not among(targets):
        return False
    if isinstance(targets, str) or path in targets or layers == []:
        return True
    layer = re.match(r"model\.layers\.(\d+)\.", path)
    return layer is not None and int(layer[1]) in (layers if isinstance(layers, list) else [layers])


def _alpha(adapter: LoRA) -> float:
    """The alpha that gives this scaling again, bit for bit; a whole number where one does."""
    s, rank = float(adapter.scaling), adapter.a.shape[-1]
    whole = round(s * rank)
    return whole if np.float32(scaling(whole, rank)) == np.float32(s) else s * rank


def _config(base: Tree, named: Mapping[str, LoRA], base_name: str | None) -> dict[str, Any]:
    ranks = {_path(name): adapter.a.shape[-1] for name, adapter in named.items()}
    alphas = {_path(name): _alpha(adapter) for name, adapter in named.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    short = {name.rsplit(".", 1)[-1] for name in named}
    missing = {name.rsplit(".", 1)[-1] for name in placement.matrices(base) if name not in named}
    whole = short - missing  # targeted in every layer: the short name says it
    partial = [_path(name) for name in named if name.rsplit(".", 1)[-1] in missing]
    dropouts = {float(str(np.float32(adapter.dropout))) for adapter in named.values() if adapter.dropout is not None}
    return {
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": max(dropouts, default=0.0),
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "target_modules": sorted(whole) + partial,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"there is no {path.name} in {path.parent}: it is not an adapter in PEFT's format") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise InputError(f"{path}: only adapters of peft_type LORA can be read, and this one's is {found!r}")
    refused = [name for name in REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if (start := config.get("init_lora_weights")) not in PLAIN_STARTS:
        refused.append(f"init_lora_weights={start!r}")
    if refused:
        raise InputError(f"{path}: {', '.join(refused)} is set, which plain LoRA does not have")
    found = {name: default if config.get(name) is None else config[name] for name, (default, _) in FIELDS.items()}
    for name, (_, kind) in FIELDS.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool) != (kind is bool):
            raise InputError(f"{path}: {name} is {found[name]!r}, which is not of the type that it has in PEFT")
        if isinstance(found[name], dict) and not all(isinstance(value, int | float) for value in found[name].values()):
            raise InputError(f"{path}: {name} is {found[name]!r}, but its values must be numbers")
    try:
        for pattern in (*found["rank_pattern"], *found["alpha_pattern"]):
            re.compile(pattern)
        _targeted(found, "")
    except re.error as error:
        raise InputError(f"{path}: {error.pattern!r} is not a regular expression: {error}") from error
    return found
