"""One step in one picture: what it holds against what a card has, by any method; and the same to play with.

`picture` and `verdict` are functions of a `View`, for readers of a page; `explorer` draws them again whenever a control
is moved, for those who have a kernel and ipywidgets.
"""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from typing import Any

from lora_jax.adapters import DEFAULT
from lora_jax.memory import hardware, peak, planner, zoo
from lora_jax.memory.estimate import estimate
from lora_jax.memory.plots import DARK, GREY, HATCH, HELD, SAVED, bar, colour
from lora_jax.memory.setup import Setup, ways
from lora_jax.memory.units import size
from lora_jax.plots import PARTS, TITLES

# The estimate follows what XLA plans for an NVIDIA card.
CARDS = tuple(hardware.NVIDIA)
RANKS = tuple(2**n for n in range(7))  # 64 is as wide as the narrowest matrix of the smallest model
LENGTHS = tuple(2**n for n in range(7, 18))
BATCHES = (1, 64)


@dataclass(frozen=True)
class View:
    """What the controls say: a step in bfloat16 with AdamW and blockwise attention, and a card to put it on.

    Where every weight trains, the optimizer has a float32 copy of them, as in `train`.
    """

    model: str = "llama3.1-8b"
    method: str = DEFAULT  # one of `setup.ways`: "full", "lora", "lora nf4"
    rank: int = 16
    batch: int = 1
    length: int = 1024
    remat: bool = False
    card: str = "l4"

    @property
    def ways(self) -> dict[str, Setup]:
        """The step by every method."""
        words: dict[str, Any] = {name: getattr(self, name) for name in ("batch", "length", "remat")}
        return ways(Setup(zoo.config(self.model), options={"rank": self.rank}, **words))

    @property
    def setup(self) -> Setup:
        return self.ways[self.method]


def verdict(view: View) -> str:
    """Whether the step fits, with how much room and how large a batch; or how many cards it takes; or who knows."""
    (fit,) = planner.card_fits(view.setup, [view.card])
    name = hardware.card(view.card).name
    if fit.verdict == planner.FITS:
        more = f"the largest batch is {fit.largest_batch:,}"
        return f"It fits on one {name} with about {size(fit.room)} to spare; {more}."
    if fit.verdict == planner.TOO_CLOSE:
        over = f"On one {name} it is too close to tell: less than {peak.MARGIN:.0%} to spare, so ask the compiler"
    else:
        over = f"It does not fit on one {name}, by about {size(-fit.room)}"
    if fit.largest_batch:
        return f"{over}; with a batch of {fit.largest_batch:,} it would fit."
    if fit.cards is None:
        return f"{over}; sharding is no help with this batch: what it brings, whole on each card, is more than one has."
    return f"{over}, and not even a batch of 1 is sure to fit; sharded it takes {fit.cards:,}."


def picture(view: View) -> bytes:
    """A PNG: a bar of each method, the chosen one in full colour, against what a program may have of the card."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots()
    ledgers = {way: estimate(setup) for way, setup in view.ways.items()}
    card = hardware.card(view.card)
    end = 1.3 * max(ledgers[view.method].total, card.usable) / 1e9
    for y, (way, ledger) in enumerate(ledgers.items()):
        chosen = way == view.method
        left = bar(axes, y, way, ledger, strength=1.0 if chosen else 0.25)
        beyond = left > 0.86 * end  # its label would not stand beside it
        axes.text(
            0.985 * end if beyond else left + 0.012 * end, y, size(ledger.total) + " \u2192" * (left > end),
            va="center", ha="right" if beyond else "left", color=DARK, zorder=5,
            weight="bold" if chosen else "normal", bbox={"fc": "white", "ec": "none", "pad": 1.5, "alpha": 0.9},
        )  # fmt: skip
    axes.axvline(card.usable / 1e9, color=DARK, lw=2)
    axes.set_yticks(range(len(ledgers)), [TITLES[way] for way in ledgers])
    remat = ", blocks rematerialized" if view.remat else ""
    axes.set(xlim=(0, end), xlabel=f"GB (1e9 bytes) at the peak of a step; the line: {card.name}, {size(card.usable)}")
    rank = "" if view.method == "full" else f" of rank {view.rank}"
    step = f"{TITLES[view.method]}{rank}: {view.model}, {view.batch} x {view.length:,} tokens, bfloat16{remat}"
    axes.set_title(step, loc="left")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(fc=colour(view.method), alpha=PARTS[part], label=part) for part in HELD]
    handles += [Patch(fc=GREY, label=SAVED[0]), Patch(fc="white", ec=DARK, hatch=HATCH, label="estimated")]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=90, metadata={"Software": None})
    return drawn.getvalue()


def explorer(view: View | None = None) -> Any:
    """A box of controls over the picture and the verdict of `view`, both drawn again whenever a control changes."""
    import ipywidgets as widgets

    view = view or View()
    controls = {
        "model": widgets.Dropdown(options=list(zoo.MODELS)),
        "method": widgets.Dropdown(options=[(title, way) for way, title in TITLES.items()]),
        "rank": widgets.SelectionSlider(options=RANKS),
        "batch": widgets.IntSlider(min=BATCHES[0], max=BATCHES[1]),
        "length": widgets.SelectionSlider(options=[(f"{length:,}", length) for length in LENGTHS]),
        "remat": widgets.Checkbox(description="rematerialize blocks", indent=False),
        "card": widgets.Dropdown(options=[(hardware.card(name).name, name) for name in CARDS]),
    }
    for name, control in controls.items():
        control.value = getattr(view, name)
        control.description = control.description or name
        control.style.description_width = "60px"
        if hasattr(control, "continuous_update"):
            control.continuous_update = False  # a picture for where a slider is let go, not for all on its way
    sentence, shown = widgets.HTML(), widgets.Image(format="png")

    def draw(_: Any = None) -> None:
        now = View(**{name: control.value for name, control in controls.items()})
        sentence.value = f"<b>{html.escape(verdict(now))}</b>"
        shown.value = picture(now)

    for control in controls.values():
        control.observe(draw, "value")
    draw()
    rows = (("model", "method", "card"), ("rank", "batch", "length"), ("remat",))
    boxes = [widgets.HBox([controls[name] for name in row]) for row in rows]
    return widgets.VBox([*boxes, sentence, shown])
