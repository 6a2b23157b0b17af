"""A training run of its own process, for `test_killed.py`: `python killed_run.py CHECKPOINT [WRITE]`.

It says what it is about to do, a line each, and dawdles there, so that a kill lands inside: `step`, `write` (the bytes
are in a temporary file, not yet on the disk), `rename`, and `done` at the end. At the write of the number that is given
it waits to be killed.
"""

import itertools
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lora_jax.adapters import lora
from lora_jax.adapters.base import attach
from lora_jax.tuning.loop import fit

STEPS = 8


def say(what, seconds):
    print(what, flush=True)
    time.sleep(seconds)


def slowed(function, what, seconds, waits_at=0):
    count = itertools.count(1)

    def slow(*arguments):
        say(what, 60 if next(count) == waits_at else seconds)
        return function(*arguments)

    return slow


class Batches:
    """Eight batches, each found by its step."""

    def __getitem__(self, step):
        say("step", 0.03)
        x = np.random.default_rng(step).standard_normal((4, 5)).astype("float32")
        return {"x": x, "tokens": np.zeros((4, 5), np.int32)}


def loss(adapters, frozen, batch):
    params, constants = frozen
    layers = attach(params, adapters, constants, batch.get("key"))["layers"]
    outputs = jax.vmap(lambda w: batch["x"] @ w)(layers["mlp"]["up_proj"])  # (3, B, 7)
    return jnp.mean((outputs - 1) ** 2)


def main(path, waits_at=0):
    os.fsync, os.replace = slowed(os.fsync, "write", 0.02, int(waits_at)), slowed(os.replace, "rename", 0.02)
    params = {"layers": {"mlp": {"up_proj": jax.random.normal(jax.random.key(0), (3, 5, 7))}}}
    ranks = {"layers.1.mlp.up_proj": 3}
    adapters, constants = lora.init(jax.random.key(1), params, rank=2, rank_pattern=ranks, dropout=0.2)
    batches = Batches()
    fit(
        loss,
        trainable=adapters,
        frozen=(params, constants),
        batches=batches,
        optimizer=optax.adamw(optax.cosine_decay_schedule(1e-1, STEPS)),
        steps=STEPS,
        held_out=[batches[STEPS]],
        evaluate_every=3,
        key=jax.random.key(2),
        checkpoint=path,
        checkpoint_every=1,
        about={"data": "noise"},
        progress=False,
    )
    say("done", 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
