"""A placeholder for the estimate of the peak, with its interface."""

from __future__ import annotations

import math

from lora_jax.adapters.base import Tree, num_bytes
from lora_jax.memory import activations
from lora_jax.memory.setup import Setup

MARGIN = 0.05  # the share by which a plan may exceed the estimate
SMALL = 1_000_000_000  # bytes below which the estimate is not to be trusted


def temporary(setup: Setup, trainable: Tree, params: Tree) -> tuple[str, int]:
    """`(moment, bytes)`: the fullest of "layers", "loss" and "update", and its bytes beyond the step's arguments."""
    c, e = setup.config, activations.ITEMSIZE[setup.dtype]
    tokens, gradients = setup.batch * setup.length, num_bytes(trainable)
    layer = tokens * (4 * c.hidden_size + 4 * c.intermediate_size) * e
    scores = 3 * 4 * setup.batch * c.num_attention_heads * setup.length**2 if setup.attention == "scores" else 0
    saved = activations.saved_bytes(setup, trainable)
    moments = {
        "layers": saved + gradients + layer + scores,
        "loss": saved + 2 * min(tokens, 256) * c.vocab_size * e + 4 * math.prod(activations.head_shape(c)),
        "update": gradients,
    }
    return max(moments.items(), key=lambda pair: pair[1])
