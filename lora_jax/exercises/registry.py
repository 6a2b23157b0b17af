"""What an exercise is, and all of them by id and by name.

A topic is one file beside this one with the exercises of one notebook, in a tuple `EXERCISES`. A topic is imported when
one of its exercises is asked for, so that a notebook loads its own and no other.
"""

from __future__ import annotations

import ast
import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_jax.errors import InputError

TOPICS = {1: "pretraining", 2: "cost", 3: "low_rank", 4: "memory", 5: "poems"}  # the number of a notebook: its file


@dataclass(frozen=True)
class Exercise:
    """A function to write or a number to predict, and how an answer is judged."""

    id: str  # "3.2": the second of notebook 03
    name: str  # of the function, or of the prediction's variable, in the notebook
    title: str
    minutes: int
    difficulty: int  # 1 to 3
    # Fresh arguments, each a tuple of plain data (NumPy arrays, numbers, strings, dicts and lists of these).
    # A prediction has the one case `()`.
    cases: Callable[[np.random.Generator], list[tuple[Any, ...]]]
    # judge(arguments, answer): None for a right answer, else one sentence that says what is wrong and what to do.
    # The answer is plain data (see `plain.py`); the learner's code is never called here.
    judge: Callable[[tuple[Any, ...], Any], str | None]
    hints: tuple[str, ...]
    solution: str  # source, as a learner would write it
    # together(cases, answers): what no single case shows, such as a seed that is ignored. Asked where each is right.
    together: Callable[[list[tuple[Any, ...]], list[Any]], str | None] = lambda cases, answers: None

    @property
    def is_function(self) -> bool:
        """Whether the answer is a function; else it is a prediction, a value."""
        return any(
            isinstance(node, ast.FunctionDef) and node.name == self.name for node in ast.parse(self.solution).body
        )

    def draw(self, seed: int) -> list[tuple[Any, ...]]:
        """The cases of a seed: the same for the same seed, and other ones for each exercise.

        A function is asked the first once more at the end: an answer that keeps something between its calls is wrong.
        """
        cases = self.cases(np.random.default_rng([seed, zlib.crc32(self.id.encode())]))
        return cases + cases[:1] if self.is_function else cases


def topic(number: int) -> tuple[Exercise, ...]:
    """The exercises of the notebook of that number, in order. Raises InputError where it has none."""
    if number not in TOPICS:
        raise InputError(f"notebook {number:02d} has no exercises: those that have are {_numbers()}")
    return importlib.import_module(f"lora_jax.exercises.{TOPICS[number]}").EXERCISES


def every() -> tuple[Exercise, ...]:
    """The exercises of all notebooks, in order."""
    return tuple(exercise for number in TOPICS for exercise in topic(number))


def find(id: str) -> Exercise:
    """The exercise of an id such as "3.2". Raises InputError where there is none."""
    number, dot, _ = str(id).partition(".")
    if not (dot and number.isdecimal() and int(number) in TOPICS):
        raise InputError(f'there is no exercise {id!r}: an id is a notebook\'s number ({_numbers()}), a dot, and '
                         'the exercise\'s own number, in quotes: check("3.2", answer)')  # fmt: skip
    found = {exercise.id: exercise for exercise in topic(int(number))}
    if id not in found:
        raise InputError(f"there is no exercise {id!r}: notebook {int(number):02d} has {', '.join(found)}")
    return found[id]


def _numbers() -> str:
    return ", ".join(map(str, TOPICS))
