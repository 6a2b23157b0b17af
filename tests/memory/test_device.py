"""What a device used: one real step on this CPU against its plan, and every way in which a measurement can fail."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lora_jax.errors import InputError
from lora_jax.files import huggingface_config
from lora_jax.memory.compiled.compile_step import setup_from_json
from lora_jax.memory.measured import device, run_step
from lora_jax.transformer import Config

CPU = {"platform": "cpu", "device": "a processor", "memory": None, "python": "3.11", "jax": "1", "jaxlib": "1"}
GPU = CPU | {"platform": "gpu", "device": "NVIDIA GeForce RTX 4090", "memory": 10**9}
PLANNED = {"argument": 700, "output": 500, "alias": 480, "temp": 80}  # 800 in all
# Wide and shallow: 60 MB of weights and little to compute, so that what is held stands out from what a process costs.
WIDE = Config(900, 1536, 2304, 1, 6, 3, 256, tie_word_embeddings=False)


def measure(tmp_path, **options):
    """`(what was printed, the record)` of the command `measure`."""
    lines = []
    given = {"kind": "cpu", "out": tmp_path / "record.json"} | options
    return lines, device.measure(say=lines.append, **given)


def answers(monkeypatch, **parts):
    """Let the processes answer so, each given by its part, and none be started; the parts that were asked for."""
    asked = []

    def part(folder, name, question, platform):
        asked.append(name)
        return dict(parts[name])

    monkeypatch.setattr(device, "_part", part)
    return asked


def test_a_real_step_on_this_cpu(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config.write_config(WIDE)))
    options = {"models": [str(tmp_path)], "method": "full", "batch_size": 1, "length": 32}
    lines, record = measure(tmp_path, **options)
    (row,) = record["rows"]
    planned = row["planned"]
    assert planned["needed"] == planned["argument"] + planned["output"] - planned["alias"] + planned["temp"]
    assert row["cached"], "the program that ran was compiled again, and compiling takes memory of its own"
    # What it held is at least its arguments: three float32 copies of the weights. They and the plan are well known.
    assert row["used"] > planned["argument"] > 12 * 15e6
    assert abs(row["error"]) < 0.15
    assert row["used"] == row["peak"] - row["baseline"] and row["error"] == planned["needed"] / row["used"] - 1
    assert json.loads((tmp_path / "record.json").read_text())["rows"] == record["rows"]
    assert record["made_by"]["jax"] == jax.__version__ and record["made_by"]["platform"] == "cpu"
    assert row["setup"]["dtype"] == "float32" and "used" in lines[1]


def test_a_record_is_gone_on_with(tmp_path, monkeypatch):
    asked = answers(
        monkeypatch, look=CPU, compile=PLANNED, load={"peak": 100}, run={"peak": 900, "held": 3, "cached": True}
    )
    monkeypatch.setattr(device, "_available", lambda: 10**9)
    _, first = measure(tmp_path, models=["smollm2-135m"], method="lora")
    assert asked == ["look", "compile", "load", "run"]
    assert [(row["used"], row["error"]) for row in first["rows"]] == [(800, 0.0)]
    _, second = measure(tmp_path, models=["smollm2-135m"])
    assert asked == ["look", "compile", "load", "run", "look"] + ["compile", "load", "run"] * 2  # LoRA is known
    assert second["rows"][1] == first["rows"][0]
    _, third = measure(tmp_path, models=["smollm2-135m"], method="lora", quantize="int8", batch_size=2, remat=True)
    assert [setup_from_json(row["setup"]).name for row in third["rows"]] == ["lora int8", "full", "lora", "lora nf4"]
    assert third["summary"] == {"measured": 4, "failed": 0, "median": 0.0, "worst": 0.0}
    assert third["rows"][0]["command"] == (
        "python -m lora_jax measure --device cpu --model smollm2-135m --method lora --quantize int8 --dtype float32 "
        "--batch-size 2 --length 512 --remat --attention blockwise"
    )


def test_a_gpu_counts_for_itself(tmp_path, monkeypatch):
    asked = answers(monkeypatch, look=GPU, compile=PLANNED, run={"peak": 640, "held": 3, "cached": True})
    lines, record = measure(tmp_path, kind="gpu", models=["llama3.1-8b"], method="lora", quantize="nf4")
    assert asked == ["look", "compile", "run"]  # no baseline: the device's own count starts at nothing
    (row,) = record["rows"]
    assert (row["used"], row["error"], row["setup"]["dtype"]) == (640, 0.25, "bfloat16")
    assert lines[-1] == "planned against used: median 25.00% off, worst 25.00%; 0 of 1 failed"


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"compile": {"failed": "XLA says no"}}, "XLA says no"),
        (
            {"compile": PLANNED, "run": {"failed": "RESOURCE_EXHAUSTED: Out of memory"}},
            "RESOURCE_EXHAUSTED: Out of memory",
        ),
    ],
)
def test_a_step_that_fails_is_a_row(tmp_path, monkeypatch, parts, why):
    answers(monkeypatch, look=GPU, **parts)
    lines, record = measure(tmp_path, kind="auto", models=["llama3.1-8b"], method="full")
    assert [(row["used"], row["failed"]) for row in record["rows"]] == [(None, why)]
    assert record["summary"] == {"measured": 0, "failed": 1, "median": None, "worst": None}
    assert lines[1] == f"llama3.1-8b full 1 x 512 bfloat16: failed ({why})"


def test_what_failed_is_tried_again_and_replaced(tmp_path, monkeypatch):
    run = {"peak": 640, "held": 3, "cached": True}
    options = {"kind": "gpu", "models": ["smollm2-135m"], "method": "lora"}
    answers(monkeypatch, look=GPU, compile=PLANNED, run={"failed": "no answer in 900 seconds"})
    measure(tmp_path, **options)
    answers(monkeypatch, look=GPU, compile=PLANNED, run=run)
    _, record = measure(tmp_path, **options)
    assert [row["used"] for row in record["rows"]] == [640] and record["summary"]["failed"] == 0


def test_a_cpu_is_not_asked_for_more_than_it_has(tmp_path, monkeypatch):
    asked = answers(monkeypatch, look=CPU, compile=PLANNED)
    monkeypatch.setattr(device, "_available", lambda: 799)
    _, record = measure(tmp_path, models=["smollm2-135m"], method="full")
    assert record["rows"][0]["failed"] == "out of memory: 800 bytes planned, 799 available"
    assert asked == ["look", "compile"]


def test_a_process_that_dies_or_hangs_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert device._part(tmp_path, "look", {}, "cpu") == {"failed": "the process ended with code 1: nothing was said"}
    waits = tmp_path / "waits"
    waits.write_text("#!/bin/sh\nexec sleep 60\n")
    waits.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(waits))
    monkeypatch.setattr(device, "PATIENCE", 1)
    assert device._part(tmp_path, "look", {}, "cpu") == {"failed": "no answer in 1 seconds"}


# The peak resident set since a moment, which is what this reads, only Linux tells.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts this for us")
def test_a_process_does_not_inherit_its_parents_peak():
    held = bytearray(700_000_000)
    held[::4096] = b"1" * len(held[::4096])  # touched, so that it is resident
    code = "from lora_jax.memory.measured.run_step import peak_resident as peak; import resource; print(peak())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run_step.peak_resident() > len(held) > 500_000_000 > int(child.stdout) > 50_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > len(held)


def test_arguments_are_filled_as_described():
    shapes = {"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "b": [jax.ShapeDtypeStruct((5,), jnp.uint8)]}
    found = run_step.filled(shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def test_the_grids_are_of_models_that_exist():
    for grid in (device.CPU_GRID, device.GPU_GRID):
        setups = [setup for _, setup in device.expand(grid, "float32")]
        assert {setup.name for setup in setups} == {"full", "lora", "lora nf4"}
        described = [json.dumps(dataclasses.asdict(setup)) for setup in setups]
        assert len(set(described)) == len(described)  # a row twice would be measured once


def test_names_of_records():
    names = {"Tesla T4": "t4", "NVIDIA H100 80GB HBM3": "h100_80gb_hbm3", "NVIDIA GeForce RTX 4090": "rtx_4090"}
    assert {kind: device.short_name(GPU | {"device": kind}) for kind in names} == names
    assert device.short_name(CPU) == "cpu"


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_a_users_mistakes_are_answered_in_a_sentence(tmp_path, monkeypatch):
    answers(monkeypatch, look=CPU)
    assert refusal(lambda: measure(tmp_path, kind="gpu")) == (
        "JAX sees no GPU here, only a cpu: install jax[cuda12], or measure with --device cpu"
    )
    assert refusal(lambda: measure(tmp_path, kind="npu")) == "there is no device 'npu': choose auto, cpu, gpu"
    assert refusal(lambda: measure(tmp_path, models=["llama9"])).startswith("there is no model 'llama9' to plan for")
    assert refusal(lambda: measure(tmp_path, models=["smollm2-135m"], length=-5)) == (
        "length is -5, and must be a whole number of 1 or more"
    )
    assert refusal(lambda: measure(tmp_path, models=["smollm2-135m"], method="qlora")) == (
        "there is no method 'qlora': choose full or lora, dora, ia3, prompt_tuning"
    )
    assert refusal(lambda: measure(tmp_path, models=["smollm2-135m"], quantize="nf4")) == (
        "--quantize is for one method: say which with --method"
    )
    assert refusal(lambda: measure(tmp_path, method="full")) == "--method is for models: say which with --model"
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"made_by": GPU, "rows": []}))
    assert refusal(lambda: measure(tmp_path)) == (
        f"{record} is a record of platform gpu, device NVIDIA GeForce RTX 4090, memory 1000000000, and this is "
        "platform cpu, device a processor, memory None: give --out another name, or move that file away"
    )
    record.write_text("not a record")
    assert refusal(lambda: measure(tmp_path)) == f"{record} is not a record of measurements: give --out another name"
    answers(monkeypatch, look=CPU | {"platform": "tpu"})
    assert refusal(lambda: measure(tmp_path)) == "measuring on a tpu is not supported: choose --device cpu"
    answers(monkeypatch, look={"failed": "no backend"})
    assert refusal(lambda: measure(tmp_path)) == "JAX does not start here: no backend"
