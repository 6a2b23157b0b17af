"""A method's learning rates: the row's own, and by field of the adapter where the row says so."""

import dataclasses

import jax
import numpy as np
import small as tiny
from close import close, rounding

from lora_jax.adapters import DEFAULT, METHODS
from lora_jax.tuning import jobs

CONFIG, PARAMS = tiny.model()


def moved(monkeypatch, rates):
    """How far each factor moves in the first step of AdamW, from the row with these rates by field."""
    monkeypatch.setitem(METHODS, DEFAULT, dataclasses.replace(METHODS[DEFAULT], rates=rates))
    job = jobs.make_job(DEFAULT, CONFIG, PARAMS, key=jax.random.key(0), options={"rank": 2, "targets": ["q_proj"]})
    job = dataclasses.replace(job, trainable=tiny.shaken(job.trainable))  # so that both factors have a gradient
    state = jobs.tune(job, [{"tokens": tiny.tokens()}], rate=1e-3, steps=1, progress=False)
    return jax.tree.map(lambda new, old: np.asarray(new - old), state.trainable, job.trainable)


def test_a_field_may_learn_at_a_multiple_of_the_rate(monkeypatch):
    """As in LoRA+ (arXiv 2402.12354), where B learns 16 times as fast as A."""
    plain, faster = moved(monkeypatch, {}), moved(monkeypatch, {"b": 16.0})
    one, other = (tree["layers"]["self_attn"]["q_proj"] for tree in (plain, faster))
    close(other.a, one.a, rounding(4), of=np.float32(0.5))  # a difference of numbers of this size
    close(other.b, 16 * one.b, rounding(16 * 4), of=np.float32(0.5))
    assert np.abs(one.b).min() > 5e-4


def test_each_method_starts_from_its_rows_rate_and_full_fine_tuning_from_a_smaller_one():
    assert {name: jobs.learning_rate(name) for name in METHODS} == {name: row.rate for name, row in METHODS.items()}
    assert jobs.learning_rate("full") < min(row.rate for row in METHODS.values())
