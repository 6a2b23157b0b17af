"""Which document stands in which sequence: one that fits is never cut, and an answer never stands without its prompt.

Sequences all have one length. Documents that fit go by best-fit decreasing: the largest first, each into the sequence
where it leaves the least space (arXiv 2404.10830 packs by it, and measures what cut documents cost). Longer ones are of
two kinds. A text that is learned throughout goes on in pieces, which first fill the space left in other sequences. One
with a prompt would go on without it, so it ends where the sequence ends; where no answer begins before that, it is
dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lora_jax.errors import InputError
from lora_jax.text.encoding import Encoded

LENGTHS = (128, 256, 512, 1024)  # to choose from
SHORT = (64, 32, 16)  # where there is too little text for a batch of those
FITTING, FULL = 0.99, 0.95  # shares: of the documents with prompts that are to fit whole, and of the space to be used


@dataclass(frozen=True)
class Shortened:
    """How many documents could not be learned whole."""

    truncated: int = 0  # longer than a sequence, with a prompt: cut at the sequence's end
    dropped: int = 0  # as long, and no answer begins within a sequence
    untaught: int = 0  # no token to learn: the first one has nothing before it, so it is never predicted

    def __add__(self, other: Shortened) -> Shortened:
        return Shortened(self.truncated + other.truncated, self.dropped + other.dropped, self.untaught + other.untaught)

    def sentences(self, length: int) -> list[str]:
        """What a person is to know of it."""
        said = []
        if longer := self.truncated + self.dropped:
            said.append(
                f"{_documents(longer)} longer than {length:,} tokens: {self.truncated:,} truncated, "
                f"{self.dropped:,} dropped, since an answer must not be learned without its prompt"
            )
        if self.untaught:
            said.append(f"{_documents(self.untaught)} without anything to learn: {self.untaught:,} dropped")
        return said


class Piece(NamedTuple):
    """The tokens `start` to `stop` of a document, by its number."""

    document: int
    start: int
    stop: int


def kept_sizes(encoded: Sequence[Encoded], length: int) -> tuple[Int64[np.ndarray, " M"], Shortened]:
    """How many tokens of each document are kept, from its first on, and what was shortened.

    More than `length` are kept only of a text that is learned throughout. Raises InputError where `length` is below 2.
    """
    if length < 2:
        raise InputError(f"a sequence of {length} token has nothing to predict: pass --length 2 or more")
    sizes = np.array([len(ids) for ids, _ in encoded], np.int64)
    truncated = dropped = untaught = 0
    for i, (_, mask) in enumerate(encoded):
        if not mask[1:].any():
            untaught += 1
            sizes[i] = 0
        elif sizes[i] > length and has_prompt(mask):
            answered = mask[1:length].any()
            truncated, dropped = truncated + bool(answered), dropped + (not answered)
            sizes[i] = length if answered else 0
    return sizes, Shortened(truncated, dropped, untaught)


def has_prompt(mask: np.ndarray) -> bool:
    """Whether some token is read but not learned."""
    return not mask.all()


def plan(sizes: Int64[np.ndarray, " M"], length: int) -> list[list[Piece]]:
    """The pieces of each sequence, in the order of the documents, of which each has so many tokens; 0 is none.

    A piece of a longer text has an eighth of `length` at least, so that it is seen with something before it.
    """
    shelf = _Shelf(length)
    for i in np.argsort(-sizes, kind="stable").tolist():
        if 0 < (size := int(sizes[i])) <= length:
            shelf.put(Piece(i, 0, size), shelf.tightest(size))
    least = min(max(2, length // 8), length // 2)
    for i in np.flatnonzero(sizes > length).tolist():
        at, end = 0, int(sizes[i])
        while left := end - at:
            space = shelf.widest()
            if space < least or (space < left < 2 * least):  # too narrow, or what is left cannot be cut once more
                space = length
            if left <= space:
                size, space = left, shelf.tightest(left)
            else:
                size = min(space, left - least)
            shelf.put(Piece(i, at, at + size), space)
            at += size
    return sorted(sorted(row) for row in shelf.rows)


class _Shelf:
    """Sequences by the space that is left in them. A whole one's space stands for a new sequence."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.rows: list[list[Piece]] = []
        self._by_space: dict[int, list[int]] = defaultdict(list)
        self._spaces = 0  # bit s is set where a sequence has space s: finding the next larger one is one shift

    def tightest(self, size: int) -> int:
        """The least space that holds `size` tokens."""
        larger = self._spaces >> size
        return size + (larger & -larger).bit_length() - 1 if larger else self.length

    def widest(self) -> int:
        """The most space that a sequence begun has left."""
        return max(self._spaces.bit_length() - 1, 0)

    def put(self, piece: Piece, space: int) -> None:
        """Add a piece to the last sequence that came to have this space."""
        there = self._by_space[space]
        if there:
            row = there.pop()
            if not there:
                self._spaces &= ~(1 << space)
        else:
            row = len(self.rows)
            self.rows.append([])
        self.rows[row].append(piece)
        if rest := space - (piece.stop - piece.start):
            self._by_space[rest].append(row)
            self._spaces |= 1 << rest


def choose_length(encoded: Sequence[Encoded], context: int, *, sequences: int = 1) -> int:
    """The length that suits the documents, at most the model's `context`.

    The smallest of 128, 256, 512 and 1,024 tokens in which 99 % of the documents with prompts fit whole and sequences
    are 95 % full; else the fullest of those that fit; the largest where none does. Text without prompts fits any, since
    it goes on in pieces. Where that makes fewer than `sequences`, one of 64, 32 and 16 that fits and makes as many.
    """
    lengths = [one for one in LENGTHS if one < context] + ([context] if context <= LENGTHS[-1] else [])
    asking = np.array([len(ids) for ids, mask in encoded if has_prompt(mask)])

    def fits(length: int) -> bool:
        return not len(asking) or float(np.mean(asking <= length)) >= FITTING

    def made(length: int) -> tuple[int, float]:
        sizes, _ = kept_sizes(encoded, length)
        rows = len(plan(sizes, length))
        return rows, float(sizes.sum()) / max(rows * length, 1)

    found = {one: made(one) for one in lengths if fits(one)} or {lengths[-1]: made(lengths[-1])}
    enough = {one: fill for one, (rows, fill) in found.items() if rows >= sequences}
    if not enough:
        shorter = [one for one in SHORT if one < lengths[0] and fits(one) and made(one)[0] >= sequences]
        return shorter[0] if shorter else min(found)
    return next((one for one, fill in enough.items() if fill >= FULL), max(enough, key=lambda one: enough[one]))


def _documents(count: int) -> str:
    return f"{count:,} document is" if count == 1 else f"{count:,} documents are"
