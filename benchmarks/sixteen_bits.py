"""Full fine-tuning in 16 bits beside float32: how far the held-out loss falls, and how many weights ever moved.

    python benchmarks/sixteen_bits.py --out figures/data/sixteen_bits.json

Each run is the command `train`, on poems: of the small model, which never read a poem, with three seeds, and of one
of the same shape with random weights; in float32 and in bfloat16 by every rounding; at two learning rates. A run in
the record already is not run again. About ten seconds to a minute each on two cores.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from lora_jax import transformer
from lora_jax.commands import cli
from lora_jax.files import atomic, huggingface, models
from lora_jax.tuning import optimizers, pretraining
from lora_jax.tuning.jobs import FULL_RATE

STEPS, RATES = 150, (FULL_RATE, 1e-5)
SEEDS = {"trained": (0, 1, 2), "random": (0,)}
MODELS = {"trained": pretraining.NAME, "random": "a model of the same shape with random weights"}
WAYS = {"float32": "--dtype float32"}
WAYS |= {name: f"--dtype bfloat16 --rounding {name}" for name in optimizers.ROUNDING}


def start(model: str, folder: Path, seed: int) -> str:
    """What `--model` takes: a name, or a folder with fresh weights."""
    if model == "trained":
        return pretraining.NAME
    config, tokenizer = pretraining.SMALL, models.load_tokenizer(pretraining.NAME)
    huggingface.save(folder / "start", config, transformer.init(jax.random.key(seed), config), tokenizer)
    return str(folder / "start")


def run(model: str, way: str, rate: float, seed: int) -> dict:
    """One run of `train`: its losses, and the share of the weights that are not where they were."""
    with tempfile.TemporaryDirectory(prefix="lora_jax_bits_") as name:
        folder = Path(name)
        given = start(model, folder, seed)
        words = f"--data poems --method full --steps {STEPS} --lr {rate:g} --seed {seed} {WAYS[way]}"
        began = time.perf_counter()
        if cli.main(["train", "--model", given, *shlex.split(words), "--out", str(folder / "run")]):
            raise SystemExit(f"failed: train --model {given} {words}")
        found = json.loads((folder / "run" / "run.json").read_text())
        dtype = jnp.dtype(found["about"]["dtype"])
        before, after = (models.load_model(one, dtype)[1] for one in (given, str(folder / "run" / "model")))
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    moved = sum(int((old != new).sum()) for old, new in pairs) / sum(old.size for old, _ in pairs)
    (_, first), (_, last) = found["evaluations"]
    return {
        "model": model, "way": way, "rate": rate, "seed": seed, "command": f"python -m lora_jax train {words}",
        "before": first, "after": last, "moved": moved, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    before = json.loads(out.read_text()) if out.exists() else {"rows": []}
    rows = before["rows"]
    for model in MODELS:
        for seed in SEEDS[model]:
            for rate in RATES:
                for way in WAYS:
                    asked = {"model": model, "way": way, "rate": rate, "seed": seed}
                    if any(asked.items() <= row.items() for row in rows):
                        continue
                    rows.append(run(**asked))
                    table = before | {
                        "date": datetime.date.today().isoformat(),
                        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}",
                        "versions": {"jax": jax.__version__, "optax": optax.__version__},
                        "command": "python benchmarks/sixteen_bits.py --out figures/data/sixteen_bits.json",
                        "rows": rows,
                    }
                    atomic.write_bytes(out, (json.dumps(table, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
