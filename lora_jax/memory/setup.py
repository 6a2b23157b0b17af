"""What is trained, on what, and how: the one question that every rung of the ladder answers in bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_jax.adapters import DEFAULT, METHODS
from lora_jax.errors import InputError
from lora_jax.transformer import Config
from lora_jax.tuning import jobs

CHOICES = {
    "quantize": (None, "nf4", "int8"),
    "dtype": ("float32", "bfloat16"),
    "attention": ("blockwise", "dense"),
    "optimizer": ("adamw", "adafactor", "sgd", "momentum"),
    "moments": (None, "float32", "bfloat16"),
}
RANK = 16  # what the commands and the pages that compare methods plan with, where none is given


@dataclass(frozen=True)
class Setup:
    """One training step, in the words of the command `train`; QLoRA is "lora" over a base in "nf4".

    Raises InputError for what is no step at all. What only the model's shapes can show (a target that matches nothing,
    too high a rank) is raised, in `init`'s own words, by `steps.build` and by all that builds on it.
    """

    config: Config
    method: str = DEFAULT  # "full", or a row of `adapters.METHODS`
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what that row's `init` takes: plain values
    quantize: str | None = None  # the layers' matrices of the frozen base
    double_quantization: bool = True  # NF4's
    batch: int = 1
    length: int = 1024
    dtype: str = "bfloat16"  # of the base, and of what flows through it
    remat: bool = False
    attention: str = "blockwise"
    optimizer: str = "adamw"
    moments: str | None = None  # of AdamW's first moment, or momentum's trace; None: of what the optimizer works on
    rounding: str | None = None  # how weights that train in bfloat16 take updates; None: as `train` does, "master"
    accumulate: int = 1  # parts that the batch goes through in, one after the other

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        jobs.check(self.method, self.options, self.quantize)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(map(str, choices))
                raise InputError(f"{name} is {getattr(self, name)!r}: choose one of {known}")
        for name in ("batch", "length", "accumulate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}, and must be a whole number of 1 or more")
        jobs.rounding(self.method, self.dtype, self.rounding)
        if self.batch % self.accumulate:
            raise InputError(f"a batch of {self.batch} cannot be accumulated in {self.accumulate} equal parts")

    @property
    def name(self) -> str:
        """The method and what it stands on, in the words of the command: "full", "lora", "lora nf4"."""
        return f"{self.method} {self.quantize}" if self.quantize else self.method

    @property
    def rounds(self) -> str | None:
        """`rounding`, the one that is meant where none is given; None where nothing that trains is in 16 bits."""
        return jobs.rounding(self.method, self.dtype, self.rounding)

    @property
    def part(self) -> Setup:
        """The step of the part of the batch that goes through at once."""
        return dataclasses.replace(self, batch=self.batch // self.accumulate, accumulate=1)

    @property
    def said(self) -> str:
        """The options in words: "rank 16, targets q_proj v_proj"."""
        words = {
            name: " ".join(map(str, one)) if isinstance(one, list | tuple) else one
            for name, one in self.options.items()
        }
        return ", ".join(name if one is True else f"{name} {one}" for name, one in words.items())

    @property
    def held(self) -> Setup:
        """The setup but for all that has no say in what is held whatever the batch: equal where that is equal."""
        return dataclasses.replace(self, batch=1, accumulate=1, length=1, remat=False, attention="blockwise")


def planning_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options given, with the rank that is planned with where the method has one and none is given."""
    ranked = method in METHODS and "rank" in METHODS[method].options
    return ({"rank": RANK} if ranked else {}) | {name: value for name, value in given.items() if value is not None}


def ways(setup: Setup) -> dict[str, Setup]:
    """The same step by full fine-tuning, by adapters over the base as it is, and over it quantized, by `Setup.name`.

    The adapters are the setup's, and where it has none the default method's. The base is quantized as the setup's is,
    or to NF4.
    """
    method, options = setup.method, setup.options
    if method == "full":
        method, options = DEFAULT, planning_options(DEFAULT, {})
    plain = dataclasses.replace(setup, method=method, options=options, quantize=None, rounding=None)
    full = dataclasses.replace(setup, method="full", options={}, quantize=None)
    found = (full, plain, dataclasses.replace(plain, quantize=setup.quantize or "nf4"))
    return {one.name: one for one in found}
