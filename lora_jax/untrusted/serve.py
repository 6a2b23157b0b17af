"""The other end of `child.py`: a process that answers with `answer` of a program, within limits that it sets itself.

`python -P serve.py PROGRAM MEMORY` imports nothing of the package, so that it starts in a few milliseconds. A question
is a pickle, which the parent wrote; an answer is JSON, in which nothing can run. Each stands behind its length.
"""

import contextlib
import json
import pickle
import runpy
import signal
import struct
import sys


def limit(memory: int) -> None:
    """No more than `memory` bytes, no core file, and Ctrl-C is the parent's affair, as far as the system has these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):  # macOS knows the first and does not keep it
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main(program: str, memory: str) -> None:
    """Answer questions until there are no more."""
    limit(int(memory))
    answer = runpy.run_path(program)["answer"]
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(16):
        size, seconds = struct.unpack("<qd", head)
        data = source.read(size)
        if hasattr(signal, "setitimer"):  # what takes longer than that of the processor's time is ended by the system
            signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            question = pickle.loads(data)  # which our parent wrote, never a file: texts of others stand in it as texts
            text = json.dumps({"answer": answer(question)}).encode()
        except Exception as error:  # whatever it is, it is an answer
            text = json.dumps({"failed": " ".join(str(error).split())[:300] or type(error).__name__}).encode()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        target.write(struct.pack("<q", len(text)) + text)
        target.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
