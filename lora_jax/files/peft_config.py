"""PEFT's `adapter_config.json`: which method it is of, its settings, and the modules that it stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.adapters import METHODS
from lora_jax.adapters.method import PeftFormat
from lora_jax.errors import InputError
from lora_jax.untrusted import files, json_text, patterns
from lora_jax.untrusted.fields import Fields, Setting
from lora_jax.untrusted.json_text import shown

FIELDS = {  # where adapters stand
    "target_modules": Setting([], list | str),
    "exclude_modules": Setting([], list | str),
    "layers_to_transform": Setting([], list | int, low=0),
}
REFUSED = ("modules_to_save",)  # whatever the method: it would train weights of the base


def read(path: Path) -> tuple[PeftFormat, dict[str, Any]]:
    """The format that the file says, and its settings, each of the type and in the range that it has in PEFT.

    Raises InputError that names the file and the field.
    """
    if not files.exists(path):
        raise InputError(f"there is no {path.name} in {path.parent}: it is not an adapter in PEFT's format")
    config = json_text.load(path)
    kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
    forms = [
        method.peft
        for method in METHODS.values()
        if isinstance(config, dict) and all(config.get(name) == value for name, value in method.peft.marks.items())
    ]
    if not forms:
        known = ", ".join(dict.fromkeys(str(method.peft.marks["peft_type"]) for method in METHODS.values()))
        raise InputError(f"{path}: this adapter's peft_type is {shown(kind)}, and those that can be read are {known}")
    form = max(forms, key=lambda form: len(form.marks))  # a method that is another one with a flag set
    refused = [name for name in (*form.refused, *REFUSED) if config.get(name)]
    said = {name: config[name] for name in form.plain if name in config}  # what is not said is as PEFT assumes
    refused += [f"{name}={shown(value)}" for name, value in said.items() if value not in form.plain[name]]
    if refused:
        raise InputError(f"{path}: {', '.join(refused)} is set, which is not understood here")
    settings = FIELDS | dict(form.fields)
    return form, {name: Fields(config, str(path)).setting(name, setting) for name, setting in settings.items()}


def at(settings: Mapping[str, Any], paths: Sequence[str], where: Path) -> dict[str, Any]:
    """The settings with what goes by patterns given by path, and as `targeted` those of the paths that PEFT adapts.

    Targets are names, whole or their last parts, or one regex for the whole path. Raises InputError that names the file
    where a pattern is none, or takes too long.
    """
    targets, layers = settings["target_modules"], settings["layers_to_transform"]
    chosen = layers if isinstance(layers, list) else [layers]

    def among(targets: list[str] | str) -> set[str]:
        if isinstance(targets, str):
            return set(patterns.fullmatch(targets, paths))
        return {path for path in paths if any(path == target or path.endswith(f".{target}") for target in targets)}

    def in_layers(path: str) -> bool:
        if isinstance(targets, str) or path in targets or layers == []:
            return True
        layer = re.match(r"model\.layers\.(\d+)\.", path)
        return layer is not None and int(layer[1]) in chosen

    try:
        found = {
            name: patterns.resolve(value, paths) if isinstance(value, dict) else value
            for name, value in settings.items()
        }
        targeted = {path for path in among(targets) - among(settings["exclude_modules"]) if in_layers(path)}
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return found | {"targeted": targeted}
