"""A process of its own for what may never end, take all memory, or crash: patterns, templates, tokenizers of anybody's.

Within Python nothing bounds these: a pattern holds the interpreter until it has matched, a template may ask for a
string of gigabytes in one call, and a library that runs out of memory ends the process. So a child does it, which has
limits of processor time and memory that the system keeps; whatever becomes of it, the parent goes on. The same code
with the same library runs there as would here, so that honest files give the same result.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError

MEMORY = 600_000_000  # bytes of address space; Python itself and what it loads here take some 100 MB of it
SERVE = Path(__file__).with_name("serve.py")
LONGEST = 2**30  # bytes of an answer


class Ended(Exception):
    """The child gave no answer: the message says why, as the end of a sentence."""


class Child:
    """A process that answers questions with the function `answer` of `program`, a file that imports no lora_jax.

    It is started by the first question, and again by the next one after it ended.
    """

    def __init__(self, program: str | Path, memory: int = MEMORY) -> None:
        self.program, self.memory = str(program), memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: Any, seconds: float) -> Any:
        """The answer, after at most so many seconds of processor time. Raises Ended where it gives none.

        Raises InputError where no process can be started.
        """
        data = pickle.dumps(question)
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._process = self._start()
            try:
                reply = self._exchange(struct.pack("<qd", len(data), seconds) + data)
            except BaseException:  # interrupted, too: what it answers now would be taken for the next answer
                self.close()
                raise
            if reply is None:
                raise Ended(self._why(seconds))
        if "failed" in reply:
            raise Ended(self._memory() if reply["failed"] == "MemoryError" else reply["failed"])
        return reply["answer"]

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            process.stdout.close()  # type: ignore[union-attr]
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", str(SERVE), self.program, str(self.memory)]
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"},
            )
        except OSError as error:
            raise InputError(
                f"what others wrote is tried in a process of its own, and none could be started ({error.strerror})"
            ) from error

    def _exchange(self, data: bytes) -> dict[str, Any] | None:
        """The reply, or None where the child ended."""
        process: Any = self._process
        try:
            process.stdin.write(data)
            process.stdin.flush()
        except OSError:
            return None
        head = process.stdout.read(8)
        size = struct.unpack("<q", head)[0] if len(head) == 8 else -1
        text = process.stdout.read(size) if 0 <= size <= LONGEST else b""
        return json.loads(text) if text and len(text) == size else None

    def _why(self, seconds: float) -> str:
        process: Any = self._process
        process.stdout.close()
        code = process.wait()
        self.close()
        if code == -getattr(signal, "SIGPROF", 0):
            return f"it took more than {seconds:g} s of the processor's time: it may never end"
        if code == -signal.SIGABRT:  # as libraries end that have none left
            return self._memory()
        return f"it ended the process that tried it, with status {code}"

    def _memory(self) -> str:
        return f"it took more than {self.memory // 10**6} MB of memory"

    def _forget(self) -> None:
        """Know of no process: in a fork of this one, the child answers its parent alone."""
        self._process, self._lock = None, threading.Lock()


def lasting(program: str | Path) -> Child:
    """A child for many questions, which ends with this process at the latest."""
    child = Child(program)
    atexit.register(child.close)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=child._forget)
    return child
