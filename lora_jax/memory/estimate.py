"""Rung 1: the memory of a training step by arithmetic, from shapes alone.

What the step is given is counted leaf by leaf (`ledger.given`), what the backward pass is left with array by array
(`activations`): both are exact. What else there is at the fullest moment (`peak`) describes what XLA makes of the step
on an NVIDIA GPU, and is an estimate with a stated margin.
"""

from __future__ import annotations

from functools import lru_cache

import jax

from lora_jax.adapters.base import Tree, num_bytes
from lora_jax.memory import activations, peak, steps
from lora_jax.memory.ledger import Ledger, given, ledger
from lora_jax.memory.setup import Setup
from lora_jax.training import accumulators


def estimate(setup: Setup) -> Ledger:
    """The ledger of a step at its peak: its arguments, and the temporary bytes of its fullest moment.

    Updated arrays take the place of the old ones (the step donates them), so results add nothing. Of the temporary
    bytes, gradients and saved activations have rows of their own; what the fullest moment takes beyond both is the
    loss, where that moment is the loss's, or workspace, and what of both it is without is "not at once". So the total
    is arguments and temporary bytes, no more. A batch that is accumulated goes through in parts: what moves is one
    part's, its gradient included, and "gradients" is the sum that lies beside it. Raises InputError for a setup that is
    no step (see `steps.build`), and for adapters outside the layers, whose activations are not counted.
    """
    step = steps.build(setup)
    activations.check(step.trainable, full=step.frozen is None)
    exact = _static(setup.held) | {
        "batch": num_bytes(step.batch),
        "saved activations": activations.saved_bytes(setup.part, step.trainable),
    }
    moment, temporary = peak.temporary(setup.part, step.trainable)
    if setup.accumulate > 1:
        exact["gradients"] = summed(step.trainable)
        temporary += exact["gradients"]
    beyond = temporary - exact["gradients"] - exact["saved activations"]
    row = "not at once" if beyond < 0 else "logits and loss" if moment == "loss" else "workspace"
    return ledger(f"estimate, fullest in: {moment}", exact, {row: beyond})


def summed(trainable: Tree) -> int:
    """The bytes of the sum that the gradients of a batch's parts are added to."""
    return num_bytes(jax.eval_shape(accumulators, trainable))


@lru_cache(maxsize=256)
def _static(held: Setup) -> dict[str, int]:
    """The rows that no batch changes; a gradient is shaped as what it is the gradient of."""
    step = steps.build(held)
    return {**given(*step.arguments), "gradients": num_bytes(step.trainable)}
