"""Notebook 03's exercises: right answers pass, and each plausible mistake is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import is_told

from lora_jax.exercises.low_rank import EXERCISES
from lora_jax.exercises.outcomes import CORRECT, outcome


def rank(values, share, off=1, power=2, above=False):
    sums = np.cumsum(values.astype(np.float64) ** power)
    return int(np.argmax(sums > share * sums[-1] if above else sums >= share * sums[-1])) + off


def product(change):
    def answer(x, w, a, b, alpha):
        return change(x, w, a, b, alpha, a.shape[1])

    return answer


def adapters(
    draw, *, a_shape=lambda i, r: (i, r), b=0.0, bound=lambda i: i**-0.5, low=-1, wrap=lambda a, b: {"a": a, "b": b}
):
    def answer(seed, shapes, rank):
        rng = np.random.default_rng(seed)
        made = {}
        for name, (d_in, d_out) in shapes.items():
            rng = np.random.default_rng(seed) if draw == "one key" else rng
            a = rng.uniform(low * bound(d_in), bound(d_in), a_shape(d_in, rank)) * (draw != "zero")
            made[name] = wrap(a, np.full((rank, d_out), b))
        return made

    return answer


def gradients(change):
    def answer(x, a, b, s, dy):
        return change(s * x.T @ dy @ b.T, s * a.T @ x.T @ dy, s, x, dy)

    return answer


WRONG = {
    "3.1": [
        (lambda v, s: rank(v, s, off=0), "count from 0"),
        (lambda v, s: rank(v, s, power=1), "sum of their squares"),
        (lambda v, s: rank(v, s, above=True), "exactly is enough"),
        (lambda v, s: len(v), "the squares from the largest"),
        (lambda v, s: v, "one whole number"),
    ],
    "3.2": [
        (product(lambda x, w, a, b, alpha, r: x @ w + alpha * x @ a @ b), "your update is r times too large"),
        (product(lambda x, w, a, b, alpha, r: x @ w + x @ a @ b), "not scaled"),
        (product(lambda x, w, a, b, alpha, r: alpha / r * x @ a @ b), "base is missing"),
        (product(lambda x, w, a, b, alpha, r: x @ w), "update is missing"),
        (product(lambda x, w, a, b, alpha, r: alpha / r * (x @ w + x @ a @ b)), "not the base"),
        (product(lambda x, w, a, b, alpha, r: x @ w + r / alpha * x @ a @ b), "upside down"),
        (product(lambda x, w, a, b, alpha, r: x @ w + alpha / len(a) * x @ a @ b), "not by the width"),
        (product(lambda x, w, a, b, alpha, r: x @ w + alpha / r**0.5 * x @ a @ b), "rsLoRA"),
        (product(lambda x, w, a, b, alpha, r: w + alpha / r * a @ b), "has shape"),
        (product(lambda x, w, a, b, alpha, r: x @ w + 0.3 * x @ a @ b), "the numbers differ"),
    ],
    "3.3": [
        (adapters("zero"), "both zero"),
        (adapters("zero", b=1.0), "a is zero and b is not"),
        (adapters("", b=0.1), "b is not zero"),
        (adapters("one key"), "split the key"),
        (adapters("", a_shape=lambda i, r: (r, i)), "(R, in)"),
        (adapters("", bound=lambda i: 1.0), "from -1/sqrt(in)"),
        (adapters("", low=0), "both ends"),
        (adapters("", bound=lambda i: 1 / i), "not spread"),
        (adapters("", wrap=lambda a, b: {"a": a, "b": b, "alpha": 2.0}), "nothing else"),
        (adapters("", wrap=lambda a, b: {"a": a, "b": b.T}), "b of q_proj has shape"),
        (lambda seed, shapes, rank: {}, "an entry for each matrix"),
    ],
    "3.4": [
        (gradients(lambda da, db, s, x, dy: (da / s, db / s)), "both lack the scaling"),
        (gradients(lambda da, db, s, x, dy: (da, db / s)), "of b lacks the scaling"),
        (gradients(lambda da, db, s, x, dy: (db, da)), "swapped"),
        (gradients(lambda da, db, s, x, dy: (da.T, db)), "of a is transposed"),
        (gradients(lambda da, db, s, x, dy: (da, s * x.T @ dy)), "whole matrix"),
        (gradients(lambda da, db, s, x, dy: (da / len(x), db)), "sum"),
        (gradients(lambda da, db, s, x, dy: (da, db * s)), "scaled twice"),
        (gradients(lambda da, db, s, x, dy: (0 * da, db)), "of a is wrong"),
        (gradients(lambda da, db, s, x, dy: (da, db[:1])), "of b has shape"),
        (gradients(lambda da, db, s, x, dy: da), "return a pair"),
    ],
    "3.5": [
        (lambda w, a, b, alpha: w + alpha * a @ b, "your update is r times too large"),
        (lambda w, a, b, alpha: w + a @ b, "not scaled"),
        (lambda w, a, b, alpha: w + alpha / a.shape[1] * a @ b, "the rank is the last axis"),
        (lambda w, a, b, alpha: alpha / a.shape[-1] * a @ b, "weight is missing"),
        (lambda w, a, b, alpha: w, "nothing was merged"),
        (lambda w, a, b, alpha: 2 * w, "the numbers differ"),
        (lambda w, a, b, alpha: w.astype(np.float32) + alpha / a.shape[-1] * a @ b, "end with .astype(w.dtype)"),
        (lambda w, a, b, alpha: w + alpha / a.shape[-1] * np.dot(a, b), "it raised ValueError"),
        (lambda w, a, b, alpha: alpha / a.shape[-1] * np.dot(a, b), "layer by layer"),
        (lambda w, a, b, alpha: 3.0, "has shape"),
    ],
}  # fmt: skip

# Right answers, written otherwise than the solutions.
OTHERWISE = {
    "3.1": lambda v, s: next(r for r in range(1, len(v) + 1) if np.sum(v[:r] ** 2) >= s * np.sum(v**2)),
    "3.2": lambda x, w, a, b, alpha: jnp.asarray(x) @ (w + (alpha / b.shape[0]) * jnp.dot(a, b)),
    "3.3": adapters(""),
    "3.4": lambda x, a, b, s, dy: jax.grad(lambda pair: jnp.sum(s * (x @ pair[0]) @ pair[1] * dy))([a, b]),
    "3.5": lambda w, a, b, alpha: jnp.asarray(w + jnp.einsum("lir,lro->lio", a * (alpha / b.shape[1]), b), w.dtype),
}


@pytest.mark.parametrize(("id", "answer", "says"), [(id, *pair) for id, pairs in WRONG.items() for pair in pairs])
def test_a_wrong_answer_is_told_what_is_wrong(id, answer, says):
    is_told(id, answer, says)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
@pytest.mark.parametrize("seed", range(12))
def test_a_right_answer_that_is_written_otherwise_passes(exercise, seed):
    assert outcome(exercise, OTHERWISE[exercise.id], seed).status == CORRECT


def test_every_exercise_has_its_wrong_answers():
    assert list(WRONG) == list(OTHERWISE) == [exercise.id for exercise in EXERCISES]
