"""The table of marks: its rows, its cells that no spreadsheet runs, and its file, written anew with every row."""

from __future__ import annotations

import csv
import io
import re
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.exercises.grading.printed import escaped, one_line
from lora_jax.exercises.outcomes import CORRECT, NOT_JUDGED, NOT_YET, Outcome
from lora_jax.files import atomic

# Excel takes a file that does not begin with this mark to be in the code page of its country: Müller becomes MÃ¼ller.
ENCODING = "utf-8-sig"
LONGEST = 30_000  # characters of a cell; Excel cuts at 32,767, and begins another cell with the rest
SEPARATORS = ";\t|\r\n"  # where some country's spreadsheet begins a cell; commas are within quotation marks
STARTS = re.compile(rf'((?:^|[{SEPARATORS}])[\s"{SEPARATORS}]*)(\S)')
MINUS = "\u2212\u2795\u2796"  # that Unicode does not make + or - of


def row(title: str, outcomes: Mapping[str, Outcome], remarks: Sequence[str] = ()) -> dict[str, Any]:
    """`{"name", "marks": {id: 1, 0 or None}, "total", "remarks": [...]}`: None where nothing was or could be judged."""
    known = {CORRECT: 1, NOT_YET: 0}
    marks = {id: known.get(outcome.status) for id, outcome in outcomes.items()}
    unread: list[str] = []
    blamed: dict[str, list[str]] = {}
    wrong: list[str] = []
    for id, outcome in outcomes.items():
        reason = one_line(outcome.reason)
        if outcome.status == NOT_YET:
            wrong.append(f"{id} {NOT_YET}: {reason}")
        elif outcome.status == NOT_JUDGED:
            blamed.setdefault(reason, []).append(id)
        elif marks[id] is None and reason:  # what could not be read is the same for all that were not found
            unread.append(reason)
    said = [f"{', '.join(ids)} {NOT_JUDGED}: {reason}" for reason, ids in blamed.items()]
    total = sum(mark or 0 for mark in marks.values())
    return {
        "name": title,
        "marks": marks,
        "total": total,
        "remarks": [*dict.fromkeys(unread), *said, *wrong, *map(one_line, remarks)],
    }


def not_judged(row: Mapping[str, Any]) -> list[str]:
    """The exercises of a row that could not be judged."""
    parts = [one.partition(f" {NOT_JUDGED}: ") for one in row["remarks"]]
    named = {id for ids, found, _ in parts if found for id in ids.split(", ")}
    return [id for id, mark in row["marks"].items() if mark is None and id in named]


def cell(text: str) -> str:
    """A name or a remark, which may be the submission's own words, as a cell that no spreadsheet runs as a formula.

    Where one could begin, at the start and behind what separates cells in some country, stands an apostrophe before =,
    +, - and @, in whatever width they are written. Characters that cannot be seen are written out.
    """

    def guarded(found: re.Match[str]) -> str:
        runs = found[2] in MINUS or unicodedata.normalize("NFKC", found[2])[0] in "=+-@"
        return f"{found[1]}'{found[2]}" if runs else found[0]

    return STARTS.sub(guarded, escaped(text[:LONGEST]))[:LONGEST]


class Table:
    """The marks of a class so far, and their file, if there is one.

    With every row the file is written anew and takes its name when it is whole. A disk that refuses, since it is full,
    is mentioned once and asked again with the next row; `close` asks a last time. Raises InputError for a `path` that
    cannot be written to, before anything is marked.

    A mark that nobody gave is empty. The first column counts the entries: so a line begins with a digit where the whole
    of it is one cell, in a country whose separator is another; and the mark of the encoding, which some programs take
    for a part of the first column's name, is in the way of none that looks for "submission".
    """

    def __init__(self, path: Path | None, exercises: Sequence[str], say: Callable[[str], None]) -> None:
        self._path, self._exercises, self._say = path, list(exercises), say
        self._rows: dict[int, dict[str, Any]] = {}
        self._lines = {-1: _line("number", "submission", self._exercises, "total", "remarks")}
        self._refused: InputError | None = None
        self._told = False
        if path is not None:
            _try(path)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that are there, in the order of the entries."""
        return [self._rows[place] for place in sorted(self._rows)]

    def add(self, place: int, row: dict[str, Any]) -> None:
        """Put in the row of the entry number `place`, from 0; rows may come in any order."""
        marks = ["" if (mark := row["marks"].get(id)) is None else mark for id in self._exercises]
        remarks = cell(" | ".join(row["remarks"]))
        self._rows[place] = row
        self._lines[place] = _line(place + 1, cell(row["name"]), marks, row["total"], remarks)
        self._write()
        if self._refused is not None and not self._told:
            self._told = True
            self._say(f"{self._refused} The marking goes on, and each row tries again.")

    def close(self) -> None:
        """Write the file once more, where it is not as it should be. Raises InputError where that cannot be."""
        if self._refused is not None or not self._rows:
            self._write()
        if self._refused is not None:
            raise self._refused

    def summary(self) -> str:
        """The last line to print: how many were marked, and how many marks the machine is to blame for."""
        rows = self.rows
        full = sum(row["total"] == len(row["marks"]) for row in rows)
        said = f"{_count(len(rows), 'row')}, {full} with every mark"
        missing = [len(not_judged(row)) for row in rows]
        if any(missing):
            marks, those = _count(sum(missing), "mark"), _count(sum(map(bool, missing)), "submission")
            said += f"; {marks} of {those} could not be judged: mark these again"
        return said

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            text = "".join(line for _, line in sorted(self._lines.items()))
            atomic.write_bytes(self._path, text.encode(ENCODING))
            self._refused = None
        except InputError as error:
            self._refused = error


def _line(number: int | str, name: str, marks: Sequence[int | str], total: int | str, remarks: str) -> str:
    file = io.StringIO()
    csv.writer(file).writerow([number, name, *marks, total, remarks])
    return file.getvalue()


def _try(path: Path) -> None:
    """Raise InputError where no file can take this name: better before the marking than behind it."""
    try:
        # A table in the place of /dev/null would harm more than this run.
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is no file: give the name of one to write the table to, such as marks.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): choose a folder that you may write to"
        ) from error


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
