"""Every figure, each a function of a table (plain JSON), drawn the same to the byte each time.

One palette, safe for colour-blind readers (Okabe and Ito): one fixed colour each for full fine-tuning, LoRA and QLoRA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from lora_jax.adapters import DEFAULT, METHODS

# By the words of the command `train`: a method, and what its base is quantized to.
QUANTIZED = f"{DEFAULT} nf4"
COLOURS = {"full": "#D55E00", DEFAULT: "#0072B2", QUANTIZED: "#009E73"}
TITLES = {"full": "full fine-tuning", DEFAULT: METHODS[DEFAULT].title, QUANTIZED: "QLoRA"}
PARTS = {"weights": 1.0, "adapters": 0.8, "gradients": 0.55, "optimizer state": 0.3}  # how strongly each is coloured


def demo(table: dict[str, Any], path: str | Path | BinaryIO) -> None:
    """The demo in one picture: the loss on verse, and the bytes that do not depend on the batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    loss_curve(left, table)
    static_bytes(right, table["bytes"])
    figure.savefig(path, dpi=110, metadata={"Software": None})


def loss_curve(axes: Any, table: dict[str, Any]) -> None:
    """`losses`, one a step, and `evaluations`, pairs of (step, held-out loss), in nats a token."""
    losses, evaluations = table["losses"], table["evaluations"]
    axes.plot(range(1, len(losses) + 1), losses, color=COLOURS[DEFAULT], alpha=0.35, lw=1, label="training batch")
    axes.plot(
        *zip(*evaluations, strict=True), "o-", color=COLOURS[DEFAULT], label=f"held out, {table['held_out']} sequences"
    )
    for step, value in evaluations:
        axes.annotate(f"{value:.2f}", (step, value), textcoords="offset points", xytext=(4, 8))
    axes.set(xlabel="step", ylabel="loss on verse (nats a token)", title="A model that wrote stories learns verse")
    axes.margins(x=0.06, y=0.15)
    axes.legend(frameon=False, loc="upper right")


def static_bytes(axes: Any, bytes_of: dict[str, dict[str, int]]) -> None:
    """Stacked bars of exact bytes: a bar a method, a piece a part."""
    for x, (method, rows) in enumerate(bytes_of.items()):
        bottom = 0.0
        for part, size in rows.items():
            axes.bar(x, size / 1e9, 0.6, bottom=bottom, color=COLOURS[method], alpha=PARTS[part], ec="white")
            if size > 0.04 * max(sum(r.values()) for r in bytes_of.values()):
                axes.text(
                    x,
                    bottom + size / 2e9,
                    part,
                    ha="center",
                    va="center",
                    color="white" if PARTS[part] > 0.7 else "black",
                )
            bottom += size / 1e9
        axes.text(x, bottom, f"{bottom:.2f} GB", ha="center", va="bottom")
    axes.set_xticks(range(len(bytes_of)), [TITLES[method] for method in bytes_of])
    axes.set(ylabel="GB (1e9 bytes), exact", title="Held at every step, activations aside")
    axes.margins(y=0.12)


def small_model(table: dict[str, Any], path: str | Path) -> None:
    """From scratch to stories, held against n-gram models; then poems, both ways: what is learned and forgotten."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    losses, evaluations = table["pretrained"]["losses"], table["pretrained"]["evaluations"]
    grey = "#555555"
    left.plot(range(1, len(losses) + 1), losses, color=grey, alpha=0.3, lw=0.8, label="training batch")
    left.plot(*zip(*evaluations, strict=True), "o-", color=grey, ms=4, label="held-out stories")
    for (name, value), style in zip(table["ngrams"].items(), (":", "--", "-."), strict=True):
        left.axhline(value, ls=style, lw=1, color="#CC79A7", label=f"{name} model, {value:.2f}")
    left.set(xlabel="step", ylabel="loss (nats a token)", title="Stories, from random weights", ylim=(2.2, 6.5))
    left.legend(facecolor="white", framealpha=1, edgecolor="none", loc="upper right")
    ends = {name: [table["runs"][name]["evaluations"][-1][1], table["runs"][name]["watched"]["stories"][1]]
            for name in ("full", DEFAULT)}  # fmt: skip
    before = [table["runs"]["full"]["evaluations"][0][1], table["runs"]["full"]["watched"]["stories"][0]]
    bars = {"before": (before, grey), **{TITLES[name]: (values, COLOURS[name]) for name, values in ends.items()}}
    for i, (name, (values, colour)) in enumerate(bars.items()):
        places = [x + 0.27 * (i - 1) for x in range(2)]
        drawn = right.bar(places, values, 0.25, color=colour, label=name)
        right.bar_label(drawn, fmt="%.2f", padding=2)
    right.set_xticks(range(2), ["held-out poems", "held-out stories"])
    right.set(ylabel="loss (nats a token)", title="Then poems: learned, and forgotten")
    right.margins(y=0.3)
    right.legend(frameon=False, loc="upper center", ncols=3)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def growth(table: dict[str, Any], path: str | Path) -> None:
    """`seconds` a step against layers and batch, medians with their spread; `planned_bytes` against length."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    fixed = {"layers": f"batch of {table['batch']}", "batch": f"{table['shape']['num_hidden_layers']} layers"}
    one = {"layers": "ms a layer", "batch": "ms a sequence"}
    for axes, name in zip(panels[:2], fixed, strict=True):
        sizes = np.array([int(n) for n in table["seconds"][name]])
        times = np.array(list(table["seconds"][name].values()))  # (sizes, rounds)
        middle = np.median(times, axis=1)
        axes.errorbar(sizes, middle, [middle - times.min(1), times.max(1) - middle], fmt="o", color=COLOURS[DEFAULT])
        linear(axes, sizes, middle, COLOURS[DEFAULT], one[name])
        axes.set(
            xlabel=f"{name}, {fixed[name]}", ylabel="seconds a step", title=f"Time, {table['length']} tokens a sequence"
        )
    for name, colour in (("dense", "#CC79A7"), ("blockwise", COLOURS[DEFAULT])):
        lengths = np.array([int(n) for n in table["planned_bytes"][name]])
        gigabytes = np.array(list(table["planned_bytes"][name].values())) / 1e9
        panels[2].plot(lengths, gigabytes, "o-" if name == "dense" else "o", color=colour, label=f"attention: {name}")
        if name == "blockwise":
            linear(panels[2], lengths, gigabytes, colour, "MB a token")
    panels[2].set(xlabel="length, one sequence", ylabel="GB (1e9 bytes), planned", title="Temporary memory of a step")
    for axes in panels:
        axes.set(xlim=(0, None), ylim=(0, 1.2 * axes.get_ylim()[1]))
        axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def linear(axes: Any, x: Any, y: Any, colour: str, thousandths: str) -> None:
    """The least-squares line through the points; the legend has its slope and its largest distance from a point."""
    import numpy as np

    slope, start = np.polyfit(x, y, 1)
    far = np.max(np.abs(start + slope * x - y) / y)
    ends = np.array([0, max(x)])
    axes.plot(
        ends, start + slope * ends, lw=1, color=colour, label=f"{1000 * slope:.3g} {thousandths}, within {far:.1%}"
    )
