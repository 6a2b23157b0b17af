"""`check`, `hint` and `solution`; and under them the two halves of a check, which the grader runs in two processes.

`ask` calls the learner's function and hands back a reply of plain data. `verdict` judges replies, and runs no code of
the learner's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from lora_jax.exercises.plain import NotPlain, dumps, to_plain
from lora_jax.exercises.registry import Exercise, find

CORRECT, NOT_YET, NOT_ATTEMPTED = "correct", "not yet", "not attempted"
NOT_JUDGED = "could not be judged"  # the machine is at fault, and not the answer

# {"answer": plain data}, {"error": a sentence}, or {"stub": True} where nothing has been written yet.
Reply = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a check: one of the three words, and a reason where there is one."""

    status: str
    reason: str = ""


def check(id: str, answer: Any) -> None:
    """Print whether the `answer` to an exercise is right, and if not, why. Never raises for a wrong answer."""
    exercise = find(id)
    found = outcome(exercise, answer)
    said = {
        CORRECT: f"{exercise.title}.",
        NOT_YET: found.reason,
        NOT_ATTEMPTED: f'fill in `{exercise.name}` above and run both cells; hint("{id}") helps.',
    }
    print(f"{id} {found.status}: {said[found.status]}")


def hint(id: str, number: int = 1) -> None:
    """Print the first hint of an exercise, or the one of that number."""
    hints = find(id).hints
    number = min(max(number, 1), len(hints))
    more = f'\nThe next: hint("{id}", {number + 1})' if number < len(hints) else f'\nThe answer: solution("{id}")'
    print(f"Hint {number} of {len(hints)}: {hints[number - 1]}{more}")


def solution(id: str) -> None:
    """Print one right answer to an exercise."""
    print(find(id).solution.strip())


def outcome(exercise: Exercise, answer: Any, seed: int = 0) -> Outcome:
    """What `check` says of an answer: a function, or the value of a prediction."""
    cases = exercise.draw(seed)
    if exercise.is_function and answer is not None and not callable(answer):
        return Outcome(NOT_YET, f"give the function itself: {exercise.name}, without parentheses behind it.")
    function = answer if exercise.is_function and answer is not None else lambda: answer
    if answer is None:
        return Outcome(NOT_ATTEMPTED)
    return verdict(exercise, cases, [ask(function, arguments) for arguments in cases])


def ask(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Reply:
    """The reply of a learner's function to copies of these arguments, which it may not change.

    Products are float32's on every device: left to themselves, GPUs and TPUs round what they multiply to fewer bits.
    """
    given = copy.deepcopy(arguments)
    try:
        with jax.default_matmul_precision("highest"):
            answer = to_plain(function(*given))
        changed = [i for i, pair in enumerate(zip(given, arguments, strict=True), 1) if not _same(*pair)]
        if changed:
            return {"error": f"it changes its argument number {changed[0]} in place, which the caller still needs: "
                             "make a new array or list instead."}  # fmt: skip
        return {"answer": answer}
    except NotImplementedError:
        return {"stub": True}
    except NotPlain as error:
        return {"error": f"your answer {error}."}
    except (Exception, SystemExit) as error:  # whatever is wrong with it, a notebook goes on
        return {"error": explain(error)}


def _same(one: Any, other: Any) -> bool:
    try:
        return dumps(to_plain(one)) == dumps(to_plain(other))
    except NotPlain:  # arguments are plain data until something else is put into one
        return False


def verdict(exercise: Exercise, cases: list[tuple[Any, ...]], replies: list[Reply]) -> Outcome:
    """The outcome of the replies to these cases. The first that is not right decides."""
    for i, (arguments, reply) in enumerate(zip(cases, replies, strict=True)):
        if "stub" in reply:
            return Outcome(NOT_ATTEMPTED, str(reply.get("wrong", "")))
        if "error" in reply:
            return Outcome(NOT_YET, str(reply["error"]))
        if reply["answer"] is None:
            nothing = f"{exercise.name} returned None: does it end in `return`?"
            return Outcome(NOT_YET, nothing) if exercise.is_function else Outcome(NOT_ATTEMPTED)
        try:
            reason = exercise.judge(copy.deepcopy(arguments), reply["answer"])
        except Exception:  # an answer of a kind that the judge did not think of
            reason = f"the answer is of an unexpected form, {describe(reply['answer'])}: compare it with what is asked."
        if reason is not None and i and arguments is cases[0]:
            reason = "asked the same as at first it gives another answer: does it keep something between its calls?"
        if reason is not None:
            return Outcome(NOT_YET, reason)
    reason = exercise.together(copy.deepcopy(cases), [reply["answer"] for reply in replies])
    return Outcome(CORRECT) if reason is None else Outcome(NOT_YET, reason)


def describe(answer: Any) -> str:
    """Plain data in a few words: its type, and its shape or length."""
    if hasattr(answer, "shape"):
        return f"an array of shape {answer.shape}"
    size = f" of {len(answer)}" if isinstance(answer, list | tuple | dict | str) else ""
    return f"a {type(answer).__name__}{size}"


def explain(error: BaseException) -> str:
    """What the learner's code raised, as one sentence."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception of the learner's own, which cannot even be printed
        text = "(no message)"
    advice = "; the arguments are NumPy arrays: jnp.asarray makes them JAX's" if "no attribute 'at'" in text else ""
    return f"it raised {type(error).__name__}: {text[:200]}{advice}."
