"""The time and the memory of a process and all that it started, as Linux counts them.

A second in which something of it ran counts as much as it got of the processor, and at most one; a second in which all
of it slept counts whole. So a right answer on a busy machine has the time that it has on an idle one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path


class Clock:
    """Charges time from its making on, at each `look`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.charged = 0.0  # seconds
        self.memory = 0  # bytes, at the last look
        self._at, self._used = time.monotonic(), 0.0

    def restart(self) -> None:
        """Charge from now on."""
        self.look()
        self.charged = 0.0

    def look(self) -> None:
        now = time.monotonic()
        passed, self._at = now - self._at, now
        if not Path("/proc/self/stat").exists():
            self.charged += passed
            return
        pids = list(_family(self.pid))
        used = sum(map(_used, pids))
        share, self._used = used - self._used, used
        self.charged += min(max(share, 0.0), passed) if any(map(_runs, pids)) else passed
        self.memory = sum(map(_resident, pids))

    def memory_in_parts(self) -> int:
        """Bytes in all, a page that several share counted once: exact, and slow."""
        return sum(map(_own, _family(self.pid)))


def _family(pid: int) -> Iterator[int]:
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        yield pid
        for task in _listed(f"/proc/{pid}/task"):
            waiting += map(int, _read(f"/proc/{pid}/task/{task}/children").split())


def _used(pid: int) -> float:
    """Seconds of processor time, of children that have ended too."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _runs(pid: int) -> bool:
    """Whether a thread runs, waits for a processor, or for a disk."""
    states = (_read(f"/proc/{pid}/task/{task}/stat").rpartition(") ")[2][:1] for task in _listed(f"/proc/{pid}/task"))
    return any(state in ("R", "D") for state in states)


def _resident(pid: int) -> int:
    return int((_read(f"/proc/{pid}/statm").split() or "00")[1]) * os.sysconf("SC_PAGESIZE")


def _own(pid: int) -> int:
    found = [line.split()[1] for line in _read(f"/proc/{pid}/smaps_rollup").splitlines() if line.startswith("Pss:")]
    return int(found[0]) * 1024 if found else _resident(pid)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
