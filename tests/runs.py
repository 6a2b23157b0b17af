"""Commands as processes of their own: small and quick, each in a session of its own, so that what it leaves is seen."""

import os
import subprocess
import sys
import time
from pathlib import Path

import tiny

from lora_jax.files import atomic, places

TESTS = Path(__file__).parent
FINAL = {"checkpoint.safetensors", "run.json", "adapter", "model", "demo.json", "demo.png", "told.jsonl.gz", "merged"}
QUICK = ["--steps", "4", "--batch-size", "2", "--length", "16"]


def given(folder) -> dict[str, str]:
    """A model directory and a text in `folder`, and the environment in which commands find them quickly."""
    (folder / "mine.txt").write_text(tiny.TEXT * 40)
    (folder / "other.txt").write_text(tiny.TEXT.replace("fox", "dog") * 40)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return environment | {
        "TINY": tiny.model_directory(folder / "tiny"),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "LORA_JAX_CACHE": str(folder / "cache"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/",  # nothing is asked of a network
    }


def start(*arguments, cwd, environment, seconds=None, **options) -> subprocess.Popen:
    """The command, begun; with `seconds` it dawdles as `slowed.py` has it."""
    how = [str(TESTS / "slowed.py"), str(seconds)] if seconds is not None else ["-m", "lora_jax"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, *how, *map(str, arguments)], cwd=cwd, env=environment, **pipes | options)


def finish(*arguments, **options) -> str:
    """The command, to its end, which is a good one; what it printed."""
    process = start(*arguments, **options)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def sentence(*arguments, status=2, **options) -> str:
    """The one sentence that the command ends with, and no traceback."""
    process = start(*arguments, **options)
    _, error = process.communicate(timeout=300)
    assert process.returncode == status, error
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert "lora_jax: " in last, error
    return last.rpartition("lora_jax: ")[2]


def alone(session: int, patience: float = 10) -> bool:
    """Whether nothing of the session is left, or is gone soon."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if not any(of == session for of in map(_session, Path("/proc").glob("[0-9]*/stat"))):
            return True
        time.sleep(0.05)
    return False


def _session(stat: Path) -> int | None:
    """The session of a process that runs (a zombie does not)."""
    try:
        state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(session)


def litter(folder) -> list[str]:
    """The names in a folder that stand for nothing whole: a temporary name, or a lock's."""
    return [name for name in os.listdir(folder) if name not in FINAL]


def is_known(name: str) -> bool:
    """Whether it is a name that a killed run may leave, as the docs say."""
    return atomic.LEFT.fullmatch(name) is not None or name == places.LOCK or (name[0] == "." and name.endswith(".lock"))


def contents(folder) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
