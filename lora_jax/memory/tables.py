"""The tables behind docs/memory.md and its figures, worked out from the formula: plain values, bytes as integers.

`tools/memory_page.py` writes them to figures/data/memory.json and draws from there, so that a change of the formula
changes every number that is quoted of it. Nothing here is compiled or measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from lora_jax.memory import formula, hardware, planner, sizes, zoo
from lora_jax.memory.ledger import Ledger
from lora_jax.memory.setup import Setup

Table = dict[str, Any]

FORMS = {"plain": False, "rematerialized": True}
STEP: Table = {"batch": 4, "length": 512}  # what every model here, the smallest included, can be given
BIG = "llama3.1-8b"
SHOWN = ("stories-2.8m", "smollm2-135m", BIG, "100b")
FITTED = (
    "smollm2-135m",
    "llama3.2-1b",
    "llama3.2-3b",
    "mistral-7b",
    BIG,
    "qwen2.5-14b",
    "qwen2.5-32b",
    "llama3.1-70b",
    "100b",
    "gpt3-175b",
)

# litgpt's table of resources: LoRA of rank 8 on q and v of Llama 2 7B, bfloat16, on one A100 40GB. The length is that
# of the longest training example, which its script takes first.
LITGPT_SOURCE = "github.com/Lightning-AI/litgpt, tutorials/resource-tables.md, last updated 2023-10-20"
LITGPT = {1: 21_300_000_000, 2: 29_070_000_000}  # batch: bytes at the peak
LITGPT_WEIGHTS = 13_520_000_000  # the same table, one sequence generated: weights and little else
LITGPT_SETUP = Setup(zoo.config("llama2-7b"), length=1304, rank=8, targets=("q_proj", "v_proj"))


def tables() -> Table:
    """Every table, by name."""
    return {
        "components": components(),
        "growth": growth(),
        "fits": fits(),
        "checkpoints": checkpoints(),
        "claims": claims(),
        "litgpt": litgpt(),
    }


def _describe(setup: Setup) -> Table:
    """What a caption says of a step."""
    names = ("batch", "length", "rank", "targets", "dtype", "optimizer", "attention")
    return {name: getattr(setup, name) for name in names}


def components() -> Table:
    """The ledger of one step by every method, for a small model and for ever larger ones."""
    found = {
        model: {method: _step(model, method, **STEP).as_json()["rows"] for method in planner.METHODS} for model in SHOWN
    }
    return {"step": _describe(Setup(zoo.config(BIG), **STEP)), "models": found}


def _step(model: str, method: str, **options: Any) -> Ledger:
    return formula.predict(Setup(zoo.config(model), method=method, **options))


def growth() -> Table:
    """Bytes against batch and against length, and where what the batch brings outgrows what LoRA saves."""
    setup = Setup(zoo.config(BIG))
    saved = _step(BIG, "full").static - _step(BIG, "lora").static
    batches = _against(dataclasses.replace(setup, length=1024), "batch", range(1, 25), saved)
    lengths = _against(dataclasses.replace(setup, batch=1), "length", range(512, 24_577, 512), saved)
    return {"model": BIG, "step": _describe(setup), "saved": saved, "batch": batches, "length": lengths}


def _against(setup: Setup, name: str, values: Sequence[int], saved: int) -> Table:
    """Peaks by method and, of LoRA's step, what the batch brings (`moving`) and the exact part of it (`kept`)."""

    def ledger(value: int, method: str = "lora", remat: bool = False) -> Ledger:
        changed: Table = {name: value, "method": method, "remat": remat}
        return formula.predict(dataclasses.replace(setup, **changed))

    def moving(value: int, form: str) -> int:
        found = ledger(value, remat=FORMS[form])
        return found.total - found.static

    def under(form: str, value: int) -> bool:
        return moving(value, form) < saved

    other = {"batch": "length", "length": "batch"}[name]
    # The first number at which the batch brings as many bytes as LoRA saves.
    crossover = {form: 1 + planner.largest(partial(under, form)) for form in FORMS}
    return {
        "fixed": {other: getattr(setup, other)},
        "values": list(values),
        "totals": {method: [ledger(value, method).total for value in values] for method in planner.METHODS},
        "moving": {form: [moving(value, form) for value in values] for form in FORMS},
        "kept": [ledger(value)["saved activations"] + ledger(value)["batch"] for value in values],
        "crossover": {form: {"at": at, "moving": moving(at, form)} for form, at in crossover.items()},
    }


def fits() -> Table:
    """The peak of one step of each model by each method, beside what each of NVIDIA's cards offers."""
    step: Table = {"batch": 1, "length": 2048}
    models = {
        model: {
            method: {form: _step(model, method, **step, remat=remat).total for form, remat in FORMS.items()}
            for method in planner.METHODS
        }
        for model in FITTED
    }
    usable = {card.name: card.usable for card in sorted(hardware.NVIDIA.values(), key=lambda card: card.usable)}
    return {"step": _describe(Setup(zoo.config(BIG), **step)), "usable": usable, "models": models}


def checkpoints() -> Table:
    """What a run leaves behind by full fine-tuning and by LoRA, and how long it takes on its way."""
    stored = {
        model: {method: planner.checkpoint(Setup(zoo.config(model), method=method)) for method in ("full", "lora")}
        for model in SHOWN
    }
    return {
        "step": _describe(Setup(zoo.config(BIG))),
        "sizes": {
            model: {method: dataclasses.asdict(one) for method, one in of.items()} for model, of in stored.items()
        },
        "trips": {
            model: {method: _trips(planner.trips(one, sorted(hardware.LINKS))) for method, one in stored[model].items()}
            for model in SHOWN[-2:]
        },
    }


def _trips(trips: Sequence[planner.Trip]) -> list[Table]:
    return [
        {
            "way": trip.way,
            "hop": trip.hop.name,
            "speed": trip.hop.speed,
            "kind": trip.hop.kind,
            "source": trip.hop.source.what,
            "date": trip.hop.source.date,
            "one": trip.one,
            "ten": trip.ten,
            "resumable": trip.resumable,
        }
        for trip in trips
    ]


def claims() -> Table:
    """Numbers that were published, or that anyone can multiply out, as the formula has them."""
    gpt3, llama = zoo.config("gpt3-175b"), zoo.config(BIG)
    wide = 4096
    bits = {
        name: 8 * sum(sizes.nf4_bytes(wide, wide, double)) / wide / wide
        for name, double in (("single", False), ("double", True))
    }
    qlora = sizes.base_bytes(Setup(llama, method="qlora"))
    return {
        "gpt3_parameters": sizes.parameters(gpt3),
        "gpt3_weights": sizes.weight_bytes(gpt3, "bfloat16"),
        "gpt3_lora": sizes.lora_parameters(gpt3, 4, ("q_proj", "v_proj")),
        "llama_parameters": sizes.parameters(llama),
        "llama_lora": sizes.lora_parameters(llama, 16),
        "llama_nf4": sum(qlora),
        "100b_parameters": sizes.parameters(zoo.config("100b")),
        "100b_weights": sizes.weight_bytes(zoo.config("100b"), "bfloat16"),
        "nf4_bits": bits,
        "nf4_matrix": wide,
    }


def litgpt() -> Table:
    """Our step beside litgpt's published runs: peaks, and the line through them, bytes = intercept + slope * batch."""
    ours = {batch: formula.predict(dataclasses.replace(LITGPT_SETUP, batch=batch)) for batch in LITGPT}
    lines = {"published": _line(LITGPT), "ours": _line({batch: ledger.total for batch, ledger in ours.items()})}
    return {
        "source": LITGPT_SOURCE,
        "step": _describe(LITGPT_SETUP) | {"model": "llama2-7b"},
        "published": {str(batch): size for batch, size in LITGPT.items()},
        "published_weights": LITGPT_WEIGHTS,
        "ours": {str(batch): ledger.as_json() for batch, ledger in ours.items()},
        "lines": lines,
        "errors": {part: lines["ours"][part] / lines["published"][part] - 1 for part in lines["ours"]},
    }


def _line(peaks: dict[int, int]) -> dict[str, int]:
    slope = peaks[2] - peaks[1]
    return {"intercept": peaks[1] - slope, "slope": slope}
