"""From a document to token ids, and a mask that says which of them are learned.

Letters: n tokens in a document. Ids and masks are numpy int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int32

from lora_jax.errors import InputError
from lora_jax.text.documents import Document

# Ids (n,) and mask (n,), which is 1 where a token is learned. The n of one document binds no other's, hence "_".
Encoded = tuple[Int32[np.ndarray, " _"], Int32[np.ndarray, " _"]]


def encode_document(tokenizer: Any, document: Document) -> Encoded:
    """Token ids (n,) and mask (n,): plain text is all learned, of prompts and conversations the answers only.

    The end token is appended and learned, so that a model learns to stop. A prompt and its completion are encoded
    apart, as they are in generation. A conversation is the tokenizer's chat template over its messages, up to the last
    assistant turn; learned is what the template adds to the opening of each such turn, its end token included. Raises
    InputError where there is no end token, no template, or one that writes earlier turns otherwise as others follow.
    """
    if tokenizer.eos_id is None:
        raise InputError("this tokenizer names no end token, without which a model cannot learn to stop")
    if document.messages is not None:
        pieces = _conversation(tokenizer, document)
    elif document.text is not None:
        pieces = [(document.text, 1)]
    else:
        pieces = [(document.prompt or "", 0), (document.completion or "", 1)]
    ids: list[int] = []
    mask: list[int] = []
    for text, learned in pieces:
        new = tokenizer.encode(text)
        ids += new
        mask += [learned] * len(new)
    if document.messages is None or ids[-1:] != [tokenizer.eos_id]:
        ids.append(tokenizer.eos_id)
        mask.append(1)
    return np.array(ids, np.int32), np.array(mask, np.int32)


def _conversation(tokenizer: Any, document: Document) -> list[tuple[str, int]]:
    """The rendered conversation in pieces, each with whether it is learned, by rendering longer and longer prefixes."""
    if tokenizer.chat_template is None:
        raise InputError(
            f"{document.where}: 'messages' need a chat template, and this tokenizer has none: "
            "give 'prompt' and 'completion', or use an instruction-tuned model's tokenizer"
        )
    messages = list(document.messages or ())
    pieces: list[tuple[str, int]] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        opened = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True)
        closed = tokenizer.apply_chat_template(messages[: i + 1])
        if not (opened.startswith(done) and closed.startswith(opened)):
            raise InputError(
                f"{document.where}: this tokenizer's chat template writes earlier turns otherwise once message {i + 1} "
                "follows, so the answer's tokens cannot be told apart: give 'prompt' and 'completion' instead"
            )
        answer = closed[len(opened) :].rstrip()  # what follows the end token is only the template's line break
        pieces += [(opened[len(done) :], 0), (answer, 1)]
        done = opened + answer
    return pieces


def check_ids(ids: Any, vocab_size: int) -> None:
    """Raise InputError, with both numbers, where a token id has no row among the `vocab_size` of the embedding."""
    if (top := int(np.max(ids, initial=0))) >= vocab_size:
        raise InputError(
            f"the tokenizer gives the token id {top}, but the model's embedding has {vocab_size} rows (0 to "
            f"{vocab_size - 1}): tokens were added to the tokenizer and the model was not resized; take the model's own"
        )
