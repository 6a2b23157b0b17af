"""A process for code that nobody has read: what it cannot reach, and how it is ended.

Where Linux lets a user have namespaces of their own, the code has no network, sees no other process, and can write to
its own folder alone; whatever it started ends with it. Elsewhere it has a session of its own, and limits.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

MEMORY = 6_000_000_000  # bytes of addresses; JAX's own threads and arenas take up 1.5e9 before any work
FILE = 50_000_000  # bytes of one file
NAMESPACES = ("unshare", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc",
              "--mount-proc", "--")  # fmt: skip
# Linux: mount(2) and mount_setattr(2), the latter under the same number on every architecture.
MS_BIND, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, SYS_MOUNT_SETATTR = 4096, -100, 0x8000, 1, 442
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38


@functools.cache
def has_namespaces() -> bool:
    """Whether this machine gives a user namespaces, and lets them make the file system read-only."""
    if not sys.platform.startswith("linux"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; sys.exit(open('it', 'w').write('x') != 1)"]
        try:
            with start(command, Path(folder), namespaces=True) as process:
                return process.wait(20) == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def start(command: Sequence[str], folder: Path, *, namespaces: bool) -> subprocess.Popen[bytes]:
    """Start `command` in `folder`, the only place that it may write to; its output goes nowhere."""
    inner = [sys.executable, "-P", str(Path(__file__)), str(folder), "yes" if namespaces else "no", *command]
    package = Path(__file__).resolve().parents[3]
    variables = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(package),  # the package may be a checkout that is not installed
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "MPLBACKEND": "Agg",
        "JAX_PLATFORMS": "cpu",
        # One thread each, since several run side by side; programs that run a moment need no optimization.
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0",
    }
    return subprocess.Popen(
        [*NAMESPACES, *inner] if namespaces else inner,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started: all of it with namespaces, else all that stayed in its session's group.

    `unshare` outlives the namespace's first process, whose end is the end of every other in there: so it is killed
    first, and `unshare` is waited for.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(folder: str, namespaces: str, *command: str) -> int:
    """Inside: shut the doors, run the command as a child, and pass its status on.

    The command is never this process: one that kills its parent, or its parent's group, kills only what is its own.
    """
    import resource

    if namespaces == "yes":
        _read_only_but(folder)
    for limit, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    return subprocess.run(command, cwd=folder, check=False).returncode


def _read_only_but(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    where = folder.encode()
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)  # set, clear, propagation, user namespace
    back = (ctypes.c_uint64 * 4)(0, MOUNT_ATTR_RDONLY, 0, 0)
    steps = (
        libc.mount(where, where, None, MS_BIND, None),
        libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, ctypes.sizeof(attributes)),
        libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, where, 0, back, ctypes.sizeof(back)),
    )
    if any(steps):
        raise OSError(ctypes.get_errno(), "the file system cannot be made read-only")
    # What is started from here on has no right to undo it, and gains none.
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
