"""The numbers that a command takes: each in its range, before anything is read or loaded."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_jax.errors import InputError

MOST = 2**31 - 1  # of what is counted: steps, sequences, tokens
SEEDS = 2**32 - 2  # JAX's keys are made of 32 bits, and a run draws from the seed and from the one after it
TINY, HUGE = math.ulp(0.0), sys.float_info.max  # the least number above 0, and the largest that is finite


class Range(NamedTuple):
    """From `low` to `high`, both included, and what is said of a number (`{}`) that is not among them."""

    low: float
    high: float
    said: str


def _counted(name: str, low: int = 1, high: int = MOST) -> Range:
    return Range(low, high, f"--{name.replace('_', '-')} is {{}}: give a whole number from {low} to {high:,}")


COUNTED = ("steps", "batch_size", "length", "accumulate", "evaluate_every", "checkpoint_every", "new_tokens", "top_k",
           "batches")  # fmt: skip
RANGES = {
    **{name: _counted(name) for name in COUNTED},
    "warmup": _counted("warmup", low=0),
    "first": _counted("first", low=0),
    "seed": _counted("seed", low=0, high=SEEDS),
    "lr": Range(TINY, HUGE, "the learning rate is {}: give --lr a number above 0, such as 1e-3"),
    "clip_norm": Range(TINY, HUGE, "--clip-norm is {}: give a number above 0; a large one, such as 1e9, clips nothing"),
    "held_out": Range(TINY, 1 - 2**-53, "the held-out share is {}: give a number between 0 and 1, such as 0.1"),
    "temperature": Range(0, HUGE, "temperature must be 0 or more, and finite, not {}"),
    "top_p": Range(TINY, 1, "top_p must be above 0 and at most 1, not {}"),
    "dropout": Range(0, 1 - 2**-53, "dropout must be at least 0 and below 1, not {}"),
    "alpha": Range(-HUGE, HUGE, "alpha must be a finite number, not {}"),
    "seconds": Range(TINY, HUGE, "--seconds is {}: give a number above 0"),
    "seconds_per_step": Range(
        TINY, HUGE, "{} seconds a step is no rate: give --seconds-per-step a number above 0, as you measured it"
    ),
}
PATTERNS = ("rank_pattern", "alpha_pattern")  # JSON objects of such numbers, by the name of a weight


def check(given: Mapping[str, Any]) -> None:
    """Raise InputError for a number of `given`, by the name of its option, that is not in its range.

    What is None is not looked at. A range that ends at the size of a model (a rank's) is its method's to check.
    """
    for name, value in given.items():
        if name in PATTERNS and value is not None:
            _check_pattern(name, value)
        elif value is not None:
            _check(name, value)
    warmup, steps = given.get("warmup"), given.get("steps")
    if warmup is not None and steps is not None and warmup > steps:
        raise InputError(
            f"--warmup {warmup} is more than the --steps {steps} of the run, and the learning rate would never be "
            "reached: give a shorter warm-up"
        )


def _check(name: str, value: Any) -> None:
    if name in RANGES and not RANGES[name].low <= value <= RANGES[name].high:
        raise InputError(RANGES[name].said.format(value))


def _check_pattern(name: str, value: Any) -> None:
    flag = f"--{name.replace('_', '-')}"
    if not isinstance(value, dict):
        raise InputError(f"{flag} is {value!r}: give a JSON object of numbers by name, " + '{"q_proj": 4}')
    for key, one in value.items():
        if isinstance(one, bool) or not isinstance(one, int | float):
            raise InputError(f"{flag} gives {key!r} {one!r}, which is no number: give one, as in " + '{"q_proj": 4}')
        if not math.isfinite(one):
            raise InputError(f"{flag} gives {key!r} {one}, which is not a finite number")
