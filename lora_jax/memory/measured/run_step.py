"""The process that runs a step: `python -m lora_jax.memory.measured.run_step FOLDER PART`, started by `device.measure`.

It reads FOLDER/question.json (a setup, or nothing) and writes FOLDER/PART.json. The parts, each a process of its own:

- `look`: what device there is, and the versions.
- `compile`: compile the step into the cache in FOLDER, and say what the compiler plans for this very device.
- `load`: take the program from that cache and run nothing: what a process of this kind holds anyway.
- `run`: take the program from that cache, fill its arguments, run one step, and say the most memory there ever was.

Compiling takes memory of its own (on a CPU often more than a small step; on a GPU, autotuning), hence the cache.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.files.atomic import write_bytes
from lora_jax.memory import steps
from lora_jax.memory.compiled.compile_step import setup_from_json
from lora_jax.untrusted import json_text

SIZES = ("argument", "output", "alias", "temp")


def proc(file: str, name: str) -> str | None:
    """What Linux says under that name in a file of /proc; None where nothing does."""
    try:
        lines = Path("/proc", file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def peak_resident() -> int:
    """The most bytes of memory that this process ever held.

    Linux's own count for this program (VmHWM) where there is one. `ru_maxrss` is a last resort: on Linux a child starts
    at what its parent held when it was forked, so that it never shows less than that.
    """
    if (found := proc("self/status", "VmHWM")) is not None:
        return 1024 * int(found.split()[0])
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def look() -> dict[str, Any]:
    """The device that JAX would use, and the versions of what would use it."""
    found = jax.devices()[0]
    processor = proc("cpuinfo", "model name") or platform.processor() or platform.machine()
    name = processor if found.platform == "cpu" else found.device_kind
    limit = (found.memory_stats() or {}).get("bytes_limit")
    versions = {package: version(package) for package in ("jax", "jaxlib", "optax", "numpy")}
    about = {"platform": found.platform, "device": name, "memory": limit, "cores": os.cpu_count()}
    return about | {"python": platform.python_version()} | versions


def filled(shapes: Any) -> Any:
    """Arrays of those shapes and dtypes, made on the device with no copy of them anywhere else."""

    def fill(shape: Any) -> Any:
        return jnp.full(shape.shape, 0.01 if jnp.issubdtype(shape.dtype, jnp.floating) else 0, shape.dtype)

    return jax.tree.map(fill, shapes)


def answer(part: str, question: dict[str, Any]) -> dict[str, Any]:
    """One part's answer, in plain values."""
    if part == "look":
        return look()
    step = steps.build(setup_from_json(question))
    run: Any = step.step
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("_hits") else None)
    compiled = run.lower(*step.arguments).compile()
    make_arguments = jax.jit(partial(filled, step.arguments)).lower().compile()
    if part == "compile":
        planned = compiled.memory_analysis()
        return {name: int(getattr(planned, f"{name}_size_in_bytes")) for name in SIZES}
    result: dict[str, Any] = {"cached": len(hits) == 2}
    device = jax.devices()[0]
    if part == "run":
        arguments = jax.block_until_ready(make_arguments())
        result["held"] = (device.memory_stats() or {}).get("bytes_in_use")
        jax.block_until_ready(compiled(*arguments))
    result["peak"] = peak_resident() if device.platform == "cpu" else device.memory_stats()["peak_bytes_in_use"]
    return result


def main() -> None:
    folder, part = Path(sys.argv[1]), sys.argv[2]
    try:
        found = answer(part, json_text.load_object(folder / "question.json", non_finite=True))
    except jax.errors.JaxRuntimeError as error:  # a device that is too small is an answer too
        found = {"failed": str(error).splitlines()[0]}
    write_bytes(folder / f"{part}.json", json.dumps(found).encode())


if __name__ == "__main__":
    main()
