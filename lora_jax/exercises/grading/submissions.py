"""One submission put through the runner, in a process that may do what it likes."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_jax.exercises import plain
from lora_jax.exercises.grading import isolation
from lora_jax.exercises.grading.entries import Submission
from lora_jax.exercises.outcomes import NOT_ATTEMPTED, Outcome, Reply, verdict
from lora_jax.exercises.registry import Exercise

MAX_FILE = 30_000_000  # bytes of one notebook or file handed in
START = 60.0  # seconds until a process must have imported JAX
POLL = 0.02  # seconds between two looks
RESTARTS = 6  # a submission whose code has ended the process, or never ended, so often is not asked any more


@dataclass(frozen=True)
class Question:
    """An exercise with the cases that it is marked by."""

    exercise: Exercise
    cases: list[tuple[Any, ...]]


def mark(
    submission: Submission, questions: Sequence[Question], seconds: float, namespaces: bool
) -> tuple[list[Outcome], list[str]]:
    """The outcome of each question, whatever the submission does; and what is to be said of it besides."""
    if not submission.files:
        return [Outcome(NOT_ATTEMPTED)] * len(questions), list(submission.remarks)
    replies = _replies(submission, questions, seconds, namespaces)
    found = [_judge(question, reply) for question, reply in zip(questions, replies, strict=True)]
    large = [file.name for file in submission.files if file.stat().st_size > MAX_FILE]
    unread = f"not read, since larger than {MAX_FILE / 1e6:.0f} MB: {', '.join(large)}"
    found = [Outcome(o.status, unread) if large and o.status == NOT_ATTEMPTED else o for o in found]
    return found, [*submission.remarks, *_twice(submission, questions, replies)]


def _twice(submission: Submission, questions: Sequence[Question], replies: list[list[Reply]]) -> list[str]:
    """A sentence for each set of files that answer the same exercises: which of them counts."""
    exercises: dict[tuple[str, ...], list[str]] = {}
    for question, (reply, *_) in zip(questions, replies, strict=True):
        numbers = reply.get("files", [])
        # A list of whole numbers that the runner wrote, or whatever a submission put there in its place.
        known = isinstance(numbers, list) and all(number in range(len(submission.files)) for number in numbers)
        if known and len(numbers) > 1:
            names = tuple(submission.files[number].name for number in numbers)
            exercises.setdefault(names, []).append(question.exercise.id)
    return [
        f"{', '.join(ids)} answered in {len(names)} files: the first by name counts, {first}, not {', '.join(others)}"
        for names, ids in exercises.items()
        for first, *others in [names]
    ]


def _replies(
    submission: Submission, questions: Sequence[Question], seconds: float, namespaces: bool
) -> list[list[Reply]]:
    """The replies to each question. A process that ends, or takes too long over one, is started anew behind it."""
    found: list[list[Reply]] = []
    stops = 0
    while len(found) < len(questions):
        if stops >= RESTARTS:
            found.append([{"error": "not asked: the code had stopped or hung on too many others."}])
            continue
        with tempfile.TemporaryDirectory(prefix="marking-", ignore_cleanup_errors=True) as name:
            replies, reason = _run(submission, questions[len(found) :], seconds, namespaces, Path(name))
        found += replies
        if reason and len(found) < len(questions):
            found.append([{"error": reason}])
            stops += 1
    return found


def _run(
    submission: Submission, questions: Sequence[Question], seconds: float, namespaces: bool, folder: Path
) -> tuple[list[list[Reply]], str]:
    """One process: the replies that it gave, in order, and why there are no more ("" where it gave all)."""
    asked = [
        {"id": q.exercise.id, "name": q.exercise.name, "is_function": q.exercise.is_function, "cases": q.cases}
        for q in questions
    ]
    (folder / "questions.json").write_text(plain.dumps(plain.to_plain(asked)))
    (folder / "submission").mkdir()
    for number, file in enumerate(submission.files):
        if file.stat().st_size <= MAX_FILE:
            shutil.copyfile(file, folder / "submission" / f"{number:06d}_{file.name[-60:]}")
    command = [sys.executable, "-P", "-m", "lora_jax.exercises.grading.runner", "questions.json"]
    process = isolation.start(command, folder, namespaces=namespaces)
    replies: list[list[Reply]] = []
    ready, deadline = False, time.monotonic() + START
    try:
        while len(replies) < len(questions):
            ended = process.poll() is not None  # before the look, so that a last answer is not missed
            if not ready and (folder / "ready").exists():
                ready, deadline = True, time.monotonic() + seconds
            question = questions[len(replies)]
            path = folder / f"{question.exercise.id}.json"
            if os.path.lexists(path):
                if (reply := _read(path, len(question.cases))) is None:
                    return replies, "its answer could not be read."  # not the runner's: who knows what state it is in
                replies.append(reply)
                with contextlib.suppress(OSError):
                    path.unlink()  # the runner waits for that
                deadline = time.monotonic() + seconds
            elif ended:
                return replies, "it ended the process that ran it." if ready else "it could not be started."
            elif time.monotonic() > deadline:
                return replies, f"it took more than {seconds:g} seconds: does a loop never end?"
            else:
                time.sleep(POLL)
        return replies, ""
    finally:
        isolation.end(process)


def _read(path: Path, cases: int) -> list[Reply] | None:
    """The replies in a file that the submission may have made itself; None for a link, a pipe, anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > 4 * plain.MAX_BYTES:
                return None
            found = plain.loads(file.read(4 * plain.MAX_BYTES))
    except (OSError, plain.NotPlain):
        return None
    fields, said = {"answer", "error", "stub", "wrong", "files"}, {"answer", "error", "stub"}
    fits = isinstance(found, list) and all(isinstance(r, dict) and set(r) <= fields and set(r) & said for r in found)
    alone = fits and len(found) == 1 and "answer" not in found[0]  # one that stands for all cases
    return found if fits and (len(found) == cases or alone) else None


def _judge(question: Question, replies: list[Reply]) -> Outcome:
    if len(replies) == 1 and "answer" not in replies[0]:
        replies = replies * len(question.cases)
    return verdict(question.exercise, question.cases, replies)
