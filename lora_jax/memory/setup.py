"""What is trained, on what, and how: the one question that every rung of the ladder answers in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_jax.errors import InputError

if TYPE_CHECKING:  # a formula needs no JAX
    from lora_jax.transformer import Config

CHOICES = {
    "method": ("full", "lora", "qlora"),
    "dtype": ("float32", "bfloat16"),
    "attention": ("blocks", "scores"),
    "optimizer": ("adamw", "adafactor", "sgd", "momentum"),
    "moments": ("float32", "bfloat16", None),
}


@dataclass(frozen=True)
class Setup:
    """One training step. QLoRA is LoRA over a base whose layers' matrices are NF4; adapters are float32 throughout."""

    config: Config
    method: str = "lora"
    batch: int = 1
    length: int = 1024
    rank: int = 16
    targets: str | Sequence[str] = "all-linear"
    freeze_a: bool = False
    double_quantization: bool = True
    dtype: str = "bfloat16"  # of the base, and of what flows through it
    remat: bool = False
    attention: str = "blocks"
    optimizer: str = "adamw"
    moments: str | None = None  # of AdamW's first moment, or momentum's trace; None: of what trains
    master: bool = False  # full fine-tuning in bfloat16 with a float32 copy of the weights in the optimizer's state

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(map(str, choices))
                raise InputError(f"{name} is {getattr(self, name)!r}: choose one of {known}")
        for name in ("batch", "length", "rank"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}, and must be a whole number of 1 or more")
        if self.master and (self.method != "full" or self.dtype == "float32"):
            raise InputError(
                "a float32 master copy is for full fine-tuning in bfloat16: elsewhere there is nothing to copy"
            )
