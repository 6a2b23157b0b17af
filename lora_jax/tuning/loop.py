"""The loop round the step: progress, evaluation, checkpoints, resume, and a clear stop."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lora_jax.errors import InputError
from lora_jax.files import checkpoint as checkpoints
from lora_jax.training import Tree, evaluate, make_step
from lora_jax.transformer import Batch, Loss
from lora_jax.tuning import finite, optimizers
from lora_jax.tuning.finite import NonFiniteLoss

__all__ = ["NonFiniteLoss", "State", "fit"]

NO_STEP = 2**32 - 1  # what is folded into the key where a step's number is not


@dataclass(frozen=True)
class State:
    """Where a run stands: all that is needed to go on, bit for bit."""

    step: int
    trainable: Tree
    opt_state: Tree
    losses: list[float] = field(default_factory=list)  # nats a token, one a step
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out loss)


def fit(
    loss: Loss,
    *,
    trainable: Tree,
    frozen: Tree,
    batches: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    held_out: Sequence[Batch] | None = None,
    evaluate_every: int | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    rounding: str | None = None,
    key: jax.Array | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> State:
    """Train for `steps` steps on `batches[0]`, `batches[1]`, ...; the caller's arrays stay alive.

    `held_out` is evaluated before the first step, after the last, and every `evaluate_every` steps. `clip_norm` bounds
    the gradient's global norm. A `key` is folded with the step and given to the loss as `batch["key"]`, for dropout.
    What trains in 16 bits takes the optimizer's updates by `rounding`, "master" (which is meant where none is given),
    "stochastic" (which draws from `key`) or "nearest": see `tuning/optimizers.py`.
    With a `checkpoint` path the state is written there, atomically, every `checkpoint_every` steps and at the end, and
    a run that finds one there goes on from it; `about` (JSON values) says which run it is, and another's is refused.
    Raises NonFiniteLoss, leaving the last checkpoint as it was, where the loss, the gradient's norm, an evaluation, or
    what was learned and is about to be kept is not finite; and InputError.
    """
    if clip_norm is not None and not 0 < clip_norm < float("inf"):
        raise InputError(f"the bound on the gradient's norm is {clip_norm}: give a finite number above 0, such as 1.0")
    if min(steps, checkpoint_every, 1 if evaluate_every is None else evaluate_every) < 1:
        raise InputError("steps, checkpoint_every and evaluate_every must each be 1 or more")
    own = None if key is None else jax.random.fold_in(key, NO_STEP)
    optimizer = optimizers.rounded(optimizer, trainable, rounding, own)
    if clip_norm is not None:
        optimizer = optax.chain(optimizers.clip_by_norm(clip_norm), optimizer)
    state = State(0, jax.tree.map(jnp.copy, trainable), _init(optimizer, trainable))
    if checkpoint is not None and Path(checkpoint).exists():
        state = _load(checkpoint, state, about or {})
        finite.check(state.step, weights=state.trainable, optimizer=state.opt_state)
    step = make_step(loss, optimizer, accumulate=accumulate)
    losses, evaluations = list(state.losses), list(state.evaluations)
    trainable, opt_state = state.trainable, state.opt_state

    def due(at: int, every: int | None) -> bool:
        return at == steps or (every is not None and at % every == 0)

    def look(at: int) -> None:
        if held_out is not None and not any(step == at for step, _ in evaluations):
            found = evaluate(loss, trainable, frozen, held_out)
            evaluations.append((at, finite.check_loss(found, at, "held-out text")))
            bar.set_postfix(held_out=f"{evaluations[-1][1]:.3f}")

    with _bar(steps, state.step, progress) as bar:
        if state.step == 0:
            look(0)
        for at in range(state.step, steps):
            try:
                batch = dict(batches[at])
            except IndexError:
                raise InputError(f"there are only {at} batches for {steps} steps") from None
            if key is not None:
                batch["key"] = jax.random.fold_in(key, at)
            began = time.perf_counter()
            trainable, opt_state, value, norm = step(trainable, opt_state, frozen, batch)
            losses.append(float(value))
            # A gradient that overflows under a finite loss would put its NaNs into the next checkpoint.
            if not np.isfinite([losses[-1], float(norm)]).all():
                found = f"the loss is {losses[-1]:.3f} and its gradient's norm {float(norm):.3g}"
                before = f"{losses[-2]:.3f} before it" if at else "the first"
                raise NonFiniteLoss(f"at step {at + 1} ({before}) {found}: {finite.ADVICE}")
            rate = batch["tokens"].size / (time.perf_counter() - began)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", tokens_per_s=f"{rate:,.0f}", refresh=False)
            bar.update()
            kept = checkpoint is not None and due(at + 1, checkpoint_every)
            if kept or due(at + 1, evaluate_every):
                finite.check(at + 1, weights=trainable, optimizer=opt_state)
            if due(at + 1, evaluate_every):
                look(at + 1)
            if checkpoint is not None and kept:
                _save(checkpoint, State(at + 1, trainable, opt_state, losses, evaluations), about or {})
    return State(max(state.step, steps), trainable, opt_state, losses, evaluations)


def _init(optimizer: optax.GradientTransformation, trainable: Tree) -> Tree:
    """The optimizer's first state, with copies where it holds on to the caller's arrays: the step donates it."""
    held = {id(leaf) for leaf in jax.tree.leaves(trainable)}
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if id(leaf) in held else leaf, optimizer.init(trainable))


def _bar(steps: int, done: int, progress: bool) -> Any:
    from tqdm.auto import tqdm  # a bar in the terminal and in Jupyter, with the time left

    return tqdm(total=steps, initial=done, unit="step", disable=not progress, dynamic_ncols=True, mininterval=0.5)


def _save(path: str | Path, state: State, about: Mapping[str, Any]) -> None:
    progress = {"step": state.step, "losses": state.losses, "evaluations": state.evaluations}
    checkpoints.save(path, (state.trainable, state.opt_state), {"run": dict(about), **progress})


def _is_digest(value: Any) -> bool:
    """Whether a value stands for something large, or for several, in hex digits that tell a person nothing."""
    if isinstance(value, dict):
        return all(map(_is_digest, value.values()))
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def _load(path: str | Path, like: State, about: Mapping[str, Any]) -> State:
    here = json.loads(json.dumps(dict(about)))

    def check(found: Mapping[str, Any]) -> None:
        other = [name for name in {**here, **found["run"]} if here.get(name) != found["run"].get(name)]
        if other:
            pairs = {name: (found["run"].get(name), here.get(name)) for name in other}
            digests = [name for name, both in pairs.items() if all(map(_is_digest, both))]
            told = [f"{name} is {pairs[name][0]!r} there and {pairs[name][1]!r} here"
                    for name in other if name not in digests]  # fmt: skip
            told += [f"{name} is another" for name in digests]
            raise InputError(
                f"{path} is a checkpoint of another run: {', '.join(told)}; give the same settings to go on, or "
                "another place to start anew"
            )

    (trainable, opt_state), found = checkpoints.load_run(path, (like.trainable, like.opt_state), check)
    evaluations = [(int(step), float(value)) for step, value in found["evaluations"]]
    return State(found["step"], trainable, opt_state, found["losses"], evaluations)
