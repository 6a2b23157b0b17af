"""The user's own documents: plain text, or JSON lines with text, prompts and completions, or conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError


@dataclass(frozen=True)
class Document:
    """One piece of the user's data: `text`, or `prompt` and `completion`, or the `messages` of a conversation."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    where: str = "the document"  # the file, and the line in it, for messages about mistakes


def read_documents(path: str | Path) -> list[Document]:
    r"""The documents of a file, or of every .txt and .jsonl file in a folder and the folders inside it, by name.

    A file is one document, whatever its name. A .jsonl file has one on each line: an object with the field `text`, the
    fields `prompt` and `completion`, or the field `messages`, a list of objects with `role` (system, user, assistant or
    tool) and `content`; its other fields are left alone. Raises InputError, with file and line, for anything else.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".jsonl") and file.is_file())
        if not files:
            raise InputError(f"{path}: no .txt or .jsonl file in this folder")
    else:
        files = [path]
    return [document for file in files for document in _read_file(file)]


def _read_file(file: Path) -> Iterator[Document]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {number}: not UTF-8 text: save it as UTF-8") from error
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{file}, line {number}: a NUL byte: this is a binary file, not text")
    if not text.strip():
        raise InputError(f"{file}: empty: there is nothing to learn from")
    if file.suffix != ".jsonl":
        yield Document(text=text, where=str(file))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parse_line(line, f"{file}, line {number}")


def _parse_line(line: str, where: str) -> Document:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f'{where}: not JSON ({error.msg}, column {error.colno}): write {{"text": "..."}}') from error
    except RecursionError as error:
        raise InputError(f'{where}: nested too deeply: write {{"text": "..."}}') from error
    if not isinstance(fields, dict):
        raise InputError(f'{where}: a JSON {_kind(fields)}, not an object such as {{"text": "..."}}')
    known = {name: fields[name] for name in ("text", "prompt", "completion", "messages") if name in fields}
    if set(known) not in ({"text"}, {"prompt", "completion"}, {"messages"}):
        found = ", ".join(map(repr, fields)) or "none"
        raise InputError(
            f"{where}: fields {found}: give 'text', or 'prompt' and 'completion', or 'messages', and one of these"
        )
    if "messages" in fields:
        return Document(messages=_parse_messages(fields["messages"], where), where=where)
    for name, value in known.items():
        _check_text(value, name, where)
        if not value.strip():
            raise InputError(f"{where}: {name!r} is empty")
    return Document(**known, where=where)


def _parse_messages(messages: Any, where: str) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list):
        raise InputError(f"{where}: 'messages' is a JSON {_kind(messages)}, not a list")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise InputError(f"{where}: message {number} is not an object with 'role' and 'content', only")
        _check_text(message["content"], f"content of message {number}", where)
        if message["role"] not in ("system", "user", "assistant", "tool"):
            known = "'system', 'user', 'assistant' or 'tool'"
            raise InputError(f"{where}: message {number} has the role {message['role']!r}, not {known}")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise InputError(f"{where}: no message has the role 'assistant': there is nothing to learn")
    if roles[0] == "assistant":
        raise InputError(f"{where}: the first message has the role 'assistant': begin with 'user' or 'system'")
    return tuple(messages)


def _check_text(value: Any, name: str, where: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{where}: {name!r} is a JSON {_kind(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {name!r} holds half of a surrogate pair: it is not Unicode text") from error


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
