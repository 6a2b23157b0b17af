"""Names and words that others chose, in a form that can be printed: on one line, with nothing that a terminal obeys."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

LONGEST = 300  # characters of a remark
# What Python calls printable although nothing is to be seen of it.
INVISIBLE = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
SPACES = re.compile(r"^ | $|(?<= ) ")  # those that nobody would see, or see as one
ENDING = re.compile(r"(\.ipynb|\.py)?$", re.IGNORECASE)


def escaped(text: str) -> str:
    """`text` with every character that cannot be seen written as Python writes it: `\\n`, `\\x1b`, `\\u202e`."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """A remark: one line of at most 300 characters, with single spaces in place of all others."""
    line = escaped(" ".join(text[: 10 * LONGEST].split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def shown(name: str) -> str:
    """The name of a file or folder, as the system hands it over, in letters.

    A name is bytes. They are read as UTF-8; where they are none, as Windows' code page of western Europe (1252), or as
    the one of its zip files (850), whichever gives letters; else the bytes that are no ASCII are written in digits.
    An accent and its letter become one character, whether or not they are one on the disk, as they are on a Mac.
    """
    return SPACES.sub(r"\\x20", escaped(unicodedata.normalize("NFC", _decoded(os.fsencode(name)))))


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        pass
    for encoding in ("cp1252", "cp850"):
        text = name.decode(encoding, "replace")
        if all(letter.isalpha() for letter in text if not letter.isascii()):
            return text
    return name.decode("ascii", "backslashreplace")


def distinct(names: Iterable[str]) -> list[str]:
    """The same strings, no two alike: the second of three becomes "name (2)", or "name (2).ipynb"."""
    names = list(names)
    taken, last = set(names), dict.fromkeys(names, 0)
    found = []
    for name in names:
        last[name] += 1
        other = name
        while last[name] > 1 and other in taken:
            other = ENDING.sub(rf" ({last[name]})\1", name, count=1)
            last[name] += other in taken
        taken.add(other)
        found.append(other)
    return found
