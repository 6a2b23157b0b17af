"""The code cells of a notebook or a .py file, as text: every version of the format, and what editors make of it."""

from __future__ import annotations

import ast
import codecs
import io
import json
import re
import tokenize
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

MAX_CELLS = 50_000  # of one notebook

# A cell begins: in the percent format, in Jupytext's light one, from nbconvert, from old Spyder, from Databricks.
MARKER = re.compile(r"# ?%%(?![A-Za-z])|# \+( |$)|# In\s?\[[\d ]*\]:|# <codecell>|# COMMAND -+")
TEXT = re.compile(r"# ?%%.*\[(markdown|md|raw)\]")  # such a cell is all comments
# Jupytext writes a magic as a comment, and stands in the header of a file that it wrote.
HEADER = re.compile(r"# ---\n(#.*\n)*?# +jupytext:\n")
COMMENTED = re.compile(r"^([ \t]*)# ?((?:[\w., ]+=[ ]*)?)((?:%|!)[A-Za-z].*)$", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A code cell: its number as a person counts, its text, and in a .py file how many lines stand above it.

    `uncommented` is the text again where it holds magics in comments, with these as magics.
    """

    number: int
    source: str
    above: int | None = None
    uncommented: str = ""


def read(name: str, data: bytes) -> tuple[list[Cell], list[str]]:
    """The code cells of a file of this name (.ipynb, or else Python), and a sentence for each that holds no text.

    Of a notebook in another language the first sentence says so. Raises ValueError where a .ipynb is empty, or not a
    notebook.
    """
    if PurePath(name).suffix.lower() == ".ipynb":
        return _of_notebook(data)
    return _of_script(decoded(data, python=True)), []


def decoded(data: bytes, *, python: bool = False) -> str:
    """Text in UTF-8, -16 or -32, or as a Python file's first lines say; else in Latin-1, where any byte is a letter."""
    encoding: str = json.detect_encoding(data)
    if python and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        except SyntaxError:  # it is not what it says, or says nothing and is not UTF-8
            encoding = "latin-1"
    try:
        text = data.decode(encoding)
    except (UnicodeError, LookupError):  # LookupError: a file may say that it is in rot13
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _of_notebook(data: bytes) -> tuple[list[Cell], list[str]]:
    text = decoded(data).lstrip("\ufeff")
    if not text.strip("\0 \t\n"):
        raise ValueError("it is empty")
    try:
        found: dict[str, Any] = json.loads(text, strict=False)
        # Version 3 of the format has worksheets; the cells of all versions differ in what they call their text.
        cells = found["cells"] if "cells" in found else [c for sheet in found["worksheets"] for c in sheet["cells"]]
        if not isinstance(cells, list):
            raise TypeError
        cells = [cell for cell in cells if not isinstance(cell, dict) or cell.get("cell_type") == "code"]
    except ValueError as error:  # it is no JSON, or has a number of thousands of digits in it
        raise ValueError(_why_no_json(text, str(error)[:150])) from error
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is not a notebook: save it again and hand it in") from error
    if len(cells) > MAX_CELLS:
        raise ValueError(f"it has {len(cells):,} code cells, and more than {MAX_CELLS:,} are not read")
    good: list[Cell] = []
    wrong = [f"it is a notebook in {other}: hand in one in Python"] if (other := _other_language(found)) else []
    for number, cell in enumerate(cells, 1):
        source = _source(cell)
        if source is None:
            wrong.append(f"cell {number} holds no text")
        else:
            good.append(Cell(number, source.replace("\r\n", "\n").replace("\r", "\n")))
    return good, wrong


def _why_no_json(text: str, error: str) -> str:
    if re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE):
        return "Git has left both sides of a conflict in it: keep one"
    if text.startswith("version https://git-lfs"):
        return "it only says where Git LFS keeps the notebook: hand in the notebook itself"
    if len(text) < 1_000_000 and not text.lstrip().startswith(("{", "[")) and _is_python(text):
        return "it is a program whose name ends in .ipynb: rename it to end in .py"
    return f"it is not a notebook ({error}): save it again and hand it in"


def _other_language(notebook: dict[str, Any]) -> str:
    """The language that a notebook says it is in, where that is not Python; "" where it is, or says nothing."""
    about = notebook.get("metadata")
    for section, field in (("language_info", "name"), ("kernelspec", "language")):
        part = about.get(section) if isinstance(about, dict) else None
        language = part.get(field) if isinstance(part, dict) else None
        if isinstance(language, str) and language:
            return "" if "python" in language.lower() else language[:40]
    return ""


def _source(cell: Any) -> str | None:
    """The text of a notebook's code cell, a string or a list of lines; None where there is none."""
    named = cell if isinstance(cell, dict) else {}
    lines = next((named[name] for name in ("source", "input", "code") if name in named), None)
    if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
        lines = "".join(lines)
    # A half of a character, which JSON can write and Python cannot read, becomes a question mark.
    return lines.encode("utf-8", "replace").decode() if isinstance(lines, str) else None


def _of_script(text: str) -> list[Cell]:
    """The cells of a .py file; one where it has no markers, or they stand inside strings or functions."""
    lines = text.split("\n")
    starts = [0, *(number for number, line in enumerate(lines) if MARKER.match(line))]
    marked = len(starts) > 1
    parts = ["\n".join(lines[a:b]) for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]
    if _is_python(text) and not all(map(_is_python, parts)):
        starts, parts = [0], [text]
    uncomment = r"\1\2\3" if HEADER.search(text[:10_000]) else _last_resort if marked else r"\g<0>"
    cells: list[Cell] = []
    for above, part in zip(starts, parts, strict=True):
        if not TEXT.match(part) and (part.strip() or len(parts) == 1):
            part = part[part.index("\n") :] if MARKER.match(part) and "\n" in part else part  # %%time comes first
            other = COMMENTED.sub(uncomment, part)
            cells.append(Cell(len(cells) + 1, part, above, other if other != part else ""))
    return cells


def _last_resort(found: re.Match[str]) -> str:
    """A magic that was perhaps commented out on purpose, as one that gives a name only where nothing else does."""
    indent, target, command = found.groups()
    name, _, statement = command.partition(" ")
    return f"{indent}%timeit {target}{statement}" if name in ("%time", "%timeit", "%prun") else found[0]


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
