"""The small model's record: how well it tells stories, beside n-gram models, and what it learns and forgets on poems.

    python benchmarks/small_model.py --run runs/stories --out figures/data/small_model.json

`--run` is the folder of the `pretrain` run whose model is beside the package. The rest is run here, through the command
line: a short pre-training from scratch, and fine-tuning on poems, full and with LoRA. Minutes on two cores.
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

from lora_jax import generation, training
from lora_jax.commands import cli
from lora_jax.files import atomic, models
from lora_jax.text import datasets, ngrams, packing
from lora_jax.tuning import jobs, pretraining

LENGTH, TUNING_STEPS, SHORT_STEPS = 256, 200, 500
ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}
PROMPTS = (
    "Once upon a time, there was a",
    "One day, a little",
    "Mina was a",
    "The old king",
    "In a small village,",
    "Tom and Lily were",
    "A hungry bear",
    "Long ago, by the sea,",
    '"Where are you going?" asked',
    "It was raining, and",
)
TUNE = f"train --model {pretraining.NAME} --data poems --watch stories --length {LENGTH} --steps {TUNING_STEPS}"
COMMANDS = {
    "short": f"pretrain --steps {SHORT_STEPS}",
    "full": f"{TUNE} --warmup 10 --decay --method full --lr 1e-3",
    "lora": f"{TUNE} --warmup 10 --decay --method lora --rank 16 --lr 5e-3",
}


def run(command: str, folder: Path) -> dict:
    """What a command of the package recorded, and the seconds that it took."""
    began = time.perf_counter()
    if cli.main([*shlex.split(command), "--out", str(folder)]):
        raise SystemExit(f"failed: {command}")
    found = json.loads((folder / "run.json").read_text())
    seconds = round(time.perf_counter() - began, 1)
    shown = {name: found[name] for name in ("losses", "evaluations", "watched")}
    return {"command": f"python -m lora_jax {command}", "seconds": seconds, **shown}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pretrained = json.loads((arguments.run / "run.json").read_text())
    config, params = models.load_model(pretraining.NAME)
    tokenizer = models.load_tokenizer(pretraining.NAME)
    told, kept = datasets.tales(tokenizer, LENGTH)
    job = jobs.make_job("full", config, params, key=None)
    with tempfile.TemporaryDirectory() as scratch:
        runs = {name: run(command, Path(scratch) / name) for name, command in COMMANDS.items()}
    table = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}; jax {jax.__version__}",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tokens": {"training": int((told.segments > 0).sum()), "held out": int((kept.segments > 0).sum())},
        "ngrams": {name: ngrams.nats(told, kept, n, config.vocab_size) for name, n in ORDERS.items()},
        "pretrained": {name: pretrained[name] for name in ("about", "losses", "evaluations")},
        "held_out": training.evaluate(job.loss, params, None, packing.Batches.in_order(kept, 8)),
        "runs": runs,
        "samples": [
            {"prompt": prompt, "text": found}
            for prompt, found in zip(
                PROMPTS,
                generation.generate(config, params, tokenizer, PROMPTS, new_tokens=120, key=jax.random.key(0)),
                strict=True,
            )
        ],
    }
    atomic.write_bytes(arguments.out, (json.dumps(table, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
