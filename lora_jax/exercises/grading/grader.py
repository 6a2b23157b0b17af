"""Marks for a class: every submission in a folder, each exercise judged by cases other than the notebook's own.

A submission runs in processes of its own (`isolation.py`, `runner.py`) and hands back plain data, which is judged here.
Nothing that it does to its process, the checker there included, reaches the judge.
"""

from __future__ import annotations

import csv as tables
import importlib.util
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.exercises import registry
from lora_jax.exercises.grading import isolation
from lora_jax.exercises.grading.entries import find
from lora_jax.exercises.grading.submissions import Question, mark
from lora_jax.exercises.outcomes import CORRECT, NOT_ATTEMPTED, NOT_YET, Outcome
from lora_jax.files import atomic


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
    be marked a remark that says what would be right. Returns {"isolated", "seconds", "submissions":
    [{"name", "marks": {id: 0, 1 or None}, "total", "remarks": [...]}]}; writes the same to `csv`. Raises InputError;
    also for root where nothing shuts a submission in, since it could delete what it finds, unless `as_root`.
    """
    began = time.monotonic()
    if not seconds > 0:
        raise InputError(f"--seconds must be above 0, not {seconds:g}")
    if importlib.util.find_spec("IPython") is None:
        raise InputError("notebooks are read with IPython, which is not here: pip install ipython")
    exercises = [one for n in notebooks for one in registry.topic(n)] if notebooks else registry.every()
    questions = [Question(exercise, exercise.draw(seed)) for exercise in exercises]
    submissions = find(folder)
    namespaces = isolation.has_namespaces()
    if not namespaces and not as_root and getattr(os, "geteuid", lambda: 1)() == 0:
        raise InputError(
            "this machine cannot shut a submission in, and as root it could delete every file: run the grader as "
            "another user, or give --as-root on a machine that you can lose"
        )
    say(f"{len(submissions)} submissions, {len(questions)} exercises; {WITH if namespaces else WITHOUT}")
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(lambda one: mark(one, questions, seconds, namespaces), submissions)
        for submission, (found, remarks) in zip(submissions, outcomes, strict=True):
            row = _row(submission.name, dict(zip((q.exercise.id for q in questions), found, strict=True)))
            row["remarks"] += map(_one_line, remarks)
            rows.append(row)
            said = f"{row['total']} of {len(questions)}" if submission.files else f"not read: {row['remarks'][0]}"
            say(f"{row['name']}: {said}")
    if csv is not None:
        atomic.write_bytes(csv, _csv(rows).encode())
    return {"isolated": namespaces, "seconds": round(time.monotonic() - began, 1), "submissions": rows}


WITH = "each runs without a network, and can write to a folder of its own alone"
WITHOUT = "this machine cannot shut them off from the network and your files (see docs/teaching.md)"


def _row(name: str, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    marks = {id: None if o.status == NOT_ATTEMPTED else int(o.status == CORRECT) for id, o in outcomes.items()}
    wrong = [f"{id} {o.status}: {_one_line(o.reason)}" for id, o in outcomes.items() if o.status == NOT_YET]
    unread = dict.fromkeys(_one_line(o.reason) for o in outcomes.values() if o.status == NOT_ATTEMPTED and o.reason)
    remarks = [*unread, *wrong]  # what could not be read is the same for all that were not found
    name = name.encode("utf-8", "replace").decode()  # a name may hold bytes that are no letters
    return {"name": name, "marks": marks, "total": sum(mark or 0 for mark in marks.values()), "remarks": remarks}


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def _text(cell: str) -> str:
    """A cell that no spreadsheet runs as a formula: a name or a remark may be the submission's own words."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = tables.writer(file)
    writer.writerow(["submission", *rows[0]["marks"], "total", "remarks"])
    for row in rows:
        marks = ["" if mark is None else mark for mark in row["marks"].values()]
        writer.writerow([_text(row["name"]), *marks, row["total"], _text(" | ".join(row["remarks"]))])
    return file.getvalue()
