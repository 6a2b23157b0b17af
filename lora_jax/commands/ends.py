"""How a command ends that is stopped, or runs out of memory: one sentence, and nothing half-written."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CHECKPOINT = "the last checkpoint, if there is one, is whole"
WHOLE = {  # what a stopped command leaves
    "train": CHECKPOINT,
    "pretrain": CHECKPOINT,
    "demo": CHECKPOINT,
    "grade": "the table, if there is one, holds what was marked until then",
}
LESS = {  # what takes less memory, by command
    "train": "give a smaller --batch-size or --length, --remat, --accumulate or --quantize nf4; `plan` says what a "
    "step needs",
    "pretrain": "give a smaller --batch-size or --length, or --accumulate",
    "generate": "give fewer prompts at once, fewer --new-tokens, or a smaller model",
    "merge": "it holds the model twice for a moment: take a machine with more memory, or keep the adapter beside its "
    "model, as `generate --adapter` does",
    "plan": "the compiler itself needs memory: leave out --compile, or end other programs",
    "measure": "give a smaller --batch-size or --length, or another --model",
}
ELSE = "end other programs, or take a machine with more memory"
NO_ROOM = ("RESOURCE_EXHAUSTED", "out of memory", "bad_alloc", "cannot allocate memory", "unable to allocate")


def stopped(command: str) -> str:
    """The sentence for a command that was stopped."""
    return f"stopped; {WHOLE.get(command, 'what was there before is as it was')}"


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt, it is no Exception, so that nothing on the way takes it for a mistake."""


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM raises Terminated inside the block, so that what is half-done is cleared away, as Ctrl-C has it.

    A second one ends the process at once. Where the program that called us handles SIGTERM itself, or this is not its
    main thread, everything stays as it is.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def out_of_memory(error: BaseException, command: str) -> str | None:
    """The sentence for an error that says that memory ran out, wherever it was noticed; None for any other."""
    import jax

    said = f"{error}".lower()
    memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    told = isinstance(error, jax.errors.JaxRuntimeError | RuntimeError | ValueError | OSError)
    if not memory and not (told and any(words.lower() in said for words in NO_ROOM)):
        return None
    return f"there is not enough memory for this: {LESS.get(command, ELSE)}"
