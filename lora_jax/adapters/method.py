"""A method is a row of data: all that the rest of the package may know of it.

The command line and its checks, the memory ledger, the files, the laws and the docs' table are made from the rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_jax.errors import InputError
from lora_jax.untrusted.fields import Setting


@dataclass(frozen=True)
class Option:
    """A word that `init` takes, in snake case; on the command line the same with dashes."""

    help: str
    read: Callable[[str], Any] | None = None  # its value from the command line's text; None for a flag, which is True
    examples: tuple[Any, ...] = ()  # values beside the default: the laws are tested with each


@dataclass(frozen=True)
class PeftFormat:
    """A method's adapters in Hugging Face PEFT's two files (`files/peft.py` does all that is the same for all of them).

    A `path` is a module's in the Hugging Face model, "model.layers.3.self_attn.q_proj"; "" for what is at no weight.
    """

    marks: Mapping[str, Any]  # the fields of adapter_config.json that tell this method's files from others'
    # tensors(path, adapter): each array by the last part of its key, as PEFT lays it out.
    tensors: Callable[[str, Any], dict[str, Any]]
    # settings(adapters by path, target_modules): the fields of adapter_config.json that are the method's own.
    settings: Callable[[Mapping[str, Any], list[str]], dict[str, Any]]
    # adapter(path, tensors, settings): takes what it uses out of `tensors`; what it leaves belongs to nothing.
    adapter: Callable[[str, dict[str, Any], Mapping[str, Any]], Any]
    trains: frozenset[str]  # the fields of the adapter that train
    fields: Mapping[str, Setting] = field(default_factory=dict)  # what is read from it
    plain: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # fields with the values that are understood
    refused: tuple[str, ...] = ()  # fields that would change the model, and are not understood whatever their value
    entry: str | None = None  # the entry of `params` that the adapter makes, for what is at no weight


@dataclass(frozen=True)
class Method:
    """One row of the registry."""

    title: str
    paper: str  # where the method is from
    change: str  # what it makes of `x @ W`, in a formula
    init: Callable[..., tuple[Any, Any]]  # init(key, params, **options) -> (adapters, constants)
    adapter: type  # what its trees hold: by this type a tree's method is known
    options: Mapping[str, Option]
    rate: float  # the learning rate to start from
    peft: PeftFormat
    rates: Mapping[str, float] = field(default_factory=dict)  # by field of the adapter: how many times that rate

    def default(self, option: str) -> Any:
        """The value of an option that is not given."""
        return inspect.signature(self.init).parameters[option].default

    def check(self, name: str, given: Mapping[str, Any]) -> None:
        """Raise InputError for an option that this method, which goes by `name`, does not have."""
        if odd := [option for option in given if option not in self.options]:
            raise InputError(f"{name} has no {', '.join(odd)}: it has {', '.join(self.options)}")
