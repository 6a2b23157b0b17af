"""The project's main job: a model that writes stories learns to write verse."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lora_jax import generation
from lora_jax.adapters import DEFAULT, METHODS
from lora_jax.adapters.base import attach, count, num_bytes
from lora_jax.files import atomic, models, peft, places
from lora_jax.memory.units import duration, size
from lora_jax.text import datasets, packing
from lora_jax.tuning import jobs

MODEL = "smollm2-135m"
PROMPTS = (
    "Once upon a time, there was a little girl who",
    "The old man looked out at the sea and",
    "In the morning the rain had stopped, and",
)
LENGTH, BATCH, RANK, RATE, WARMUP = 128, 4, 16, 1.5e-3, 4


@places.reserved("run")
def demo(*, out: str | Path, steps: int = 80, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Fine-tune SmolLM2 on verse with LoRA and write the folder `out`: the adapter, `demo.json` and `demo.png`."""
    from lora_jax import plots

    folder = Path(out)
    began = time.perf_counter()
    config, params = models.load_model(MODEL)
    tokenizer = models.load_tokenizer(MODEL)
    train, held_out = datasets.verse(tokenizer, steps * BATCH, LENGTH, seed=seed)
    say(f"{MODEL}: {count(params):,} parameters, on {jax.devices()[0].platform}")
    job = jobs.make_job(DEFAULT, config, params, key=jax.random.key(seed), options={"rank": RANK})
    frozen, constants = job.frozen
    title = f"{METHODS[DEFAULT].title}, rank {RANK}, on every linear layer"
    say(f"{title}: {count(job.trainable):,} parameters train, the rest is frozen\n")

    def write(model: Any) -> list[str]:
        return generation.generate(
            config, model, tokenizer, PROMPTS, new_tokens=60, temperature=0.7, key=jax.random.key(1)
        )

    before = write(attach(frozen, job.trainable, constants))
    state = jobs.tune(
        job,
        packing.Batches(train, BATCH, seed=seed),
        rate=RATE,
        steps=steps,
        warmup=min(WARMUP, steps),
        decay=True,
        held_out=packing.Batches.in_order(held_out, 8),
        evaluate_every=-(-steps // 4),
    )
    after = write(attach(frozen, state.trainable, constants))
    for prompt, old, new in zip(PROMPTS, before, after, strict=True):
        say(f"\n--- {prompt}\n\nbefore: {prompt}{old}\n\nafter:  {prompt}{new}")

    (_, first), (_, last) = state.evaluations[0], state.evaluations[-1]
    full = jobs.make_job("full", config, params, key=None)
    table = {
        "losses": state.losses,
        "evaluations": state.evaluations,
        "held_out": len(held_out),
        "bytes": {"full": jobs.static_bytes(full), DEFAULT: jobs.static_bytes(job)},
        "prompts": PROMPTS,
        "before": before,
        "after": after,
        "settings": {"model": MODEL, "steps": steps, "seed": seed, "rank": RANK, "batch": BATCH, "length": LENGTH},
        "seconds": round(time.perf_counter() - began, 1),
    }
    peft.save_adapter(folder / "adapter", state.trainable, constants, base=params, base_name=MODEL)
    atomic.write_bytes(folder / "demo.json", (json.dumps(table, indent=1) + "\n").encode())
    with atomic.writing(folder / "demo.png") as file:
        plots.demo(table, file)
    sizes = f"{size(num_bytes(state.trainable))} beside {size(num_bytes(params))}"
    say(f"\nloss on {len(held_out)} held-out sequences: {first:.3f} -> {last:.3f} nats a token in {steps} steps")
    took = duration(time.perf_counter() - began)
    say(f"the adapter: {sizes}, in {folder}/adapter; the picture: {folder}/demo.png ({took} in all)")
    return table
