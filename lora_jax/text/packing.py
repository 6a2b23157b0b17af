"""From encoded documents to batches: hold some out, pack into sequences of one length, draw batches.

Letters: N sequences, T tokens in a sequence, B sequences in a batch. Everything is numpy: what
reaches a device is one batch at a time. Tokens, masks, segments and positions are int32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int32

from lora_jax.errors import InputError
from lora_jax.text.encoding import Encoded
from lora_jax.text.fitting import Piece, Shortened, kept_sizes, plan

LEARNED, NEITHER, HELD = 0, 1, 2  # the sides of a split
NOTHING = Shortened()


@dataclass(frozen=True)
class Packed:
    """N sequences of T tokens, documents side by side in them."""

    tokens: Int32[np.ndarray, "N T"]
    mask: Int32[np.ndarray, "N T"]  # 1 where a token is learned
    segments: Int32[np.ndarray, "N T"]  # 1, 2, ... for the documents in a row; 0 is padding
    positions: Int32[np.ndarray, "N T"]  # 0, 1, ... within a segment
    shortened: Shortened = NOTHING  # how many of the documents are not in them whole

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Any) -> Packed:
        """The rows named by an index array or a slice, alone."""
        return Packed(**self.rows(rows), shortened=self.shortened)

    def rows(self, rows: Any) -> dict[str, Int32[np.ndarray, "B T"]]:
        """The rows named by an index, a slice or a boolean array, as a batch."""
        return {name: getattr(self, name)[rows] for name in ("tokens", "mask", "segments", "positions")}


def pack(encoded: Sequence[Encoded], length: int, pad_id: int = 0) -> Packed:
    """Documents side by side in sequences of `length` tokens, filled up with padding, as `fitting.plan` places them.

    A document that fits is whole; a longer text goes on in pieces, each a segment with positions from 0, and none of it
    is lost; what has a prompt and is longer is truncated or dropped, as `shortened` tells. The first token of a segment
    has nothing before it, so it is never predicted. Raises InputError where all the text is shorter than one sequence,
    or nothing of it is left.
    """
    sizes, shortened = kept_sizes(encoded, length)
    total = int(sizes.sum())
    if not total:
        why = " ".join(f"{sentence}." for sentence in shortened.sentences(length)) or "There is no document."
        raise InputError(f"nothing to learn from is left. {why} Pass a larger --length or give other data")
    _check_size(total, length)
    return _lay_out(encoded, plan(sizes, length), length, pad_id, shortened)


def _check_size(total: int, length: int) -> None:
    if total < length:
        raise InputError(
            f"the text has {total:,} tokens, fewer than the {length:,} of one sequence: "
            f"pass --length {total} or less, or give more text"
        )


def _lay_out(
    encoded: Sequence[Encoded], rows: list[list[Piece]], length: int, pad_id: int, shortened: Shortened
) -> Packed:
    pieces = [piece for row in rows for piece in row]
    sizes = np.array([piece.stop - piece.start for piece in pieces])
    counts = np.array([len(row) for row in rows])
    row = np.repeat(np.arange(len(rows)), counts)
    firsts = np.cumsum(counts) - counts  # the number of each sequence's first piece
    before = np.cumsum(sizes) - sizes  # tokens in front of each piece
    starts = row * length + before - before[firsts][row]
    positions = np.arange(sizes.sum()) - np.repeat(before, sizes)
    at = np.repeat(starts, sizes) + positions
    numbers = np.arange(len(pieces)) - firsts[row] + 1

    def filled(values: Any, filling: int) -> Int32[np.ndarray, "N T"]:
        array = np.full(len(rows) * length, filling, np.int32)
        array[at] = values
        return array.reshape(len(rows), length)

    ids, masks = (np.concatenate([encoded[i][part][start:stop] for i, start, stop in pieces]) for part in (0, 1))
    return Packed(
        tokens=filled(ids, pad_id),
        mask=filled(masks, 0),
        segments=filled(np.repeat(numbers, sizes), 0),
        positions=filled(positions, 0),
        shortened=shortened,
    )


def split(
    encoded: Sequence[Encoded], length: int, held_out: float = 0.1, *, seed: int = 0, pad_id: int = 0
) -> tuple[Packed, Packed]:
    """`(training, held-out)`, packed by the same rule: the share `held_out` of the tokens, in places drawn at random.

    Whole documents are held out where documents that small can make up the share; copies of one document stay on one
    side. Otherwise (a long text) blocks of neighbouring sequences' worth of it are, and as much on both sides of a
    block is dropped, so that no held-out sentence goes on in training. Where no text is that long, whole documents make
    up more than the share. Raises InputError where too little is left on either side.
    """
    if not 0 < held_out < 1:
        raise InputError(f"the held-out share is {held_out}: give a number between 0 and 1, such as 0.1")
    rng = np.random.default_rng(seed)
    sizes = kept_sizes(encoded, length)[0].tolist()
    copies: dict[bytes, list[int]] = {}
    for i, (ids, _) in enumerate(encoded):
        copies.setdefault(ids.tobytes(), []).append(i)
    groups = list(copies.values())
    order = rng.permutation(len(groups)).tolist()
    total = sum(sizes)
    goal = max(held_out * total, length)

    def whole_documents(most: float) -> set[int]:
        chosen: set[int] = set()
        held = 0
        for group in (groups[g] for g in order):
            size = sum(sizes[i] for i in group)
            if held < goal and held + size <= most:
                chosen.update(group)
                held += size
        return chosen if held >= goal and total - held >= length else set()

    chosen = whole_documents(1.25 * goal)
    runs = {} if chosen else _blocks(sizes, groups, length, held_out, rng)
    chosen = chosen or (set() if runs else whole_documents(total))
    if not chosen and not runs:
        if total:
            _check_size(total, length)
        count, blocks = _share(total // length, held_out)
        raise InputError(
            f"the text has {total:,} tokens, {total // length} sequences of {length:,}: too few to hold out "
            f"{held_out:.0%} and train on the rest ({count + 2 * blocks + 1} are needed): "
            "pass a smaller --length or give more text"
        )
    sides: dict[int, list[Encoded]] = {LEARNED: [], NEITHER: [], HELD: []}
    for i, (ids, mask) in enumerate(encoded):
        for start, stop, side in runs.get(i, [(0, len(ids), HELD if i in chosen else LEARNED)]):
            sides[side].append((ids[start:stop], mask[start:stop]))
    return pack(sides[LEARNED], length, pad_id), pack(sides[HELD], length, pad_id)


def _share(whole: int, held_out: float) -> tuple[int, int]:
    """How many of `whole` sequences' worth to hold out, and in how many blocks."""
    count = max(1, round(held_out * whole))
    return count, min(8, -(-count // 8))


def _blocks(
    sizes: list[int], groups: list[list[int]], length: int, held_out: float, rng: np.random.Generator
) -> dict[int, list[tuple[int, int, int]]]:
    """Runs `(start, stop, side)` of each text longer than a sequence, where blocks of them are held out.

    Copies of a text have the same runs. Without any where the texts are too short for it.
    """
    long = [group for group in groups if sizes[group[0]] > length]
    counts = np.array([sizes[group[0]] // length for group in long], int)
    whole = int(counts.sum())
    count, blocks = _share(sum(sizes[group[0]] for group in groups) // length, held_out)
    if whole < count + 2 * blocks + 1:
        return {}
    sides = np.full(whole, LEARNED)
    for block in range(blocks):
        size = count * (block + 1) // blocks - count * block // blocks
        low, high = whole * block // blocks, whole * (block + 1) // blocks
        start = rng.integers(low, high - size + 1)
        sides[max(start - 1, 0) : start + size + 1] |= NEITHER
        sides[start : start + size] |= HELD
    runs: dict[int, list[tuple[int, int, int]]] = {}
    for group, of_one in zip(long, np.split(np.minimum(sides, HELD), np.cumsum(counts)[:-1]), strict=True):
        cuts = [0, *(np.flatnonzero(np.diff(of_one)) + 1).tolist(), len(of_one)]
        found = [(first * length, last * length, int(of_one[first])) for first, last in pairwise(cuts)]
        at, end, side = found[-1]
        size = sizes[group[0]]
        if side == HELD and size > end:  # the ragged end is never held out, and beside what is, it is dropped
            found.append((end, size, NEITHER))
        else:
            found[-1] = (at, size, side)
        runs |= dict.fromkeys(group, found)
    return runs


class Batches:
    """Batches without end, each found by its step: `batches[step]` is a dict of int32 arrays (B, T).

    Every epoch is its own permutation of the N sequences; epochs follow one another without a seam, and step s takes
    sequences s*B to (s+1)*B - 1 of that row. So nothing is dropped, and after any number of steps no sequence was seen
    more than once oftener than another. `len` is the number of steps that show every sequence, ceil(N / B), and
    iterating yields those. Raises InputError where a batch is larger than N.
    """

    def __init__(self, packed: Packed, batch_size: int, *, seed: int = 0) -> None:
        if not 1 <= batch_size <= len(packed):
            raise InputError(
                f"a batch of {batch_size} sequences needs as many to draw from, and there are {len(packed)}: "
                f"pass --batch-size from 1 to {len(packed)}, a smaller --length, or give more text"
            )
        self.packed, self.batch_size, self.seed = packed, batch_size, seed
        self.tokens_per_batch = batch_size * packed.tokens.shape[1]

    def __len__(self) -> int:
        return -(-len(self.packed) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Int32[np.ndarray, "B T"]]:
        if step < 0:
            raise IndexError(f"step {step}: steps count from 0")
        N = len(self.packed)
        first = step * self.batch_size
        last = first + self.batch_size - 1
        epochs = range(first // N, last // N + 1)
        order = np.concatenate([np.random.default_rng((self.seed, epoch)).permutation(N) for epoch in epochs])
        offset = first - epochs[0] * N
        return self.packed.rows(order[offset : offset + self.batch_size])

    def __iter__(self) -> Iterator[dict[str, Int32[np.ndarray, "B T"]]]:
        return (self[step] for step in range(len(self)))

    @staticmethod
    def in_order(packed: Packed, batch_size: int) -> list[dict[str, Int32[np.ndarray, "B T"]]]:
        """Batches of one shape that hold every sequence once, in order; padding (segment 0) fills up the last."""
        missing = -len(packed) % batch_size
        rows = packed.rows(slice(None))
        filled = {name: np.pad(array, ((0, missing), (0, 0))) for name, array in rows.items()}
        starts = range(0, len(packed) + missing, batch_size)
        return [{name: array[at : at + batch_size] for name, array in filled.items()} for at in starts]
