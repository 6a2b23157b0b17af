"""Notebook 01's exercises: right answers pass, and each plausible mistake is named."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import is_told, written
from close import close, forward_pass, rounding

from lora_jax.adapters.base import count
from lora_jax.exercises import pretraining
from lora_jax.exercises.outcomes import CORRECT, outcome
from lora_jax.exercises.pretraining import EXERCISES
from lora_jax.exercises.registry import find
from lora_jax.transformer import Config, forward, init, loss, target_mask
from lora_jax.tuning import pretraining as small


def counted(*, attention=lambda D, H, K, C: 2 * D * H * C + 2 * D * K * C, gates=3, norms=2, last=1, embedding=1,
            layers=1, head=lambda tied: not tied):  # fmt: skip
    def answer(V, D, F, L, H, K, C, tied):
        layer = attention(D, H, K, C) + gates * D * F + norms * D
        return embedding * V * D + (L if layers else 1) * layer + last * D + (V * D if head(tied) else 0)

    return answer


def targets(shift=-1, axis=1, mask=lambda segments, learned: learned):
    def answer(tokens, segments):
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
        learned = np.pad(same, ((0, 0), (0, 1))).astype(np.float32)
        return np.roll(tokens, shift, axis), mask(segments, learned)

    return answer


def without_last(segments, mask):
    return np.pad(mask[:, :-1], ((0, 0), (0, 1)))


def nats(logits, targets, axis=-1):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=axis), targets[..., None], axis=-1)[..., 0]


def losses(change, axis=-1):
    return lambda z, t, m: change(nats(z, t, axis), m)


def as_published(logits, targets, mask):
    """The version with three mistakes, as the notebook shows it."""
    p = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=1, keepdims=True)
    nats = -jnp.log(jnp.take_along_axis(p, targets[..., None], axis=-1)[..., 0])
    return jnp.mean(nats * mask)


def overflowing(logits, targets, mask):
    odds = jnp.exp(logits)
    p = jnp.take_along_axis(odds / odds.sum(-1, keepdims=True), targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.log(p) * mask) / jnp.sum(mask)


def bare(logits, targets, mask):
    return -np.sum(np.take_along_axis(logits, targets[..., None], -1)[..., 0] * mask) / np.sum(mask)


def stepped(rule):
    return lambda params, gradients, rate: jax.tree.map(lambda w, g: rule(w, g, rate), params, gradients)


WRONG = {
    "1.1": [
        (counted(attention=lambda D, H, K, C: 4 * D * H * C), "K heads, not H"),
        (counted(attention=lambda D, H, K, C: 2 * D * D + 2 * D * K * C), "H * C need not be D"),
        (counted(gates=2), "three matrices"),
        (counted(last=0), "behind the last layer"),
        (counted(norms=0), "each layer has two norms"),
        (counted(norms=0, last=0), "the norms hold numbers too"),
        (counted(layers=0), "you counted one"),
        (counted(embedding=0), "embedding is missing"),
        (counted(head=lambda tied: True), "count it once"),
        (counted(head=lambda tied: False), "lm_head"),
        (counted(gates=1), "write down the shape"),
        (lambda *letters: "many", "unexpected form"),
    ],
    "1.2": [
        (targets(shift=0), "the tokens themselves"),
        (targets(shift=1), "the wrong way"),
        (targets(axis=0), "across the rows"),
        (targets(shift=-2), "the token at t + 1"),
        (targets(mask=lambda s, m: np.ones_like(m)), "end of a row"),
        (targets(mask=lambda s, m: without_last(s, np.ones_like(m))), "on padding"),
        (targets(mask=lambda s, m: without_last(s, (s != 0).astype(np.float32))), "next begins"),
        (targets(mask=lambda s, m: 1 - m), "wrong way round"),
        (targets(mask=lambda s, m: np.roll(m, 1, axis=1)), "stands in the same document"),
        (targets(mask=lambda s, m: m * s), "neither 0 nor 1"),
        (lambda tokens, segments: (tokens[:, 1:], segments[:, 1:] == segments[:, :-1]), "have shape"),
        (lambda tokens, segments: np.roll(tokens, -1, axis=1), "return two arrays"),
    ],
    "1.3": [
        (as_published, "runs over time"),
        (overflowing, "exp overflows"),
        (losses(lambda n, m: jnp.sum(n * m) / jnp.sum(m), axis=1), "runs over time"),
        (losses(lambda n, m: jnp.mean(n * m)), "divided by all positions"),
        (losses(lambda n, m: jnp.sum(n * m)), "you summed"),
        (losses(lambda n, m: jnp.mean(n)), "counted the masked positions"),
        (losses(lambda n, m: -jnp.sum(n * m) / jnp.sum(m)), "the sign is wrong"),
        (losses(lambda n, m: jnp.sum(n * m) / jnp.sum(m) / jnp.log(2)), "in bits"),
        (losses(lambda n, m: jnp.exp(jnp.sum(n * m) / jnp.sum(m))), "perplexity"),
        (losses(lambda n, m: jnp.mean(jnp.sum(n * m, 1) / jnp.sum(m, 1))), "mean of the rows' means"),
        (losses(lambda n, m: -jnp.sum(jnp.exp(-n) * m) / jnp.sum(m)), "these are probabilities"),
        (losses(lambda n, m: n * m), "return one number"),
        (losses(lambda n, m: jnp.sum(n * m) / jnp.sum(m) + 0.01), "should be"),
        (bare, "bare logits"),
    ],
    "1.4": [
        (math.log2(2048), "in bits"),
        (math.log10(2048), "base 10"),
        (-math.log(2048), "the sign is wrong"),
        (2048, "perplexity"),
        (1 / 2048, "probability of the right token"),
        (1 - 1 / 2048, "how often a guess is wrong"),
        (0, "certain and right"),
        (5.0, "too low"),
        (9.0, "too high"),
    ],
    "1.5": [
        (stepped(lambda w, g, rate: w), "nothing moved"),
        (stepped(lambda w, g, rate: w + rate * g), "uphill"),
        (stepped(lambda w, g, rate: w - g), "left out the rate"),
        (stepped(lambda w, g, rate: -rate * g), "the update alone"),
        (stepped(lambda w, g, rate: w - g / rate), "divided by the rate"),
        (stepped(lambda w, g, rate: w * (1 - rate * g)), "scaled the parameters"),
        (stepped(lambda w, g, rate: w - rate * w), "use the gradients"),
        (stepped(lambda w, g, rate: w - rate * np.sign(g)), "sign alone"),
        (stepped(lambda w, g, rate: w - rate * g - 0.01), "takes the same step"),
        (stepped(lambda w, g, rate: np.sum(w - rate * g)), "a step changes no shape"),
        (lambda p, g, rate: jax.tree.leaves(stepped(lambda w, g, rate: w - rate * g)(p, g, rate)), "another shape"),
        (lambda p, g, rate: p - rate * g, "it raised TypeError"),
    ],
}  # fmt: skip


def count_by_init(V, D, F, L, H, K, C, tied):
    config = Config(V, D, F, L, H, K, C, tie_word_embeddings=tied)
    return count(jax.eval_shape(lambda: init(jax.random.key(0), config)))


def targets_by_loops(tokens, segments):
    found, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for b, t in np.ndindex(len(tokens), tokens.shape[1] - 1):
        found[b, t], mask[b, t] = tokens[b, t + 1], segments[b, t] == segments[b, t + 1] > 0
    return [found, mask]


def loss_in_float32(logits, targets, mask):
    z = logits - logits.max(-1, keepdims=True)
    picked = np.array([[z[b, t, targets[b, t]] for t in range(z.shape[1])] for b in range(len(z))])
    return np.average(np.log(np.exp(z).sum(-1)) - picked, weights=mask)


def step_by_hand(params, gradients, rate):
    if isinstance(params, dict):
        return {name: step_by_hand(params[name], gradients[name], rate) for name in params}
    if isinstance(params, list):
        return [step_by_hand(*pair, rate) for pair in zip(params, gradients, strict=True)]
    return params + (-rate) * gradients


# Right answers, written otherwise than the solutions.
OTHERWISE = {
    "1.1": count_by_init,
    "1.2": targets_by_loops,
    "1.3": loss_in_float32,
    "1.4": 7.6,
    "1.5": step_by_hand,
}


@pytest.mark.parametrize(("id", "answer", "says"), [(id, *pair) for id, pairs in WRONG.items() for pair in pairs])
def test_a_wrong_answer_is_told_what_is_wrong(id, answer, says):
    is_told(id, answer, says)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
@pytest.mark.parametrize("seed", range(6))
def test_a_right_answer_that_is_written_otherwise_passes(exercise, seed):
    assert outcome(exercise, OTHERWISE[exercise.id], seed).status == CORRECT


def test_every_exercise_has_its_wrong_answers():
    assert list(WRONG) == list(OTHERWISE) == [exercise.id for exercise in EXERCISES]


def test_the_numbers_of_a_case_all_differ():
    for seed in range(20):
        for *letters, _ in find("1.1").draw(seed):
            assert len(set(letters)) == len(letters)


def test_what_is_asked_is_what_the_package_does():
    """The mask of 1.2, the loss of 1.3 on an array of logits, and the vocabulary of 1.4 are the package's."""
    assert small.SMALL.vocab_size == pretraining.VOCABULARY
    for tokens, segments in find("1.2").draw(0):
        np.testing.assert_array_equal(targets_by_loops(tokens, segments)[1], target_mask(
            {"tokens": jnp.asarray(tokens), "segments": jnp.asarray(segments)}))  # fmt: skip
    config = Config(11, 24, 40, 1, 6, 2, 8)
    params = init(jax.random.key(0), config, std=0.3)
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 11)
    batch = {"tokens": tokens}
    found = written("1.3")(forward(config, params, tokens), jnp.roll(tokens, -1, 1), target_mask(batch))
    close(float(found), float(loss(config, params, batch)), rounding(forward_pass(config, 6) + 12))
