"""The messages of a conversation, written as `role` and `content`, or as ShareGPT's `from` and `value`."""

from __future__ import annotations

from typing import Any

from lora_jax.errors import InputError
from lora_jax.untrusted.json_text import shown

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# Of a message, what would change its meaning; other fields (a date, a language) are left alone.
NOT_READ = ("tool_calls", "function_call", "reasoning_content", "thinking", "images", "audio")


def read_messages(
    given: Any, name: str, where: str, system: list[dict[str, str]] | None = None
) -> tuple[dict[str, str], ...]:
    """Messages of `role` and `content`, `system` in front. Raises InputError, with `where`, for what is no message.

    There must be an assistant's message, and something before the first one: else there is nothing to learn, or nothing
    to answer.
    """
    if not isinstance(given, list):
        raise InputError(f"{where}: {shown(name)} is a JSON {kind(given)}, not a list")
    messages = list(system or [])
    messages += [_message(message, number, where) for number, message in enumerate(given, 1)]
    roles = [message["role"] for message in messages]
    if system and roles[1:2] == ["system"]:
        raise InputError(f"{where}: a system message in {shown(name)} and one beside it: keep one")
    if "assistant" not in roles:
        raise InputError(f"{where}: no message has the role 'assistant': there is nothing to learn")
    if roles[0] == "assistant":
        raise InputError(f"{where}: the first message has the role 'assistant': begin with 'user' or 'system'")
    return tuple(messages)


def _message(message: Any, number: int, where: str) -> dict[str, str]:
    fields = message if isinstance(message, dict) else {}
    names = next((pair for pair in (("role", "content"), ("from", "value")) if set(pair) <= set(fields)), None)
    if names is None:
        raise InputError(f"{where}: message {number} is not an object with 'role' and 'content', or 'from' and 'value'")
    role, content = (fields[name] for name in names)
    for name in NOT_READ:
        if fields.get(name):
            raise InputError(f"{where}: {shown(name)} of message {number} is not read, and it would be missed")
    match content:
        case [{"type": "text", "text": only}]:  # in parts, of which there is one
            content = only
    check_text(content, f"{names[1]} of message {number}", where)
    if not isinstance(role, str) or role.lower() not in ROLES:
        known = "'system', 'user', 'assistant' or 'tool'"
        raise InputError(f"{where}: message {number} has the role {shown(role)}, not {known}")
    role = ROLES[role.lower()]
    for name in ("weight", "train"):
        if role == "assistant" and fields.get(name, 1) not in (1, None):  # True is 1
            raise InputError(
                f"{where}: {shown(name)} of message {number} is {shown(fields[name])}: every answer is learned here"
            )
    return {"role": role, "content": content}


def check_text(value: Any, name: str, where: str, *, empty: bool = True) -> None:
    """Raise InputError where a value is no string, no Unicode text, or blank and must not be."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {shown(name)} is a JSON {kind(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {shown(name)} holds half of a surrogate pair: it is not Unicode text") from error
    if not empty and not value.strip():
        raise InputError(f"{where}: {shown(name)} is empty")


def kind(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
