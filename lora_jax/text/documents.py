"""The user's own documents: prose, or records of a text, of a question with its answer, or of a conversation.

docs/data.md shows every format with an example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lora_jax.errors import InputError
from lora_jax.text import content, tables
from lora_jax.text.records import Document, read_record
from lora_jax.untrusted import files as untrusted

__all__ = ["Document", "read_documents"]

JSON, JSON_LINES = (".json",), (".jsonl", ".ndjson", ".jsonlines", ".jl")
CELLS = {".csv": tables.DELIMITERS, ".tsv": ("\t",), ".tab": ("\t",)}
TEXT, MARKED = (".txt", ".text"), (".md", ".markdown", ".rst")
_NAMES = "py c h cc cpp hpp cs css go hs java jl js kt lua ml php pl r rb rs scala sh swift tex ts"
CODE = tuple(f".{name}" for name in _NAMES.split())
# In a folder the first of these groups that has a file is read: a page about the data is no part of them.
GROUPS = ((*JSON, *JSON_LINES, *CELLS, *TEXT), (*MARKED, *CODE))


@dataclass
class _Notes:
    """What a person is to know of how the data were read."""

    read: Counter[tuple[str, ...]] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)  # where answers are missing
    passed: list[str] = field(default_factory=list)  # files that are not read

    def sentences(self, path: Path) -> Iterator[str]:
        texts = self.read.pop((), 0)
        parts = [f"{texts:,} read as plain text"] if texts else []
        parts += [f"{n:,} by {' and '.join(map(repr, names))}" for names, n in self.read.most_common()]
        yield f"{path}: {_listed(parts)}"
        if self.left:
            yield f"{path}: fields that are left alone: {_listed([repr(name) for name, _ in self.left.most_common()])}"
        if self.empty:
            yield f"{path}: {len(self.empty):,} records without an answer are left out, the first at {self.empty[0]}"
        if self.passed:
            yield f"{path}: files that are not read: {_listed(self.passed)}"


def read_documents(path: str | Path, say: Callable[[str], None] | None = None) -> list[Document]:
    """The documents of a file, or of the files in a folder and the folders inside it, by name.

    Read are JSON arrays, JSON lines, CSV and TSV, a document from each record (`records.SHAPES` names the fields), and
    prose: a .txt, .md or source file is one document. Each may be gzipped. In a folder, data and .txt files are read,
    and where there are none, Markdown and source files. A record whose answer is empty is left out. `say` is told what
    was read as what, and what was left alone. Raises InputError, with file and line, for anything else: what has a
    structure that is not known is never read as prose.
    """
    path = Path(path)
    if not untrusted.exists(path):
        raise InputError(f"{path}: no such file or folder")
    notes = _Notes()
    files = _in_folder(path, notes) if path.is_dir() else [path]
    documents = [document for file in files for document in _read_file(file, notes)]
    if not documents:
        raise InputError(f"{path}: no record has an answer: there is nothing to learn from")
    for sentence in notes.sentences(path) if say else ():
        say(sentence)  # type: ignore[misc]
    return documents


def _in_folder(path: Path, notes: _Notes) -> list[Path]:
    """The files to read. Raises InputError where one of the others holds data too."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
    except (OSError, RecursionError) as error:
        raise InputError(f"{path}: the folders inside it cannot be read ({error}): move the data elsewhere") from error
    group = next((group for group in GROUPS if any(content.suffix(file) in group for file in files)), ())
    for file in files:
        found = content.unread(file)
        if found and found.instead == content.TABLE and content.suffix(file) not in (".yaml", ".yml"):
            raise InputError(f"{file}: {found.name}, which is not read: {found.instead}, or move it elsewhere")
    chosen = [file for file in files if content.suffix(file) in group]
    if not chosen:
        raise InputError(f"{path}: no file in this folder is text, JSON, JSON lines, CSV or TSV")
    notes.passed = [str(file.relative_to(path)) for file in files if file not in set(chosen)]
    return chosen


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def _read_file(file: Path, notes: _Notes) -> Iterator[Document]:
    suffix = content.suffix(file)
    if suffix and not any(suffix in group for group in GROUPS) and not content.unread(file):
        raise InputError(f"{file}: no format that is read is named {suffix}: where it is prose, name it .txt")
    text = content.text_of(file)
    judged = tables.looks_like(text) if suffix in ("", *TEXT, *MARKED) else None
    if judged == "columns":
        raise InputError(
            f"{file}: every line has as many tabs, as in a table: name its columns in the first line (such as prompt "
            "and completion), or put spaces for the tabs where it is prose"
        )
    if suffix in (*JSON, *JSON_LINES) or judged == "json":
        found = tables.json_records(text, file, lines=suffix in JSON_LINES)
    elif suffix in CELLS or judged == "cells":
        found = tables.cell_records(text, file, CELLS.get(suffix, tables.DELIMITERS))
    else:
        notes.read[()] += 1
        yield Document(text=text, where=str(file))
        return
    count = 0
    for fields, where in found:
        count += 1
        document, read, left = read_record(fields, where)
        notes.left.update(left)
        if document is None:
            notes.empty.append(where)
        else:
            notes.read[read] += 1
            yield document
    if not count:
        raise InputError(f"{file}: no records: there is nothing to learn from")


def _listed(parts: list[str], most: int = 6) -> str:
    more = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {more:,} more" if more > 0 else "")
