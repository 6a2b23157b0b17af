"""Pieces of a large file that anybody may have written, each within the file, and no more in all than memory holds.

Nothing is mapped: a mapped file that is cut short while it is read ends the process, and a read that finds less says
so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lora_jax.errors import InputError
from lora_jax.untrusted import files

PIECE = 1 << 24  # bytes that are read at once where a long run of them is gone through


@dataclass(frozen=True)
class Binary:
    """A file that is open for reading: its path and how many bytes it has."""

    path: str
    size: int
    file: BinaryIO

    def read(self, start: int, count: int) -> bytearray:
        """The `count` bytes from `start`. Raises InputError where the file does not hold them."""
        if not 0 <= start <= start + count <= self.size:
            raise self.short()
        fits_memory(self.path, count)
        data, at = bytearray(count), 0
        view = memoryview(data)
        try:
            self.file.seek(start)
            while at < count:
                done = self.file.readinto(view[at:])  # type: ignore[attr-defined]
                if not done:
                    raise self.short()
                at += done
        except OSError as error:
            raise InputError(
                f"could not read {self.path} ({error.strerror or error}): fetch or write it again"
            ) from error
        return data

    def pieces(self, start: int, count: int) -> Iterator[bytearray]:
        """The same bytes, some at a time."""
        for at in range(start, start + count, PIECE):
            yield self.read(at, min(PIECE, start + count - at))

    def short(self) -> InputError:
        return InputError(
            f"{self.path} ends too early, with {self.size:,} bytes: it was cut short, fetch or write it again"
        )


@contextmanager
def opened(path: str | Path) -> Iterator[Binary]:
    """A file to read pieces of. Raises InputError where there is none, or it is a folder, a pipe or a device."""
    with files.told(path):
        files.check(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        files.check(path, found.st_mode)  # it may be another one by now
        yield Binary(str(path), found.st_size, file)  # type: ignore[arg-type]


def fits_memory(where: str | Path, count: int) -> None:
    """Raise InputError where `count` bytes are more than this machine has: before they are asked for."""
    if count > (most := _memory()):
        raise InputError(f"{where} would take {count:,} bytes, and this machine has {most:,}: give a smaller file")


def _memory() -> int:
    """The bytes of memory that this machine has; no limit where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2**62
