"""Training, writing and merging, as commands. `say` prints for a person; what is returned is JSON."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax import datasets, generation, models, pretraining, story_writer, text, transformer, tuning
from lora_jax import demo as demonstration
from lora_jax import quantize as quantization
from lora_jax import stories as telling
from lora_jax.adapters import base, placement
from lora_jax.errors import InputError
from lora_jax.files import atomic, huggingface, peft
from lora_jax.loop import State
from lora_jax.training import evaluate

Say = Callable[[str], None]


def demo(*, say: Say, out: Path, steps: int, seed: int) -> dict[str, Any]:
    """The project's main job (see `demo.py`)."""
    return demonstration.run(out, steps=steps, seed=seed, say=say)


def train(
    *,
    say: Say,
    model: str,
    data: str,
    watch: list[str],
    method: str,
    length: int,
    held_out: float,
    seed: int,
    dtype: str,
    rank: int | None,
    alpha: float | None,
    targets: str | list[str] | None,
    dropout: float | None,
    remat: bool,
    quantize: str | None,
    **settings: Any,
) -> dict[str, Any]:
    """Train, and write `out`: `adapter/` or `model/`, `run.json`, and the checkpoint that a stopped run resumes."""
    rate = tuning.learning_rate(method) if settings["lr"] is None else settings["lr"]
    _check(rate, settings)
    options = {"rank": rank, "alpha": alpha, "targets": targets, "dropout": dropout}
    options = {name: value for name, value in options.items() if value is not None}
    tuning.check(method, options, quantize)
    read = {name: datasets.read(name) for name in (data, *watch)}  # first, so that bad data is refused at once
    config, params = models.load_model(model, jnp.dtype(dtype))
    params = quantization.quantize_layers(params, quantize) if quantize else params
    tokenizer = models.load_tokenizer(model)
    sequences = settings["steps"] * settings["batch_size"]
    learned, kept = datasets.load(read[data], tokenizer, length, sequences=sequences, held_out=held_out, seed=seed)
    watched = {name: datasets.load(read[name], tokenizer, length, held_out=held_out, seed=seed)[1] for name in watch}
    job = tuning.make_job(method, config, params, key=jax.random.key(seed), remat=remat, options=options)
    if job.frozen is not None:  # before an hour is spent on what could not be saved
        peft.refuse_tied(params, placement.unstack(params, job.trainable, job.frozen[1]))
    held = f"{base.num_bytes(params) / 1e6:,.0f} MB{f' in {quantize}' if quantize else ''}"
    say(f"{model}: {held}; {method}: {base.count(job.trainable):,} parameters train, on {_platform()}")
    about = {"model": model, "method": method, "options": options, "dtype": dtype, "quantize": quantize}
    state, table = _fit(say, job, data, learned, kept, watched, about, rate=rate, seed=seed, **settings)
    if job.frozen is None:
        result = settings["out"] / "model"
        huggingface.save(result, config, state.trainable, tokenizer)
    else:
        result = settings["out"] / "adapter"
        peft.save_adapter(result, state.trainable, job.frozen[1], base=params, base_name=model)
    given = f"--model {result}" if job.frozen is None else f"--model {model} --adapter {result}"
    return _end(say, table, result, given)


def pretrain(*, say: Say, data: str, length: int, seed: int, dtype: str, lr: float, **settings: Any) -> dict[str, Any]:
    """Train the small model from scratch: `train --method full`, but that it starts from random weights."""
    _check(lr, settings)
    found = datasets.read(data)
    config, tokenizer = pretraining.SMALL, models.load_tokenizer(pretraining.NAME)
    sequences = settings["steps"] * settings["batch_size"]
    learned, kept = datasets.load(found, tokenizer, length, sequences=sequences, held_out=0.1, seed=seed)
    job = tuning.make_job("full", config, transformer.init(jax.random.key(seed), config, std=pretraining.STD), key=None)
    say(f"a new model: {base.count(job.trainable):,} parameters, all of them random, on {_platform()}")
    about = {"model": "new", "method": "full"}
    state, table = _fit(say, job, data, learned, kept, {}, about, rate=lr, seed=seed, **settings)
    result = settings["out"] / "model"
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), state.trainable)
    huggingface.save(result, config, params, tokenizer)
    return _end(say, table, result, f"--model {result}")


def _fit(
    say: Say,
    job: tuning.Job,
    data: str,
    learned: text.Packed,
    kept: text.Packed,
    watched: Mapping[str, text.Packed],
    about: dict[str, Any],
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
    length = learned.tokens.shape[1]
    say(f"{data}: {len(learned)} sequences of {length} tokens to train on, {len(kept)} held out")
    schedule = {"rate": rate, "warmup": warmup, "decay": decay, "clip_norm": clip_norm, "steps": steps}
    about |= schedule | {"data": _digest(learned.tokens), "seed": seed, "batch_size": batch_size, "length": length}
    about |= {"accumulate": accumulate}
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        say(f"going on from {checkpoint}")
    state = tuning.tune(
        job,
        text.Batches(learned, batch_size, seed=seed),
        rate=rate,
        steps=steps,
        warmup=warmup,
        decay=decay,
        held_out=text.Batches.in_order(kept, batch_size),
        evaluate_every=evaluate_every,
        accumulate=accumulate,
        clip_norm=clip_norm,
        key=jax.random.key(seed + 1),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        about=about,
    )
    seen = {}
    for name, packed in watched.items():
        batches = text.Batches.in_order(packed, batch_size)
        seen[name] = [evaluate(job.loss, tree, job.frozen, batches) for tree in (job.trainable, state.trainable)]
        say("loss on held-out {}: {:.3f} -> {:.3f} nats a token".format(name, *seen[name]))
    return state, {"about": about, "losses": state.losses, "evaluations": state.evaluations, "watched": seen}


def _end(say: Say, table: dict[str, Any], result: Path, given: str) -> dict[str, Any]:
    """Write the record beside the result, and say what came of it."""
    table |= {"result": str(result)}
    atomic.write_bytes(result.parent / "run.json", (json.dumps(table, indent=1) + "\n").encode())
    (_, first), (_, last) = table["evaluations"][0], table["evaluations"][-1]
    say(f"held-out loss: {first:.3f} -> {last:.3f} nats a token in {len(table['losses'])} steps; written to {result}")
    say(f'try it: python -m lora_jax generate {given} "your prompt"')
    return table


def stories(*, say: Say, seed: int, batches: int, first: int, add: list[Path], out: Path) -> dict[str, Any]:
    """Have SmolLM2 write stories, sift them together with those of other files, and write them to `out`."""
    found = [story for path in add for story in telling.records(path)]
    began = time.monotonic()
    for number, written in enumerate(story_writer.write(seed, range(first, first + batches)), 1):
        found += written
        kept, dropped = telling.sift(found)
        telling.save(out, kept)
        say(f"batch {number} of {batches}: {len(kept)} stories kept; {time.monotonic() - began:.0f} s")
    say(f"{len(kept)} of {len(found)} stories in {out}; dropped: {dict(dropped)}")
    return {"out": str(out), "kept": len(kept), "dropped": dict(dropped)}


def generate(
    *, say: Say, prompt: list[str], model: str, adapter: Path | None, chat: bool, seed: int, **options: Any
) -> dict[str, Any]:
    """Print what a model, with an adapter or without, writes after each prompt."""
    config, params = models.load_model(model)
    tokenizer = models.load_tokenizer(model)
    if adapter is not None:
        params = base.attach(params, *peft.load_adapter(adapter, base=params))
    asked = prompt
    if chat:
        talks = [[{"role": "user", "content": text}] for text in prompt]
        asked = [tokenizer.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]
    texts = generation.generate(config, params, tokenizer, asked, key=jax.random.key(seed), **options)
    for before, after in zip(prompt, texts, strict=True):
        say(f"{before}\n{after.strip()}\n" if chat else f"{before}{after}\n")
    return {"texts": [{"prompt": before, "text": after} for before, after in zip(prompt, texts, strict=True)]}


def merge(*, say: Say, model: str, adapter: Path, out: Path) -> dict[str, Any]:
    """Fold an adapter into its model and write the model directory `out`."""
    config, params = models.load_model(model)
    merged = base.merge(params, *peft.load_adapter(adapter, base=params))
    huggingface.save(out, config, merged, models.load_tokenizer(model))
    say(f"{model} with {adapter} folded in is a model of its own in {out} ({base.num_bytes(merged) / 1e6:,.0f} MB)")
    say(f'open it with transformers, or: python -m lora_jax generate --model {out} "Once upon a time"')
    return {"out": str(out), "bytes": base.num_bytes(merged)}


def _check(rate: float, settings: Mapping[str, Any]) -> None:
    if not rate > 0:
        raise InputError(f"the learning rate is {rate}: give --lr a number above 0, such as 1e-3")
    if settings["warmup"] < 0 or not settings["clip_norm"] > 0:
        raise InputError("--warmup must be 0 or more, and --clip-norm above 0")
    if settings["batch_size"] % settings["accumulate"]:
        raise InputError(f"--accumulate {settings['accumulate']} does not divide --batch-size {settings['batch_size']}")


def _platform() -> str:
    return jax.devices()[0].platform


def _digest(tokens: Any) -> str:
    """A name for the training data, so that a checkpoint is not gone on with on other data."""
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:16]
