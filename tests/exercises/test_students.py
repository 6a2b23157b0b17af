"""Right answers in unlike styles are all accepted, and students' wrong answers are all refused, whatever the seed."""

import pytest
from exercises import page, students_adapters, students_poems, styles_adapters  # noqa: F401  (they fill the tables)
from exercises.kinds import KINDS
from exercises.students import STUDENTS
from exercises.styles import STYLES

from lora_jax.exercises import registry
from lora_jax.exercises.outcomes import CORRECT, NOT_YET, outcome

EVERY = registry.every()
WRONG = [(id, how) for id, answers in STUDENTS.items() for how in answers]
RIGHT = [(id, style.__name__) for id, styles in STYLES.items() for style in styles]


@pytest.mark.parametrize(("id", "how"), WRONG, ids=[" ".join(pair) for pair in WRONG])
def test_a_wrong_answer_is_refused_whatever_the_seed(id, how):
    for seed in range(5):
        found = outcome(registry.find(id), STUDENTS[id][how], seed)
        assert found.status == NOT_YET, seed
        assert found.reason.endswith((".", "?"))


@pytest.mark.parametrize(("id", "name"), RIGHT, ids=[" ".join(pair) for pair in RIGHT])
def test_a_right_answer_is_accepted_in_every_style(id, name):
    (style,) = (one for one in STYLES[id] if one.__name__ == name)
    for seed in range(8):
        assert outcome(registry.find(id), style, seed).status == CORRECT, seed


def test_every_exercise_has_its_answers():
    assert set(STUDENTS) == {exercise.id for exercise in EVERY}
    assert all(len(answers) >= 6 for answers in STUDENTS.values())
    assert set(STYLES) == {exercise.id for exercise in EVERY if exercise.is_function}
    assert all(len(styles) >= 3 for styles in STYLES.values())


@pytest.mark.parametrize(("id", "kind"), [(id, kind) for id, kinds in KINDS.items() for kind in kinds])
def test_an_exercise_holds_the_kinds_of_cases_that_are_listed(id, kind):
    for seed in range(10):
        assert KINDS[id][kind](registry.find(id).draw(seed)), seed


def test_the_page_is_made_of_these_tables():
    assert set(KINDS) == {exercise.id for exercise in EVERY}
    assert page.PAGE.read_text() == page.text()
