"""Names for what lies in a compiled step's memory: each argument and each buffer, as a row of a ledger and a role.

An argument has JAX's own name for it. A buffer is known by its shape (a gradient has the shape of what trains, a kept
activation leads with the layers) and by the Python that made it, which XLA carries through to the plan.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from lora_jax.memory.buffers import Buffer, Origin
from lora_jax.memory.ledger import row_of

UNNAMED = "unnamed"

# Of the frames of an instruction, from the innermost, the first one in a file of these says what it is for.
FILES = {
    "cross_entropy.py": ("logits and loss", "head and loss"),
    "attention.py": ("workspace", "attention"),
    "rope.py": ("workspace", "rotary positions"),
    "optimizers.py": ("workspace", "optimizer"),
}
FUNCTIONS = {
    "_logits": ("logits and loss", "head and loss"),
    "rms_norm": ("workspace", "norms"),
    "target_mask": ("logits and loss", "targets"),
    "loss": ("logits and loss", "targets"),
    "hidden_states": ("workspace", "between layers"),
    "hidden_states.<locals>.body": ("workspace", "between layers"),
    "make_step.<locals>.step": ("workspace", "optimizer"),
}
# Inside a block the line itself says which half of it the product is of.
LINES = {
    r"\bmlp\[": ("workspace", "feed-forward"),
    r"\battn\[": ("workspace", "projections"),
    r"": ("workspace", "stream"),  # any other line
}


@dataclass(frozen=True)
class Shapes:
    """What a step's arguments look like: `trains` and `held` are the dims of what trains and of what does not."""

    layers: int
    trains: frozenset[tuple[int, ...]]
    held: frozenset[tuple[int, ...]]


def argument(name: str, full: bool) -> str:
    """The row of an argument of the step, by JAX's name for it."""
    return row_of(name, full) or UNNAMED


def buffer(found: Buffer, shapes: Shapes) -> tuple[str, str]:
    """The row and the role of a buffer alive at the peak; (UNNAMED, "") where nothing is known of it."""
    dims = tuple(n for n in found.dims if n != 1)
    made = [named for origin in found.origins if (named := _made_by(origin)) is not None]
    roles = [role for _, role in made]
    if _is_like(dims, shapes.trains | shapes.held, shapes.layers):
        nearest = found.origins[0] if found.origins else None
        if nearest is not None and any(PurePath(frame.file).name == "quantize.py" for frame in nearest.frames):
            return "workspace", "dequantized weights"
        taken = nearest is not None and nearest.path.endswith("/dynamic_slice")  # one layer's, out of the stack
        backward = any("transpose(" in origin.path for origin in found.origins)
        derived = backward or "head and loss" in roles or "optimizer" in roles
        if _is_like(dims, shapes.trains, shapes.layers) and derived and not taken:
            return "gradients", "optimizer" if roles[:1] == ["optimizer"] else "backward"
        return "workspace", "copies of weights"
    if found.dims[:1] == (shapes.layers,) and len(dims) > 1 and any(_stacks(origin) for origin in found.origins):
        return "saved activations", "kept for the backward pass"
    if re.match(r"s8\[\d+\]", found.shape) and re.match(r"custom-call|cublas", found.name):
        return "workspace", "scratch of matrix products"
    return made[0] if made else (UNNAMED, "")


def _is_like(dims: tuple[int, ...], known: Iterable[tuple[int, ...]], layers: int) -> bool:
    """Whether these are the dims of one of `known`, whole or of one layer, in any order."""
    for leaf in known:
        for whole in (leaf, leaf[1:] if leaf[:1] == (layers,) and len(leaf) > 2 else leaf):
            if len(whole) > 1 and sorted(dims) == sorted(n for n in whole if n != 1):
                return True
    return False


def _stacks(origin: Origin) -> bool:
    """Whether this is the scan over layers itself, stacking what it keeps or handing it back."""
    inner = origin.frames[0].function if origin.frames else ""
    return inner in ("hidden_states", "") or "dynamic_update_slice" in origin.path


def _made_by(origin: Origin) -> tuple[str, str] | None:
    for frame in origin.frames:
        file = PurePath(frame.file)
        if "optax" in file.parts:
            return "workspace", "optimizer"
        if file.name in FILES:
            return FILES[file.name]
        if frame.function in FUNCTIONS:
            return FUNCTIONS[frame.function]
        if frame.function == "block":
            line = linecache.getline(frame.file, frame.line)
            return next(named for pattern, named in LINES.items() if re.search(pattern, line))
    return None
