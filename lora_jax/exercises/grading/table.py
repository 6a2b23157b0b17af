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
from lora_jax.exercises.outcomes import CORRECT, NOT_YET, Outcome
from lora_jax.files import atomic

NOT_JUDGED = "could not be judged"  # a fourth status of an Outcome: the machine is at fault, and nobody loses a mark
# Excel takes a file that does not begin with this mark to be in the code page of its country: Müller becomes MÃ¼ller.
ENCODING = "utf-8-sig"
LONGEST = 30_000  # characters of a cell; Excel cuts at 32,767, and begins another cell with the rest
SEPARATORS = ";\t|\r\n"  # where some country's spreadsheet begins a cell; commas are within quotation marks
STARTS = re.compile(rf'((?:^|[{SEPARATORS}])[\s"]*)(\S)')
MINUS = "\u2212\u2795\u2796"  # that Unicode does not make + or - of


def row(title: str, outcomes: Mapping[str, Outcome], remarks: Sequence[str] = ()) -> dict[str, Any]:
    """`{"name", "marks": {id: 1, 0 or None}, "total", "remarks": [...]}`: None where nothing was or could be judged."""
    known = {CORRECT: 1, NOT_YET: 0}
    marks = {id: known.get(outcome.status) for id, outcome in outcomes.items()}
    said = {id: o for id, o in outcomes.items() if o.status in (NOT_YET, NOT_JUDGED)}
    wrong = [one_line(f"{id} {o.status}: {o.reason}") for id, o in said.items()]
    # What could not be read is the same for all that were not found.
    unread = dict.fromkeys(one_line(o.reason) for id, o in outcomes.items() if id not in said and marks[id] is None)
    total = sum(mark or 0 for mark in marks.values())
    return {
        "name": title,
        "marks": marks,
        "total": total,
        "remarks": [*filter(None, unread), *wrong, *map(one_line, remarks)],
    }


def not_judged(row: Mapping[str, Any]) -> list[str]:
    """The exercises of a row that could not be judged."""
    return [id for id in row["marks"] if any(one.startswith(f"{id} {NOT_JUDGED}") for one in row["remarks"])]


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
    """

    def __init__(self, path: Path | None, exercises: Sequence[str], say: Callable[[str], None]) -> None:
        self._path, self._exercises, self._say = path, list(exercises), say
        self._rows: dict[int, dict[str, Any]] = {}
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
        self._rows[place] = row
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
            atomic.write_bytes(self._path, as_csv(self._exercises, self._rows).encode(ENCODING))
            self._refused = None
        except InputError as error:
            self._refused = error


def as_csv(exercises: Sequence[str], rows: Mapping[int, Mapping[str, Any]]) -> str:
    """The rows by their place among the entries. A mark that nobody gave is empty.

    The first column counts the entries. So the line, which is one cell where the country's separator is another one,
    begins with a digit; and the mark of the encoding stands before a name that no program looks for.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["number", "submission", *exercises, "total", "remarks"])
    for place in sorted(rows):
        one = rows[place]
        marks = ["" if (mark := one["marks"].get(id)) is None else mark for id in exercises]
        writer.writerow([place + 1, cell(one["name"]), *marks, one["total"], cell(" | ".join(one["remarks"]))])
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
