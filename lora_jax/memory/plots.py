"""A step's peak as a bar: what the explorer, the notebooks and docs/memory.md draw.

Colours are the package's, one for each way to train; grey is what a batch brings, whatever the method. What follows
from shapes alone is solid; what a compiler decides is hatched.
"""

from __future__ import annotations

from typing import Any

from lora_jax.memory.ledger import Ledger
from lora_jax.plots import COLOURS, PARTS

GREY, DARK, HATCH = "#A6A6A6", "#444444", "////"
HELD = {
    "weights": ("weights", "quantization constants"),
    "adapters": ("adapters", "adapter constants"),
    "gradients": ("gradients",),
    "optimizer state": ("optimizer state",),
}
SAVED, WORK = ("saved activations", "batch", "not at once"), ("logits and loss", "workspace")


def bar(axes: Any, y: float, way: str, ledger: Ledger, unit: float = 1e9, strength: float = 1.0) -> float:
    """Draw the ledger of a step by that way (a `Setup.name`) as one bar of `ledger.total / unit`; return its end."""
    pieces: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        *((names, {"fc": colour(way), "alpha": strength * PARTS[part]}) for part, names in HELD.items()),
        (SAVED, {"fc": GREY, "alpha": strength}),
        (WORK, {"fc": "white", "hatch": HATCH, "alpha": strength}),
    ]
    left = 0.0
    for names, style in pieces:
        width = sum(ledger[name] for name in names) / unit
        axes.barh(y, width, 0.6, left=left, ec=DARK if names is WORK else "white", lw=0.6, **style)
        left += width
    return left


def colour(way: str) -> str:
    """The fixed colour of a way to train; grey for one that has none."""
    return COLOURS.get(way, DARK)
