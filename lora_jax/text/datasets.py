"""Text by name, as sequences to train on and sequences to judge by: the poems, the stories, or the user's own."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lora_jax.text import stories
from lora_jax.text.corpora import poems, split_verse
from lora_jax.text.documents import Document, read_documents
from lora_jax.text.encoding import encode_document
from lora_jax.text.fitting import LENGTHS, choose_length
from lora_jax.text.packing import Packed, pack, split
from lora_jax.untrusted import files

BUILT_IN = ("poems", "stories")


def verse(tokenizer: Any, sequences: int, length: int, *, held_out: int = 128, seed: int = 0) -> tuple[Packed, Packed]:
    """Verse as `(training, held-out)` sequences: at least `sequences` to train on, and `held_out` to judge by."""
    passages = split_verse(poems(), train_passages=sequences * length // 100 + 50, seed=seed)
    kept = _packed(tokenizer, passages.held_out, length)
    spread = np.linspace(0, len(kept) - 1, held_out).astype(int)  # from every held-out block alike
    return _packed(tokenizer, passages.train, length), kept.take(spread)


def tales(tokenizer: Any, length: int) -> tuple[Packed, Packed]:
    """The stories as `(training, held-out)` sequences: every tenth is held out, whatever a run's seed."""
    told = stories.read()
    learned = [one for i, one in enumerate(told) if i % 10]
    return _packed(tokenizer, learned, length), _packed(tokenizer, told[::10], length)


def _packed(tokenizer: Any, texts: list[str], length: int) -> Packed:
    return pack([encode_document(tokenizer, Document(text=one)) for one in texts], length, tokenizer.pad_id or 0)


def read(data: str, say: Callable[[str], None] | None = None) -> Sequence[Document] | str:
    """The user's documents, or the name of a built-in text, unless there is a file or folder of that name."""
    return data if data in BUILT_IN and not files.exists(data) else read_documents(data, say)


def needs_template(found: Sequence[Document] | str) -> bool:
    """Whether some document is a conversation and nothing else, which only a chat template can write."""
    return not isinstance(found, str) and any(one.messages is not None and one.prompt is None for one in found)


def asked(found: Sequence[Document] | str) -> str:
    """How `generate` is asked for what was learned, as arguments: the first question, if it is short."""
    first = Document() if isinstance(found, str) else found[0]
    question = first.prompt or ""
    if first.messages is not None:
        question = next((one["content"] for one in first.messages if one["role"] == "user"), "")
    short = question.strip() and len(question) <= 80 and "\n" not in question
    said = shlex.quote(question) if short else '"your prompt"'
    return said if first.messages is None else f"--chat {said}"


def load(
    found: Sequence[Document] | str,
    tokenizer: Any,
    length: int | None,
    *,
    context: int = LENGTHS[-1],
    batch_size: int = 1,
    sequences: int = 1,
    held_out: float,
    seed: int,
) -> tuple[Packed, Packed]:
    """`(training, held-out)` of what `read` found. Of the poems as many as fill `sequences`; `held_out` is a share.

    A `length` of None is chosen by the documents, at most `context` and short enough for a batch; 128 for what is built
    in.
    """
    if isinstance(found, str):
        length = length or min(LENGTHS[0], context)
        return verse(tokenizer, sequences, length, seed=seed) if found == "poems" else tales(tokenizer, length)
    encoded = [encode_document(tokenizer, document) for document in found]
    if length is None:
        needed = -(-batch_size // max(1 - held_out, 0.1)) + 1
        length = choose_length(encoded, context, sequences=int(needed))
    return split(encoded, length, held_out, seed=seed, pad_id=tokenizer.pad_id or 0)
