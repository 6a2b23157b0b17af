"""The bytes of a file as text: gunzipped, decoded, and refused by name where they are something else."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from pathlib import Path
from typing import NamedTuple

from lora_jax.errors import InputError
from lora_jax.untrusted import files

LARGEST = 500_000_000  # bytes of a file, unpacked: as text and as records it takes several times as many
PACKS = 100  # times smaller than a hundred megabytes or more of text is made by no packer
TABLE, PACKED, PAGE = "export it as JSON lines or CSV", "unpack it first", "save its text as a .txt file"


class Unread(NamedTuple):
    """A format that is not read: what to do instead, how its files end, and how their bytes begin."""

    name: str
    instead: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...] = ()


UNREAD = (
    Unread("a Parquet file", TABLE, (".parquet", ".pq"), (b"PAR1",)),
    Unread("an Arrow file", TABLE, (".arrow", ".feather"), (b"ARROW1", b"\xff\xff\xff\xff", b"FEA1")),
    Unread("a spreadsheet", TABLE, (".xlsx", ".xlsm", ".xls", ".ods"), (b"\xd0\xcf\x11\xe0",)),
    Unread("a database", TABLE, (".sqlite", ".sqlite3", ".db"), (b"SQLite format 3",)),
    Unread("a pickle", TABLE, (".pkl", ".pickle", ".pt"), (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")),
    Unread("an array file", TABLE, (".npy", ".npz", ".h5", ".hdf5"), (b"\x93NUMPY", b"\x89HDF")),
    Unread("an Avro or ORC file", TABLE, (".avro", ".orc"), (b"Obj\x01", b"ORC")),
    Unread("a TFRecord file", TABLE, (".tfrecord", ".tfrecords")),
    Unread("a YAML file", TABLE, (".yaml", ".yml")),
    Unread("an XML file", TABLE, (".xml",), (b"<?xml",)),
    Unread("an archive", PACKED, (".zip", ".tar", ".tgz", ".7z", ".rar"), (b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!")),
    Unread("a compressed file", PACKED, (".bz2", ".xz", ".zst"), (b"BZh", b"\xfd7zXZ\0", b"(\xb5/\xfd", b"\x1f\x8b")),
    Unread("a web page", PAGE, (".html", ".htm", ".xhtml"), (b"<!doctype html", b"<html")),
    Unread("a PDF", PAGE, (".pdf",), (b"%PDF-",)),
    Unread("a word processor's file", PAGE, (".docx", ".doc", ".odt", ".rtf", ".epub"), (b"{\\rtf",)),
    Unread("a notebook", PAGE, (".ipynb",)),
)  # fmt: skip


def suffix(file: Path) -> str:
    """How a file's name ends, in small letters, .gz aside."""
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def unread(file: Path) -> Unread | None:
    """The format that is not read, by the file's name."""
    return next((one for one in UNREAD if suffix(file) in one.suffixes), None)


def text_of(file: Path) -> str:
    """The text of a file, its line ends as "\\n". Raises InputError where it cannot be read, is empty or is no text."""
    _refuse(file, unread(file))
    data = unpacked(files.read_bytes(file, LARGEST), file)
    begun = data[:64].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    _refuse(file, next((one for one in UNREAD if any(_begins(data, begun, s) for s in one.starts)), None))
    if data[257:262] == b"ustar":
        _refuse(file, next(one for one in UNREAD if ".tar" in one.suffixes))
    text = _decoded(data, file).replace("\r\n", "\n")
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{file}, line {number}: a NUL byte: this is a binary file, not text")
    if not text.strip():
        raise InputError(f"{file}: empty: there is nothing to learn from")
    return text


def unpacked(data: bytes, file: str | Path) -> bytes:
    """The bytes, gunzipped where they are gzipped. Raises InputError where that is damaged, or is more than is read."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    most = min(LARGEST, max(LARGEST // 5, PACKS * len(data)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as source:
            found = source.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: not a whole gzip file ({error}): fetch or write it again") from error
    except MemoryError as error:
        raise InputError(f"{file}: unpacked it is more than memory holds: give a smaller file") from error
    if len(found) > most:
        raise InputError(f"{file}: unpacked it has more than {most:,} bytes, which is more than is read")
    return found


def _begins(data: bytes, begun: bytes, start: bytes) -> bool:
    return begun.startswith(start) if start.startswith(b"<") else data.startswith(start)


def _refuse(file: Path, found: Unread | None) -> None:
    if found is not None:
        raise InputError(f"{file}: {found.name}, which is not read: {found.instead}")


def _decoded(data: bytes, file: Path) -> str:
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        name, encoding = "UTF-32", "utf-32"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as spreadsheets and Windows write it
        name, encoding = "UTF-16", "utf-16"
    else:
        name, encoding = "UTF-8", "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {number}: not {name} text: save it as UTF-8") from error
