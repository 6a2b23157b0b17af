"""From encoded documents to batches: hold some out, pack into sequences of one length, draw batches.

Letters: N sequences, T tokens in a sequence, B sequences in a batch. Everything is numpy: what
reaches a device is one batch at a time. Tokens, masks, segments and positions are int32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from lora_jax.errors import InputError
from lora_jax.text.encoding import Encoded


@dataclass(frozen=True)
class Packed:
    """N sequences of T tokens, documents side by side in them."""

    tokens: Int32[np.ndarray, "N T"]
    mask: Int32[np.ndarray, "N T"]  # 1 where a token is learned
    segments: Int32[np.ndarray, "N T"]  # 1, 2, ... for the documents in a row; 0 is padding
    positions: Int32[np.ndarray, "N T"]  # 0, 1, ... within a segment

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, rows: Any) -> dict[str, Int32[np.ndarray, "B T"]]:
        """The rows named by an index, a slice or a boolean array, as a batch."""
        return {name: getattr(self, name)[rows] for name in ("tokens", "mask", "segments", "positions")}


def pack(encoded: Sequence[Encoded], length: int, pad_id: int = 0) -> Packed:
    """Documents one behind the other, cut into sequences of `length` tokens; the last is filled up with padding.

    No token is lost. A document cut by a sequence's end goes on in the next one as a new segment with positions from 0.
    The first token of a segment has nothing before it, so it is never predicted. Raises InputError where all the text
    is shorter than one sequence.
    """
    total = sum(len(ids) for ids, _ in encoded)
    if total < length:
        raise InputError(
            f"the text has {total:,} tokens, fewer than the {length:,} of one sequence: "
            f"pass --length {max(total, 1)} or less, or give more text"
        )
    sizes = np.array([len(ids) for ids, _ in encoded])
    N = -(-total // length)

    def rows(values: Any, filling: int) -> Int32[np.ndarray, "N T"]:
        filled = np.full(N * length, filling, np.int32)
        filled[:total] = values
        return filled.reshape(N, length)

    at = np.arange(total)
    starts = at % length == 0
    starts[(np.cumsum(sizes) - sizes)[sizes > 0]] = True
    positions = at - np.maximum.accumulate(np.where(starts, at, 0))
    numbers = np.cumsum(starts)
    numbers -= numbers[at - at % length] - 1
    return Packed(
        tokens=rows(np.concatenate([ids for ids, _ in encoded]), pad_id),
        mask=rows(np.concatenate([mask for _, mask in encoded]), 0),
        segments=rows(numbers, 0),
        positions=rows(positions, 0),
    )


def split(
    encoded: Sequence[Encoded], length: int, held_out: float = 0.1, *, seed: int = 0, pad_id: int = 0
) -> tuple[Packed, Packed]:
    """`(training, held-out)`, packed: the share `held_out` of the tokens, in places drawn at random.

    Whole documents are held out where documents that small can make up the share; copies of one document stay on one
    side. Otherwise (one long text) blocks of neighbouring sequences are, and the sequences beside a block are dropped,
    so that no held-out sentence goes on in training. Raises InputError where too little is left on either side.
    """
    if not 0 < held_out < 1:
        raise InputError(f"the held-out share is {held_out}: give a number between 0 and 1, such as 0.1")
    rng = np.random.default_rng(seed)
    total = sum(len(ids) for ids, _ in encoded)
    goal = max(held_out * total, length)
    copies: dict[bytes, list[int]] = {}
    for i, (ids, _) in enumerate(encoded):
        copies.setdefault(ids.tobytes(), []).append(i)
    groups = list(copies.values())
    chosen: set[int] = set()
    held = 0
    for g in rng.permutation(len(groups)):
        size = sum(len(encoded[i][0]) for i in groups[g])
        if held < goal and held + size <= 1.25 * goal:
            chosen.update(groups[g])
            held += size
    if held >= goal and total - held >= length:
        train = [document for i, document in enumerate(encoded) if i not in chosen]
        return pack(train, length, pad_id), pack([encoded[i] for i in sorted(chosen)], length, pad_id)

    packed = pack(encoded, length, pad_id)
    whole = total // length  # sequences without padding: the last, ragged one is never held out
    count = max(1, round(held_out * whole))
    blocks = min(8, -(-count // 8))
    if whole < count + 2 * blocks + 1:
        raise InputError(
            f"the text has {total:,} tokens, {whole} sequences of {length:,}: too few to hold out {held_out:.0%} and "
            f"train on the rest ({count + 2 * blocks + 1} are needed): pass a smaller --length or give more text"
        )
    side = np.zeros(len(packed), np.int32)  # 0 training, 1 dropped, 2 held out
    for block in range(blocks):
        size = count * (block + 1) // blocks - count * block // blocks
        low, high = whole * block // blocks, whole * (block + 1) // blocks
        start = rng.integers(low, high - size + 1)
        side[max(start - 1, 0) : start + size + 1] |= 1
        side[start : start + size] |= 2
    return Packed(**packed.rows(side == 0)), Packed(**packed.rows(side >= 2))


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
