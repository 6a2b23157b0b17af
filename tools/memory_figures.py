"""The figures of docs/memory.md, each a function of a plain table and a path, drawn the same to the byte each time.

Colours are the package's: one each for full fine-tuning, LoRA and QLoRA; grey is what a batch brings, whatever the
method. What follows from shapes alone is solid; what a compiler decides is hatched. Each picture carries a digest of
the table it was drawn from, so that a stale one is known without drawing it again.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

from lora_jax.memory.ledger import Ledger
from lora_jax.memory.planner import FITS, TOO_CLOSE
from lora_jax.memory.plots import DARK, GREY, HATCH, HELD, bar, colour
from lora_jax.memory.units import duration, size
from lora_jax.plots import COLOURS, PARTS, TITLES

Table = dict[str, Any]

OPTIMIZERS = {"adamw": "AdamW"}
MARKERS = "os^Dv"


def digest(table: Any) -> str:
    """A table's fingerprint: what a figure that was drawn from it carries."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: str | Path, table: Any) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None, "Description": digest(table)})


def _said(step: Table, what: str | None = None) -> str:
    """What the step is, for a title: of which model, or else of how many tokens."""
    what = what or f"{step['batch']} x {step['length']:,} tokens"
    how = f"{step['dtype']}, {OPTIMIZERS[step['optimizer']]}, LoRA of rank {step['options']['rank']}"
    return f"One step of {what}, {how}, {step['attention']} attention"


def components(table: Table, path: str | Path) -> None:
    """A step's peak by component: a panel a model, a bar a method."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    figure = _figure(11, 6)
    for axes, (model, ways) in zip(figure.subplots(2, 2).flat, table["models"].items(), strict=True):
        ledgers = {way: Ledger.from_json(found) for way, found in ways.items()}
        most = max(ledger.total for ledger in ledgers.values())
        of, unit = next(pair for pair in ((1e9, "GB"), (1e6, "MB")) if most >= pair[0])
        for y, (way, ledger) in enumerate(ledgers.items()):
            end = bar(axes, y, way, ledger, of)
            axes.text(end + 0.012 * most / of, y, size(ledger.total), va="center")
        axes.set_yticks(range(len(ledgers)), [TITLES[way] for way in ledgers])
        axes.set(title=model, xlabel=f"{unit} at the peak of a step", xlim=(0, 1.2 * most / of))
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_said(table["step"]))
    swatches = [tuple(Patch(color=colour, alpha=PARTS[part]) for colour in COLOURS.values()) for part in HELD]
    kept = [Patch(color=GREY), Patch(facecolor="white", edgecolor=DARK, hatch=HATCH)]
    labels = [*HELD, "saved activations", "logits and workspace: estimated"]
    figure.legend(
        [*swatches, *kept], labels, loc="outside lower center", ncols=6, frameon=False,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)}, handlelength=2.6,
    )  # fmt: skip
    _save(figure, path, table)


def growth(table: Table, path: str | Path) -> None:
    """Bytes against batch and length; where the grey crosses the dotted line, activations drown what LoRA saves."""
    figure = _figure(11, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    saved = table["saved"] / 1e9
    for axes, name, unit in zip(panels, ("batch", "length"), ("sequences", "tokens"), strict=True):
        part = table[name]
        x, crossing = part["values"], part["crossover"]["plain"]
        for method, totals in part["totals"].items():
            axes.plot(x, [size / 1e9 for size in totals], color=COLOURS[method], lw=2, label=f"peak, {TITLES[method]}")
        kept, moving = ([size / 1e9 for size in sizes] for sizes in (part["kept"], part["moving"]["plain"]))
        axes.fill_between(x, kept, color=GREY, alpha=0.6, lw=0, label="a batch brings: saved activations")
        axes.fill_between(x, kept, moving, fc="white", ec=DARK, hatch="////", lw=0.8, label="and workspace, estimated")
        again = [size / 1e9 for size in part["moving"]["rematerialized"]]
        axes.plot(x, again, "--", color=DARK, lw=1.6, label="a batch brings: blocks rematerialized")
        axes.axhline(saved, ls=":", lw=2, color=DARK, label=f"what LoRA saves: {size(table['saved'])}")
        at = (crossing["at"], crossing["moving"] / 1e9)
        axes.plot(*at, "o", ms=9, mfc="white", mec=DARK, mew=2, zorder=5)
        axes.annotate(
            f"from {crossing['at']:,} {unit} on, a batch\nbrings more than LoRA saves", at, (0.04, 0.86),
            textcoords="axes fraction", arrowprops={"arrowstyle": "-", "color": DARK, "relpos": (0.5, 0)},
        )  # fmt: skip
        ((other, value),) = part["fixed"].items()
        fixed = f"{value:,} tokens each" if other == "length" else "one sequence"
        axes.set(xlabel=f"{unit}, {fixed}", title=f"against {name}", xlim=(0, max(x)))
        axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="GB (1e9 bytes)", ylim=(0, None))
    figure.suptitle(_said(table["step"], table["model"]))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path, table)


def fits(table: Table, path: str | Path) -> None:
    """Which model fits which card: filled squares fit as they are, pale ones rematerialized; "?" is too close."""
    from matplotlib.patches import Patch, Rectangle

    figure = _figure(11, 5.4)
    axes = figure.subplots()
    usable, models, side = table["usable"], table["models"], 0.24
    for y, ways in enumerate(models.values()):
        for i, (way, verdicts) in enumerate(ways.items()):
            for x, (plain, rematerialized) in enumerate(zip(*verdicts.values(), strict=True)):
                alpha = 1.0 if plain == FITS else 0.3 if rematerialized == FITS else 0.0
                middle = x + (i - 1) * 1.15 * side
                corner = (middle - side / 2, y - 0.28)
                axes.add_patch(Rectangle(corner, side, 0.56, fc=COLOURS[way], alpha=alpha, lw=0))
                axes.add_patch(Rectangle(corner, side, 0.56, fc="none", ec=GREY, lw=0.7))
                if not alpha and TOO_CLOSE in (plain, rematerialized):
                    axes.text(middle, y, "?", ha="center", va="center", color=COLOURS[way])
    axes.set_xticks(
        range(len(usable)), [f"{name}{'*' * (name == 'T4')}\n{size(room)}" for name, room in usable.items()]
    )
    axes.set_yticks(range(len(models)), list(models))
    axes.set(xlim=(-0.6, len(usable) - 0.4), ylim=(len(models) - 0.4, -0.6))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_said(table["step"]))
    axes.set_xlabel(
        "one card, and what a program may have of it      * a T4 has no bfloat16: XLA needs more there than this",
        fontsize=9,
    )
    marks = [Patch(color=colour, label=f"{TITLES[way]} fits") for way, colour in COLOURS.items()]
    pale = Patch(fc=GREY, alpha=0.5, label="pale: with rematerialized blocks")
    empty = Patch(fc="white", ec=GREY, label="empty: does not fit; ?: too close to tell")
    figure.legend(handles=[*marks, pale, empty], loc="outside lower center", ncols=5, frameon=False)
    _save(figure, path, table)


def checkpoints(table: Table, path: str | Path) -> None:
    """Sizes of checkpoints by model, and times over each hop of the largest one's way."""
    from matplotlib.lines import Line2D

    figure = _figure(12, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=[5, 6])
    sizes = table["sizes"]
    for y, (_, of) in enumerate(sizes.items()):
        for method, one in of.items():
            _pair(left, y, one["bytes"], one["resumable"], method, size(one["bytes"]))
    left.set_yticks(range(len(sizes)), list(sizes))
    left.set(xscale="log", xlabel="bytes of one checkpoint", title="What a run leaves behind", xlim=(3e5, 3e12))
    model = list(table["transfers"])[-1]
    moved = table["transfers"][model]
    hops = [f"{one['way']}: {one['name']}\n{size(one['speed'], '.4g')}/s, {one['kind']}" for one in moved["full"]]
    for method, found in moved.items():
        for y, one in enumerate(found):
            _pair(right, y, one["one"], one["resumable"], method, duration(one["one"]))
    right.set_yticks(range(len(hops)), hops, fontsize=8)
    right.set(xscale="log", xlabel="time for one, at that speed", title=f"On its way: {model}", xlim=(5e-3, 5e3))
    left.xaxis.set_major_formatter(lambda number, _: size(number, "g"))
    right.set_xticks([0.01, 0.1, 1, 10, 60, 600, 3600], ["10 ms", "100 ms", "1 s", "10 s", "1 min", "10 min", "1 h"])
    for axes in (left, right):
        axes.minorticks_off()
        axes.tick_params(axis="x", labelsize=8.5)
        axes.invert_yaxis()
        axes.margins(y=0.12)
        axes.grid(axis="x", color="#E5E5E5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    step = table["step"]
    names = {"full": "the whole model", "lora": f"a LoRA of rank {step['options']['rank']}, all-linear, float32"}
    marks = [
        Line2D([], [], color=COLOURS[method], marker="o", ls="", ms=8, label=name) for method, name in names.items()
    ]
    mark = Line2D([], [], color=DARK, marker="o", ls="-", ms=8, mfc="white", label="open: with AdamW's state, to go on")
    figure.legend(handles=[*marks, mark], loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path, table)


def _pair(axes: Any, y: float, plain: float, resumable: float, method: str, label: str) -> None:
    colour, above = COLOURS[method], 8 if method == "lora" else -15
    axes.plot([plain, resumable], [y, y], color=colour, lw=1.5)
    axes.plot([resumable], [y], "o", ms=8, mfc="white", mec=colour, mew=1.5)
    axes.plot([plain], [y], "o", ms=8, color=colour)
    axes.annotate(label, (plain, y), (0, above), textcoords="offset points", ha="center", fontsize=8.5)


def errors(table: Table, path: str | Path) -> None:
    """Rung 1 against rung 3, and rung 3 against rung 4: `estimate`, `cpu` and `gpu`, each a list of rows, or empty.

    A row has a `group` (a version of JAX, a model), a `method`, its `bytes`, and the `error` as a share of them.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

    figure = _figure(12, 4.6)
    panels = figure.subplots(1, 3, width_ratios=[5, 4, 4])
    titles = ("the estimate against XLA's plan (H100)", "XLA's plan against use: CPU", "XLA's plan against use: GPU")
    labels = ("GB planned", "GB used", "GB used")
    for axes, part, title, label in zip(panels, ("estimate", "cpu", "gpu"), titles, labels, strict=True):
        axes.set_title(title, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        rows = table[part]
        if not rows:
            axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", transform=axes.transAxes, color=DARK)
            axes.set(xticks=[], yticks=[])
            continue
        groups = sorted({row["group"] for row in rows})
        for group, marker in zip(groups, MARKERS, strict=False):
            own = [row for row in rows if row["group"] == group]
            for row in own:
                style = {"color": colour(row["method"]), "ms": 6, "alpha": 0.75, "mew": 0}
                axes.plot(row["bytes"] / 1e9, 100 * row["error"], marker, **style)
            off = [abs(100 * row["error"]) for row in own]
            said = f"{group}: median {statistics.median(off):.2f} %, worst {max(off):.2f} %"
            axes.plot([], [], marker, color=DARK, ms=6, label=said)
        most = max(abs(100 * row["error"]) for row in rows)
        axes.axhline(0, color=DARK, lw=1)
        axes.set(xscale="log", xlabel=label, ylim=(-1.2 * most, 1.9 * most))
        axes.margins(x=0.15)
        ends = [row["bytes"] for row in rows]
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if max(ends) > 100 * min(ends) else (1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda number, _: f"{number:g}")
        axes.minorticks_off()
        axes.legend(frameon=False, loc="upper left", fontsize=8.5)
    panels[0].set_ylabel("error of the first, % of the second")

    handles = [Line2D([], [], color=COLOURS[m], marker="o", ls="", ms=7, label=TITLES[m]) for m in COLOURS]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path, table)
