"""Records from the text of a file: JSON, JSON lines, and tables of cells (CSV, TSV), each with where it stands."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.text import records
from lora_jax.untrusted import json_text
from lora_jax.untrusted.json_text import shown

Records = Iterator[tuple[Any, str]]  # the fields of a record, and where it stands

MAX_VALUES = 20_000_000  # in the JSON of a file of data
DELIMITERS = (",", ";", "\t", "|")
# What a program writes into a cell where there is no value.
NO_VALUE = ("nan", "#n/a", "#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!")
_SPACE = re.compile(r"[ \t\r\n]*")
_OBJECT = re.compile(r"""\s*(\[\s*)*\{\s*(["'])\w[^"'\n]*\2\s*:""")  # in single quotes it is Python's, and refused
_NAME = re.compile(r"\s*\w[\w .-]{0,39}\s*")


def looks_like(text: str) -> str | None:
    """`json`, `cells` or `columns` where the text of a file whose name says nothing is no prose; else None."""
    first, _, rest = text.strip().partition("\n")
    if _OBJECT.match(text) or _parses(text):
        return "json"
    for delimiter in DELIMITERS if rest.strip() and len(first) < 1000 else ():
        names = _names(first, delimiter)
        if len(names) > 1 and all(map(_NAME.fullmatch, names)) and records.known(names):
            return "cells"
    lines = [line for line in text.split("\n") if line.strip()]
    tabs = {line.count("\t") for line in lines}
    return "columns" if len(lines) > 2 and len(tabs) == 1 and tabs != {0} else None


def _names(line: str, delimiter: str) -> list[str]:
    """The names in a table's first line; none where it is none, since a line's end stands in it, say."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _parses(text: str) -> bool:
    """Whether the text is a JSON object or list, and nothing else."""
    if text.strip()[:1] not in ("{", "["):
        return False
    try:
        json_text.loads(text, "it", non_finite=True, values=MAX_VALUES)
    except InputError:
        return False
    return True


def json_records(text: str, file: Path, *, lines: bool) -> Records:
    """The records of a JSON array, of JSON lines, or of objects one behind the other, whichever the text is.

    One object that holds nothing known, but one list of objects, stands for that list. With `lines`, as the name of the
    file says, what cannot be read is a bad line. Raises InputError for what is no JSON, with file and line.
    """
    json_text.check_structure(text, str(file), depth=len(text), values=MAX_VALUES)
    rows = [(number, line) for number, line in enumerate(text.replace("\r", "\n").split("\n"), 1) if line.strip()]
    alone = _parses(rows[0][1])
    if text.lstrip().startswith("[") and not (alone and len(rows) > 1):
        yield from _array(text, file)
        return
    if alone or (lines and not _streams(text, file)):
        found: Records = (
            (_value(line, 0, f"{file}, line {number}")[0], f"{file}, line {number}") for number, line in rows
        )
    else:
        found = _stream(text, file)
    first = next(found)
    second = next(found, None)
    if second is not None:
        yield from (first, second)
        yield from found
        return
    listed = _wrapped(first)
    if listed is None:
        yield first
    else:
        yield from ((one, f"{file}, record {n}") for n, one in enumerate(listed, 1))


def _wrapped(record: tuple[Any, str]) -> list[Any] | None:
    """The list of objects that a file's only object holds, under whatever name, or None where it is a record itself."""
    fields, where = record
    if not isinstance(fields, dict) or records.known(list(fields)):
        return None
    lists = {name: v for name, v in fields.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    if len(lists) > 1:
        raise InputError(f"{where}: several lists, {', '.join(map(shown, lists))}: give each a file of its own")
    return next(iter(lists.values()), None)


def _array(text: str, file: Path) -> Records:
    """The items of a list, each by its number and line, read one by one."""
    at = _SPACE.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]
    number, line, counted = 0, 1, 0
    while not (number == 0 and text.startswith("]", at)):
        number, line, counted = number + 1, line + text.count("\n", counted, at), at
        value, at = _value(text, at, f"{file}, line {line}", file)
        yield value, f"{file}, record {number} (line {line})"
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text.startswith("]", at):
            break
        if not text.startswith(",", at):
            raise _not_json("Expecting ',' delimiter", text, at, file)
        at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    if at < len(text):
        raise _not_json("Extra data", text, at, file)


def _stream(text: str, file: Path) -> Records:
    """Values one behind the other, over as many lines as they take."""
    at = _SPACE.match(text).end()  # type: ignore[union-attr]
    line, counted = 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        value, at = _value(text, at, f"{file}, line {line}", file)
        yield value, f"{file}, line {line}"
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _streams(text: str, file: Path) -> bool:
    try:
        return all(True for _ in _stream(text, file))
    except InputError:
        return False


def _value(text: str, at: int, where: str, file: Path | None = None) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends: with the text, unless a `file` is named."""
    try:
        return json_text.parse(text, None if file is None else at)
    except json.JSONDecodeError as error:
        if file is not None:
            raise _not_json(error.msg, text, error.pos, file) from error
        raise InputError(f'{where}: not JSON ({error.msg}, column {error.colno}): write {{"text": "..."}}') from error
    except MemoryError as error:
        raise InputError(f"{where}: more than memory holds") from error
    except RecursionError as error:
        raise InputError(f'{where}: nested too deeply: write {{"text": "..."}}') from error
    except ValueError as error:  # a name twice in an object, or a number of thousands of digits
        raise InputError(f"{where}: {error}") from error


def _not_json(message: str, text: str, at: int, file: Path) -> InputError:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return InputError(f"{file}, line {line}: not JSON ({message}, column {column})")


def cell_records(text: str, file: Path, delimiters: Sequence[str] = DELIMITERS) -> Records:
    """The rows of a table as fields by the names in its first line; blank rows are passed over.

    The delimiter is the first of `delimiters` with which that line holds names that are known. Raises InputError, with
    file and line, where none does, and for a row that has not as many cells.
    """
    offset = 0
    if told := re.match(r"sep=(.)\n", text):  # as a spreadsheet writes it
        delimiters, text, offset = (told[1],), text[told.end() :], 1
    limit = csv.field_size_limit(2**31 - 1)  # a cell may hold a book
    try:
        delimiter = next((one for one in delimiters if records.known(_first(text, one))), delimiters[0])
        table = _rows(text, file, offset, delimiter)
        head, line = next(table)
        names = [name.strip() for name in head]
        _check_head(names, file, line)
        for cells, number in table:
            where = f"{file}, line {number}"
            if len(cells) < len(names) or any(cell.strip() for cell in cells[len(names) :]):
                raise InputError(
                    f"{where}: {len(cells)} cells, and the first line names {len(names)}: "
                    'a cell that holds the delimiter or a line break stands in double quotes ("...")'
                )
            fields = {name: cell for name, cell in zip(names, cells, strict=False) if name}
            for name, cell in fields.items():
                if cell.lower() in NO_VALUE:
                    raise InputError(
                        f"{where}: {shown(name)} is {shown(cell)}, which a program wrote for no value: clear the cell"
                    )
                if name.lower() in records.CONVERSATIONS and cell.strip():
                    fields[name] = _value(cell, 0, f"{where}, {shown(name)}")[0]
            yield fields, where
    finally:
        csv.field_size_limit(limit)


def _first(text: str, delimiter: str) -> list[str]:
    """The cells of the first row, [] where they are not whole with this delimiter."""
    try:
        return next(_rows(text, Path(), 0, delimiter))[0]
    except InputError:
        return []


def _rows(text: str, file: Path, offset: int, delimiter: str) -> Iterator[tuple[list[str], int]]:
    """Each row that is not blank, with the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{file}, line {line + offset}: a cell that begins with a double quote and does not end with one "
                f"({error}): write quotes inside a cell twice"
            ) from error
        if any(cell.strip() for cell in cells):
            yield cells, line + offset


def _check_head(names: list[str], file: Path, line: int) -> None:
    given = [shown(name) for name in names if name]
    listed = ", ".join(given[:8]) + (f" and {len(given) - 8:,} more" if len(given) > 8 else "")
    if not records.known(names):
        raise InputError(f"{file}, line {line}: the first line names the columns, and here {listed}: {records.GIVE}")
    small = sorted(name.lower() for name in names if name)
    if twice := next((a for a, b in pairwise(small) if a == b), None):
        raise InputError(f"{file}, line {line}: two columns of the name {shown(twice)}: keep one")
