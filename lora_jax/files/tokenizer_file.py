"""A `tokenizer.json` to its library's tokenizer: tried in a process of its own first, and its panics told as sentences.

The library is written in Rust. Where it cannot go on it panics, which reaches Python as an exception that is no
`Exception`; where a file makes it ask for too much memory it ends the process. So a file that did not come with this
package is loaded twice, the first time by a child (see `untrusted/child.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.untrusted import files
from lora_jax.untrusted.child import MEMORY, Child, Ended

PROGRAM = Path(__file__).with_name("try_tokenizer.py")
OWN = Path(__file__).resolve().parents[1] / "data"  # what came with the package is known to load
# Of the processor's time, and bytes of memory, for each byte of a file: ten times what the largest took.
SECONDS, SECONDS_A_BYTE, BYTES_A_BYTE = 1.0, 5e-7, 40
_survived: set[bytes] = set()


def load(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file. Raises InputError where it is none, or harms the process that loads it."""
    from tokenizers import Tokenizer as Backend

    text = files.read_text(path)
    digest = hashlib.sha256(text.encode()).digest()
    if digest not in _survived and not path.resolve().is_relative_to(OWN):
        _try(text, path)
        _survived.add(digest)
    with told(f"{path} is not a readable tokenizer"):
        return Backend.from_str(text)


def _try(text: str, path: Path) -> None:
    try:
        with Child(PROGRAM, MEMORY + BYTES_A_BYTE * len(text)) as child:
            wrong = child.ask(text, SECONDS + SECONDS_A_BYTE * len(text))
    except Ended as ended:
        wrong = str(ended)
    if wrong is not None:
        raise InputError(f"{path} is not a readable tokenizer ({_line(wrong)}).")


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Make an InputError, which begins with `what`, of what the library raises in the block: a panic, or a refusal."""
    try:
        yield
    except TypeError as error:
        raise InputError(f"{what} (it is no text, or holds half of a surrogate pair).") from error
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        if not panic and type(error) is not Exception and not isinstance(error, OverflowError):
            raise
        raise InputError(f"{what} ({_line(str(error))}).") from error


def _line(text: str) -> str:
    """The library's words as one line: they repeat what stands in the file, signs that a terminal obeys among it."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())[:300]
