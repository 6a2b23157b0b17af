"""Solutions changed in one place: each change is refused whatever the seed, or is listed as one that changes nothing.

The default run changes the solutions; the slow one the right answers in other styles too. What both find is the table
in docs/exercise_checks.md.
"""

import warnings

import numpy as np
import pytest
from exercises import styles, styles_adapters  # noqa: F401  (the second fills the table of the first)
from exercises.equivalents import EQUIVALENT
from exercises.equivalents_adapters import EQUIVALENT_ADAPTERS
from exercises.equivalents_styles import EQUIVALENT_STYLES
from exercises.mutants import cast, changed, mutants

from lora_jax.exercises import registry
from lora_jax.exercises.outcomes import CORRECT, ask, verdict

SEEDS = range(5)  # the notebooks' own check takes 0, the grader 1 unless it is told another
EVERY = [exercise.id for exercise in registry.every()]
STYLED = [(id, i) for id in styles.STYLES for i in range(1, len(styles.sources(id)))]
LISTED = {
    key: {what for whats in found.values() for what in whats}
    for key, found in (EQUIVALENT | EQUIVALENT_STYLES | EQUIVALENT_ADAPTERS).items()
}


def accepted(exercise, answer, cases):
    """As `check` decides, but it stops at the first case that is not right."""
    replies = []
    for case in cases:
        replies.append(ask(answer if exercise.is_function else lambda: answer, case))
        if verdict(exercise, [case], replies[-1:]).status != CORRECT:
            return False
    return verdict(exercise, cases, replies).status == CORRECT


def key(id, style):
    """By which `EQUIVALENT` lists a solution (style 0) or another right answer."""
    return f"{id} {styles.STYLES[id][style - 1].__name__}" if style else id


def survivors(id, style):
    """How many mutants there are of a solution, or of another right answer; and those that some seed accepts."""
    exercise = registry.find(id)
    draws = [exercise.draw(seed) for seed in SEEDS]
    source = styles.sources(id)[style]
    right = styles.made(source, exercise.name)
    results = [ask(right, case)["answer"] for case in draws[0]] if exercise.is_function else [right]
    count, found = 0, set()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # what a mutant overflows or divides by
        for what, text in mutants(source, draws[0], results):
            count += 1
            try:
                answer = styles.made(text, exercise.name, cast=cast, changed=changed)
            except Exception:  # a prediction that cannot be computed: its notebook cell fails
                continue
            if any(accepted(exercise, answer, cases) for cases in draws):
                found.add(what)
    return count, found


@pytest.mark.parametrize("id", EVERY)
def test_a_solution_changed_in_one_place_is_refused(id):
    count, found = survivors(id, 0)
    assert count >= 6
    assert found == LISTED.get(key(id, 0), set())


@pytest.mark.slow
@pytest.mark.parametrize(("id", "style"), STYLED, ids=[key(*one) for one in STYLED])
def test_another_right_answer_changed_in_one_place_is_refused(id, style):
    count, found = survivors(id, style)
    assert count >= 6
    assert found == LISTED.get(key(id, style), set())
