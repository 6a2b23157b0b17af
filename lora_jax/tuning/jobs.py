"""A fine-tuning job from end to end: full, or by any method of the registry. It differs in what is trainable alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import optax

from lora_jax import transformer
from lora_jax.adapters import DEFAULT, METHODS
from lora_jax.adapters.base import Tree, attach, num_bytes
from lora_jax.errors import InputError
from lora_jax.transformer import Batch, Config, Loss, Params
from lora_jax.tuning import optimizers
from lora_jax.tuning.loop import State, fit

FULL_RATE = 1e-4  # the learning rate to start full fine-tuning from


@dataclass(frozen=True)
class Job:
    """What a step needs: `loss(trainable, frozen, batch)`, and the two trees it is taken over."""

    loss: Loss
    trainable: Tree
    frozen: Tree
    rates: Mapping[str, float] = field(default_factory=dict)  # by field of an adapter: how many times the rate

    def past(self, config: Config) -> int:
        """How many of the model's positions are taken before each sequence: a learned prompt's. From shapes alone."""
        if self.frozen is None:
            return 0
        params, constants = self.frozen
        return transformer.past_length(config, jax.eval_shape(attach, params, self.trainable, constants))


def full_loss(config: Config, trainable: Params, frozen: Tree, batch: Batch, **options: Any) -> Any:
    return transformer.loss(config, trainable, batch, **options)


def adapter_loss(config: Config, trainable: Tree, frozen: Tree, batch: Batch, **options: Any) -> Any:
    params, constants = frozen  # arguments, not closures: nothing is baked into the program
    return transformer.loss(config, attach(params, trainable, constants, batch.get("key")), batch, **options)


def check(method: str, options: Mapping[str, Any], quantize: str | None = None) -> None:
    """Raise InputError where there is no such method, it has no such option, or it cannot train over such a base."""
    if method == "full":
        if quantize:
            raise InputError(
                f"a quantized base is frozen and cannot be trained itself: choose --method {DEFAULT}, or no --quantize"
            )
        if options:
            raise InputError(f"full fine-tuning has no {', '.join(options)}: leave it out, or choose an adapter method")
    elif method not in METHODS:
        raise InputError(f"there is no method {method!r}: choose full or {', '.join(METHODS)}")
    else:
        METHODS[method].check(method, options)


def rounding(method: str, dtype: str, given: str | None = None) -> str | None:
    """How what trains takes its updates: of `optimizers.ROUNDING` where it is in 16 bits, else None.

    That is the weights in full fine-tuning in bfloat16: adapters are float32 over any base. Raises InputError where
    one is given that is none, or that has nothing to round.
    """
    found = optimizers.check_rounding(given)
    if method == "full" and dtype != "float32":
        return found
    if given is not None:
        why = "adapters train in float32" if method != "full" else "the weights are in float32"
        raise InputError(
            f"rounding is for weights that train in 16 bits, and {why}: leave out --rounding {given}, or choose "
            "--method full --dtype bfloat16"
        )
    return None


def make_job(
    method: str,
    config: Config,
    params: Params,
    *,
    key: Any,
    remat: bool = False,
    attention: str = "auto",
    options: Mapping[str, Any] | None = None,
) -> Job:
    """The job of one method: "full", or a row of the registry with its `options` (rank, alpha, targets, ...)."""
    options = options or {}
    check(method, options)
    if method == "full":
        return Job(partial(full_loss, config, remat=remat, attention=attention), params, None)
    row = METHODS[method]
    adapters, constants = row.init(key, params, **options)
    loss = partial(adapter_loss, config, remat=remat, attention=attention)
    return Job(loss, adapters, (params, constants), row.rates)


def learning_rate(method: str) -> float:
    """The rate to start from where the user names none."""
    return FULL_RATE if method == "full" else METHODS[method].rate


def schedule(rate: float, steps: int, *, warmup: int = 0, decay: bool = False) -> optax.Schedule:
    """The learning rate of each step: a linear warm-up, then constant or a cosine down to a tenth.

    Raises InputError for a rate that is not a finite number above 0, and a warm-up that is not over when the run is.
    """
    if not 0 < rate < float("inf"):
        raise InputError(f"the learning rate is {rate}: give a finite number above 0, such as 1e-3")
    if not 0 <= warmup <= steps:
        raise InputError(f"a warm-up of {warmup} steps is not 0 to {steps}, the steps of the run: give a shorter one")
    after = (
        optax.cosine_decay_schedule(rate, max(steps - warmup, 1), alpha=0.1) if decay else optax.constant_schedule(rate)
    )
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup]) if warmup else after


def tune(
    job: Job, batches: Any, *, rate: float, steps: int, warmup: int = 0, decay: bool = False, **options: Any
) -> State:
    """`fit` with AdamW; where the method's fields learn at different rates, each at its own."""
    optimizer = optax.adamw(schedule(rate, steps, warmup=warmup, decay=decay))
    if job.rates:
        optimizer = optax.chain(optimizer, scale_by_field(job.rates))
    return fit(
        job.loss,
        trainable=job.trainable,
        frozen=job.frozen,
        batches=batches,
        optimizer=optimizer,
        steps=steps,
        **options,
    )


def scale_by_field(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Each leaf's update times the rate of its field: behind AdamW, a learning rate of its own."""

    def scale(path: Any, update: Any) -> Any:
        return rates.get(getattr(path[-1], "name", ""), 1.0) * update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def static_bytes(job: Job) -> dict[str, int]:
    """Bytes that a step of `tune` holds whatever the batch: exact, from shapes alone."""
    full, optimizer = job.frozen is None, optimizers.rounded(optax.adamw(1e-3), job.trainable)
    trainable = num_bytes(job.trainable)
    return {
        "weights": trainable if full else num_bytes(job.frozen[0]),
        "adapters": 0 if full else trainable + num_bytes(job.frozen[1]),
        "gradients": trainable,
        "optimizer state": num_bytes(jax.eval_shape(optimizer.init, job.trainable)),
    }
