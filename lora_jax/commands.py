"""What each command does; `cli.py` says how it is called. `say` prints for a person; what is returned is JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax import demo as demonstration
from lora_jax import documents, generation, models, text, tuning
from lora_jax.adapters import base
from lora_jax.errors import InputError
from lora_jax.files import atomic, huggingface, peft

Say = Callable[[str], None]


def demo(*, say: Say, out: Path, steps: int, seed: int) -> dict[str, Any]:
    """The project's main job (see `demo.py`)."""
    return demonstration.run(out, steps=steps, seed=seed, say=say)


def train(
    *,
    say: Say,
    model: str,
    data: str,
    out: Path,
    method: str,
    steps: int,
    batch_size: int,
    length: int,
    held_out: float,
    seed: int,
    dtype: str,
    lr: float | None,
    rank: int | None,
    alpha: float | None,
    targets: str | None,
    dropout: float | None,
    accumulate: int,
    warmup: int,
    decay: bool,
    clip_norm: float,
    evaluate_every: int | None,
    checkpoint_every: int,
    remat: bool,
) -> dict[str, Any]:
    """Train, and write `out`: `adapter/` or `model/`, `run.json`, and the checkpoint that a stopped run resumes."""
    rate = tuning.learning_rate(method) if lr is None else lr
    _check(rate=rate, warmup=warmup, clip_norm=clip_norm, batch_size=batch_size, accumulate=accumulate)
    options = {"rank": rank, "alpha": alpha, "targets": _targets(targets), "dropout": dropout}
    options = {name: value for name, value in options.items() if value is not None}
    read = None if _is_poems(data) else documents.read_documents(data)  # first, so that bad data is refused at once
    config, params = models.load_model(model, jnp.dtype(dtype))
    tokenizer = models.load_tokenizer(model)
    if read is None:
        learned, kept = text.verse(tokenizer, steps * batch_size, length, seed=seed)
    else:
        encoded = [text.encode_document(tokenizer, document) for document in read]
        learned, kept = text.split(encoded, length, held_out, seed=seed, pad_id=tokenizer.pad_id or 0)
    batches = text.Batches(learned, batch_size, seed=seed)
    job = tuning.make_job(method, config, params, key=jax.random.key(seed), remat=remat, options=options)
    trained = f"{base.count(job.trainable):,} train"
    say(f"{model}: {base.count(params):,} parameters; {method}: {trained}, on {jax.devices()[0].platform}")
    say(f"{data}: {len(learned)} sequences of {length} tokens to train on, {len(kept)} held out")
    about = {"model": model, "data": _digest(learned.tokens), "method": method, "options": options, "seed": seed}
    about |= {"rate": rate, "warmup": warmup, "decay": decay, "clip_norm": clip_norm, "dtype": dtype}
    about |= {"steps": steps, "batch_size": batch_size, "length": length, "accumulate": accumulate}
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        say(f"going on from {checkpoint}")
    state = tuning.tune(
        job,
        batches,
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
    (_, first), (_, last) = state.evaluations[0], state.evaluations[-1]
    if job.frozen is None:
        result = out / "model"
        huggingface.save(result, config, state.trainable, tokenizer)
    else:
        result = out / "adapter"
        peft.save_adapter(result, state.trainable, job.frozen[1], base=params, base_name=model)
    table = {"about": about, "losses": state.losses, "evaluations": state.evaluations, "result": str(result)}
    atomic.write_bytes(out / "run.json", (json.dumps(table, indent=1) + "\n").encode())
    say(f"held-out loss: {first:.3f} -> {last:.3f} nats a token in {steps} steps; written to {result}")
    given = f"--model {result}" if job.frozen is None else f"--model {model} --adapter {result}"
    say(f'try it: python -m lora_jax generate {given} "your prompt"')
    return table


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


def _check(*, rate: float, warmup: int, clip_norm: float, batch_size: int, accumulate: int) -> None:
    if not rate > 0:
        raise InputError(f"the learning rate is {rate}: give --lr a number above 0, such as 1e-3")
    if warmup < 0 or not clip_norm > 0:
        raise InputError("--warmup must be 0 or more, and --clip-norm above 0")
    if batch_size % accumulate:
        raise InputError(f"--accumulate {accumulate} does not divide --batch-size {batch_size}")


def _targets(targets: str | None) -> str | list[str] | None:
    """Plain names with commas between are a list; anything else is a shorthand or a regular expression."""
    if targets is None or targets in ("all-linear", "attention", "mlp"):
        return targets
    names = targets.split(",")
    return names if all(name.replace("_", "").isalnum() for name in names) else targets


def _is_poems(data: str) -> bool:
    return data == "poems" and not Path(data).exists()


def _digest(tokens: Any) -> str:
    """A name for the training data, so that a checkpoint is not gone on with on other data."""
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:16]
