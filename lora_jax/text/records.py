"""From the fields of a record to the document that they make. `SHAPES` is what is known, all of it.

A question with its answer becomes a conversation, and beside it the same in plain text, for tokenizers without a chat
template. Only `prompt` with `completion` is taken to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from lora_jax.errors import InputError
from lora_jax.text.messages import check_text, kind, read_messages
from lora_jax.untrusted.json_text import shown


@dataclass(frozen=True)
class Document:
    """One piece of the user's data: `text`, or `prompt` and `completion`, or the `messages` of a conversation.

    An instruction and its answer are both: `messages`, and their plain writing as `prompt` and `completion`.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    where: str = "the document"  # the file, and the line in it, for messages about mistakes


class Shape(NamedTuple):
    """Names of fields: what asks, what answers (one of these), and what may stand behind the question."""

    asks: str
    answers: tuple[str, ...]
    more: tuple[str, ...] = ()
    exact: bool = False  # the two texts as they are: nothing is put in front, between or behind


SHAPES = (
    Shape("prompt", ("completion",), exact=True),
    Shape("instruction", ("output", "response", "completion", "answer"), ("input", "context")),  # Alpaca, Dolly
    Shape("question", ("answer", "response", "output"), ("input", "context")),
    Shape("query", ("response", "answer", "output")),
    Shape("problem", ("solution", "answer")),
    Shape("prompt", ("response", "output", "answer")),
    Shape("input", ("output", "response", "answer")),
    Shape("inputs", ("targets", "outputs")),
    Shape("user", ("assistant",)),
    Shape("human", ("assistant",)),
)
CONVERSATIONS = ("messages", "conversations", "conversation")
SYSTEM = ("system", "system_prompt")
GIVE = (
    "give 'text', or 'prompt' and 'completion', or 'instruction' and 'output', or 'messages', and only one of these "
    "(docs/data.md lists all that are read)"
)
# What would change the meaning of the rest, and is not read.
NOT_READ = {
    "tools": "what a model may call",
    "functions": "what a model may call",
    "history": "earlier turns: write them as 'messages'",
    "choices": "a multiple choice: write it out in the question",
    "options": "a multiple choice: write it out in the question",
    "images": "pictures",
    "image": "a picture",
}


class Found(NamedTuple):
    """What a record is: a document, or None where its answer is empty; the fields read, and those left alone."""

    document: Document | None
    read: tuple[str, ...]
    left: tuple[str, ...]


def known(names: list[str]) -> bool:
    """Whether fields of these names make a document."""
    names = [name.strip().lower() for name in names]
    pairs = any(shape.asks in names and set(shape.answers) & set(names) for shape in SHAPES)
    return pairs or bool(set(names) & {"text", *CONVERSATIONS, "chosen", "rejected"})


def read_record(fields: Any, where: str) -> Found:
    """The document of one record. Raises InputError, with `where`, for fields that are unknown or mean two things."""
    if not isinstance(fields, dict):
        raise InputError(f'{where}: a JSON {kind(fields)}, not an object such as {{"text": "..."}}')
    names = [name.strip().lower() for name in fields]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{where}: the field {shown(twice)} stands there twice: keep one")
    named = dict(zip(names, fields.values(), strict=True))
    given = {name: value for name, value in named.items() if value is not None and value == value}
    full = {name: value for name, value in given.items() if value not in ("", [], {})}
    _refuse_preferences(full, where)

    talks = [name for name in CONVERSATIONS if name in full] or [name for name in CONVERSATIONS if name in given]
    pairs = _pairs(given) or ([] if "text" in given or talks else _pairs(named))
    if talks:
        read: tuple[str, ...] = (talks[0],)
        if len(talks) > 1:
            raise InputError(f"{where}: both {shown(talks[0])} and {shown(talks[1])}: keep one")
        document: Document | None = Document(
            messages=read_messages(given[read[0]], read[0], where, _system(full, where)), where=where
        )
        read += tuple(name for name in SYSTEM if name in full)
    elif pairs:
        shape, answer = pairs[0]
        if other := next((found for _, found in pairs if found != answer), None):
            raise InputError(f"{where}: two answers, {shown(answer)} and {shown(other)}: keep one")
        if shape.exact and "text" in given:
            raise InputError(f"{where}: fields {_listed(fields)}: {GIVE}")
        document, read = _pair(shape, answer, named, full, where)
    elif "text" in named and not {"prompt", "completion", "instruction", "question"} & set(full):
        if "role" in full:
            raise InputError(f"{where}: one message: put those of a conversation into one record, as 'messages'")
        check_text(named["text"], "text", where, empty=False)
        document, read = Document(text=named["text"], where=where), ("text",)
    elif {"role", "content"} <= set(full) or {"from", "value"} <= set(full):
        raise InputError(f"{where}: one message: put those of a conversation into one record, as 'messages'")
    elif talks_null := next((name for name in CONVERSATIONS if name in named), None):
        raise InputError(f"{where}: {shown(talks_null)} is a JSON {kind(named[talks_null])}, not a list")
    else:
        raise InputError(f"{where}: fields {_listed(fields)}: {GIVE}")
    for name in set(full) & set(NOT_READ) - set(read):
        if "text" not in read:
            raise InputError(
                f"{where}: {shown(name)}, {NOT_READ[name]}, is not read, and the rest means little without it"
            )
    return Found(document, read, tuple(name for name in full if name not in read))


def _pairs(fields: dict[str, Any]) -> list[tuple[Shape, str]]:
    """The shapes whose two fields are there, and each one's answer."""
    return [(shape, name) for shape in SHAPES if shape.asks in fields for name in shape.answers if name in fields]


def _pair(
    shape: Shape, answer: str, named: dict[str, Any], full: dict[str, Any], where: str
) -> tuple[Document | None, tuple[str, ...]]:
    asked, answered = named[shape.asks], named[answer]
    if isinstance(asked, list) and isinstance(answered, list):
        return _turns(asked, answered, (shape.asks, answer), where), (shape.asks, answer)
    if shape.exact:
        check_text(asked, shape.asks, where, empty=False)
        check_text(answered, answer, where, empty=False)
        return Document(prompt=asked, completion=answered, where=where), (shape.asks, answer)
    more = tuple(name for name in shape.more if name in full and name != answer)
    system = _system(full, where)
    read = (shape.asks, *more, answer, *(name for name in SYSTEM if name in full))
    check_text(asked, shape.asks, where, empty=False)
    for name in more:
        check_text(full[name], name, where)
    if answered is None or answered != answered or (isinstance(answered, str) and not answered.strip()):
        return None, read
    check_text(answered, answer, where)
    question = "\n\n".join([asked, *(full[name] for name in more if full[name].strip())])
    messages = [*system, {"role": "user", "content": question}, {"role": "assistant", "content": answered}]
    before = "".join(f"{message['content']}\n\n" for message in system)
    prompt = f"{before}### Instruction:\n{question}\n\n### Response:\n"
    return Document(prompt=prompt, completion=answered, messages=tuple(messages), where=where), read


def _turns(asked: list[Any], answered: list[Any], names: tuple[str, str], where: str) -> Document:
    """Two lists of messages, of which the second is learned: a conversation, where only that holds answers."""
    if any(isinstance(one, dict) and one.get("role") == "assistant" for one in asked):
        raise InputError(f"{where}: {shown(names[0])} holds an answer, which would be learned too: give 'messages'")
    return Document(messages=read_messages([*asked, *answered], f"{names[0]}' and '{names[1]}", where), where=where)


def _system(full: dict[str, Any], where: str) -> list[dict[str, str]]:
    name = next((name for name in SYSTEM if name in full), None)
    if name is None:
        return []
    check_text(full[name], name, where)
    return [{"role": "system", "content": full[name]}] if full[name].strip() else []


def _refuse_preferences(full: dict[str, Any], where: str) -> None:
    pair: list[str] = [name for name in ("chosen", "rejected") if name in full]
    if not pair and isinstance(full.get("label"), bool) and {"prompt", "completion"} <= set(full):
        pair = ["label"]
    if pair:
        raise InputError(
            f"{where}: preferences ({', '.join(map(shown, pair))}) teach by comparing answers, which is not done here: "
            "give the good answers alone, as 'prompt' and 'completion' or as 'messages'"
        )


def _listed(fields: dict[str, Any]) -> str:
    more = f" and {len(fields) - 20} more" if len(fields) > 20 else ""
    return (", ".join(map(shown, list(fields)[:20])) or "none") + more
