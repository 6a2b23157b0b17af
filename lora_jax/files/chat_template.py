"""Chat templates: the Jinja programs that tokenizers carry, run as `transformers` runs them.

The source of what a template may use: https://huggingface.co/docs/transformers/chat_templating. The same template and
messages give the same text, byte for byte.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from lora_jax.errors import InputError

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]  # the characters [start, end) of a text

# For a tokenizer without a template: one turn is the short form of Alpaca's prompt (github.com/tatsu-lab).
PLAIN = """{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}\
{% if m['role'] == 'user' %}{{ '### Instruction:\n' }}{% endif %}{{ m['content'] + '\n\n' }}\
{% if m['role'] == 'user' %}{{ '### Response:\n' }}{% endif %}{% endif %}{% endfor %}"""

# Noncharacters of Unicode, put round what `{% generation %}` encloses.
_START, _END = "\ufdd0", "\ufdd1"


def render(template: str, messages: Messages, add_generation_prompt: bool = False, **names: str) -> str:
    """The conversation as one text. `names` are the tokenizer's special tokens, such as `bos_token`.

    Raises InputError where the template is no template, or it refuses the messages.
    """
    return _render(template, messages, add_generation_prompt, names, marks=("", ""))


def generated(template: str, messages: Messages, **names: str) -> list[Span] | None:
    """Where the text of the assistant stands, of a template that marks it by `{% generation %}`; else None."""
    if "endgeneration" not in template:
        return None
    text = _render(template, messages, False, names, marks=(_START, _END))
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
    return spans if spans and whole == _render(template, messages, False, names, marks=("", "")) else None


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
        raise InputError(f"{where}: of the chat templates {', '.join(map(repr, named))} none is named 'default'")
    return named["default"]


def _render(template: str, messages: Messages, opened: bool, names: Mapping[str, str], marks: tuple[str, str]) -> str:
    import jinja2

    if not messages:
        raise InputError("there is no message for the chat template: give at least one")
    try:
        return _compile(template).render(
            messages=[{key: value for key, value in message.items() if value is not None} for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=opened,
            _marks=marks,
            **names,
        )
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"line {error.lineno} of the chat template cannot be read by Jinja ({_said(error)})"
        ) from error
    except Exception as error:  # a template is a program: whatever it stumbles over, these messages made it
        where = f"line {line} of the chat template" if (line := _line(error)) else "the chat template"
        raise InputError(f"{where} refused these messages ({_said(error)})") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _line(error: Exception) -> int | None:
    """The template's line that raised it: Jinja puts the template's own lines into the traceback."""
    frames = traceback.walk_tb(error.__traceback__)
    return next((line for frame, line in reversed([*frames]) if frame.f_code.co_filename == "<template>"), None)


@cache
def _compile(template: str) -> Any:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` ... `{% endgeneration %}`: text that the assistant wrote."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            mark = self.call_method("_mark", [jinja2.nodes.ContextReference()])
            return jinja2.nodes.CallBlock(mark, [], [], body).set_lineno(line)

        def _mark(self, context: Any, caller: Any) -> str:
            start, end = context["_marks"]
            return f"{start}{caller()}{end}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:  # Jinja's own would escape HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.filters["tojson"] = tojson
    return environment.from_string(template)
