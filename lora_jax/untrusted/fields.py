"""The fields of a JSON object by type and range: whatever stands there instead is one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_jax.errors import InputError
from lora_jax.untrusted.json_text import printable, shown

LARGEST = 2**31 - 1  # no size of a model is larger, and what is counted with it fits 64 bits


class Setting(NamedTuple):
    """What a field of a PEFT configuration is: PEFT's default, its type, and its range where it is a number.

    A dict holds numbers of the type `values` and of that range, by patterns for the names of modules.
    """

    default: Any
    of: Any
    low: float = -math.inf  # the least value
    below: float = math.inf
    values: Any = None

    def holds(self, value: Any) -> bool:
        """Whether the value is a number of the range. NaN is of none."""
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        return bool(number and self.low <= value < self.below)


@dataclass(frozen=True)
class Fields:
    """The fields of one object. A field that is null or absent has its default, and without one it is no such value.

    Each method raises InputError that names where the object stands, the field, what it is and what it must be.
    """

    found: Mapping[str, Any]
    where: str

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = LARGEST) -> int:
        """A whole number from `low` to `high`; neither a truth value nor 3.0."""
        value = self._get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, value, f"a number, and a whole one of {low:,} to {high:,}")
        return value

    def number(self, name: str, default: float | None = None, *, above: float = -math.inf,
               low: float = -math.inf, below: float = math.inf, high: float = math.inf) -> float:  # fmt: skip
        """A finite number above `above`, at least `low`, below `below` and at most `high`, as a float."""
        value = self._get(name, default)
        if is_number(value) and above < value < below and low <= value <= high:
            return float(value)
        limits = [f"above {above:g}"] * (above > -math.inf) + [f"of {low:g} or more"] * (low > -math.inf)
        limits += [f"below {below:g}"] * (below < math.inf) + [f"of at most {high:g}"] * (high < math.inf)
        raise self._wrong(name, value, ", ".join(["a number", *[" and ".join(["finite", *limits])]]))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false; not 1, and not "false"."""
        value = self._get(name, default)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def object(self, name: str, default: Mapping[str, Any] | None = None) -> Fields:
        """The fields of an object inside this one."""
        value = self._get(name, default)
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Fields(value, f"{self.where}: {name}")

    def setting(self, name: str, setting: Setting) -> Any:
        """The value of a field of a PEFT configuration."""
        value = self._get(name, setting.default)
        of = int | float if setting.of is float else setting.of
        items = value if isinstance(value, list) else []
        odd = not all(type(one) is (int if setting.low == 0 else str) for one in items)
        if odd or not isinstance(value, of) or isinstance(value, bool) != (setting.of is bool):
            raise InputError(f"{self.where}: {name} is {shown(value)}, which is not of the type that it has in PEFT")
        if isinstance(value, dict):
            if not all(type(one) in (int, setting.values) for one in value.values()):
                raise InputError(f"{self.where}: {name} is {shown(value)}, but its values must be numbers")
            inside = Fields(value, f"{self.where}: {name}")
            return {key: inside.setting(key, setting._replace(of=setting.values)) for key in value}
        if type(value) not in (int, float):
            return value
        one = Fields({name: value}, self.where)
        if setting.of is float:
            return one.number(name, low=setting.low, below=setting.below)
        return one.integer(name, low=int(setting.low))

    def has(self, name: str) -> bool:
        """Whether the field stands there and is not null."""
        return self.found.get(name) is not None

    def _get(self, name: str, default: Any) -> Any:
        value = self.found.get(name)
        return default if value is None else value

    def _wrong(self, name: str, value: Any, right: str) -> InputError:
        return InputError(f"{self.where}: {printable(name[:80])} is {shown(value)}, but must be {right}")


def is_number(value: Any) -> bool:
    """Whether a value is a number, not a truth value, and finite as a float too."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number that is larger than any float
        return False
