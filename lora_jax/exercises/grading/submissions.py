"""What was handed in, and one submission put through the runner, in a process that may do what it likes."""

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

from lora_jax.errors import InputError
from lora_jax.exercises import plain
from lora_jax.exercises.grading import isolation
from lora_jax.exercises.outcomes import NOT_ATTEMPTED, Outcome, Reply, verdict
from lora_jax.exercises.registry import Exercise

SUFFIXES = (".ipynb", ".py")
MAX_FILE = 30_000_000  # bytes of one notebook or file handed in
START = 60.0  # seconds until a process must have imported JAX
POLL = 0.02  # seconds between two looks
RESTARTS = 6  # a submission whose code has ended the process, or never ended, so often is not asked any more


@dataclass(frozen=True)
class Submission:
    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Question:
    """An exercise with the cases that it is marked by."""

    exercise: Exercise
    cases: list[tuple[Any, ...]]


def find(folder: Path) -> list[Submission]:
    """The submissions in `folder`: each folder in it with the notebooks and files inside, and each file beside them.

    Raises InputError where there is none.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give one with a folder or a file for each submission")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__")) or path.is_symlink():
            continue
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = tuple(file for file in inside if _is_answer(file, path))
        if files or path.is_dir():
            found.append(Submission(path.name, files))
    if not found:
        raise InputError(f"{folder} holds no submission: a folder or a file (.ipynb, .py) for each")
    return found


def _is_answer(file: Path, root: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in file.relative_to(root.parent).parts)
    return file.suffix in SUFFIXES and not hidden and not file.is_symlink() and file.is_file()


def mark(submission: Submission, questions: Sequence[Question], seconds: float, namespaces: bool) -> list[Outcome]:
    """The outcome of each question, whatever the submission does."""
    replies = _replies(submission, questions, seconds, namespaces)
    found = [_judge(question, reply) for question, reply in zip(questions, replies, strict=True)]
    large = [file.name for file in submission.files if file.stat().st_size > MAX_FILE]
    unread = f"not read, since larger than {MAX_FILE / 1e6:.0f} MB: {', '.join(large)}"
    return [Outcome(o.status, unread) if large and o.status == NOT_ATTEMPTED else o for o in found]


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
            shutil.copyfile(file, folder / "submission" / f"{number:03d}_{file.name}")
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
    fields = {"answer", "error", "stub", "wrong"}
    fits = isinstance(found, list) and all(isinstance(r, dict) and r and set(r) <= fields for r in found)
    alone = fits and len(found) == 1 and "answer" not in found[0]  # one that stands for all cases
    return found if fits and (len(found) == cases or alone) else None


def _judge(question: Question, replies: list[Reply]) -> Outcome:
    if len(replies) == 1 and "answer" not in replies[0]:
        replies = replies * len(question.cases)
    return verdict(question.exercise, question.cases, replies)
