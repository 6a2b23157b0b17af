"""From what the user names as data to the sequences of a run: packed, checked, and told to the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_jax.errors import InputError
from lora_jax.files.tokenizer import Tokenizer, with_plain_template
from lora_jax.text import Document, datasets, show
from lora_jax.text.encoding import check_ids
from lora_jax.text.packing import Packed
from lora_jax.transformer import Config

Say = Callable[[str], None]
Read = Mapping[str, Sequence[Document] | str]  # documents by the name of their data; or a built-in text's name
FEW = 0.05  # a share of learned tokens that is worth a second look


def with_template(say: Say, tokenizer: Tokenizer, read: Read) -> Tokenizer:
    """The tokenizer, with a plain chat template where it has none and some data cannot do without."""
    if tokenizer.chat_template is not None or not any(map(datasets.needs_template, read.values())):
        return tokenizer
    say(
        "this model's tokenizer has no chat template: conversations are written plainly, each question between the "
        "lines '### Instruction:' and '### Response:'"
    )
    return with_plain_template(tokenizer)


def pack(
    say: Say,
    config: Config,
    tokenizer: Tokenizer,
    read: Read,
    length: int | None,
    *,
    held_out: float,
    seed: int,
    settings: Mapping[str, Any],
    past: int = 0,
) -> dict[str, tuple[Packed, Packed]]:
    """`(training, held-out)` of each of the data, in sequences of one length, which the first choose if none is given.

    `past` positions are taken before each sequence. Raises InputError where a sequence is then longer than the model's
    context, or a token has no row in its embedding.
    """
    context, batch_size = config.max_position_embeddings - past, settings["batch_size"]
    if (length or 2) > context:
        taken = f"and {past:,} learned positions are {(length or 2) + past:,}, " if past else "is "
        raise InputError(
            f"--length {length or 2:,} {taken}more than the {config.max_position_embeddings:,} positions that this "
            f"model was made for: pass {context} or less" + (", or have fewer learned positions" if past else "")
        )
    packed: dict[str, tuple[Packed, Packed]] = {}
    how = {"context": context, "batch_size": batch_size, "sequences": settings["steps"] * batch_size}
    for name, found in read.items():
        chosen = "" if length else " (--length, chosen by the documents)"
        learned, kept = datasets.load(found, tokenizer, length, **how, held_out=held_out, seed=seed)
        length = learned.tokens.shape[1]
        say(f"{name}: {len(learned)} sequences of {length} tokens{chosen} to train on, {len(kept)} held out")
        for sentence in (learned.shortened + kept.shortened).sentences(length):
            say(f"{name}: {sentence}")
        share = show.share_learned(learned)
        say(f"{name}: sequences are {(learned.segments > 0).mean():.0%} full; {share:.0%} of the tokens are learned")
        if share < FEW:
            say(f"{name}: few tokens are learned: see below whether the answers are marked as they should be")
        for side in (learned, kept):
            check_ids(side.tokens[side.segments > 0], config.vocab_size)
        packed[name] = learned, kept
    return packed
