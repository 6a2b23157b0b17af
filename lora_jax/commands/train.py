"""The commands `train` and `pretrain`. `say` prints for a person; what is returned is JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax import quantize as quantization
from lora_jax import transformer
from lora_jax.adapters import base
from lora_jax.commands import identity, numbers, sequences
from lora_jax.errors import InputError
from lora_jax.files import atomic, huggingface, models, peft, places
from lora_jax.files import checkpoint as checkpoints
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.memory.units import size
from lora_jax.text import datasets, packing, show
from lora_jax.training import evaluate
from lora_jax.tuning import finite, jobs, optimizers, pretraining
from lora_jax.tuning.loop import State

Say = Callable[[str], None]
CHECKPOINT = "checkpoint.safetensors"


@places.reserved("run")
def train(
    *,
    say: Say,
    model: str,
    data: str,
    watch: list[str],
    method: str,
    length: int | None,
    held_out: float,
    seed: int,
    dtype: str,
    options: Mapping[str, Any],
    remat: bool,
    quantize: str | None,
    rounding: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train, and write `out`: `adapter/` or `model/`, `run.json`, and the checkpoint that a stopped run resumes."""
    jobs.check(method, options, quantize)
    rounding = jobs.rounding(method, dtype, rounding)
    rate = jobs.learning_rate(method) if settings["lr"] is None else settings["lr"]
    _check(settings | {"lr": rate, "held_out": held_out, "length": length, "seed": seed} | dict(options))
    identity.refuse_older(settings["out"] / CHECKPOINT)
    read = {name: datasets.read(name, say) for name in (data, *watch)}  # first, so that bad data is refused at once
    config, params = models.load_model(model, jnp.dtype(dtype))
    params = quantization.quantize_layers(params, quantize) if quantize else params
    tokenizer = sequences.with_template(say, models.load_tokenizer(model), read)
    tokenizer = _at_one_time(tokenizer, settings["out"])
    job = jobs.make_job(method, config, params, key=jax.random.key(seed), remat=remat, options=options)
    how: dict[str, Any] = {"held_out": held_out, "seed": seed, "settings": settings, "past": job.past(config)}
    packed = sequences.pack(say, config, tokenizer, read, length, **how)
    if job.frozen is not None:  # before an hour is spent on what could not be saved
        peft.as_files(job.trainable, job.frozen[1], base=params)
    held = f"{size(base.num_bytes(params))}{f' in {quantize}' if quantize else ''}"
    say(f"{model}: {held}; {method}: {base.count(job.trainable):,} parameters train, on {_platform()}")
    about: dict[str, Any] = {"model": model, "method": method, "options": options, "dtype": dtype}
    if rounding is not None:
        about["rounding"] = rounding
        say(f"training in {dtype}, rounding {rounding}: {optimizers.ROUNDING[rounding]}")
    about |= {"quantize": quantize, "remat": remat}
    start = identity.of_model(config, job, tokenizer)
    state, table = _fit(say, job, tokenizer, packed, watch, about, start, rate=rate, seed=seed, **settings)
    if job.frozen is None:
        result = settings["out"] / "model"
        huggingface.save(result, config, state.trainable, tokenizer)
    else:
        result = settings["out"] / "adapter"
        peft.save_adapter(result, state.trainable, job.frozen[1], base=params, base_name=model)
    given = f"--model {result}" if job.frozen is None else f"--model {model} --adapter {result}"
    return _end(say, table, result, f"{given} {datasets.asked(read[data])}")


@places.reserved("run")
def pretrain(
    *, say: Say, data: str, length: int | None, seed: int, dtype: str, lr: float, **settings: Any
) -> dict[str, Any]:
    """Train the small model from scratch: `train --method full`, but that it starts from random weights."""
    if settings["warmup"] is None:
        settings["warmup"] = min(pretraining.WARMUP, settings["steps"])
    _check(settings | {"lr": lr, "length": length, "seed": seed})
    identity.refuse_older(settings["out"] / CHECKPOINT)
    read = {data: datasets.read(data, say)}
    config, tokenizer = pretraining.SMALL, sequences.with_template(say, models.load_tokenizer(pretraining.NAME), read)
    tokenizer = _at_one_time(tokenizer, settings["out"])
    packed = sequences.pack(say, config, tokenizer, read, length, held_out=0.1, seed=seed, settings=settings)
    job = jobs.make_job("full", config, transformer.init(jax.random.key(seed), config, std=pretraining.STD), key=None)
    say(f"a new model: {base.count(job.trainable):,} parameters, all of them random, on {_platform()}")
    about = {"model": "new", "method": "full", "remat": False}
    start = identity.of_model(config, job, tokenizer)
    state, table = _fit(say, job, tokenizer, packed, [], about, start, rate=lr, seed=seed, **settings)
    result = settings["out"] / "model"
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), state.trainable)
    finite.check(state.step, weights=params)  # a finite number may be too large for 16 bits
    huggingface.save(result, config, params, tokenizer)
    return _end(say, table, result, f"--model {result} {datasets.asked(read[data])}")


def _fit(
    say: Say,
    job: jobs.Job,
    tokenizer: Tokenizer,
    packed: dict[str, tuple[packing.Packed, packing.Packed]],
    watch: list[str],
    about: dict[str, Any],
    start: dict[str, Any],
    *,
    out: Path,
    rate: float,
    seed: int,
    steps: int,
    batch_size: int,
    warmup: int,
    decay: bool,
    clip_norm: float,
    evaluate_every: int | None,
    checkpoint_every: int,
    accumulate: int,
    lr: float | None = None,
) -> tuple[State, dict[str, Any]]:
    """Train, going on from the checkpoint in `out` where there is one; the state and the record of the run."""
    learned, kept = next(iter(packed.values()))
    batches = packing.Batches(learned, batch_size, seed=seed)
    example = show.example(tokenizer, batches[0])
    say(f"\n{example['text']}\n")
    length = learned.tokens.shape[1]
    schedule = {"rate": rate, "warmup": warmup, "decay": decay, "clip_norm": clip_norm, "steps": steps}
    about |= schedule | identity.of_texts(packed) | {"seed": seed, "batch_size": batch_size, "length": length}
    about |= {"accumulate": accumulate} | start  # last: where more than one thing differs, the first is named at length
    if _asks_for_time(tokenizer):
        about["time"] = tokenizer.now.isoformat()
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        say(f"going on from {checkpoint}")
    state = jobs.tune(
        job,
        batches,
        rate=rate,
        steps=steps,
        warmup=warmup,
        decay=decay,
        held_out=packing.Batches.in_order(kept, batch_size),
        evaluate_every=evaluate_every,
        accumulate=accumulate,
        clip_norm=clip_norm,
        rounding=about.get("rounding"),
        key=jax.random.key(seed + 1),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        about=about,
    )
    seen = {}
    for name in watch:
        rows = packing.Batches.in_order(packed[name][1], batch_size)
        both = ((0, job.trainable), (state.step, state.trainable))
        seen[name] = [finite.check_loss(evaluate(job.loss, tree, job.frozen, rows), step, name) for step, tree in both]
        say("loss on held-out {}: {:.3f} -> {:.3f} nats a token".format(name, *seen[name]))
    found = {"losses": state.losses, "evaluations": state.evaluations, "watched": seen}
    return state, {"about": about, "first_example": example, **found}


def _end(say: Say, table: dict[str, Any], result: Path, given: str) -> dict[str, Any]:
    """Write the record beside the result, and say what came of it."""
    table |= {"result": str(result)}
    atomic.write_bytes(result.parent / "run.json", (json.dumps(table, indent=1) + "\n").encode())
    (_, first), (_, last) = table["evaluations"][0], table["evaluations"][-1]
    say(f"held-out loss: {first:.3f} -> {last:.3f} nats a token in {len(table['losses'])} steps; written to {result}")
    say(f"try it: python -m lora_jax generate {given}")
    return table


def _check(settings: Mapping[str, Any]) -> None:
    numbers.check(settings)
    if settings["batch_size"] % settings["accumulate"]:
        raise InputError(f"--accumulate {settings['accumulate']} does not divide --batch-size {settings['batch_size']}")


def _platform() -> str:
    return jax.devices()[0].platform


def _asks_for_time(tokenizer: Tokenizer) -> bool:
    return "strftime_now" in (tokenizer.chat_template or "")


def _at_one_time(tokenizer: Tokenizer, out: Path) -> Tokenizer:
    """The tokenizer, at the time at which the run in `out` began: its data are the same when it goes on tomorrow."""
    began = checkpoints.about(out / CHECKPOINT).get("run", {}).get("time") if _asks_for_time(tokenizer) else None
    return tokenizer if began is None else dataclasses.replace(tokenizer, now=datetime.fromisoformat(began))
