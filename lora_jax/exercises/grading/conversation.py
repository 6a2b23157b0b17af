"""Questions to a process that runs a submission, and its replies, with a limit on everything."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_jax.exercises import plain
from lora_jax.exercises.grading import isolation
from lora_jax.exercises.grading.clock import Clock

RUNNER = ["-m", "lora_jax.exercises.grading.runner"]
START = 60.0  # seconds that a process may take until JAX is there
SLOW = 30  # how many times as long a machine may take for them
MEMORY = 4_000_000_000  # bytes of all processes of a submission together
LOOK = 0.05  # seconds between two looks at the clock


class Stopped(Exception):
    """The process gives no more replies: why, as the end of a sentence that begins with "it"."""


class MachineAtFault(Exception):
    """No reply, and not by the submission's doing: why."""


class Conversation:
    """One process, asked these questions; use it as a context, which ends the process and all that it started.

    `stop` is set from outside to end it at once.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, bytes]],
        questions: Sequence[dict[str, Any]],
        namespaces: bool,
        stop: threading.Event,
    ) -> None:
        self._folder = None if namespaces else Path(tempfile.mkdtemp(prefix="marking-"))
        try:
            self._process = isolation.start(RUNNER, self._folder)
        except BaseException:
            self._remove()
            raise
        self._stop, self._clock, self._data = stop, Clock(self._process.pid), bytearray()
        head = plain.dumps(plain.to_plain({"questions": list(questions), "files": [(n, len(d)) for n, d in files]}))
        self._to_send = memoryview(b"".join([head.encode(), b"\n", *(data for _, data in files)]))
        self._streams = selectors.DefaultSelector()
        for stream, event in ((self._process.stdin, 2), (self._process.stdout, 1)):
            os.set_blocking(stream.fileno(), False)  # type: ignore[union-attr]
            self._streams.register(stream, event)  # type: ignore[arg-type]

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.close()
        isolation.end(self._process)
        self._remove()

    def start(self) -> None:
        """Wait until JAX is there. Raises MachineAtFault."""
        try:
            self._frame(START)
        except Stopped:
            with contextlib.suppress(OSError, ValueError):
                os.set_blocking(self._process.stderr.fileno(), False)  # type: ignore[union-attr]
                said = (self._process.stderr.read() or b"").decode(errors="replace").split("\n")  # type: ignore[union-attr]
                raise MachineAtFault("; ".join(line for line in said[-3:] if line)[-300:] or "it ended") from None
            raise MachineAtFault("it ended") from None

    def files_are_read(self, seconds: float) -> None:
        """Wait until the files are read. Raises Stopped and MachineAtFault."""
        self._frame(seconds)

    def reply(self, seconds: float) -> Any:
        """The next reply, plain data that the submission may have made itself. Raises Stopped and MachineAtFault."""
        try:
            return plain.loads(bytes(self._frame(seconds)))
        except plain.NotPlain:
            raise Stopped("its answer could not be read.") from None  # who knows what state it is in

    def _frame(self, seconds: float) -> bytearray:
        self._clock.restart()
        began = looked = time.monotonic()
        while True:
            size = int.from_bytes(self._data[:8], "big")
            if len(self._data) >= 8 and size > plain.MAX_REPLY:
                raise Stopped("its answer could not be read.")
            if len(self._data) >= 8 + size and len(self._data) >= 8:
                frame = self._data[8 : 8 + size]
                del self._data[: 8 + size]
                return frame
            ended = self._process.poll() is not None  # before the look, so that a last reply is not missed
            if not self._exchange() and ended:
                raise Stopped("it ended the process that ran it.")
            if time.monotonic() - looked >= LOOK:
                looked = time.monotonic()
                self._look(seconds, began)

    def _exchange(self) -> bool:
        """Send and receive what can be; whether anything came."""
        came = False
        for key, _ in self._streams.select(LOOK):
            if key.fileobj is self._process.stdin:
                try:
                    self._to_send = self._to_send[os.write(key.fd, self._to_send[:1_000_000]) :]
                except BrokenPipeError:
                    self._to_send = self._to_send[:0]
                if not self._to_send:
                    self._streams.unregister(key.fileobj)
                    self._process.stdin.close()  # type: ignore[union-attr]
            else:
                found = os.read(key.fd, 1_000_000)
                self._data += found
                came = bool(found)
                if not found:
                    self._streams.unregister(key.fileobj)
        return came

    def _look(self, seconds: float, began: float) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._clock.look()
        if self._clock.charged > seconds:
            raise Stopped(f"it took more than {seconds:g} seconds: does a loop never end?")
        if time.monotonic() - began > SLOW * seconds:
            raise MachineAtFault(f"in {SLOW * seconds:g} seconds this machine gave it {self._clock.charged:.1f}")
        if self._clock.memory > MEMORY and self._clock.memory_in_parts() > MEMORY:
            raise Stopped(f"it took more than {MEMORY / 1e9:g} GB of memory.")

    def _remove(self) -> None:
        if self._folder is not None:
            # Not Python's own way, which goes down by recursion and, where it may not delete, changes modes first.
            remove = shutil.which("rm")
            if remove and self._folder.name.startswith("marking-"):
                subprocess.run([remove, "-rf", "--", str(self._folder)], stderr=subprocess.DEVNULL, check=False)


def can_run(namespaces: bool, stop: threading.Event) -> None:
    """Start a process with nothing to do. Raises MachineAtFault where this machine cannot even do that."""
    with Conversation([], [], namespaces, stop) as process:
        process.start()
        process.files_are_read(START)
