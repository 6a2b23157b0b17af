"""What the child of `tokenizer_file.py` does: load a tokenizer with its library, use it, and see that it survives.

The library ends its process where it runs out of memory, and a pattern or a rule of a tokenizer may take any time and
any memory with a text. The texts tried here have every printable letter of ASCII, some others, and long runs of one
letter.
"""

import contextlib
import json
from typing import Any

from tokenizers import Tokenizer

ASCII = "".join(map(chr, range(32, 127)))
TEXTS = (
    ASCII + "\t\n\r\n",
    "Once upon a time, there was a naïve café 它在那里 \u2581 \U0001f600 \ufb01 e\u0301 \u00a0 1,234.5\n\n" * 8,
    *(letter * 4000 + " ~" + ASCII for letter in "a 1.\n\u00e9_"),  # some patterns are tried where a letter stands
    "".join(ASCII[i % 95] for i in range(0, 9500, 7)),
)
LONGEST = 1000  # characters that a rule may put for one


def answer(text: str) -> str | None:
    """Why a tokenizer.json is not taken; None where it survived."""
    try:
        backend = Tokenizer.from_str(text)
        wrong = _too_large(backend)
    except BaseException as error:  # a panic of the library is no Exception
        return " ".join(str(error).split())[:300] or type(error).__name__
    if wrong is not None:
        return wrong
    with contextlib.suppress(BaseException):
        backend.no_truncation()
        backend.no_padding()
        for probe in TEXTS:
            with contextlib.suppress(BaseException):  # what it cannot encode is told when it is asked to
                backend.decode(backend.encode(probe).ids)
    return None


def _too_large(backend: Any) -> str | None:
    ids = backend.get_vocab(with_added_tokens=True).values()
    most = 10 * len(ids) + 100_000
    if ids and max(ids) > most:
        return f"a token has the id {max(ids):,}, and with {len(ids):,} tokens an id is at most {most:,}"
    for part in (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder):
        found = [] if part is None else [json.loads(part.__getstate__())]
        while found:
            one = found.pop()
            if isinstance(one, dict | list):
                found += one.values() if isinstance(one, dict) else one
            if isinstance(one, dict):
                for name in ("content", "prepend"):
                    if isinstance(one.get(name), str) and len(one[name]) > LONGEST:
                        return f"a rule puts {len(one[name]):,} characters into a text, and may put {LONGEST:,}"
                for number in one.get("ids") or ():
                    if isinstance(number, int) and number > most:
                        return f"a rule puts the id {number:,} before or behind a text, and an id is at most {most:,}"
    return None
