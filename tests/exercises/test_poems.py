"""The exercises of notebook 05: right answers pass, plausible wrong ones are told what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import is_told

from lora_jax.exercises import registry
from lora_jax.exercises.outcomes import CORRECT, outcome


def softmax(x):
    return jax.nn.softmax(jnp.asarray(x))


def cut(logits, k, filling=-jnp.inf):
    return jnp.where(logits >= jnp.sort(logits)[-k], logits, filling)


def dropped_after(logits, temperature, k):
    chances = softmax(logits / temperature)
    return cut(chances, k, 0.0)


def total(shapes):
    return sum(map(sum, shapes))


def least(volumes, verse):
    return min(volumes, key=lambda v: verse[volumes.index(v)])


def weighed(adapter, weight):
    return weight * adapter["scaling"] * adapter["a"]


def pair(a1, b1, a2, b2):
    return np.concatenate([a1, a2], 1), np.concatenate([b1, b2], 0)


# What somebody may well write, and a part of the sentence that answers it.
WRONG = [
    ("5.1", lambda z, t, k: softmax(cut(z, k) * t), "divide them by it"),
    ("5.1", lambda z, t, k: softmax(cut(z, k)), "temperature has no effect"),
    ("5.1", lambda z, t, k: softmax(z / t), "every token has a chance"),
    ("5.1", lambda z, t, k: softmax(z), "neither the temperature nor k"),
    ("5.1", dropped_after, "sum to 0."),
    ("5.1", lambda z, t, k: softmax(cut(z, k, 0.0) / t), "put -inf"),
    ("5.1", lambda z, t, k: softmax(cut(z, k + 1) / t), "tokens have a chance where k is 3"),
    ("5.1", lambda z, t, k: softmax(jnp.where(z <= jnp.sort(z)[k - 1], z, -jnp.inf) / t), "not the smallest"),
    ("5.1", lambda z, t, k: softmax(cut(z, k) / t**2), "are not: take softmax"),
    ("5.1", lambda z, t, k: softmax(jax.lax.top_k(z, k)[0] / t), "shape (3,)"),
    ("5.1", lambda z, t, k: jnp.sort(softmax(cut(z, k) / t))[::-1], "in order of size"),
    ("5.1", lambda z, t, k: jnp.exp(cut(z, k) / (t - t)), "not finite"),
    ("5.2", lambda s, r, n, b: n * sum(i * o for i, o in s) * b, "full matrices"),
    ("5.2", lambda s, r, n, b: n * sum(i * r * o for i, o in s) * b, "a sum and not a product"),
    ("5.2", lambda s, r, n, b: n * total(s) * b, "rank is missing"),
    ("5.2", lambda s, r, n, b: n * r * sum(i for i, _ in s) * b, "A alone"),
    ("5.2", lambda s, r, n, b: n * r * sum(o for _, o in s) * b, "B alone"),
    ("5.2", lambda s, r, n, b: n * 2 * r * sum(i for i, _ in s) * b, "to be square"),
    ("5.2", lambda s, r, n, b: r * total(s) * b, "one layer"),
    ("5.2", lambda s, r, n, b: n * r * total(s), "bytes_per_number"),
    ("5.2", lambda s, r, n, b: n * r * total(s) * b * 8, "that is bits"),
    ("5.2", lambda s, r, n, b: n * r * total(s) * b * 4, "needed in training"),
    ("5.2", lambda s, r, n, b: n * r * total(s) * b + 1, "layers, 4 bytes it is"),
    ("5.2", lambda s, r, n, b: [n * r * total(s) * b], "unexpected form, a list"),
    ("5.3", lambda v, p, s, most: least(v, p), "whatever is forgotten"),
    ("5.3", lambda v, p, s, most: max(x for x, y in zip(v, s, strict=True) if y <= s[0] + most), "a quieter one"),
    ("5.3", lambda v, p, s, most: ([x for x, y in zip(v, s, strict=True) if y <= most] or v)[0], "that is the base"),
    ("5.3", lambda v, p, s, most: v[1], "take the lowest of those within"),
    ("5.3", lambda v, p, s, most: v[-1], "above the base's"),
    ("5.3", lambda v, p, s, most: v.index(least([x for x in v if s[v.index(x)] <= s[0] + most], p)), "a position"),
    ("5.3", lambda v, p, s, most: min(p), "or a loss"),
    ("5.3", lambda v, p, s, most: 0.123456, "was not measured"),
    ("5.3", lambda v, p, s, most: "half", "unexpected form, a str"),
    ("5.4", 0, "only after merging"),
    ("5.4", 2, "seven"),
    ("5.4", 7, "two products"),
    ("5.4", 8, "feed-forward"),
    ("5.4", 21, "which the base has already"),
    ("5.4", 28, "no product"),
    ("5.4", 420, "how many in one"),
    ("5.4", 13.5, "not 13.5: count"),
    ("5.4", "many", "unexpected form, a str"),
    ("5.5", lambda p, q, t: ((1 - t) * p["a"] + t * q["a"], (1 - t) * p["b"] + t * q["b"]), "averaging factors"),
    ("5.5", lambda p, q, t: pair((1 - t) * p["a"], p["b"], t * q["a"], q["b"]), "scalings are missing"),
    ("5.5", lambda p, q, t: pair(weighed(p, 1), p["b"], weighed(q, 1), q["b"]), "in full"),
    ("5.5", lambda p, q, t: pair(p["a"], p["b"], q["a"], q["b"]), "neither t nor"),
    ("5.5", lambda p, q, t: pair(weighed(p, t), p["b"], weighed(q, 1 - t), q["b"]), "swapped"),
    ("5.5", lambda p, q, t: pair(weighed(p, 1 - t), (1 - t) * p["b"], weighed(q, t), t * q["b"]), "is squared"),
    (
        "5.5",
        lambda p, q, t: pair(weighed(p, 1 - t), p["scaling"] * p["b"], weighed(q, t), q["scaling"] * q["b"]),
        "is squared",
    ),
    ("5.5", lambda p, q, t: (pair(weighed(p, 1 - t), p["b"], weighed(q, t), q["b"])[0], p["b"]), "should be (7, 6)"),
    ("5.5", lambda p, q, t: pair(weighed(p, 1 - t), p["b"], weighed(q, t), -q["b"]), "for small shapes"),
    ("5.5", lambda p, q, t: p["a"], "two arrays"),
]


def other_sampling(logits, temperature, k):
    chances = np.zeros(logits.size)
    best = np.argsort(-logits)[:k]
    chances[best] = np.exp((logits[best] - logits.max()) / temperature)
    return chances / chances.sum()


def other_bytes(shapes, rank, layers, bytes_per_number):
    adapters = [(np.zeros((i, rank), "u1"), np.zeros((rank, o), "u1")) for i, o in shapes for _ in range(layers)]
    return sum(a.nbytes + b.nbytes for a, b in adapters) * bytes_per_number


def other_volume(volumes, verse, stories, allowed):
    table = sorted(zip(verse, volumes, stories, strict=True))
    return next(volume for _, volume, loss in table if loss <= stories[0] + allowed)


def other_mix(one, other, t):
    a = np.hstack([other["a"], one["a"]])
    b = np.vstack([t * other["scaling"] * other["b"], (1 - t) * one["scaling"] * one["b"]])
    return [a, b]


RIGHT = [("5.1", other_sampling), ("5.2", other_bytes), ("5.3", other_volume), ("5.4", 28 / 2), ("5.5", other_mix)]


@pytest.mark.parametrize(("id", "answer", "said"), WRONG, ids=[f"{id}: {said}" for id, _, said in WRONG])
def test_a_wrong_answer_is_told_what_is_wrong(id, answer, said):
    is_told(id, answer, said)


@pytest.mark.parametrize(("id", "answer"), RIGHT)
def test_a_right_answer_that_is_written_otherwise_passes(id, answer):
    for seed in range(5):
        assert outcome(registry.find(id), answer, seed).status == CORRECT


def test_every_exercise_has_its_wrong_answers():
    for exercise in registry.topic(5):
        assert len([id for id, _, _ in WRONG if id == exercise.id]) >= 3
