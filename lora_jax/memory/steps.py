"""The real training step of a setup, with the shapes of its arguments: what rungs 2 to 4 look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lora_jax import optimizers, quantize, transformer
from lora_jax.adapters import lora
from lora_jax.adapters.base import attach
from lora_jax.memory.setup import Setup
from lora_jax.training import make_step

Tree = Any


@dataclass(frozen=True)
class Step:
    """`loss(trainable, frozen, batch)`, the step made of it, and the shapes of all that the step takes."""

    loss: Callable[..., Any]
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]  # step(trainable, opt_state, frozen, batch)
    trainable: Tree
    opt_state: Tree
    frozen: Tree  # None, or (params, constants)
    batch: Tree

    @property
    def arguments(self) -> tuple[Tree, Tree, Tree, Tree]:
        return self.trainable, self.opt_state, self.frozen, self.batch


def trees(setup: Setup, key: Any) -> tuple[Tree, Tree]:
    """`(trainable, frozen)` of a setup, as arrays; under `jax.eval_shape`, as shapes."""
    params = transformer.init(key, setup.config, jnp.dtype(setup.dtype))
    if setup.method == "full":
        return params, None
    if setup.method == "qlora":
        params = quantize.quantize_layers(params, "nf4", double_quantization=setup.double_quantization)
    adapters, constants = lora.init(key, params, rank=setup.rank, targets=setup.targets, freeze_a=setup.freeze_a)
    return adapters, (params, constants)


def _loss(setup: Setup, trainable: Tree, frozen: Tree, batch: Any) -> Any:
    params = trainable if frozen is None else attach(frozen[0], trainable, frozen[1])
    return transformer.loss(setup.config, params, batch, remat=setup.remat, attention=setup.attention)


def build(setup: Setup) -> Step:
    """The step of a setup and its arguments as `jax.ShapeDtypeStruct`."""
    trainable, frozen = jax.eval_shape(partial(trees, setup), jax.random.key(0))
    moments = None if setup.moments is None else jnp.dtype(setup.moments)
    optimizer = optimizers.make(setup.optimizer, moments=moments, master=setup.master)
    loss = partial(_loss, setup)
    batch = {"tokens": jax.ShapeDtypeStruct((setup.batch, setup.length), jnp.int32)}
    opt_state = jax.eval_shape(optimizer.init, trainable)
    return Step(loss, optimizer, make_step(loss, optimizer), trainable, opt_state, frozen, batch)
