"""Rung 1: the memory of a training step by hand. Nothing here imports JAX or traces a program.

Three sums make it up, each in its own file with the reason for every constant: `sizes` (what is held whatever the
batch), `activations` (what the backward pass is left with) and `phases` (what else is there at the fullest moment). The
first two follow from shapes alone and equal the shapes of the real step, and rung 2, to the byte. The third describes
what XLA makes of the step on an NVIDIA GPU, and is an estimate.
"""

from __future__ import annotations

from lora_jax.memory import activations, phases, sizes
from lora_jax.memory.ledger import Ledger, ledger
from lora_jax.memory.setup import Setup


def predict(setup: Setup) -> Ledger:
    """The ledger of a step at its peak: its arguments, and the temporary bytes of its fullest moment.

    Updated arrays take the place of the old ones (the step donates them), so results add nothing. Of the temporary
    bytes, gradients and saved activations have rows of their own, though early in a step the room for gradients serves
    other ends, and late in it that for activations: what the fullest moment takes beyond both is the loss, where that
    moment is the loss's, or workspace. Raises InputError for targets and ranks that the formula cannot count.
    """
    weights, constants = sizes.base_bytes(setup)
    full = setup.method == "full"
    exact = {
        "weights": weights,
        "quantization constants": constants,
        "adapters": 0 if full else sizes.trainable_bytes(setup),
        "adapter constants": sizes.constant_bytes(setup),
        "optimizer state": sizes.optimizer_bytes(setup),
        "gradients": sizes.trainable_bytes(setup),
        "batch": sizes.ITEMSIZE["int32"] * setup.batch * setup.length,  # tokens
        "saved activations": activations.saved_bytes(setup),
    }
    moment, temporary = phases.peak(setup)
    beyond = max(temporary - exact["gradients"] - exact["saved activations"], 0)
    row = "logits and loss" if moment == "loss" else "workspace"
    return ledger(f"by formula, fullest in: {moment}", exact, {row: beyond})
