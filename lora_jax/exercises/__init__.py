"""Exercises that check themselves: in a notebook by `check`, for a whole class by the grader (`grading/`)."""

from lora_jax.exercises.outcomes import check, hint, solution

__all__ = ["check", "hint", "solution"]
