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
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step import RANK, RATE, SHAPE, versions

from lora_jax import Config, attach, init, lora, loss, make_step, plots

CONFIG = Config(**SHAPE)
LAYERS, BATCHES, LENGTHS, LENGTH = (6, 12, 18, 24, 30), (1, 2, 4, 6, 8), (512, 1024, 1536, 2048, 3072, 4096), 128


def make(config: Config, attention: str = "auto") -> tuple[Any, Any, optax.GradientTransformation]:
    """The step of LoRA on one model, what makes its adapters, and its optimizer."""

    def adapted(adapters: Any, frozen: Any, batch: Any) -> Any:
        params, constants = frozen
        return loss(config, attach(params, adapters, constants), batch, attention=attention)

    optimizer = optax.adamw(RATE)
    return make_step(adapted, optimizer), lambda params: lora.init(jax.random.key(1), params, rank=RANK), optimizer


def stepper(config: Config, params: Any, batch: int) -> Callable[[], float]:
    """A function that takes one step and says its seconds."""
    step, adapters_of, optimizer = make(config)
    adapters, constants = adapters_of(params)
    state = [adapters, optimizer.init(adapters)]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, LENGTH)).astype(np.int32)

    def take() -> float:
        began = time.perf_counter()
        state[0], state[1], value, _ = step(state[0], state[1], (params, constants), {"tokens": tokens})
        value.block_until_ready()
        return time.perf_counter() - began

    return take


def seconds(rounds: int) -> dict[str, dict[int, list[float]]]:
    """Of every size, each round after the other; the first, which compiles, is not counted."""
    takes: dict[str, dict[int, Callable[[], float]]] = {"layers": {}, "batch": {}}
    for layers in LAYERS:
        config = replace(CONFIG, num_hidden_layers=layers)
        params = init(jax.random.key(0), config)
        takes["layers"][layers] = stepper(config, params, 4)
    takes["batch"] = {batch: stepper(config, params, batch) for batch in BATCHES}  # of the last, the whole model
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in sizes} for name, sizes in takes.items()}
    for at in range(rounds + 1):
        for name, sizes in takes.items():
            for n, take in sizes.items():
                spent = take()
                if at:
                    found[name][n].append(spent)
    return found


def planned(attention: str, length: int) -> int:
    """Bytes of temporary memory that XLA plans for the step of one sequence; nothing is run."""
    step, adapters_of, optimizer = make(CONFIG, attention)
    params = jax.eval_shape(lambda: init(jax.random.key(0), CONFIG))
    adapters, constants = jax.eval_shape(adapters_of, params)
    batch = {"tokens": jax.ShapeDtypeStruct((1, length), jnp.int32)}
    lowered = step.lower(adapters, jax.eval_shape(optimizer.init, adapters), (params, constants), batch)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    arguments = parser.parse_args()
    table: dict[str, Any] = {"seconds": seconds(arguments.rounds), "length": LENGTH, "rank": RANK, "shape": SHAPE}
    table["planned_bytes"] = {name: {n: planned(name, n) for n in LENGTHS} for name in ("scores", "blocks")}
    table |= {"versions": versions(), "cores": os.cpu_count(), "date": date.today().isoformat()}
    table["command"] = " ".join(["python", "benchmarks/growth.py", *sys.argv[1:]])
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")
    plots.growth(json.loads(arguments.out.read_text()), arguments.figure)


if __name__ == "__main__":
    main()
