"""What counting alone achieves: n-gram models on the same tokens, for a transformer's loss to be held against.

Letters: N sequences, T tokens in a sequence, M learned tokens, n the order of a model.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lora_jax.errors import InputError
from lora_jax.text.packing import Packed
from lora_jax.transformer import target_mask


def grams(packed: Packed, order: int, vocab_size: int) -> Int[np.ndarray, "M n"]:
    """Each token that a transformer is asked for, last, behind the n - 1 before it.

    What a transformer does not see is not seen here either: before a segment's first token stands `vocab_size`.
    """
    tokens, segments = packed.tokens.astype(np.int64), packed.segments
    learned = np.asarray(target_mask(packed.rows(slice(None)))) > 0  # (N, T), at the token before
    columns = []
    for back in range(order - 2, -1, -1):
        moved, there = (np.pad(x, ((0, 0), (back, 0)))[:, : x.shape[1]] for x in (tokens, segments))
        columns.append(np.where(there == segments, moved, vocab_size)[learned])
    return np.stack([*columns, np.roll(tokens, -1, axis=1)[learned]], axis=1)


def probabilities(
    seen: Int[np.ndarray, "M n"], asked: Int[np.ndarray, "A n"], vocab_size: int
) -> Float[np.ndarray, " A"]:
    """The probability of each n-gram's last token behind the others, by interpolated Kneser-Ney smoothing.

    `(max(c - d, 0) + d * kinds * lower) / total`: counts c less a discount d, what was discounted spread as the next
    lower order says; below unigrams, evenly. The highest order counts occurrences, a lower one the kinds of tokens in
    front (Kneser and Ney 1995; Chen and Goodman 1999, section 2.7). d is n1 / (n1 + 2 n2) of each order.
    """
    order, base = seen.shape[1], vocab_size + 1
    p = np.full(len(asked), 1 / vocab_size)
    for n in range(1, order + 1):
        counted = seen if n == order else np.unique(seen[:, order - n - 1 :], axis=0)[:, 1:]
        kinds, counts = np.unique(_number(counted, base), return_counts=True)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        d = once / (once + 2 * twice) if once else 0.5
        contexts, inverse = np.unique(kinds // base, return_inverse=True)
        wanted = _number(asked[:, order - n :], base)
        c = _look_up(wanted, kinds, counts)
        total = _look_up(wanted // base, contexts, np.bincount(inverse, counts))
        spread = _look_up(wanted // base, contexts, np.bincount(inverse))
        p = np.where(total > 0, (np.maximum(c - d, 0) + d * spread * p) / np.maximum(total, 1), p)
    return p


def nats(train: Packed, held_out: Packed, order: int, vocab_size: int) -> float:
    """The mean loss of the n-gram model of `train` on the tokens that a transformer is asked for in `held_out`."""
    if not 1 <= order <= 4:
        raise InputError(f"the order of an n-gram model is 1 to 4 here, not {order}")
    seen, asked = (grams(packed, max(order, 2), vocab_size)[:, -order:] for packed in (train, held_out))
    return float(-np.mean(np.log(probabilities(seen, asked, vocab_size))))


def _number(rows: Int[np.ndarray, "M n"], base: int) -> Int[np.ndarray, " M"]:
    """Each row as one number, its digits to the base."""
    number = np.zeros(len(rows), np.int64)
    for column in rows.T:
        number = number * base + column
    return number


def _look_up(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> Float[np.ndarray, " _"]:
    """The value of each wanted key among sorted keys, 0 where it is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0).astype(float)
