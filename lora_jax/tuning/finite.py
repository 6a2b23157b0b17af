"""Nothing that is not a number is kept: what a run has learned is looked at before it is evaluated, saved or returned.

The step itself watches the loss and the gradient's norm. An update can still overflow under both (a rate that is too
high, in the very last step), so the weights and the optimizer's state are looked at as well: a pass over them at each
evaluation and checkpoint, in a program of its own, so that the step's plan and time stay what they are.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.errors import InputError
from lora_jax.training import Tree

ADVICE = "try a lower learning rate, or clip the gradient's norm to 1.0"


class NonFiniteLoss(InputError):
    """Training stopped because a number of it was no longer finite: the loss, a gradient, a weight, an evaluation."""


def check(step: int, **trees: Tree) -> None:
    """Raise NonFiniteLoss where a floating number in one of the trees (arrays) is NaN or infinite, naming the leaf."""
    leaves = {
        f"{of} {jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for of, tree in trees.items()
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    found = jax.device_get(_finite(list(leaves.values())))
    if bad := [name for name, finite in zip(leaves, found, strict=True) if not finite]:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise NonFiniteLoss(f"after step {step} {bad[0]}{more} holds numbers that are not finite: {ADVICE}")


@jax.jit
def _finite(leaves: list[Any]) -> list[Any]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def check_loss(found: float, step: int, what: str) -> float:
    """The evaluated loss itself, of the text that `what` names. Raises NonFiniteLoss where it is not finite."""
    if math.isfinite(found):
        return found
    why = ADVICE if step else "nothing was trained yet, so the model's own numbers are too large: try another model"
    raise NonFiniteLoss(f"after step {step} the loss on {what} is {found}: {why}")
