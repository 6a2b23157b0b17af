"""A sequence as the model sees it: its tokens as text, what is learned marked, each document apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from lora_jax.text.packing import Packed
from lora_jax.transformer import target_mask

MOST = 6  # documents of a sequence that are shown
END = 40  # tokens shown at each end of a longer stretch
LEGEND = (
    "The first sequence as the model sees it: learned is what stands in ⟦ ⟧, the rest is only read; "
    "no document sees another."
)


def learned_tokens(batch: dict[str, Int32[np.ndarray, "B T"]]) -> Bool[np.ndarray, "B T"]:
    """Which tokens are predicted and learned: those of the mask, but never a document's first."""
    learned = np.zeros(batch["tokens"].shape, bool)
    learned[:, 1:] = np.asarray(target_mask(batch))[:, :-1] > 0
    return learned


def share_learned(packed: Packed) -> float:
    """The share of the tokens, padding aside, that are learned."""
    batch = packed.rows(slice(None))
    return float(learned_tokens(batch).sum() / max((packed.segments > 0).sum(), 1))


def example(tokenizer: Any, batch: dict[str, Int32[np.ndarray, "B T"]]) -> dict[str, Any]:
    """The first sequence of a batch, for a program (`tokens`, `learned`, `segments`) and for a person (`text`).

    Special tokens are written out, a long stretch is shortened in its middle, and of many documents some are shown.
    """
    tokens, segments = batch["tokens"][0], batch["segments"][0]
    learned = learned_tokens(batch)[0]
    documents = int(segments.max())
    lines = [LEGEND]
    for number in range(1, min(documents, MOST) + 1):
        here = segments == number
        lines.append(f"--- document {number} of {documents}: {here.sum()} tokens, {learned[here].sum()} learned")
        lines.append(marked(tokenizer, tokens[here], learned[here]))
    if documents > MOST:
        more = documents - MOST
        lines.append(f"--- {more} more document{'s' if more > 1 else ''}")
    padding = int((segments == 0).sum())
    lines.append(f"--- end of the sequence{f', behind {padding} tokens of padding' if padding else ''}")
    return {
        "tokens": tokens.tolist(),
        "learned": learned.astype(int).tolist(),
        "segments": segments.tolist(),
        "text": "\n".join(lines),
    }


def marked(tokenizer: Any, ids: Int32[np.ndarray, " n"], learned: Bool[np.ndarray, " n"]) -> str:
    """The text of one document's tokens, what is learned in ⟦ ⟧."""
    changes = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    parts = []
    for start, stop in pairwise(changes):
        cuts = [start, stop] if stop - start <= 3 * END else [start, start + END, stop - END, stop]
        texts = list(_texts(tokenizer, ids, cuts))
        if len(texts) == 3:
            texts[1] = f" [... {stop - start - 2 * END} tokens ...] "
        part = "".join(texts)
        parts.append(f"⟦{part}⟧" if learned[start] else part)
    return "".join(parts)


def _texts(tokenizer: Any, ids: Int32[np.ndarray, " n"], cuts: list[int]) -> Iterator[str]:
    """The text between each two cuts. A tokenizer decodes a whole text, not a part: space and letters may be shared."""
    whole = tokenizer.decode(ids, skip_special=False)
    ends = [
        len(whole) if cut == len(ids) else _shared(whole, tokenizer.decode(ids[:cut], skip_special=False))
        for cut in cuts
    ]
    yield from (whole[start:stop] for start, stop in pairwise(np.maximum.accumulate(ends).tolist()))


def _shared(a: str, b: str) -> int:
    """How many letters two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
