"""Rung 4: what a device used. Each step runs for real, in a fresh process, and the most memory there ever was is read.

On a GPU that is `memory_stats()["peak_bytes_in_use"]`, with nothing preallocated. A CPU has no such count: there it is
the peak resident set of the process, less that of a process that loaded the same program and ran nothing. Beside it
stands what the compiler planned for this very device. A step that does not fit is a row too.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lora_jax
from lora_jax.adapters import DEFAULT
from lora_jax.errors import InputError
from lora_jax.files.atomic import write_bytes
from lora_jax.memory import steps, zoo
from lora_jax.memory.compiled.compile_step import setup_from_json
from lora_jax.memory.measured.run_step import proc
from lora_jax.memory.setup import Setup, planning_options, ways
from lora_jax.memory.units import size
from lora_jax.untrusted import files, json_text
from lora_jax.untrusted.fields import is_number

Say = Callable[[str], None]
KINDS = ("auto", "cpu", "gpu")
FOLDER = Path("figures/data")
PATIENCE = 900  # seconds for one process
VENDORS = {"nvidia", "tesla", "geforce", "amd", "intel"}  # words that tell no card from another
# (model, method, quantize, other words of a Setup): by every one of `setup.ways` where there is no method.
Rows = Sequence[tuple[str, str | None, str | None, dict[str, Any]]]
CPU_GRID: Rows = (  # what fits a few minutes on two cores
    ("stories-2.8m", None, None, {"batch": 8, "length": 512}),
    ("smollm2-135m", None, None, {"batch": 2, "length": 512}),
    ("smollm2-135m", DEFAULT, None, {"batch": 2, "length": 512, "remat": True}),
    ("smollm2-135m", DEFAULT, None, {"batch": 2, "length": 512, "attention": "dense"}),
)
GPU_GRID: Rows = (  # from what any card holds to what few do
    ("smollm2-135m", None, None, {"batch": 4, "length": 1024}),
    ("smollm2-135m", DEFAULT, None, {"batch": 4, "length": 1024, "remat": True}),
    ("llama3.2-1b", None, None, {"batch": 2, "length": 1024}),
    ("llama3.1-8b", DEFAULT, "nf4", {"batch": 1, "length": 1024}),
    ("llama3.1-8b", DEFAULT, None, {"batch": 1, "length": 1024, "remat": True}),
    ("llama3.1-8b", "full", None, {"batch": 1, "length": 1024, "remat": True}),
)


def measure(
    *,
    say: Say,
    kind: str = "auto",
    models: Sequence[str] = (),
    method: str | None = None,
    quantize: str | None = None,
    batch_size: int = 1,
    length: int = 512,
    remat: bool = False,
    attention: str = "blockwise",
    dtype: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a grid of steps and write the record to `out` (default: figures/data/memory_DEVICE.json).

    With `models`, each of them by `method` (over a base in `quantize`), or by each of `setup.ways`, with the other
    options; without, the device's own grid. `dtype` is float32 on a CPU, whose compiler works in it, and bfloat16 on a
    GPU. A record of the same device and versions is gone on with: what it measured is kept and not measured again, and
    what failed is tried again. Raises InputError where the device that was asked for is not there, a model is unknown,
    a step is none, or `out` is another device's record.
    """
    if kind not in KINDS:
        raise InputError(f"there is no device {kind!r}: choose {', '.join(KINDS)}")
    if quantize and method is None:
        raise InputError("--quantize is for one method: say which with --method")
    if method and not models:
        raise InputError("--method is for models: say which with --model")
    made_by = look(kind)
    on_cpu = made_by["platform"] == "cpu"
    dtype = dtype or ("float32" if on_cpu else "bfloat16")
    words = {"batch": batch_size, "length": length, "remat": remat, "attention": attention}
    asked = [(model, method, quantize, words) for model in models] or (CPU_GRID if on_cpu else GPU_GRID)
    setups = expand(asked, dtype)
    out = out or FOLDER / f"memory_{short_name(made_by)}.json"
    rows, known = [], _known(out, made_by)
    again = {"model": list(models), "method": method, "quantize": quantize, "dtype": dtype} | words
    command = _command(made_by, again if models else {})
    say(f"{len(setups)} steps on {made_by['device']} ({made_by['platform']}); the record goes to {out}")
    for model, setup in setups:
        described = json.loads(json.dumps(dataclasses.asdict(setup)))
        same = [row for row in known if row["model"] == model and row["setup"] == described]
        known = [row for row in known if row not in same]
        row = next((row for row in same if row["used"] is not None), None)
        if row is None:
            about = {"model": model, "setup": described, "date": _today(), "command": command}
            row = about | run(described, made_by["platform"])
        rows.append(row)
        say(f"{title(row)}: {outcome(row)}")
        table: dict[str, Any] = {"made_by": made_by, "summary": summary(rows + known), "rows": rows + known}
        write_bytes(out, (json.dumps(table, indent=1) + "\n").encode())
    found = table["summary"]
    if found["measured"]:
        off = f"median {found['median']:.2%} off, worst {found['worst']:.2%}"
        say(f"planned against used: {off}; {found['failed']} of {found['measured'] + found['failed']} failed")
    return table | {"out": str(out)}


def expand(rows: Rows, dtype: str) -> list[tuple[str, Setup]]:
    """`(model, setup)` of each step of these rows; all of them are known to be steps before any is run."""
    found = []
    for model, method, quantize, words in rows:
        options = planning_options(method or DEFAULT, {})
        one = Setup(zoo.config(model), method or DEFAULT, options, quantize, dtype=dtype, **words)
        found += [(model, setup) for setup in (ways(one).values() if method is None else [one])]
    for _, setup in found:
        steps.build(setup)
    return found


def look(kind: str) -> dict[str, Any]:
    """The device of that kind (see `run_step.look`). Raises InputError where there is none."""
    with tempfile.TemporaryDirectory(prefix="lora_jax_measure_") as folder:
        found = _part(Path(folder), "look", {}, "cpu" if kind == "cpu" else None)
    if "failed" in found:
        raise InputError(f"JAX does not start here: {found['failed']}")
    if kind == "gpu" and found["platform"] != "gpu":
        raise InputError(
            f"JAX sees no GPU here, only a {found['platform']}: install jax[cuda12], or measure with --device cpu"
        )
    if found["platform"] not in ("cpu", "gpu"):
        raise InputError(f"measuring on a {found['platform']} is not supported: choose --device cpu")
    return found


def run(setup: dict[str, Any], platform: str) -> dict[str, Any]:
    """Compile and run the step that `setup` describes: planned and used bytes, or why there are none."""
    on_cpu = platform == "cpu"
    with tempfile.TemporaryDirectory(prefix="lora_jax_measure_") as name:
        folder = Path(name)
        planned = _part(folder, "compile", setup, platform)
        if "failed" in planned:
            return planned | {"planned": None, "used": None}
        planned["needed"] = planned["argument"] + planned["output"] - planned["alias"] + planned["temp"]
        result: dict[str, Any] = {"planned": planned, "used": None}
        available = _available() if on_cpu else None
        if available is not None and planned["needed"] > available:  # Linux would end some process or other, not refuse
            return result | {"failed": f"out of memory: {planned['needed']:,} bytes planned, {available:,} available"}
        before = _part(folder, "load", setup, platform) if on_cpu else {"peak": 0}
        after = before if "failed" in before else _part(folder, "run", setup, platform)
        if "failed" in after:
            return result | {"failed": after["failed"]}
        used = after["peak"] - before["peak"]
        counts = {"peak": after["peak"], "baseline": before["peak"], "held": after["held"], "cached": after["cached"]}
        return result | {"used": used, "error": planned["needed"] / used - 1} | counts


def _part(folder: Path, part: str, question: dict[str, Any], platform: str | None) -> dict[str, Any]:
    """The answer of a process of its own (see `run_step.py`), or {"failed": why}."""
    (folder / "question.json").write_text(json.dumps(question), encoding="utf-8")
    environment = dict(os.environ)
    # A record is of XLA as it comes: not of a flag, nor of the backend, that this process happens to run with.
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        environment.pop(name, None)
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(lora_jax.__file__).parents[1]), os.getenv("PYTHONPATH")))),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_CLIENT_MEM_FRACTION": "0.95",  # it bounds what is allocated as needed, too
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if platform == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-m", "lora_jax.memory.measured.run_step", str(folder), part]
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "errors": "replace"}
    try:
        done = subprocess.run(command, timeout=PATIENCE, check=False, **options)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer in {PATIENCE} seconds"}
    answer = folder / f"{part}.json"
    if answer.exists():
        return json_text.load_object(answer, non_finite=True)
    said = done.stderr.strip().splitlines() or ["nothing was said"]
    return {"failed": f"the process ended with code {done.returncode}: {said[-1]}"}


def _available() -> int | None:
    """Bytes that a new process may take on this machine, where Linux says so."""
    found = proc("meminfo", "MemAvailable")
    return None if found is None else 1024 * int(found.split()[0])


def _known(out: Path, made_by: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run on the same device with the same versions."""
    if not files.exists(out):
        return []
    try:
        found = json_text.load_object(out, non_finite=True)
    except InputError as error:
        raise InputError(f"{out} is not a record of measurements: give --out another name") from error
    before: Any = found.get("made_by")
    rows: Any = found.get("rows")
    whole = isinstance(before, dict) and isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not whole or any(row.get("used") is not None and not is_number(row.get("error")) for row in rows):
        raise InputError(f"{out} is not a record of measurements: give --out another name")
    if before != made_by:
        names = [name for name in before | made_by if before.get(name) != made_by.get(name)]
        there, here = (", ".join(f"{name} {made.get(name)}" for name in names) for made in (before, made_by))
        raise InputError(
            f"{out} is a record of {there}, and this is {here}: give --out another name, or move that file away"
        )
    return rows


def _command(made_by: dict[str, Any], words: dict[str, Any]) -> str:
    """The command that measures this again."""
    said = ["python -m lora_jax measure", "--device", made_by["platform"]]
    for name, value in words.items():
        option = {"batch": "--batch-size"}.get(name, f"--{name}")
        for one in value if isinstance(value, list) else [value]:
            said += [] if one in (None, False) else [option, *([] if one is True else [str(one)])]
    return " ".join(said)


def short_name(made_by: dict[str, Any]) -> str:
    """A name for a file: "cpu", "t4", "h100_80gb_hbm3"."""
    if made_by["platform"] == "cpu":
        return "cpu"
    words = re.findall(r"[a-z0-9]+", made_by["device"].lower())
    return "_".join(word for word in words if word not in VENDORS) or made_by["platform"]


def title(row: dict[str, Any]) -> str:
    """One row's step in a few words."""
    s = setup_from_json(row["setup"])
    more = ", blocks rematerialized" * s.remat + ", all scores" * (s.attention == "dense")
    return f"{row['model']} {s.name} {s.batch} x {s.length} {s.dtype}{more}"


def outcome(row: dict[str, Any]) -> str:
    """What came of one row, in a few words."""
    if row["used"] is None:
        return f"failed ({row['failed']})"
    return f"planned {size(row['planned']['needed'])}, used {size(row['used'])}, {row['error']:+.2%}"


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How far off the plans were, in shares of what was used; failures are counted, never left out in silence."""
    errors = [abs(row["error"]) for row in rows if row.get("used") is not None]
    worst = max(errors, default=None)
    median = statistics.median(errors) if errors else None
    return {"measured": len(errors), "failed": len(rows) - len(errors), "median": median, "worst": worst}


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()
