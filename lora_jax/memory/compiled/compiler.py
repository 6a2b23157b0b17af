"""Rung 3: what XLA plans for the whole step, for this CPU or for hardware that is not there. Nothing is run.

The step is compiled in a process of its own, from shapes alone, so that a plug-in never disturbs the caller's JAX. What
a step needs is `argument + output - alias + temp`: XLA's own numbers (`alias` is what donation gives back). Every
allocation is then named, from XLA's buffer assignment (`buffers.py`, `components.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lora_jax
from lora_jax.errors import InputError
from lora_jax.memory.compiled import targets
from lora_jax.memory.compiled.components import UNNAMED
from lora_jax.memory.ledger import Ledger, ledger
from lora_jax.memory.setup import Setup
from lora_jax.untrusted import json_text

INSTALL = "`make plan` sets up .venv-plan with it (requirements-plan.txt)"
PACKED = "between buffers"  # the room that buffers of unlike sizes leave between them
RESULTS = "results"  # what the step hands back beside what it was given: the loss, the norm, a table of addresses

# LLVM comes after the plan: that it does not optimize saves a third of the time and changes no byte.
FLAGS = ("--xla_dump_hlo_as_text", "--xla_dump_hlo_module_re=jit_step", "--xla_backend_optimization_level=0")
# A GPU that is there is asked which kernel multiplies fastest, XLA's own by way of Triton or cuBLAS's. One that is not
# cannot be, and XLA takes its own, which for some numbers of tokens it then cannot make. So cuBLAS multiplies here.
CARD_FLAGS = ("--xla_gpu_enable_triton_gemm=false",)


class DoesNotFit(InputError):
    """A TPU's compiler refuses a program that does not fit, and says by how much: an answer, in bytes."""

    def __init__(self, target: str, needed: int, available: int) -> None:
        gib = f"at least {needed / 2**30:.2f} GiB and there are {available / 2**30:.2f} GiB"
        super().__init__(f"the step does not fit on {target}: it needs {gib}")
        self.needed, self.available = needed, available


@dataclass(frozen=True)
class Part:
    """One buffer alive at the peak of the temporary memory, named."""

    component: str  # the row of the ledger
    role: str  # the innermost scope of the model, or what its shape says
    name: str  # XLA's
    shape: str  # "bf16[6,1536,2688]"
    bytes: int
    source: str  # JAX's path to the operation: "transpose(jvp(loss))/layers/mlp/dot_general"


@dataclass(frozen=True)
class Plan:
    """The compiler's plan for one step, in bytes. `ledger` adds up to `needed`; `parts` lie inside `temp`."""

    target: str
    ledger: Ledger
    argument: int
    output: int
    alias: int  # of the output, what takes the place of a donated argument
    temp: int
    parts: tuple[Part, ...]  # the largest first
    seconds: float  # to lower and compile

    @property
    def needed(self) -> int:
        return self.argument + self.output - self.alias + self.temp

    @property
    def roles(self) -> dict[str, int]:
        """The temporary memory at its peak by "component: role"."""
        sums = Counter[str]()
        for part in self.parts:
            sums[f"{part.component}: {part.role}" if part.role else part.component] += part.bytes
        return dict(sums.most_common())

    @property
    def named(self) -> float:
        """The share of the peak's bytes that have a component's name: not those between buffers."""
        return 1 - (self.ledger[UNNAMED] + self.ledger[PACKED]) / self.needed


def plan(setup: Setup, target: str = "cpu") -> Plan:
    """The plan for one step of `setup` on a target of `targets.TARGETS`.

    The rows of the arguments (weights, adapters, optimizer state, ...) are what the compiled program takes; an argument
    that the step did not use would be left out of it. Raises InputError in one sentence where there is no such target,
    where the plug-in for it is missing or of another version than JAX, and where XLA refuses the program; `DoesNotFit`,
    one of them, where a TPU is too small.
    """
    targets.check(target)
    _check_plugin(target)
    with tempfile.TemporaryDirectory(prefix="lora_jax_plan_") as folder:
        found = _compile(Path(folder), setup, target)
    if "input error" in found:
        raise InputError(found["input error"])
    if "refused" in found:
        raise _refusal(target, found["refused"])
    sizes, parts = found["sizes"], tuple(Part(*part) for part in found["parts"])
    exact, planned = Counter[str](), Counter[str]()
    for row, size in found["arguments"]:
        exact[row] += size
    for part in parts:
        planned[part.component] += part.bytes
    planned[RESULTS] = sizes["output"] - sizes["alias"]
    planned[PACKED] = found["assigned"] - sum(part.bytes for part in parts)
    # What XLA counts and does not say what it is: in every plan seen, nothing.
    planned[UNNAMED] += sizes["argument"] - exact.total() + sizes["temp"] - found["assigned"]
    rows = ledger(f"compiled for {target}", exact, planned)
    return Plan(target, rows, **sizes, parts=parts, seconds=found["seconds"])


def _check_plugin(target: str) -> None:
    if target in targets.CARDS:
        pairs = [(f"jax-cuda{n}-plugin", f"jax-cuda{n}-pjrt") for n in (12, 13)]
        found = next((pair for pair in pairs if all(map(_version, pair))), ())
        if not found:
            raise InputError(f"planning for {target} takes XLA's compiler for NVIDIA GPUs (no GPU): {INSTALL}")
        for name in found:
            if _version(name) != version("jaxlib"):
                raise InputError(f"{name} is {_version(name)} and jaxlib is {version('jaxlib')}: {INSTALL}")
    elif target in targets.TPUS and _version("libtpu") is None:
        raise InputError(f"planning for {target} takes libtpu, XLA's compiler for TPUs (no TPU): {INSTALL}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _compile(folder: Path, setup: Setup, target: str) -> dict[str, Any]:
    question = {"target": target, "setup": dataclasses.asdict(setup)}
    (folder / "question.json").write_text(json.dumps(question), encoding="utf-8")
    package = str(Path(lora_jax.__file__).parents[1])
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache comes without its texts
        "XLA_FLAGS": " ".join((f"--xla_dump_to={folder}", *FLAGS, *(CARD_FLAGS if target in targets.CARDS else ()))),
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    command = [sys.executable, "-m", "lora_jax.memory.compiled.compile_step", str(folder)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    answer = folder / "answer.json"
    if not answer.exists():
        said = process.stderr.strip().splitlines() or ["nothing was said"]
        raise InputError(f"the compiler for {target} ended with code {process.returncode}: {said[-1]}")
    return json_text.load_object(answer)


def _refusal(target: str, said: str) -> InputError:
    """The error for what the compiler said; libtpu names both sides where a program does not fit."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = re.search(r"([\d.]+)([KMGT]).{0,40}exceed.{0,40}?([\d.]+)([KMGT])", said)
    if "RESOURCE_EXHAUSTED" in said and sizes:
        needed, available = (round(float(sizes[i]) * units[sizes[i + 1]]) for i in (1, 3))
        return DoesNotFit(target, needed, available)
    return InputError(f"XLA did not compile the step for {target}: {said.splitlines()[0][:300]}")
