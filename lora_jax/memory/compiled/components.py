"""Names for what lies in a compiled step's memory: each argument and each buffer, as a row of a ledger and a role.

An argument has JAX's own name for it. A buffer is known by its shape (a gradient has the shape of what trains, a kept
activation leads with the layers) and by the scopes of the operations that write it: what the model's own
`jax.named_scope`s say of them, which JAX's paths carry through to the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lora_jax.memory.compiled.buffers import Buffer
from lora_jax.memory.ledger import row_of

UNNAMED = "unnamed"

# The scopes of the model and of the step, and the row of what is worked with there. The innermost one is the role.
SCOPES = dict.fromkeys(("loss", "lm_head"), "logits and loss") | dict.fromkeys(
    ("layers", "norm", "self_attn", "rope", "attention", "mlp", "dequantize", "optimizer"), "workspace"
)


@dataclass(frozen=True)
class Shapes:
    """What a step's arguments look like: `trains` and `held` are the dims of what trains and of what does not."""

    layers: int
    trains: frozenset[tuple[int, ...]]
    held: frozenset[tuple[int, ...]]


def argument(name: str, full: bool) -> str:
    """The row of an argument of the step, by JAX's name for it."""
    return row_of(name, full) or UNNAMED


def scope(path: str) -> str:
    """The innermost scope of one of JAX's paths, "" where it has none.

    A step of a path is a scope, a transformation of scopes (`transpose(jvp(loss))`: the backward pass), a function that
    is compiled by itself (`jit(norm)`: no scope), a loop, or at the end the operation. XLA joins paths by a semicolon.
    """
    steps = re.split(r"[/();]", re.sub(r"\bp?jit\(.*?\)", "", path))
    return next((step for step in reversed(steps) if step in SCOPES), "")


def source(found: Buffer) -> str:
    """The nearest path of a buffer without what says nothing of the model: loops, and functions compiled apart."""
    path = found.paths[0] if found.paths else ""
    return re.sub(r"\b(?:while|body|cond|closed_call|checkpoint|p?jit\(.*?\))/", "", path)


def buffer(found: Buffer, shapes: Shapes) -> tuple[str, str]:
    """The row and the role of a buffer alive at the peak; (UNNAMED, "") where nothing is known of it."""
    dims = tuple(n for n in found.dims if n != 1)
    scopes = [name for path in found.paths if (name := scope(path))]
    nearest, role = (found.paths or ("",))[0], (scopes or [""])[0]
    if _is_like(dims, shapes.trains | shapes.held, shapes.layers):
        if scope(nearest) == "dequantize":
            return "workspace", "dequantize"
        taken = nearest.endswith("/dynamic_slice")  # one layer's, out of the stack
        derived = any("transpose(" in path or scope(path) in ("lm_head", "loss", "optimizer") for path in found.paths)
        if _is_like(dims, shapes.trains, shapes.layers) and derived and not taken:
            return "gradients", role
        return "workspace", "copies of weights"
    if found.dims[:1] == (shapes.layers,) and len(dims) > 1 and "layers" in scopes:
        return "saved activations", ""
    if re.match(r"s8\[\d+\]", found.shape) and re.match(r"custom-call|cublas", found.name):
        return "workspace", "scratch of matrix products"
    return (SCOPES[role], role) if role else (UNNAMED, "")


def _is_like(dims: tuple[int, ...], known: Iterable[tuple[int, ...]], layers: int) -> bool:
    """Whether these are the dims of one of `known`, whole or of one layer, in any order."""
    one_layers = (leaf[1:] for leaf in known if leaf[:1] == (layers,) and len(leaf) > 2)
    return any(sorted(dims) == sorted(n for n in leaf if n != 1) for leaf in (*known, *one_layers) if len(leaf) > 1)
