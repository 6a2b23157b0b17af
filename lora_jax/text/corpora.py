"""What a model is taught on: three million lines of verse.

The verse is one column of a pickled table, found in the lines of Project Gutenberg's books by somebody else's filter.
Prose prefaces, glossaries, contents and notes in other languages stand among the lines, titles and blank lines do not,
and nothing marks where a poem ends. `verse_passages` finds the verse, `split_verse` holds some of it out.
"""

from __future__ import annotations

import gzip
import hashlib
import pickletools
import random
import re
import zlib
from contextlib import suppress
from itertools import pairwise
from operator import le
from pathlib import Path
from typing import Any, NamedTuple

from lora_jax.errors import InputError
from lora_jax.untrusted import binary
from lora_jax.untrusted.json_text import shown

POEM_LINES = 3_085_117
TABLE_BYTES = 300_000_000  # more is not unpacked; the table has 168 million


def read_lines(path: Path) -> list[str]:
    """The first column of the text table in a gzipped pickle of a data frame, taken without unpickling.

    Unpickling runs what the file says. Walking its opcodes runs nothing: a table of text is a two-dimensional shape
    (columns, rows), then a list of its strings, column by column, of which the first `rows` are the first column.
    Raises InputError where the file is cut short, altered, or no such table.
    """
    shape: tuple[int, int] | None = None
    lines: list[str] | None = None
    before: list[tuple[str, Any]] = [("", None)] * 2  # the two operations before this one, MEMOIZE and FRAME aside
    try:
        with binary.opened(path) as source, gzip.GzipFile(fileobj=source.file) as file:  # type: ignore[arg-type]
            data = file.read(TABLE_BYTES + 1) if source.size <= TABLE_BYTES else b""
        if max(source.size, len(data)) > TABLE_BYTES:
            raise InputError(f"{path} unpacks to more than {TABLE_BYTES:,} bytes: delete it and fetch it again")
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in ("MEMOIZE", "FRAME"):
                continue
            if lines is not None and shape is not None:
                if name.endswith("UNICODE"):
                    lines.append(str(argument))
                    if len(lines) == shape[1]:
                        "\n".join(lines).encode()  # half of a surrogate pair, which a pickle can hold, is no text
                        return lines
                elif name not in ("MARK", "APPENDS", "APPEND"):
                    raise InputError(f"{path} holds {name} where line {len(lines):,} of {shape[1]:,} should stand")
            elif name == "TUPLE2" and before[0][0].startswith("BININT") and before[1][0].startswith("BININT"):
                shape = (before[0][1], before[1][1])
            elif name == "EMPTY_LIST" and before[1][0] == "NEWFALSE" and shape is not None:
                lines = []
            before = [before[1], (name, argument)]
    except InputError:
        raise
    except (ValueError, EOFError, OSError, OverflowError, MemoryError, zlib.error) as error:
        why = shown(str(error))[1:-1]
        raise InputError(f"{path} is not a whole gzipped pickle ({why}): delete it and fetch it again") from error
    raise InputError(f"{path} holds no column of text: it is not the table of poems")


def poems() -> list[str]:
    """The lines of verse, in the order of the books. The first call walks the pickle and keeps plain text beside it.

    The text is checked by its sha256, which is kept beside it too, and made anew where it is another.
    """
    from lora_jax.files.assets import POEMS, fetch
    from lora_jax.files.atomic import write_bytes

    source = Path(fetch(POEMS))
    plain, checked = (source.with_name(source.name + ending) for ending in (".txt", ".txt.sha256"))
    with suppress(OSError):
        data = plain.read_bytes()
        if checked.read_bytes().split()[:1] == [_digest(data)]:
            return data.decode().split("\n")
    lines = read_lines(source)
    data = "\n".join(lines).encode()
    write_bytes(plain, data)
    write_bytes(checked, _digest(data) + f"  {plain.name}\n".encode())  # as `sha256sum --check` takes it
    return lines


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


# A line of verse opens with a capital (perhaps behind a quotation mark), is at most 63 characters long, and holds none
# of the signs of an index, a note or a table: digits, brackets, underscores (italics), runs of spaces.
_LINE = r"""["'\u201c\u2018( ]{0,3}[A-ZÀ-ÞŒ](?=[^\n]*[a-z])(?![^\n]*   )[^\d\[\]|{}<>=*_\n]{4,59}\n"""
_RUN = re.compile(rf"(?:^{_LINE}){{8,}}", re.MULTILINE)
_ENDS = re.compile(r"""[.,;:!?—-]["'\u201d\u2019) ]*$""", re.MULTILINE)
_INITIAL = re.compile(r"^\W*(\w)", re.MULTILINE)
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """a all an and are as at be but by can do for from had hath have he her him his how i if in into is it its like
        me more my no nor not now o of on one or our out shall she should so than that the thee their them then there
        these they this thou though thy till to up upon us was we were what when where which while who will with would
        yet you your""",
    )
)
LONGEST = 40  # lines in a passage


def verse_passages(lines: list[str]) -> list[str]:
    r"""Passages of 8 to 40 neighbouring lines that read as English verse, joined by "\n", in their order.

    A passage is a piece of a run of at least eight lines that each look like verse (a wrapped line of prose opens with
    a capital less than half the time, so that prose seldom makes eight in a row). At least a quarter of its lines end
    in punctuation (tables of contents do not), and its lines do not stand in the order of the alphabet (indexes of
    first lines do). At least 28 % of its words are among a hundred common English ones, and no four neighbouring lines
    are without any (glossaries, lists of names, verse in other languages).
    """
    passages = []
    for run in _RUN.finditer("\n".join(lines) + "\n"):
        body = run.group()[:-1].split("\n")
        common = [sum(map(_COMMON.__contains__, line.lower().split())) for line in body]
        pieces = -(-len(body) // LONGEST)
        cuts = [len(body) * i // pieces for i in range(pieces + 1)]
        for start, stop in pairwise(cuts):
            passage, here = "\n".join(body[start:stop]), common[start:stop]
            initials = _INITIAL.findall(passage)
            if (
                sum(here) >= 0.28 * len(passage.split())
                and all(map(any, zip(here, here[1:], here[2:], here[3:], strict=False)))
                and len(_ENDS.findall(passage)) >= 0.25 * (stop - start)
                and sum(map(le, initials, initials[1:])) < 0.9 * (stop - start - 1)
            ):
                passages.append(passage)
    return passages


class VerseSplit(NamedTuple):
    """Passages to train on, passages held out, and how many were dropped because they share a line with the latter."""

    train: list[str]
    held_out: list[str]
    dropped: int


def _keys(passage: str) -> set[str]:
    """The lines of a passage, letters only and in lower case, those under 12 letters left out: many poems have them."""
    bare = (re.sub(r"[\W\d_]+", "", line.lower()) for line in passage.split("\n"))
    return {key for key in bare if len(key) >= 12}


def split_verse(
    lines: list[str],
    *,
    held_out_blocks: int = 32,
    block_lines: int = 200,
    gap: int = 2000,
    train_passages: int | None = None,
    seed: int = 0,
) -> VerseSplit:
    """Verse to train on and verse to judge by, from places far apart, the same for the same arguments.

    One held-out block of `block_lines` neighbouring lines is drawn at random from each of `held_out_blocks` equal
    stretches of the corpus. `gap` lines on both sides of a block are used for nothing: they may be the same poem.
    Books repeat each other, so a passage with a line of any held-out passage (12 letters or more, spelling and all) is
    dropped from training. `train_passages` asks for so many only, drawn from all over the corpus, which is faster.
    Raises InputError where the lines leave no room for the blocks and their gaps.
    """
    rng = random.Random(seed)
    stretch = len(lines) // held_out_blocks
    if stretch <= block_lines + 2 * gap:
        raise InputError(
            f"{len(lines):,} lines are too few for {held_out_blocks} held-out blocks of {block_lines:,} lines with "
            f"gaps of {gap:,}: more than {held_out_blocks * (block_lines + 2 * gap):,} are needed"
        )
    starts = [i * stretch + rng.randrange(stretch - block_lines) for i in range(held_out_blocks)]
    held_out = [passage for start in starts for passage in verse_passages(lines[start : start + block_lines])]
    seen = set().union(*map(_keys, held_out))

    pieces: list[tuple[int, int]] = []  # what is left between blocks and gaps, in pieces of 1,000 lines at most
    edges = [-gap, *(edge for start in starts for edge in (start, start + block_lines)), len(lines) + gap]
    for left, right in zip(edges[::2], edges[1::2], strict=True):
        pieces += [(at, min(at + 1000, right - gap)) for at in range(left + gap, right - gap, 1000)]
    rng.shuffle(pieces)

    train: list[str] = []
    dropped = 0
    for start, stop in pieces:
        if train_passages is not None and len(train) >= train_passages:
            break
        for passage in verse_passages(lines[start:stop]):
            if seen.isdisjoint(_keys(passage)):
                train.append(passage)
            else:
                dropped += 1
    rng.shuffle(train)
    return VerseSplit(train[:train_passages], held_out, dropped)
