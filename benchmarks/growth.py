"""How a LoRA step grows: `python benchmarks/growth.py --out figures/data/growth.json --figure figures/growth.png`.

Seconds a step against the number of layers and against the batch, measured, the sizes taking turns; bytes of temporary
memory against the length, as the compiler plans them, for each attention. SmolLM2's shape, rank 8 on every linear
layer, float32, AdamW.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import date
from typing import Any

import jax
import jax.numpy as jnp
import optax
from step import RANK, RATE, SHAPE, ours, versions, whole, writable

from lora_jax import Config, attach, init, lora, loss, make_step, plots

LAYERS, BATCHES, LENGTHS = (6, 12, 18, 24, 30), (1, 2, 4, 6, 8), (512, 1024, 1536, 2048, 3072, 4096)
BATCH, LENGTH = 4, 128


def seconds(rounds: int) -> dict[str, dict[int, list[float]]]:
    """Of every size, one after the other in each round; the first step of each, which compiles, is not counted."""
    takes = {
        "layers": {layers: ours("lora", BATCH, LENGTH, layers) for layers in LAYERS},
        "batch": {batch: ours("lora", batch, LENGTH) for batch in BATCHES},
    }
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in sizes} for name, sizes in takes.items()}
    for at in range(rounds + 1):
        for name, sizes in takes.items():
            for n, take in sizes.items():
                began = time.perf_counter()
                take()
                if at:
                    found[name][n].append(time.perf_counter() - began)
    return found


def planned(attention: str, length: int) -> int:
    """Bytes of temporary memory that XLA plans for the step of one sequence; nothing is run."""
    config, optimizer = Config(**SHAPE), optax.adamw(RATE)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    adapters, constants = jax.eval_shape(lambda params: lora.init(jax.random.key(1), params, rank=RANK), params)

    def adapted(adapters: Any, frozen: Any, batch: Any) -> Any:
        params, constants = frozen
        return loss(config, attach(params, adapters, constants), batch, attention=attention)

    batch = {"tokens": jax.ShapeDtypeStruct((1, length), jnp.int32)}
    state = jax.eval_shape(optimizer.init, adapters)
    step: Any = make_step(adapted, optimizer)
    return step.lower(adapters, state, (params, constants), batch).compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole, default=5)
    parser.add_argument("--out", type=writable, required=True)
    parser.add_argument("--figure", type=writable, required=True)
    arguments = parser.parse_args()
    table: dict[str, Any] = {
        "batch": BATCH,
        "length": LENGTH,
        "rank": RANK,
        "shape": SHAPE,
        "seconds": seconds(arguments.rounds),
    }
    table["planned_bytes"] = {name: {n: planned(name, n) for n in LENGTHS} for name in ("dense", "blockwise")}
    table |= {"versions": versions(), "cores": os.cpu_count(), "date": date.today().isoformat()}
    table["command"] = " ".join(["python", "benchmarks/growth.py", *sys.argv[1:]])
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")
    plots.growth(json.loads(arguments.out.read_text()), arguments.figure)


if __name__ == "__main__":
    main()
