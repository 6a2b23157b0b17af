"""A process for code that nobody has read: what it can reach, and how it is ended.

Where Linux gives a user namespaces, the code runs in a root made of nothing (`sandbox.py`): Python, its libraries and
this package without the exercises' answers, read-only; a folder in memory; no network, no other process, no user of
the machine. Elsewhere it has a session of its own, and limits.

Bubblewrap builds such a root too, and is not used: it comes from no Python registry, its releases before 0.8 bound
neither the folder's size nor further namespaces, it gives root's processes root's rights outside, and limits and the
filter of system calls would be ours all the same. Landlock bounds files and ports but neither processes, memory files
nor devices already open.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_jax.exercises.grading import system_calls

PACKAGE = Path(__file__).resolve().parents[2]
HERE = "/submission"  # the folder to write in, as the code sees it
SHOWN_AS = "/lora_jax_shown"  # where the package stands in there
FOLDER = 64_000_000  # bytes in that folder
LIBRARIES = (  # what an answer, or this package, imports
    "jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "optax", "jaxtyping", "tqdm", "safetensors", "tokenizers", "gguf",
    "huggingface_hub", "jinja2", "matplotlib", "IPython",
)  # fmt: skip
# Of exercises/ the code may see what asks the questions: neither the answers nor who judges them.
EXERCISES = ("__init__.py", "plain.py", "outcomes.py", "registry.py")
GRADING = ("__init__.py", "runner.py", "extract.py", "cells.py", "magics.py", "names.py")
# Numbers for users that no system gives out: above those of containers (systemd's "UIDs and GIDs" names the ranges).
OUTSIDE = range(1_879_048_192, 2_147_352_576)
LIMITS = {
    "RLIMIT_AS": 6_000_000_000,  # bytes of addresses of one process; JAX's own threads and arenas take up 1.6e9
    "RLIMIT_FSIZE": 50_000_000,  # bytes of one file
    "RLIMIT_CORE": 1,  # bytes: none is written, and none is piped to a program, as a limit of 0 would be
    "RLIMIT_NOFILE": 256,
    "RLIMIT_MEMLOCK": 1_000_000,  # bytes
    "RLIMIT_CPU": 3_600,  # seconds of one process, in case the grader is no longer there
}


@functools.cache
def has_namespaces() -> bool:
    """Whether this machine shuts a submission in: tried, by a process that can write in its folder and not above it."""
    if not sys.platform.startswith("linux"):
        return False
    tried = "import os; open('in', 'w').close(); raise SystemExit(os.access('/', os.W_OK) or os.path.exists('/sys'))"
    try:
        process = start(["-c", tried])
    except OSError:
        return False
    with process:
        try:
            return process.wait(60) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            end(process)


def has_filter() -> bool:
    """Whether system calls are filtered in there: libseccomp is here."""
    return system_calls.library() is not None


def start(arguments: Sequence[str], folder: Path | None = None) -> subprocess.Popen[bytes]:
    """Python with these arguments, its streams pipes: shut in, or in a `folder` that is given, with limits alone."""
    python = os.path.realpath(sys.executable)
    places = [str(path) for path in _libraries()]
    package, home = (SHOWN_AS, HERE) if folder is None else (str(PACKAGE.parent), str(folder))
    spec: dict[str, Any] = {
        "root": None,
        "work": home,
        "outside": os.geteuid() or secrets.choice(OUTSIDE),
        "command": [python, "-P", "-s", *arguments],
        "limits": LIMITS,
        "filter": has_filter(),
        "environment": {
            "HOME": home,
            "TMPDIR": home,
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": ":".join([package, *places]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MPLBACKEND": "Agg",
            "JAX_PLATFORMS": "cpu",
            # One thread each, since several run side by side; programs that run a moment need no optimization.
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0",
        },
    }
    if folder is None:
        spec["root"] = _root(python)
        if _counts_processes_by_namespace():
            spec["limits"] = LIMITS | {"RLIMIT_NPROC": 100 + 16 * (os.cpu_count() or 1)}  # its threads are among them
    return subprocess.Popen(
        [sys.executable, "-E", "-s", "-S", str(Path(__file__).with_name("sandbox.py")), json.dumps(spec)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started: all of it where it is shut in, else all that stayed in its session's group.

    The first process of the namespace is killed first, whose end is the end of every other in there, and waited for.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]


def _root(python: str) -> dict[str, Any]:
    """What of this machine is seen in there, at its own path: the loader, the C library, Python and its libraries."""
    system = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/nix/store", "/etc/ld.so.cache")
    wanted = [*map(Path, system), Path(sys.base_prefix, "lib"), Path(sys.base_prefix, "lib64"), Path(python)]
    places = [path for path in (*wanted, *_libraries()) if path.exists() and not path.is_symlink()]
    shown = [path for path in places if not any(other in path.parents for other in places)]
    hidden = [found for path in _with_packages() if (found := path / PACKAGE.name).is_dir() and _is_in(found, shown)]
    return {
        "links": [[os.readlink(path), path] for path in system if os.path.islink(path)],
        "shown": [[str(path), str(path)] for path in dict.fromkeys(shown)]
        + [[str(path), f"{SHOWN_AS}/{path.relative_to(PACKAGE.parent)}"] for path in _package()],
        "hidden": [str(path) for path in dict.fromkeys(hidden)],
        "size": f"size={FOLDER},nr_inodes=10000",
    }


def _package() -> Iterator[Path]:
    """The files and folders of this package that are shown."""
    exercises = PACKAGE / "exercises"
    yield from (path for path in sorted(PACKAGE.iterdir()) if path != exercises and path.name != "__pycache__")
    yield from (exercises / name for name in EXERCISES)
    yield from (exercises / "grading" / name for name in GRADING)


def _libraries() -> list[Path]:
    """The folders in which the libraries stand that an answer may use."""
    found = [importlib.util.find_spec(name) for name in LIBRARIES]
    return list(dict.fromkeys(Path(spec.origin).resolve().parents[1] for spec in found if spec and spec.origin))


def _with_packages() -> list[Path]:
    """The folders that may hold an installed copy of this package, answers and all."""
    return [
        *_libraries(),
        *Path(sys.base_prefix).glob("lib*/python*/*-packages"),
        *Path("/usr/lib").glob("python*/*-packages"),
    ]


def _is_in(path: Path, shown: Sequence[Path]) -> bool:
    return any(other in path.parents for other in shown)


def _counts_processes_by_namespace() -> bool:
    """Whether the kernel counts a user's processes in each namespace (5.14): else all of the user's would count."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor[:3])) or 0)) >= (5, 14)
