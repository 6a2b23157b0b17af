"""The tables behind docs/memory.md and its figures, worked out from the estimate: plain values, bytes as integers.

`tools/memory_page.py` writes them to figures/data/memory.json and draws from there, so that a change of the estimate
changes every number that is quoted of it. Nothing here is compiled or measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from lora_jax import quantize
from lora_jax.adapters.base import num_bytes
from lora_jax.memory import checkpoints as stored
from lora_jax.memory import hardware, planner, steps, zoo
from lora_jax.memory.estimate import estimate
from lora_jax.memory.ledger import Ledger
from lora_jax.memory.setup import RANK, Setup, ways

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
LITGPT_SETUP = Setup(zoo.config("llama2-7b"), length=1304, options={"rank": 8, "targets": ["q_proj", "v_proj"]})


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


def _by_ways(model: str, **words: Any) -> dict[str, Setup]:
    return ways(Setup(zoo.config(model), options={"rank": RANK}, **words))


def _describe(setup: Setup) -> Table:
    """What a caption says of a step."""
    return {name: getattr(setup, name) for name in ("batch", "length", "options", "dtype", "optimizer", "attention")}


def components() -> Table:
    """The ledger of one step by every method, for a small model and for ever larger ones."""
    found = {
        model: {way: estimate(setup).as_json() for way, setup in _by_ways(model, **STEP).items()} for model in SHOWN
    }
    return {"step": _describe(_by_ways(BIG, **STEP)["lora"]), "models": found}


def growth() -> Table:
    """Bytes against batch and against length, and where what the batch brings outgrows what LoRA saves."""
    setups = _by_ways(BIG)
    saved = estimate(setups["full"]).static - estimate(setups["lora"]).static
    batches = _against({"length": 1024}, "batch", range(1, 49), saved)
    lengths = _against({"batch": 1}, "length", range(1024, 49_153, 1024), saved)
    return {"model": BIG, "step": _describe(setups["lora"]), "saved": saved, "batch": batches, "length": lengths}


def _against(fixed: Table, name: str, values: Sequence[int], saved: int) -> Table:
    """Peaks by method and, of LoRA's step, what the batch brings (`moving`) and the exact part of it (`kept`)."""

    def ledger(value: int, way: str = "lora", remat: bool = False) -> Ledger:
        return estimate(_by_ways(BIG, **fixed, **{name: value}, remat=remat)[way])

    def moving(value: int, form: str) -> int:
        found = ledger(value, remat=FORMS[form])
        return found.total - found.static

    def under(form: str, value: int) -> bool:
        return moving(value, form) < saved

    # The first number at which the batch brings as many bytes as LoRA saves.
    crossover = {form: 1 + planner.largest(partial(under, form)) for form in FORMS}
    return {
        "fixed": fixed,
        "values": list(values),
        "totals": {way: [ledger(value, way).total for value in values] for way in _by_ways(BIG)},
        "moving": {form: [moving(value, form) for value in values] for form in FORMS},
        "kept": [ledger(value)["saved activations"] + ledger(value)["batch"] for value in values],
        "crossover": {form: {"at": at, "moving": moving(at, form)} for form, at in crossover.items()},
    }


def fits() -> Table:
    """The verdict on one step of each model by each method, on each of NVIDIA's cards."""
    step: Table = {"batch": 1, "length": 2048}
    cards = dict(sorted(hardware.NVIDIA.items(), key=lambda pair: pair[1].usable))
    models: Table = {}
    for model in FITTED:
        peaks = {form: {way: estimate(one).total for way, one in _by_ways(model, **step, remat=remat).items()}
                 for form, remat in FORMS.items()}  # fmt: skip
        models[model] = {
            way: {form: [planner.verdict(peaks[form][way], card.usable) for card in cards.values()] for form in FORMS}
            for way in peaks["plain"]
        }
    usable = {card.name: card.usable for card in cards.values()}
    return {"step": _describe(_by_ways(BIG, **step)["lora"]), "usable": usable, "models": models}


def checkpoints() -> Table:
    """What a run leaves behind by full fine-tuning and by LoRA, and how long it takes on its way."""
    left = {
        model: {way: stored.checkpoint(steps.build(one)) for way, one in _by_ways(model).items() if not one.quantize}
        for model in SHOWN
    }
    return {
        "step": _describe(_by_ways(BIG)["lora"]),
        "sizes": {model: {way: dataclasses.asdict(one) for way, one in of.items()} for model, of in left.items()},
        "transfers": {
            model: {way: _transfers(stored.transfers(one, sorted(hardware.LINKS))) for way, one in left[model].items()}
            for model in SHOWN[-2:]
        },
    }


def _transfers(found: Sequence[stored.Transfer]) -> list[Table]:
    hop = ("name", "speed", "kind")
    return [
        {"way": one.way, "one": one.one, "ten": one.ten, "resumable": one.resumable}
        | {name: getattr(one.hop, name) for name in hop}
        | {"source": one.hop.source.what, "date": one.hop.source.date}
        for one in found
    ]


def claims() -> Table:
    """Numbers that were published, or that anyone can multiply out, as the shapes have them."""
    gpt3, llama, big = (zoo.config(name) for name in ("gpt3-175b", BIG, "100b"))
    wide = 4096
    matrix = jax.ShapeDtypeStruct((wide, wide), "float32")
    bits = {
        name: 8 * num_bytes(jax.eval_shape(partial(quantize.nf4, double_quantization=double), matrix)) / wide / wide
        for name, double in (("single", False), ("double", True))
    }
    paper = Setup(gpt3, options={"rank": 4, "targets": ["q_proj", "v_proj"]})
    nf4 = estimate(_by_ways(BIG)["lora nf4"])
    return {
        "gpt3_parameters": steps.parameters(gpt3),
        "gpt3_weights": estimate(paper)["weights"],
        "gpt3_lora": estimate(paper)["adapters"] // 4,
        "llama_parameters": steps.parameters(llama),
        "llama_lora": estimate(_by_ways(BIG)["lora"])["adapters"] // 4,
        "llama_nf4": nf4["weights"] + nf4["quantization constants"],
        "100b_parameters": steps.parameters(big),
        "100b_weights": estimate(Setup(big))["weights"],
        "nf4_bits": bits,
        "nf4_matrix": wide,
    }


def litgpt() -> Table:
    """Our step beside litgpt's published runs: peaks, and the line through them, bytes = intercept + slope * batch."""
    ours = {batch: estimate(dataclasses.replace(LITGPT_SETUP, batch=batch)) for batch in LITGPT}
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
