"""Are the outputs of one run of a notebook those of another? Text and integers equal, floats within a tolerance.

A cell tagged `sampled`, `timing` or `trained` is compared by form alone: which kinds of output it has. So are pictures.
`trained` is for what magnifies the rounding that a training run collects, as the exponential of a loss does.
"""

from __future__ import annotations

import re
from typing import Any

TOLERANCE = 0.01  # of a float, or one unit of its last digit, whichever is more
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])(?P<percent>%?)")


def differences(found: Any, expected: Any) -> list[str]:
    """A sentence for each code cell of two executed notebooks whose outputs differ."""
    pairs = zip(_code(found), _code(expected), strict=True)
    reasons = ((number, difference(one, other)) for number, (one, other) in enumerate(pairs, 1))
    return [f"cell [{number}]: {reason}" for number, reason in reasons if reason]


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def difference(found: Any, expected: Any) -> str | None:
    """Why the outputs of one code cell are not those of the other."""
    if form(found) != form(expected):
        return f"its outputs are {form(found)} and were {form(expected)}"
    if {"sampled", "timing", "trained"} & set(expected.metadata.get("tags", [])):
        return None
    for one, other in zip(texts(found), texts(expected), strict=True):
        if reason := text_difference(one, other):
            return reason
    return None


def form(cell: Any) -> list[str]:
    """The kinds of a cell's outputs, in order; what it wrote to standard error aside, since warnings come and go."""
    kinds = []
    for output in cell.outputs:
        if output.output_type == "stream":
            kinds += ["text"] if output.name == "stdout" else []
        elif output.output_type == "error":
            kinds.append(f"error {output.ename}: {output.evalue}")
        else:
            kinds.append("+".join(sorted(output.data)))
    return kinds


def texts(cell: Any) -> list[str]:
    """The plain texts of a cell's outputs. Not of a figure or a widget, which have others."""
    found = [output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
    shown = (output.data for output in cell.outputs if output.output_type in ("display_data", "execute_result"))
    return found + [data["text/plain"] for data in shown if set(data) == {"text/plain"}]


def text_difference(found: str, expected: str) -> str | None:
    """Where two texts differ: their words and integers, or a float by more than the tolerance."""
    if _words(found) != _words(expected):
        return f"{found!r} was {expected!r}"
    for one, other in zip(NUMBER.finditer(found), NUMBER.finditer(expected), strict=True):
        if not _near(one, other):
            return f"{one[0]} was {other[0]} in {expected.strip()[:200]!r}"
    return None


def _words(text: str) -> list[str]:
    return " ".join(NUMBER.sub("#", text).split()).split("#")


def _near(one: re.Match[str], other: re.Match[str]) -> bool:
    # A percentage is a float that was rounded, whatever its digits look like.
    if not any(c in one[0] + other[0] for c in ".e%"):
        return one[0] == other[0]
    a, b = (float(m[0].rstrip("%").replace(",", "")) for m in (one, other))
    digits = other[0].rstrip("%").partition("e")[0].partition(".")[2]
    last = 0.0 if "e" in other[0] else 10.0 ** -len(digits)
    return abs(a - b) <= max(TOLERANCE * abs(b), 1.001 * last)
