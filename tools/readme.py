"""Writes what the README and the docs say of measured things, from the records they are drawn from. `--check` compares.

The README's account of the demo comes from figures/data/demo.json, which `make demo` wrote; so does figures/demo.png.
The table of licences in docs/downloads.md comes from the code that fetches.
"""

import json
import re
import sys
from pathlib import Path

from lora_jax import plots
from lora_jax.files import assets

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "figures" / "data" / "demo.json"


def demo() -> str:
    table = json.loads(RECORD.read_text())
    (_, first), (_, last) = table["evaluations"][0], table["evaluations"][-1]
    settings, sizes = table["settings"], table["bytes"]
    prompt, before, after = (table[name][0] for name in ("prompts", "before", "after"))
    quoted = "\n".join(f"> {line}  " for line in (prompt + after).strip().split("\n"))
    full, lora = (sum(sizes[method].values()) / 1e9 for method in ("full", "lora"))
    batch = f"{settings['batch']} x {settings['length']}"
    return (
        f"`make demo` took {table['seconds'] / 60:.1f} minutes on two cores without a GPU, the downloads aside. It "
        f"trains {settings['model']} for {settings['steps']} steps of {batch} tokens of verse, and the loss on "
        f"{table['held_out']} held-out sequences falls from {first:.2f} to {last:.2f} nats a token. Weights, gradients "
        f"and optimizer state take {lora:.2f} GB; full fine-tuning would take {full:.2f} GB. Before, the model went on "
        f"from a prompt like this:\n\n> {' '.join((prompt + before).split())}\n\nand after:\n\n{quoted}\n"
    )


def put(path: Path, mark: str, text: str) -> str:
    """The file's text with `text` between its marks."""
    return re.sub(
        rf"(<!-- {mark}: .*? -->\n).*?(<!-- /{mark} -->)", lambda m: m[1] + text + m[2], path.read_text(), flags=re.S
    )


def main() -> int:
    wanted = {
        ROOT / "README.md": put(ROOT / "README.md", "demo", demo()),
        ROOT / "docs" / "downloads.md": put(ROOT / "docs" / "downloads.md", "licences", assets.licences() + "\n"),
    }
    stale = [path for path, text in wanted.items() if path.read_text() != text]
    if "--check" in sys.argv:
        print(*(f"{path.relative_to(ROOT)} is stale: run tools/readme.py" for path in stale), sep="\n", end="")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    plots.demo(json.loads(RECORD.read_text()), ROOT / "figures" / "demo.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
