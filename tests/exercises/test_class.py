"""A class of sixty, half of it broken in ways in which real classes break things: sixty rows, and the right marks."""

import ast
import csv
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from exercises.sixty import BROKEN, HEALTHY, IDS, MENTIONED, a_class

from lora_jax.exercises.grading.entries import find, read_files
from lora_jax.exercises.grading.extract import answer_of, statements
from lora_jax.exercises.grading.grader import grade
from lora_jax.exercises.grading.table import Table, row
from lora_jax.exercises.low_rank import EXERCISES
from lora_jax.exercises.outcomes import NOT_ATTEMPTED, Outcome, ask, verdict

# Elsewhere a name must be Unicode, and there are other pipes.
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names in any bytes are Linux'")


@pytest.fixture
def sixty(monkeypatch):
    """The folder, in which `u4` cannot be read, not even by root.

    It is not pytest's own, which pytest deletes by recursion: what a killed test leaves here is too deep for that.
    """
    folder = Path(tempfile.mkdtemp(prefix="class-"))
    opened = os.open

    def refuse(path, *arguments, **options):
        if os.fspath(path) == str(folder / "u4" / "hw.ipynb"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **options)

    with a_class(folder):
        monkeypatch.setattr(os, "open", refuse)
        yield folder
        monkeypatch.undo()
    shutil.rmtree(folder)


@functools.cache
def judged(exercise, source):
    space = {}
    exec(source, space)  # our own text: what this test itself put into the folder
    return verdict(exercise, cases := exercise.draw(1), [ask(space[exercise.name], one) for one in cases])


def outcomes(files):
    """What the grader finds, without its processes: nobody here means harm."""
    read, wrong, twice = [], [], set()
    for name, data in files:
        try:
            found, faults = statements(name, data)
        except ValueError as error:
            found, faults = [], [f"cannot be read ({error})"]
        read.append((name, found))
        wrong += [f"{name}: {fault}" for fault in faults]
    marks = {}
    for exercise in EXERCISES:
        programs = {name: answer_of(found, exercise.name, exercise.is_function) for name, found in read}
        written = {name: program for name, program in programs.items() if program is not None}
        marks[exercise.id] = Outcome(NOT_ATTEMPTED, "; ".join(wrong))
        if written:
            marks[exercise.id] = judged(exercise, ast.unparse(next(iter(written.values()))))
        if len(written) > 1:
            twice.add(f"answered in {len(written)} files: the first by name counts, {next(iter(written))}")
    return marks, sorted(twice)


def check(titles, rows, table):
    """Sixty rows: those of the healthy half have every mark, those of the other none, and say what would be right."""
    assert len(rows) == len(table) == len(titles) == 60
    for raw, title in titles.items():
        found = rows[title]
        if raw in BROKEN:
            assert set(found["marks"].values()) == {None}, (raw, found)
            assert BROKEN[raw][1] in " | ".join(found["remarks"]), (raw, found)
        else:
            assert found["marks"] == dict.fromkeys(IDS, 1), (raw, found)
            assert MENTIONED.get(raw, "") in " | ".join(found["remarks"]), (raw, found)
            assert bool(found["remarks"]) == (raw in MENTIONED), (raw, found)
    assert [int(one["total"]) for one in table] == [one["total"] for one in rows.values()]
    for one in rows.values():
        assert all(text.isprintable() for text in (one["name"], *one["remarks"]))


def the_table(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_sixty_entries_have_sixty_rows(sixty, tmp_path):
    assert (len(HEALTHY), len(BROKEN)) == (30, 30)
    made = Table(tmp_path / "marks.csv", IDS, pytest.fail)
    titles = {}
    for place, one in enumerate(find(sixty)):
        titles[os.fsencode(one.name)] = one.title
        files, remarks = read_files(one)
        marks, twice = outcomes(files)
        made.add(place, row(one.title, marks, [*one.remarks, *remarks, *twice]))
    made.close()
    check(titles, {one["name"]: one for one in made.rows}, the_table(tmp_path / "marks.csv"))
    assert made.summary() == "60 rows, 30 with every mark"


@pytest.mark.slow
@pytest.mark.alone
def test_the_grader_marks_the_sixty(sixty, tmp_path):
    titles = {os.fsencode(one.name): one.title for one in find(sixty)}
    said = []
    rows = grade(say=said.append, folder=sixty, csv=tmp_path / "marks.csv", notebooks=[3], as_root=True)["submissions"]
    check(titles, {one["name"]: one for one in rows}, the_table(tmp_path / "marks.csv"))
    assert all(line.isprintable() for line in said)
