"""One submission put through the runner, in a process that may do what it likes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_jax.exercises.grading.conversation import Conversation, MachineAtFault, Stopped
from lora_jax.exercises.grading.entries import Submission, read_files
from lora_jax.exercises.outcomes import NOT_ATTEMPTED, NOT_JUDGED, NOT_YET, Outcome, Reply, verdict
from lora_jax.exercises.registry import Exercise

RESTARTS = 6  # a submission whose code has ended the process, or never ended, so often is not asked any more
TRIES = 2  # of a process that does not start


@dataclass(frozen=True)
class Question:
    """An exercise with the cases that it is marked by."""

    exercise: Exercise
    cases: list[tuple[Any, ...]]


def mark(
    submission: Submission, questions: Sequence[Question], seconds: float, namespaces: bool, stop: threading.Event
) -> tuple[list[Outcome], list[str]]:
    """The outcome of each question, whatever the submission does; and what is to be said of it besides."""
    try:
        files, unread = read_files(submission)
        if not files:
            return [Outcome(NOT_ATTEMPTED)] * len(questions), [*submission.remarks, *unread]
        found, twice = _outcomes(files, questions, seconds, namespaces, stop)
    except MemoryError:
        return _not_judged(questions, "there was not enough memory"), list(submission.remarks)
    except OSError as error:
        return _not_judged(questions, error.strerror or str(error)), list(submission.remarks)
    return found, [*submission.remarks, *unread, *twice]


def _not_judged(questions: Sequence[Question], why: str) -> list[Outcome]:
    return [Outcome(NOT_JUDGED, f"{why}: mark it again.")] * len(questions)


def _outcomes(
    files: list[tuple[str, bytes]],
    questions: Sequence[Question],
    seconds: float,
    namespaces: bool,
    stop: threading.Event,
) -> tuple[list[Outcome], list[str]]:
    """The outcomes. A process that ends, or takes too long over a question, is started anew behind it."""
    found: list[Outcome] = []
    twice: dict[tuple[int, ...], list[str]] = {}  # the files that answer an exercise: its id
    stops = failures = 0
    while len(found) < len(questions):
        if stops >= RESTARTS:
            found.append(Outcome(NOT_YET, "not asked: the code had stopped or hung on too many others."))
            continue
        left = questions[len(found) :]
        asked = [{"name": q.exercise.name, "is_function": q.exercise.is_function, "cases": q.cases} for q in left]
        with Conversation(files, asked, namespaces, stop) as process:
            try:
                process.start()
                process.files_are_read(seconds)
            except MachineAtFault as error:
                failures += 1
                if failures >= TRIES:
                    found += _not_judged(left, f"no process could be started ({error})")
                continue
            except Stopped as error:
                found += [Outcome(NOT_YET, f"reading the files stopped the process: {error}")] * len(left)
                break
            for question in left:
                try:
                    replies = process.reply(seconds)
                except Stopped as error:
                    found.append(Outcome(NOT_YET, str(error)))
                    stops += 1
                    break
                except MachineAtFault as error:
                    found.append(Outcome(NOT_JUDGED, f"{error}: mark it again."))
                    stops += 1
                    break
                if not _fits(replies, len(question.cases)):
                    found.append(Outcome(NOT_YET, "its answer could not be read."))
                    stops += 1
                    break
                numbers = replies[0].get("files", [])
                # A list of whole numbers that the runner wrote, or whatever a submission put there in its place.
                if isinstance(numbers, list) and len(numbers) > 1 and all(n in range(len(files)) for n in numbers):
                    twice.setdefault(tuple(map(int, numbers)), []).append(question.exercise.id)
                found.append(_judge(question, replies))
    return found, [_said_twice(ids, [files[number][0] for number in numbers]) for numbers, ids in twice.items()]


def _said_twice(ids: list[str], names: list[str]) -> str:
    first, *others = names
    return (
        f"{', '.join(ids)} answered in {len(names)} files: the first by name counts, {first}, not {', '.join(others)}"
    )


def _fits(replies: Any, cases: int) -> bool:
    """Whether what came has the form of replies: the submission may have made it itself."""
    fields, said = {"answer", "error", "stub", "wrong", "files"}, {"answer", "error", "stub"}
    fits = isinstance(replies, list) and all(
        isinstance(r, dict) and set(r) <= fields and set(r) & said for r in replies
    )
    alone = fits and len(replies) == 1 and "answer" not in replies[0]  # one that stands for all cases
    return fits and (len(replies) == cases or alone)


def _judge(question: Question, replies: list[Reply]) -> Outcome:
    if len(replies) == 1 and "answer" not in replies[0]:
        replies = replies * len(question.cases)
    return verdict(question.exercise, question.cases, replies)
