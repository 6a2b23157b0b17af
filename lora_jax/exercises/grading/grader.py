"""Marks for a class: every submission in a folder, each exercise judged by cases other than the notebook's own.

A submission runs in processes of its own (`isolation.py`, `runner.py`) and hands back plain data, which is judged here.
Nothing that it does to its process, the checker there included, reaches the judge.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.exercises import registry
from lora_jax.exercises.grading import isolation, table
from lora_jax.exercises.grading.conversation import MachineAtFault, can_run
from lora_jax.exercises.grading.entries import Submission, find
from lora_jax.exercises.grading.submissions import Question, mark
from lora_jax.exercises.outcomes import NOT_JUDGED, Outcome

WITH = "each runs in a root of its own, without a network, and can write to a folder in memory alone"
WITHOUT = "this machine cannot shut them in: they reach the network and all that you can (see docs/teaching.md)"
NO_FILTER = "; libseccomp is not here, so that no system call is refused"


def grade(
    *,
    say: Callable[[str], None],
    folder: Path,
    csv: Path | None = None,
    notebooks: Sequence[int] | None = None,
    seconds: float = 20.0,
    seed: int = 1,
    as_root: bool = False,
) -> dict[str, Any]:
    """Mark every submission in `folder`: 1 for a right answer, 0 for a wrong one, none for one not attempted.

    An exercise is found by the name of its function or variable. Every entry of `folder` has a row, and one that cannot
    be marked a remark that says what would be right; whatever happens to one costs its own row alone. None too is the
    mark where the machine is at fault, with a remark. `seconds` are of processor time, for each exercise.
    Returns {"isolated", "seconds", "submissions": [{"name", "marks": {id: 0, 1 or None}, "total", "remarks": [...]}]};
    writes the same to `csv` as it goes. Raises InputError; also for root where nothing shuts a submission in, since it
    could delete what it finds, unless `as_root`.
    """
    began = time.monotonic()
    if not 0 < seconds < float("inf"):
        raise InputError(f"--seconds must be above 0, not {seconds:g}")
    if not hasattr(os, "geteuid"):
        raise InputError("submissions are run on Linux and macOS alone: on Windows use WSL")
    if importlib.util.find_spec("IPython") is None:
        raise InputError("notebooks are read with IPython, which is not here: pip install ipython")
    exercises = [one for n in notebooks for one in registry.topic(n)] if notebooks else registry.every()
    questions = [Question(exercise, exercise.draw(seed)) for exercise in exercises]
    submissions = find(folder)
    namespaces = isolation.has_namespaces()
    if not namespaces and not as_root and os.geteuid() == 0:
        raise InputError(
            "this machine cannot shut a submission in, and as root it could delete every file: run the grader as "
            "another user, or give --as-root on a machine that you can lose"
        )
    how = WITHOUT if not namespaces else WITH if isolation.has_filter() else WITH + NO_FILTER
    say(f"{len(submissions)} submissions, {len(questions)} exercises; {how}")
    rows = table.Table(csv, [q.exercise.id for q in questions], say)
    with contextlib.closing(_rows(submissions, questions, seconds, namespaces)) as found:
        for number, row in found:
            rows.add(number, row)
            said = (
                f"{row['total']} of {len(questions)}" if submissions[number].files else f"not read: {row['remarks'][0]}"
            )
            say(f"{row['name']}: {said}")
    say(rows.summary())
    rows.close()
    return {"isolated": namespaces, "seconds": round(time.monotonic() - began, 1), "submissions": rows.rows}


def _rows(
    submissions: Sequence[Submission], questions: Sequence[Question], seconds: float, namespaces: bool
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """`(number, row)` of each submission as it is marked. Where this stops early, what still runs is ended at once."""
    stop = threading.Event()
    ids = [q.exercise.id for q in questions]

    def one(submission: Submission) -> dict[str, Any]:
        try:
            found, remarks = mark(submission, questions, seconds, namespaces, stop)
        except Exception as error:  # whatever it is, it is this submission's, and no other's
            why = f"{type(error).__name__}: {error}"
            found, remarks = [Outcome(NOT_JUDGED, why)] * len(questions), []
        return table.row(submission.title, dict(zip(ids, found, strict=True)), remarks)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            _check_the_machine(namespaces, stop)
            waiting: dict[Future[dict[str, Any]], int] = {
                pool.submit(one, submission): number for number, submission in enumerate(submissions)
            }
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _check_the_machine(namespaces: bool, stop: threading.Event) -> None:
    """Raise InputError where not even an empty submission could be run: no mark would then say anything."""
    try:
        can_run(namespaces, stop)
    except (MachineAtFault, OSError) as error:
        raise InputError(
            f"no submission can be run here ({error}): is there a limit on memory or files (`ulimit -a`) that JAX, "
            "which takes 2 GB of addresses, does not fit?"
        ) from error
