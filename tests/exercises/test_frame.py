"""The frame of the exercises: the registry, the three outcomes, plain data, and the laws that every exercise keeps."""

import ast
import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import stub, written

from lora_jax.adapters.lora import LoRA
from lora_jax.errors import InputError
from lora_jax.exercises import check, hint, plain, registry, solution
from lora_jax.exercises.outcomes import CORRECT, NOT_ATTEMPTED, NOT_YET, outcome
from lora_jax.exercises.plain import NotPlain, dumps, loads, to_plain

DOUBLE = registry.Exercise(
    id="3.9",
    name="double",
    title="Twice",
    minutes=5,
    difficulty=1,
    cases=lambda rng: [(rng.standard_normal(3),), (rng.standard_normal((2, 5)),)],
    judge=lambda arguments, answer: None if np.array_equal(answer, 2 * arguments[0]) else "twice, not more.",
    hints=("Add.", "x + x."),
    solution="def double(x):\n    return 2 * x\n",
)
GUESS = dataclasses.replace(
    DOUBLE,
    name="guess",
    cases=lambda rng: [()],
    judge=lambda arguments, answer: None if answer == 4 else "two and two.",
    solution="guess = 4\n",
)
EVERY = registry.every()


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


def unprintable(x):
    raise Unprintable


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (lambda x: x + x, CORRECT, ""),
        (lambda x: jnp.asarray(x) * 0, NOT_YET, "twice, not more."),
        (stub, NOT_ATTEMPTED, ""),
        (None, NOT_ATTEMPTED, ""),
        (lambda x: None, NOT_YET, "double returned None: does it end in `return`?"),
        (lambda: 1, NOT_YET, "it raised TypeError: "),
        (lambda x: sys.exit(), NOT_YET, "it raised SystemExit: ."),
        (unprintable, NOT_YET, "it raised Unprintable: (no message)."),
        (lambda x: x.at[0].set(1), NOT_YET, "the arguments are NumPy arrays: jnp.asarray makes them JAX's."),
        (lambda x: stub, NOT_YET, "your answer holds a function: return arrays or numbers."),
        (4, NOT_YET, "give the function itself: double, without parentheses behind it."),
    ],
)
def test_the_three_outcomes_of_a_function(answer, status, reason):
    found = outcome(DOUBLE, answer)
    assert found.status == status
    assert reason in found.reason


@pytest.mark.parametrize(
    ("answer", "status"), [(4, CORRECT), (jnp.int32(4), CORRECT), (5, NOT_YET), (None, NOT_ATTEMPTED)]
)
def test_the_three_outcomes_of_a_prediction(answer, status):
    assert not GUESS.is_function
    assert outcome(GUESS, answer).status == status


def test_an_answer_that_the_judge_did_not_think_of_is_not_yet_right():
    def judge(arguments, answer):
        return answer["a"]

    found = outcome(dataclasses.replace(DOUBLE, judge=judge), lambda x: x)
    assert found.reason == "the answer is of an unexpected form, an array of shape (3,): compare it with what is asked."


def test_an_answer_cannot_change_what_it_is_judged_by():
    def cheat(x):
        x[:] = 0
        return x

    assert outcome(DOUBLE, cheat).status == NOT_YET


def test_an_answer_that_changes_its_arguments_is_refused():
    def in_place(x):
        x *= 2
        return x

    found = outcome(DOUBLE, in_place)
    assert found.reason.startswith("it changes its argument number 1 in place")


def test_an_answer_that_keeps_something_between_its_calls_is_refused():
    calls = []

    def remembers(x):
        calls.append(x)
        return 2 * x if len(calls) < 3 else 2 * x + 1

    found = outcome(DOUBLE, remembers)
    assert (
        found.reason == "asked the same as at first it gives another answer: does it keep something between its calls?"
    )


def test_what_no_single_case_shows_is_judged_together():
    alike = dataclasses.replace(DOUBLE, together=lambda cases, answers: f"{len(answers)} answers.")
    assert outcome(alike, lambda x: 2 * x).reason == "3 answers."


def test_another_seed_draws_other_cases():
    one, same, other = (np.concatenate([c[0].ravel() for c in DOUBLE.draw(seed)]) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.any(one == other)


def test_what_is_printed(capsys):
    check("3.2", lambda x, w, a, b, alpha: x @ w + alpha * x @ a @ b)
    check("3.2", stub)
    check("3.2", lambda x, w, a, b, alpha: x @ w + alpha / b.shape[0] * x @ a @ b)
    hint("3.2")
    hint("3.2", 2)
    solution("3.2")
    assert capsys.readouterr().out.splitlines() == [
        "3.2 not yet: your update is r times too large (here 3): divide alpha by the rank.",
        '3.2 not attempted: fill in `lora_product` above and run both cells; hint("3.2") helps.',
        "3.2 correct: x @ w with LoRA on it.",
        "Hint 1 of 2: Two paths are added: through w, and through a, then b.",
        'The next: hint("3.2", 2)',
        "Hint 2 of 2: The rank is a.shape[1]. Scale the second path by alpha / rank.",
        'The answer: solution("3.2")',
        *registry.find("3.2").solution.strip().splitlines(),
    ]


def test_what_is_not_there_is_said():
    with pytest.raises(InputError, match=r"there is no exercise '3.77': notebook 03 has 3\.1, 3\.2"):
        check("3.77", stub)
    with pytest.raises(InputError, match="there is no exercise '3': an id is a notebook's number"):
        hint("3")
    with pytest.raises(InputError, match="notebook 99 has no exercises"):
        registry.topic(99)


def test_a_notebook_loads_its_own_exercises_and_no_others():
    program = (
        "import sys; from lora_jax.exercises import hint; hint('3.1'); "
        "print([name for name in sys.modules if name.startswith('lora_jax.exercises.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.rpartition(".")[2] for name in ast.literal_eval(done.stdout.splitlines()[-1])}
    assert loaded & set(registry.TOPICS.values()) == {"low_rank"}


def test_plain_data_go_from_process_to_process_unchanged():
    value = {
        "a": (1, 2.5, None, True, "text"),
        7: [float("inf"), np.arange(6, dtype=np.int16).reshape(2, 3)],
        "b": jnp.ones((2, 0), jnp.bfloat16),
        "c": LoRA(a=jnp.eye(2), b=np.float32(3), scaling=None),
    }
    there = to_plain(value)
    back = loads(dumps(there))
    assert str(back) == str(there)
    assert back["b"].dtype == jnp.bfloat16
    assert back["b"].shape == (2, 0)
    assert back["c"] | {"a": 0} == {"a": 0, "b": 3.0, "scaling": None, "dropout": None, "key": None}


NOT_PLAIN = (
    print, object(), {1.5: 2}, {1, 2}, np.array([None]), np.zeros(10**7), [[]] * 10**5, 10**400, jax.random.key(0),
    np.float32, 1j,
)  # fmt: skip


@pytest.mark.parametrize("value", NOT_PLAIN, ids=range(len(NOT_PLAIN)))
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(NotPlain):
        to_plain(value)


FORGED = (
    "{", "{}", '{"x": 1}', '{"array": 1}', '{"array": ["object", [1], ""]}', '{"array": ["int8", [9], "AA=="]}',
    '{"float": "1e999"}', '{"dict": [[[], 1]]}', "[" * 10**5,
)  # fmt: skip


@pytest.mark.parametrize("text", FORGED, ids=range(len(FORGED)))
def test_text_that_nobody_here_wrote_is_refused(text):
    with pytest.raises(NotPlain):
        loads(text)


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.id)
def test_every_exercise_keeps_the_laws(exercise):
    assert 1 <= exercise.difficulty <= 3
    assert 5 <= exercise.minutes <= 15
    assert exercise.hints
    assert exercise.name in exercise.solution
    cases = exercise.draw(0)
    assert cases
    for arguments in cases:
        plain.dumps(to_plain(arguments))  # the grader sends them to another process
        if exercise.is_function:
            # No judge takes just anything, and none fails on what it did not think of.
            for answer in (None, "many", "", {}, [], [1, 2], True, float("nan"), -1.5, np.zeros((1, 2, 3))):
                assert outcome(exercise, lambda *_, answer=answer: answer).status == NOT_YET, answer
    assert exercise.is_function or cases == [()]
    assert outcome(exercise, stub if exercise.is_function else None).status == NOT_ATTEMPTED


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.id)
@pytest.mark.parametrize("seed", range(12))
def test_the_solution_is_correct_whatever_the_seed(exercise, seed):
    assert outcome(exercise, written(exercise.id), seed).status == CORRECT


def test_ids_and_names_are_told_apart():
    assert len({exercise.id for exercise in EVERY}) == len({exercise.name for exercise in EVERY}) == len(EVERY)
    for number in registry.TOPICS:
        assert [exercise.id for exercise in registry.topic(number)] == [
            f"{number}.{i}" for i in range(1, len(registry.topic(number)) + 1)
        ]
        assert 3 <= len(registry.topic(number)) <= 5
