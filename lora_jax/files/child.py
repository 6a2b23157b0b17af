"""A program that ends with the process that started it, even where that is killed and can end nothing itself.

`python child.py PARENT COMMAND...`: Linux is asked to kill this process when its parent ends, and the command takes its
place. Started as a file, since importing the package takes longer than what most of its children do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def command(arguments: Sequence[str]) -> list[str]:
    """How `python ARGUMENTS` is started as a child of this process that does not outlive it."""
    return [sys.executable, __file__, str(os.getpid()), sys.executable, *arguments]


def script(arguments: Sequence[str]) -> str:
    """The same as a shell script, which takes its own arguments behind those."""
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command(arguments))
    return f'#!/bin/sh\nexec {quoted} "$@"\n'


def main(parent: str, *words: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(parent):  # else it ended before it was asked for
        os.execv(words[0], words)


if __name__ == "__main__":
    main(*sys.argv[1:])
