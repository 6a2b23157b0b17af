"""Writes figures/data/memory.json from the estimate, and from the records the figures and numbers of docs/memory.md.

`python tools/memory_page.py` after a change of the estimate or a new record; `--check` says what is stale and compares.
How far the estimate is off is estimate_page.py's part; what devices used is in figures/data/memory_DEVICE.json
(`python -m lora_jax measure`). Where there is no record, the page says so.
"""

import json
import sys
import textwrap
from pathlib import Path

import estimate_page
import memory_figures as plots
import memory_tables as tables
from PIL import Image
from readme import RECORDS, ROOT, put

from lora_jax.memory.compiled.compile_step import setup_from_json
from lora_jax.memory.units import size
from lora_jax.plots import TITLES

FIGURES, PAGE, TABLES = ROOT / "figures", ROOT / "docs" / "memory.md", RECORDS / "memory.json"
MISSING = "Not measured yet: there is no record in figures/data.\n"
Rows = list[dict]


def device_records(platform: str) -> Rows:
    """The records of `python -m lora_jax measure` on a platform, each with its file's name."""
    found = ((path, json.loads(path.read_text())) for path in sorted(RECORDS.glob("memory_*.json")))
    return [one | {"file": path.name} for path, one in found if one.get("made_by", {}).get("platform") == platform]


def error_table() -> dict:
    """What the figure of errors is drawn from."""

    def device(platform: str) -> Rows:
        records = device_records(platform)
        alone = len({one["made_by"]["device"] for one in records}) == 1
        return [
            {
                "group": row["model"] if alone else f"{one['made_by']['device']}, {row['model']}",
                "method": setup_from_json(row["setup"]).name,
                "bytes": row["used"],
                "error": row["error"],
            }
            for one in records
            for row in one["rows"]
            if row["used"] is not None
        ]

    return {"estimate": estimate_page.points(), "cpu": device("cpu"), "gpu": device("gpu")}


def claims(table: dict) -> str:
    bits, weights = table["nf4_bits"], table["100b_weights"]
    lora, said = 2 * table["gpt3_lora"], table["gpt3_weights"]
    lines = [
        "| what | where it is said | by the estimate |",
        "|---|---|---|",
        f"| `100b`: {table['100b_parameters']:,} parameters in bfloat16 | two bytes each | {weights:,} bytes: "
        f"{size(weights)}, {size(weights, '.2f', True)}; ten checkpoints {size(10 * weights)} |",
        f"| GPT-3 175B in 16 bits | 350 GB (LoRA, arXiv 2106.09685, 4.2) | {size(2 * 175 * 10**9)} for 175 billion; "
        f"`gpt3-175b` has the shape's {table['gpt3_parameters']:,}: {size(said)} |",
        f"| its LoRA, rank 4 on q and v, in 16 bits | 35 MB (the same) | {table['gpt3_lora']:,} parameters: "
        f"{size(lora)}, {size(lora, binary=True)} |",
        f"| Llama-3.1-8B, LoRA of rank 16 on seven matrices a layer | PEFT's count | {table['llama_lora']:,} of "
        f"{table['llama_parameters']:,} parameters |",
        f"| NF4, bits a weight | 4.5, and 4.127 with double quantization (QLoRA, arXiv 2305.14314) | "
        f"{bits['single']:g} and {bits['double']:.3f}, on {table['nf4_matrix']:,} x {table['nf4_matrix']:,} |",
        f"| Llama-3.1-8B with NF4 layers | embeddings, head and norms stay in 16 bits | "
        f"{size(table['llama_nf4'], '.2f')}, where 4 bits a weight would be "
        f"{size(table['llama_parameters'] // 2, '.2f')} |",
    ]
    return "\n".join(lines) + "\n"


def crossover(table: dict) -> str:
    batch, length = (table[name]["crossover"] for name in ("batch", "length"))
    (tokens,) = table["batch"]["fixed"].values()
    said = (
        f"For {table['model']} in {table['step']['dtype']} LoRA of rank {table['step']['options']['rank']} saves "
        f"{size(table['saved'])} of gradients and optimizer state. From a batch of {batch['plain']['at']} "
        f"sequences of {tokens:,} tokens on, or one sequence of {length['plain']['at']:,} tokens, what the batch "
        f"brings is more than that. With rematerialized blocks it takes {batch['rematerialized']['at']} sequences, or "
        f"{length['rematerialized']['at']:,} tokens."
    )
    return textwrap.fill(said, 119) + "\n"


def measured(records: Rows) -> str:
    """The rows of the records of one platform."""
    if not records:
        return MISSING
    lines = []
    for one in records:
        made, found = one["made_by"], one["summary"]
        off = (
            f"median {found['median']:.2%} off, worst {found['worst']:.2%}" if found["measured"] else "nothing measured"
        )
        lines += [
            f"{made['device']}, {made['cores']} cores, jax {made['jax']} (`figures/data/{one['file']}`): "
            f"{found['measured']} steps, {off}; {found['failed']} failed.",
            "",
            "| model | method | tokens | options | planned, GB | used, GB | error |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in one["rows"]:
            setup = row["setup"]
            way = setup_from_json(setup).name
            options = [setup["dtype"], f"attention {setup['attention']}", "rematerialized" if setup["remat"] else ""]
            planned = f"{row['planned']['needed'] / 1e9:.3f}" if row.get("planned") else "-"
            used = (
                f"{row['used'] / 1e9:.3f} | {row['error']:+.2%}" if row["used"] is not None else f"{row['failed']} | -"
            )
            lines.append(
                f"| {row['model']} | {TITLES.get(way, way)} | {setup['batch']} x {setup['length']} "
                f"| {', '.join(filter(None, options))} | {planned} | {used} |"
            )
        lines.append("")
    return "\n".join(lines)


def litgpt(table: dict) -> str:
    step, said = table["step"], table["published"]
    ours = {batch: found["total"] for batch, found in table["ours"].items()}
    how = f"LoRA of rank {step['options']['rank']} on q and v, {step['dtype']}"
    lines = [
        f"{step['model']}, {how}, {step['length']:,} tokens a sequence:",
        "",
        "| | litgpt, GB | the estimate, GB | error |",
        "|---|---|---|---|",
    ]
    for batch, peak in said.items():
        error = ours[batch] / peak - 1
        lines.append(f"| batch of {batch} | {peak / 1e9:.2f} | {ours[batch] / 1e9:.2f} | {error:+.1%} |")
    for part, name in (("intercept", "no sequence (intercept)"), ("slope", "each sequence (slope)")):
        theirs, mine = (table["lines"][whose][part] / 1e9 for whose in ("published", "ours"))
        lines.append(f"| {name} | {theirs:.2f} | {mine:.2f} | {table['errors'][part]:+.1%} |")
    weights = next(row["bytes"] for row in table["ours"]["1"]["rows"] if row["name"] == "weights")
    source = (
        f"Published: {table['source']}. Its GB are 1e9 bytes: it gives {table['published_weights'] / 1e9:.2f} for "
        f"generating from the same model, whose weights are {weights / 1e9:.2f} GB ({weights / 2**30:.2f} GiB)."
    )
    return "\n".join([*lines, "", textwrap.fill(source, 119)]) + "\n"


def page(table: dict) -> str:
    return put(
        PAGE,
        claims=claims(table["claims"]),
        crossover=crossover(table["growth"]),
        margin=estimate_page.margin(),
        errors=estimate_page.errors(),
        seen=estimate_page.seen(),
        cpu=measured(device_records("cpu")),
        gpu=measured(device_records("gpu")),
        litgpt=litgpt(table["litgpt"]),
    )


def drawn(table: dict) -> dict[Path, tuple]:
    """Each figure with what draws it and what from."""
    named = {name: table[name] for name in ("components", "growth", "fits", "checkpoints")} | {"errors": error_table()}
    return {FIGURES / f"memory_{name}.png": (getattr(plots, name), part) for name, part in named.items()}


def stale(table: dict) -> list[str]:
    """What does not say what it is drawn from, a sentence each."""
    again = "run tools/memory_page.py"
    text = json.dumps(table, indent=1) + "\n"
    found = [] if TABLES.exists() and TABLES.read_text() == text else [f"{TABLES.name} is not the estimate's: {again}"]
    if PAGE.read_text() != page(table):
        found.append(f"{PAGE.name} is stale: {again}")
    for path, (_, part) in drawn(table).items():
        if not path.exists() or Image.open(path).info.get("Description") != plots.digest(part):
            found.append(f"{path.name} is stale: {again}")
    return found + estimate_page.outdated()


def main() -> int:
    table = tables.tables()
    if "--check" in sys.argv:
        found = stale(table)
        print(*found, sep="\n", end="\n" if found else "")
        return 1 if found else 0
    TABLES.write_text(json.dumps(table, indent=1) + "\n")
    PAGE.write_text(page(table))
    for path, (draw, part) in drawn(table).items():
        draw(part, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
