"""The bytes of a file that anybody may have put there: a file and nothing else, and no larger than is said."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_jax.errors import InputError

FILE_BYTES = 64_000_000  # of one file of settings; the largest tokenizer.json in use has about 33 MB
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_bytes(path: str | Path, limit: int = FILE_BYTES) -> bytes:
    """The bytes of a file. Raises InputError where there is none, it is no file, or it has more than `limit` bytes.

    What is no file is never opened: a pipe would wait for ever, and to open a device may do something.
    """
    with told(path):
        check(path, os.stat(path).st_mode)
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            check(path, found.st_mode)  # it may be another one by now
            if found.st_size <= limit:
                data = file.read(min(found.st_size, limit) + 1)  # the size that is said may be 0, as in /proc
                data += file.read(limit + 1 - len(data)) if len(data) > found.st_size else b""
                if len(data) <= limit:
                    return data
    raise InputError(f"{path} has {size(path)}, more than the {limit:,} that are read: give a smaller file")


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """Whatever the system says against opening or reading a file, as an InputError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"could not read {path} ({error.strerror or error}): give a file that may be read") from error
    except ValueError as error:  # a name with a NUL, or with letters that the system has no bytes for
        raise InputError(f"{str(path)!r} is no name of a file ({error})") from error
    except MemoryError as error:
        raise InputError(f"{path} has {size(path)}, and memory does not suffice: give a smaller file") from error


def read_text(path: str | Path, limit: int = FILE_BYTES) -> str:
    """The text of a file in UTF-8, with its line ends as they are. Raises InputError as `read_bytes`, or if it is none.

    A byte order mark, as some editors put before a text, is left out.
    """
    return decode(read_bytes(path, limit), str(path))


def decode(data: bytes, where: str) -> str:
    """UTF-8 as text, without a byte order mark. Raises InputError with the line."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}, line {line}: not UTF-8 text: save it as UTF-8") from error


def check(path: str | Path, mode: int) -> None:
    """Raise InputError where a file's mode is not that of a file."""
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in KINDS if test(mode)), "something else")
        raise InputError(f"{path} is {kind}, and a file is needed there")


def require(path: str | Path) -> None:
    """Raise InputError where what stands under a name is no file, such as a pipe, which a library would wait for."""
    if mode := _mode(path):
        check(path, mode)


def is_name(name: str) -> bool:
    """Whether a text is the name of a file in a folder: it leads nowhere else, and every system takes it."""
    long = len(name.encode(errors="replace")) > 255
    return not (name in ("", ".", "..") or long or not name.isprintable() or {*"/\\"} & {*name})


def size(path: str | Path) -> str:
    """The size of a file in words."""
    try:
        return f"{os.stat(path).st_size:,} bytes"
    except OSError:
        return "too many bytes"


def exists(path: str | Path) -> bool:
    """Whether something stands under a name; no name is too long or too odd to ask."""
    return _mode(path) != 0


def is_folder(path: str | Path) -> bool:
    """Whether a folder stands under a name."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: str | Path) -> bool:
    """Whether a file stands under a name, and nothing else."""
    return stat.S_ISREG(_mode(path))


def _mode(path: str | Path) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0
