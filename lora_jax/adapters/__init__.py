"""The registry: one row a method. Adding a method is one file beside `lora.py` and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_jax.adapters import lora


@dataclass(frozen=True)
class Method:
    """What the rest of the package may know of a method: `init(key, params, **options) -> (adapters, constants)`."""

    init: Callable[..., tuple[Any, Any]]
    adapter: type
    title: str


METHODS = {"lora": Method(lora.init, lora.LoRA, "LoRA: a low-rank change beside each frozen matrix")}
