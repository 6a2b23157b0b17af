"""One training step for everything.

`step(trainable, opt_state, frozen, batch)`: pre-training, full fine-tuning and every adapter method call the same
function. What is passed as `trainable` is the only difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lora_jax.errors import InputError
from lora_jax.transformer import Batch, Loss, target_mask

Tree = Any


def make_step(loss: Loss, optimizer: optax.GradientTransformation, *, accumulate: int = 1) -> Callable[..., Any]:
    """A compiled `step(trainable, opt_state, frozen, batch) -> (trainable, opt_state, loss, gradient norm)`.

    The gradient is taken over `trainable` alone. The buffers of `trainable` and `opt_state` are donated: the caller's
    are gone after the call. With `accumulate` = n the batch's rows go through in n parts, one after the other, weighted
    by the tokens to be learned in each: the same gradient in less memory. Parts are summed, and the norm is taken, in
    float32; how weights in 16 bits take an update is the optimizer's matter (`tuning/optimizers.py`).
    """

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(trainable: Tree, opt_state: Tree, frozen: Tree, batch: Batch) -> Any:
        value, gradient = _value_and_grad(loss, accumulate, trainable, frozen, batch)
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(optax.tree.cast(gradient, jnp.float32))
            updates, opt_state = optimizer.update(gradient, opt_state, trainable)
            return optax.apply_updates(trainable, updates), opt_state, value, norm

    return step


def _value_and_grad(loss: Loss, parts: int, trainable: Tree, frozen: Tree, batch: Batch) -> tuple[Any, Tree]:
    value_and_grad = jax.value_and_grad(loss)
    if parts == 1:
        return value_and_grad(trainable, frozen, batch)
    if (rows := batch["tokens"].shape[0]) % parts:
        raise InputError(f"a batch of {rows} sequences cannot be accumulated in {parts} equal parts")

    def split(name: str, x: Any) -> Any:
        return jax.random.split(x, parts) if name == "key" else x.reshape(parts, rows // parts, *x.shape[1:])

    def add(total: tuple[Any, Tree], part: Batch) -> tuple[tuple[Any, Tree], None]:
        share = jnp.sum(target_mask(part)) / jnp.maximum(jnp.sum(target_mask(batch)), 1.0)
        return jax.tree.map(
            lambda t, x: t + (share * x).astype(t.dtype), total, value_and_grad(trainable, frozen, part)
        ), None

    zero = (jnp.zeros(()), accumulators(trainable))
    value, total = jax.lax.scan(add, zero, {name: split(name, x) for name, x in batch.items()})[0]
    return value, optax.tree.cast_like(total, trainable)


def accumulators(trainable: Tree) -> Tree:
    """The zeros that the gradients of a batch's parts are added to: in float32, where small ones would be lost in 16
    bits."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), trainable)


def evaluate(loss: Loss, trainable: Tree, frozen: Tree, batches: Sequence[Batch]) -> float:
    """The mean loss over all the tokens to be learned in `batches`, in nats."""
    compiled, total, count = jax.jit(loss), 0.0, 0.0
    for batch in batches:
        tokens = float(np.sum(target_mask(batch)))
        total, count = total + float(compiled(trainable, frozen, batch)) * tokens, count + tokens
    if count == 0:
        raise InputError("there is no token to evaluate on: the held-out batches are empty or wholly masked")
    return total / count
