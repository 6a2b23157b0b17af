"""From a document to token ids, and a mask that says which of them are learned.

Letters: n tokens in a document. Ids and masks are numpy int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int32

from lora_jax.errors import InputError
from lora_jax.files.chat_template import Span
from lora_jax.generation import check_ids
from lora_jax.text.documents import Document

__all__ = ["Encoded", "check_ids", "encode_document"]

# Ids (n,) and mask (n,), which is 1 where a token is learned. The n of one document binds no other's, hence "_".
Encoded = tuple[Int32[np.ndarray, " _"], Int32[np.ndarray, " _"]]


def encode_document(tokenizer: Any, document: Document) -> Encoded:
    """Token ids (n,) and mask (n,): plain text is all learned, of prompts and conversations the answers only.

    The ids are those of the whole text, a prompt and its completion side by side, since where one ends the tokenizer
    may join letters of both; a token is learned if it holds a character of an answer. A text begins as the tokenizer
    begins it (with BOS, where it does). An end token is learned behind it, so that a model learns to stop.

    A conversation is the tokenizer's chat template over its messages, up to the last assistant turn; learned is what
    the template marks by `{% generation %}`, or else what it adds to the opening of each such turn, with the end token
    behind it. A document that has a prompt and a completion beside its messages is a conversation where there is a
    template. Raises InputError where there is no end token, no template, or one that writes earlier turns otherwise as
    others follow.
    """
    if tokenizer.eos_id is None:
        raise InputError("this tokenizer names no end token, without which a model cannot learn to stop")
    talk = document.messages is not None and (tokenizer.chat_template is not None or document.prompt is None)
    if talk:
        text, answers = _conversation(tokenizer, document)
    elif document.text is not None:
        text, answers = document.text, [(0, len(document.text))]
    else:
        prompt = document.prompt or ""
        text = prompt + (document.completion or "")
        answers = [(len(prompt), len(text))]
    found = tokenizer.encoding(text, add_special_tokens=not talk)
    ids, spans = list(found.ids), found.spans
    if document.text is not None:
        mask = [1] * len(ids)
    else:
        mask = [int(any(a < end and start < b for a, b in answers)) for start, end in spans]
    for i in range(1, len(ids)):
        if mask[i - 1] and ids[i - 1] not in tokenizer.end_ids and ids[i] in tokenizer.end_ids:
            mask[i] = 1  # the end token behind what the template marks
    last = max((i for i, learned in enumerate(mask) if learned), default=len(ids) - 1)
    if not ids or ids[last] not in tokenizer.end_ids:
        mask[last + 1 :] = [1] * (len(ids) - last - 1)  # only a line break, after a turn that ends in another token
        ids, mask = [*ids, tokenizer.eos_id], [*mask, 1]
    return np.array(ids, np.int32), np.array(mask, np.int32)


def _conversation(tokenizer: Any, document: Document) -> tuple[str, list[Span]]:
    """The conversation as the template writes it, and where in it the answers stand."""
    if tokenizer.chat_template is None:
        raise InputError(
            f"{document.where}: 'messages' need a chat template, and this tokenizer has none: "
            "give 'prompt' and 'completion', or use an instruction-tuned model's tokenizer"
        )
    messages = list(document.messages or ())
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    messages = messages[: turns[-1] + 1]
    try:
        text = tokenizer.apply_chat_template(messages)
        marked = tokenizer.generated(messages)
        return text, marked if marked is not None else [_answer(tokenizer, messages, i, text) for i in turns]
    except InputError as error:
        raise InputError(f"{document.where}: {error}") from error


def _answer(tokenizer: Any, messages: list[dict[str, str]], i: int, text: str) -> Span:
    """Where the answer of message i stands in the text: between the texts of the messages before it and with it."""
    opened = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True)
    closed = tokenizer.apply_chat_template(messages[: i + 1])
    answer = closed[len(opened) :].rstrip()  # what follows the end token is only the template's line break
    if not (closed.startswith(opened) and text.startswith(opened + answer)):
        raise InputError(
            f"this tokenizer's chat template writes earlier turns otherwise once message {i + 1} follows, so the "
            "answer's tokens cannot be told apart: give 'prompt' and 'completion' instead"
        )
    return len(opened), len(opened) + len(answer)
