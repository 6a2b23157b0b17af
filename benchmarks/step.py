"""Time and memory of one training step, this package beside PEFT on PyTorch: `python benchmarks/step.py --out FILE`.

One job for all: SmolLM2's shape with random weights, AdamW, LoRA of rank 8 on every linear layer, float32. Each side
is a process of its own that takes one step when told to; the sides take turns, round after round, so that a machine
whose speed drifts is as unfair to one as to another. The machine's rate of multiplying matrices is measured in every
round too: the products that a step cannot do without, at that rate, are the floor. Peak memory is the resident set of
another fresh process at its highest, after the same steps. Sides whose libraries are missing, or that take too long to
compile, are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rope_theta": 100_000.0,
}
RANK, RATE = 8, 1e-3


def ours(method: str, batch: int, length: int, layers: int = SHAPE["num_hidden_layers"]) -> Callable[[], float]:
    import jax
    import numpy as np
    import optax

    from lora_jax import Config, init, make_step
    from lora_jax.tuning import jobs

    config = Config(**SHAPE | {"num_hidden_layers": layers})
    params = init(jax.random.key(0), config)
    options = {"rank": RANK} if method == "lora" else None
    job = jobs.make_job(method, config, params, key=jax.random.key(1), options=options)
    optimizer = optax.adamw(RATE)
    state = [job.trainable, optimizer.init(job.trainable)]
    del params
    frozen, step = job.frozen, make_step(job.loss, optimizer)
    del job
    tokens = {"tokens": np.random.default_rng(0).integers(0, config.vocab_size, (batch, length)).astype(np.int32)}

    def take() -> float:
        state[0], state[1], loss, _ = step(state[0], state[1], frozen, tokens)
        return float(loss)

    return take


def peft(method: str, batch: int, length: int, compiled: bool = False) -> Callable[[], float]:
    import numpy as np
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if name != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": SHAPE["rope_theta"]}
    config = transformers.LlamaConfig(**shape, tie_word_embeddings=True, rope_parameters=rope, use_cache=False)
    model = transformers.LlamaForCausalLM(config)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    run = torch.compile(model) if compiled else model
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (batch, length)))

    def take() -> float:
        optimizer.zero_grad()
        loss = run(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return take


SIDES = {
    "lora_jax full": lambda batch, length: ours("full", batch, length),
    "lora_jax lora": lambda batch, length: ours("lora", batch, length),
    "peft full": lambda batch, length: peft("full", batch, length),
    "peft lora": lambda batch, length: peft("lora", batch, length),
    "peft lora compiled": lambda batch, length: peft("lora", batch, length, compiled=True),
}


def serve(side: str, batch: int, length: int) -> None:
    """Take a step for every line that comes in, and print its seconds; at the end, the process's peak in bytes."""
    take = SIDES[side](batch, length)
    loss = take()
    print(json.dumps({"loss": loss}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        take()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)


def matrix_rate() -> float:
    """Floating-point operations a second in a product of two 2,304 x 2,304 float32 matrices, the best of three."""
    import jax
    import jax.numpy as jnp

    n = 2304
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


def start(side: str, batch: int, length: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--serve", side, "--batch", str(batch), "--length", str(length)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin and process.stdout
    process.stdin.write("step\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def first(process: subprocess.Popen[str], patience: float) -> dict[str, float] | None:
    """The first step's answer; None where the side's libraries are missing or it took more than `patience` seconds."""
    assert process.stdout
    killer = threading.Timer(patience, process.kill)
    killer.start()
    line = process.stdout.readline()
    killer.cancel()
    return json.loads(line) if line else None


def stop(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate()
    return json.loads(out.strip().splitlines()[-1])


def compare(sides: list[str], batch: int, length: int, rounds: int, patience: float) -> dict[str, object]:
    """Seconds a step of each side in turn, the matrix rate beside them, and each side's peak in a fresh process."""
    processes, losses = {}, {}
    for side in sides:
        process = start(side, batch, length)
        if (answer := first(process, patience)) is not None:
            processes[side], losses[side] = process, answer["loss"]
    seconds: dict[str, list[float]] = {side: [] for side in processes}
    rates = []
    for _ in range(rounds):
        rates.append(matrix_rate())
        for side, process in processes.items():
            seconds[side].append(ask(process)["seconds"])
    for process in processes.values():
        stop(process)
    peaks = {}
    for side in processes:
        process = start(side, batch, length)
        if first(process, patience) is None:
            raise SystemExit(
                f"{side} took more than {patience:.0f} seconds to its first step the second time: try again"
            )
        ask(process)
        peaks[side] = int(stop(process)["peak"])
    D, F, L, V = (SHAPE[n] for n in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    KV = SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    multiplied = L * (2 * D * D + 2 * D * KV + 3 * D * F) + V * D
    rate = statistics.median(rates)
    return {
        "job": {"batch": batch, "length": length, "rank": RANK, "shape": SHAPE},
        "matrix_rate": rates,
        "floor_seconds": {
            "lora": 4 * multiplied * batch * length / rate,
            "full": 6 * multiplied * batch * length / rate,
        },
        "left_out": [side for side in sides if side not in processes],
        "sides": {
            side: {
                "seconds": times,
                "median": statistics.median(times),
                "peak_bytes": peaks[side],
                "loss": losses[side],
            }
            for side, times in seconds.items()
        },
    }


def whole(text: str) -> int:
    """An argument that is 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it must be a whole number, 1 or more, not {text}")
    return int(text)


def writable(text: str) -> Path:
    """A file to write at the end: its folder must be there at the start."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "optax", "torch", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--batch", type=whole, default=4)
    parser.add_argument("--length", type=whole, default=128)
    parser.add_argument("--rounds", type=whole, default=7)
    parser.add_argument("--patience", type=float, default=600, help="seconds that a side may take to its first step")
    parser.add_argument("--out", type=writable)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.batch, arguments.length)
        return
    table = compare(arguments.sides, arguments.batch, arguments.length, arguments.rounds, arguments.patience)
    table |= {"versions": versions(), "cores": os.cpu_count(), "date": date.today().isoformat()}
    table["command"] = " ".join(["python", "benchmarks/step.py", *sys.argv[1:]])
    text = json.dumps(table, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    for side, row in table["sides"].items():
        floor = table["floor_seconds"]["full" if "full" in side else "lora"]
        print(
            f"{side:20} {row['median']:6.2f} s   floor {floor / row['median']:4.0%}   {row['peak_bytes'] / 1e9:5.2f} GB"
        )


if __name__ == "__main__":
    main()
