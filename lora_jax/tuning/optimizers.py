"""Optimizers by name: optax's own, and a float32 master copy of weights that are held in bfloat16."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_jax.errors import InputError


def make(name: str, rate: Any = 1e-3, *, moments: Any = None, master: bool = False) -> optax.GradientTransformation:
    """AdamW, Adafactor, SGD, or SGD with momentum. `moments` is the dtype of AdamW's mu and of momentum's trace.

    What it does not name has the dtype of what trains (optax's rule; AdamW's nu always does). Raises InputError where
    there is no such optimizer.
    """
    known = {
        "adamw": lambda: optax.adamw(rate, mu_dtype=moments),
        "adafactor": lambda: optax.adafactor(rate),
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=0.9, accumulator_dtype=moments),
    }
    if name not in known:
        raise InputError(f"there is no optimizer {name!r}: choose {', '.join(known)}")
    return float32_master(known[name]()) if master else known[name]()


class Master(NamedTuple):
    """The weights in float32, and the state of the optimizer that works on them."""

    weights: Any
    inner: Any


def float32_master(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on a float32 copy of the weights: updates below bfloat16's resolution add up (arXiv 1710.03740)."""

    def to_float32(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Any) -> Master:
        weights = to_float32(params)
        return Master(weights, inner.init(weights))

    def update(gradients: Any, state: Master, params: Any = None) -> tuple[Any, Master]:
        updates, inner_state = inner.update(to_float32(gradients), state.inner, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        # Neighbours subtract without rounding, so that adding this to `params` gives the rounded master again.
        change = jax.tree.map(lambda new, old: new.astype(old.dtype) - old, weights, params)
        return change, Master(weights, inner_state)

    return optax.GradientTransformation(init, update)
