"""The real training step of a setup, with the shapes of all that it takes: what every rung looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lora_jax import quantize, transformer
from lora_jax.adapters.base import Tree, combine, count, is_adapter, parts_of
from lora_jax.errors import InputError
from lora_jax.memory.setup import Setup
from lora_jax.training import make_step
from lora_jax.transformer import Config
from lora_jax.tuning import jobs, optimizers


@dataclass(frozen=True)
class Step:
    """`loss(trainable, frozen, batch)`, the step made of it, and the shapes of all that the step takes."""

    loss: Callable[..., Any]
    step: Callable[..., Any]  # step(trainable, opt_state, frozen, batch)
    trainable: Tree
    opt_state: Tree
    frozen: Tree  # None where everything trains, or (params, constants)
    batch: Tree

    @property
    def arguments(self) -> tuple[Tree, Tree, Tree, Tree]:
        return self.trainable, self.opt_state, self.frozen, self.batch

    @property
    def params(self) -> Tree:
        """The base: what trains, where everything does."""
        return self.trainable if self.frozen is None else self.frozen[0]


def build(setup: Setup) -> Step:
    """The step of a setup and its arguments as `jax.ShapeDtypeStruct`: nothing is allocated.

    Raises InputError, in the method's own words, for options that the model's shapes refuse.
    """
    trainable, opt_state, frozen, draws = _trees(setup.held)
    batch = {"tokens": jax.ShapeDtypeStruct((setup.batch, setup.length), jnp.int32)}
    if draws:
        batch["key"] = jax.eval_shape(jax.random.key, 0)
    kind = jobs.full_loss if frozen is None else jobs.adapter_loss
    loss = partial(kind, setup.config, remat=setup.remat, attention=setup.attention)
    step = make_step(loss, _optimizer(setup, trainable), accumulate=setup.accumulate)
    return Step(loss, step, trainable, opt_state, frozen, batch)


def check_length(setup: Setup) -> None:
    """Raise InputError where the model has fewer positions than a sequence, with what stands before it, needs."""
    step = build(setup)
    past = jobs.Job(step.loss, step.trainable, step.frozen).past(setup.config)
    if (most := setup.config.max_position_embeddings) < setup.length + past:
        learned = f"and {past:,} learned positions are {setup.length + past:,}, " if past else "is "
        raise InputError(
            f"--length {setup.length:,} {learned}more than the {most:,} positions that this model was made for: pass "
            f"{most - past} or less"
        )


def _optimizer(setup: Setup, trainable: Tree) -> optax.GradientTransformation:
    moments = None if setup.moments is None else jnp.dtype(setup.moments)
    inner = optimizers.make(setup.optimizer, moments=moments)
    return optimizers.rounded(inner, trainable, setup.rounding, jax.random.key(0))


@lru_cache(maxsize=256)  # to trace a method's `init` for a hundred layers takes a fifth of a second
def _trees(held: Setup) -> tuple[Tree, Tree, Tree, bool]:
    """`(trainable, opt_state, frozen)` as shapes, and whether what is adapted draws by chance in training (dropout)."""
    draws: list[bool] = []

    def make(key: Any) -> tuple[Tree, Tree, Tree]:
        params = transformer.init(key, held.config, jnp.dtype(held.dtype))
        if held.quantize is not None:
            params = quantize.quantize_layers(params, held.quantize, double_quantization=held.double_quantization)
        job = jobs.make_job(held.method, held.config, params, key=key, options=held.options)
        if job.frozen is not None:
            whole = jax.tree.leaves(combine(job.trainable, job.frozen[1]), is_leaf=is_adapter)
            parts = [part for one in whole for part in parts_of(one)]
            draws.extend(part.randomize(key) is not part for part in parts)
        return job.trainable, _optimizer(held, job.trainable).init(job.trainable), job.frozen

    return *jax.eval_shape(make, jax.random.key(0)), any(draws)


@lru_cache(maxsize=64)
def parameters(config: Config) -> int:
    """How many numbers the weights of a model are."""
    return count(jax.eval_shape(partial(transformer.init, config=config), jax.random.key(0)))
