"""Chat templates: the Jinja programs that tokenizers carry, run as `transformers` runs them.

The same template and messages give the same text, byte for byte. A template is a program of whoever made the model, and
Jinja's sandbox keeps it from files and objects, not from loops without end or `'a' * 3000000000`; what may allocate are
operators, filters and methods by the dozen. So it runs in a process of its own with limits, one for all conversations.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.untrusted.child import Child, Ended, lasting
from lora_jax.untrusted.json_text import shown

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]  # the characters [start, end) of a text

# For a tokenizer without a template: one turn is the short form of Alpaca's prompt (github.com/tatsu-lab).
PLAIN = """{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}\
{% if m['role'] == 'user' %}{{ '### Instruction:\n' }}{% endif %}{{ m['content'] + '\n\n' }}\
{% if m['role'] == 'user' %}{{ '### Response:\n' }}{% endif %}{% endif %}{% endfor %}"""

PROGRAM = Path(__file__).with_name("rendering.py")
SECONDS = 1.0  # of the processor's time, for one conversation

# Noncharacters of Unicode, put round what `{% generation %}` encloses.
_START, _END = "\ufdd0", "\ufdd1"


def render(
    template: str,
    messages: Messages,
    add_generation_prompt: bool = False,
    *,
    now: datetime | None = None,
    names: Mapping[str, str],
) -> str:
    """The conversation as one text. `names` are the tokenizer's special tokens, such as `bos_token`.

    `now` is what a template takes for the time, that of the call if it is not given. Raises InputError where the
    template is no template, or it refuses the messages.
    """
    return _render(template, messages, add_generation_prompt, now, names, marks=("", ""))


def generated(
    template: str, messages: Messages, *, now: datetime | None = None, names: Mapping[str, str]
) -> list[Span] | None:
    """Where the text of the assistant stands, of a template that marks it by `{% generation %}`; else None."""
    if "endgeneration" not in template:
        return None
    now = now or datetime.now()
    text = _render(template, messages, False, now, names, marks=(_START, _END))
    spans: list[Span] = []
    before, *pieces = text.split(_START)
    at = len(before)  # in the text without marks
    for piece in pieces:
        inside, end, after = piece.partition(_END)
        if not end:
            return None
        spans.append((at, at + len(inside)))
        at += len(inside) + len(after)
    whole = text.replace(_START, "").replace(_END, "")
    return spans if spans and whole == _render(template, messages, False, now, names, marks=("", "")) else None


def choose(found: Any, where: str) -> str | None:
    """The template of a `tokenizer_config.json`: the only one, or of several named ones the default."""
    if found is None or isinstance(found, str):
        return found
    try:
        named = found if isinstance(found, dict) else {one["name"]: one["template"] for one in found}
        if not all(isinstance(one, str) for one in named.values()):
            raise TypeError
    except (TypeError, KeyError) as error:
        raise InputError(f"{where}: chat_template is neither a text nor a list of named ones") from error
    if "default" not in named:
        raise InputError(
            f"{where}: of the chat templates {', '.join(map(shown, list(named)[:20]))} none is named 'default'"
        )
    return named["default"]


def _render(
    template: str,
    messages: Messages,
    opened: bool,
    now: datetime | None,
    names: Mapping[str, str],
    marks: tuple[str, str],
) -> str:
    if not messages:
        raise InputError("there is no message for the chat template: give at least one")
    question = {
        "template": template,
        "messages": [{key: value for key, value in message.items() if value is not None} for message in messages],
        "opened": opened,
        "now": now or datetime.now(),
        "marks": marks,
        "names": dict(names),
    }
    try:
        found = _renderer().ask(question, SECONDS)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"a message holds what is no plain data ({error})") from error
    except Ended as ended:
        raise InputError(f"the chat template refused these messages ({ended})") from ended
    if "text" in found:
        return found["text"]
    where = f"line {found['line']} of the chat template" if found["line"] else "the chat template"
    if "unread" in found:
        raise InputError(f"{where} cannot be read by Jinja ({found['said']})")
    raise InputError(f"{where} refused these messages ({found['said']})")


@cache
def _renderer() -> Child:
    return lasting(PROGRAM)
