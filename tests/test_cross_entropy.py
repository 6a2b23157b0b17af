"""The loss in chunks equals the loss in one go, with the gradients of the stream and of the head."""

import re

import jax
import jax.numpy as jnp
import pytest
from close import close, rounding

from lora_jax.adapters.base import Adapted
from lora_jax.adapters.lora import LoRA
from lora_jax.cross_entropy import cross_entropy

N, D, V, R = 300, 12, 70, 3
KEYS = jax.random.split(jax.random.key(0), 6)
X, W = jax.random.normal(KEYS[0], (N, D)), jax.random.normal(KEYS[1], (D, V))
TARGETS = jax.random.randint(KEYS[2], (N,), 0, V)
VALUE, GRADIENT = rounding(D + V + N), rounding(2 * D + 2 * V + N)  # a logit, the softmax, the sum over tokens
WEIGHTS = jnp.where(jnp.arange(N) % 3 == 0, 0.0, 1.5)


def head(w, x):
    return x @ w


def whole(w, x):
    logits = head(w, x)
    nats = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, TARGETS[:, None], axis=1)[:, 0]
    return jnp.sum(WEIGHTS * nats)


@pytest.mark.parametrize("chunk", [64, 300, 512])
def test_chunks_change_neither_the_value_nor_a_gradient(chunk):
    value, gradients = jax.value_and_grad(lambda w, x: 2 * cross_entropy(head, w, x, TARGETS, WEIGHTS, chunk), (0, 1))(
        W, X
    )
    expected, wanted = jax.value_and_grad(lambda w, x: 2 * whole(w, x), (0, 1))(W, X)
    close(value, expected, VALUE)
    close(cross_entropy(head, W, X, TARGETS, WEIGHTS, chunk) * 2, expected, VALUE)
    close(gradients, wanted, GRADIENT)


def test_an_adapted_head_gets_its_adapters_gradient():
    def through(loss):
        return lambda a, b: loss(Adapted(W, LoRA(a, b, jnp.float32(0.7))), X)

    a, b = jax.random.normal(KEYS[3], (D, R)), jax.random.normal(KEYS[4], (R, V))
    got = jax.grad(through(lambda w, x: cross_entropy(head, w, x, TARGETS, WEIGHTS, 64)), (0, 1))(a, b)
    close(got, jax.grad(through(whole), (0, 1))(a, b), GRADIENT)


def test_a_frozen_heads_gradient_is_not_worked_out():
    """Two products for the gradient of the stream, three where the head's is asked for too."""

    def products(wanted):
        step = jax.jit(jax.grad(lambda w, x: cross_entropy(head, w, x, TARGETS, WEIGHTS, 64), wanted))
        return step.lower(W, X).compile().as_text().count(" dot(")

    assert products(1) == 2
    assert products((0, 1)) == 3


def test_a_tied_head_is_not_copied():
    """Transposed where it is multiplied, the embedding stays as it is; transposed before, a (D, V) array is made."""

    def made(loss):
        text = jax.jit(jax.grad(loss, 1)).lower(jnp.zeros((V, D)), X).compile().as_text()
        return len(re.findall(rf"= f32\[{D},{V}\]\S* (?:copy|transpose|fusion)\(", text))

    inside = made(lambda e, x: cross_entropy(lambda e, x: x @ e.T, e, x, TARGETS, WEIGHTS, 64))
    outside = made(lambda e, x: cross_entropy(head, e.T, x, TARGETS, WEIGHTS, 64))
    assert inside == 0 < outside
