"""The loss in chunks equals the loss in one go, with the gradients of the stream and of the head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.base import Adapted
from lora_jax.adapters.lora import LoRA
from lora_jax.cross_entropy import cross_entropy

N, D, V, R = 300, 12, 70, 3
KEYS = jax.random.split(jax.random.key(0), 6)
X, W = jax.random.normal(KEYS[0], (N, D)), jax.random.normal(KEYS[1], (D, V))
TARGETS = jax.random.randint(KEYS[2], (N,), 0, V)
WEIGHTS = jnp.where(jnp.arange(N) % 3 == 0, 0.0, 1.5)


def whole(x, w):
    logits = x @ w
    nats = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, TARGETS[:, None], axis=1)[:, 0]
    return jnp.sum(WEIGHTS * nats)


@pytest.mark.parametrize("chunk", [64, 300, 512])
def test_chunks_change_neither_the_value_nor_a_gradient(chunk):
    value, gradients = jax.value_and_grad(lambda x, w: 2 * cross_entropy(x, w, TARGETS, WEIGHTS, chunk), (0, 1))(X, W)
    expected, wanted = jax.value_and_grad(lambda x, w: 2 * whole(x, w), (0, 1))(X, W)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(X, W, TARGETS, WEIGHTS, chunk) * 2, expected, rtol=1e-6)
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


def test_an_adapted_head_gets_its_adapters_gradient():
    def through(loss):
        return lambda a, b: loss(X, Adapted(W, LoRA(a, b, jnp.float32(0.7))))

    a, b = jax.random.normal(KEYS[3], (D, R)), jax.random.normal(KEYS[4], (R, V))
    got = jax.grad(through(lambda x, w: cross_entropy(x, w, TARGETS, WEIGHTS, 64)), (0, 1))(a, b)
    for one, want in zip(got, jax.grad(through(whole), (0, 1))(a, b), strict=True):
        np.testing.assert_allclose(one, want, atol=5e-6 * np.abs(want).max())


def test_a_frozen_heads_gradient_is_not_worked_out():
    """Two products for the gradient of the stream, three where the head's is asked for too."""

    def products(wanted):
        step = jax.jit(jax.grad(lambda x, w: cross_entropy(x, w, TARGETS, WEIGHTS, 64), wanted))
        return step.lower(X, W).compile().as_text().count(" dot(")

    assert products(0) == 2
    assert products((0, 1)) == 3
