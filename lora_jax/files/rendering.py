"""What the child of `chat_template.py` does: render a chat template as `transformers` does.

What a template may use: https://huggingface.co/docs/transformers/chat_templating. A template is a program:
here it runs where a loop without end and a string of gigabytes harm nobody (see `untrusted/child.py`).
"""

import json
import traceback
from functools import cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 50_000_000  # characters of what a template writes


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The text, or in which line the template failed (None where nobody knows), and how: `{"line": 3, "said": ...}`."""
    try:
        template = compiled(question["template"])
        now = question["now"]
        text = template.render(
            messages=question["messages"],
            tools=None,
            documents=None,
            add_generation_prompt=question["opened"],
            strftime_now=now.strftime,
            _marks=question["marks"],
            **question["names"],
        )
        if len(text) > LONGEST:
            raise jinja2.TemplateError(f"it writes {len(text):,} characters, and may write {LONGEST:,}")
        return {"text": text}
    except MemoryError:
        raise
    except jinja2.TemplateSyntaxError as error:
        return {"unread": True, "line": error.lineno, "said": _said(error)}
    except Exception as error:  # a template is a program: whatever it stumbles over, these messages made it
        return {"line": _line(error), "said": _said(error)}


def _said(error: Exception) -> str:
    return " ".join(str(error)[:1000].split()) or type(error).__name__


def _line(error: Exception) -> int | None:
    """The template's line that raised it: Jinja puts the template's own lines into the traceback."""
    frames = traceback.walk_tb(error.__traceback__)
    return next((line for frame, line in reversed([*frames]) if frame.f_code.co_filename == "<template>"), None)


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


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:  # Jinja's own would escape HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@cache
def compiled(template: str) -> Any:
    """The template as a program."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    return environment.from_string(template)
