"""`W + s * A @ B` formed for one product: the same value and gradients as two thin products, when it is worth it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters import lora
from lora_jax.adapters.association import formed, pays_to_form
from lora_jax.weights import Biased

KEYS = jax.random.split(jax.random.key(0), 5)
X, W, DY = (jax.random.normal(key, shape) for key, shape in zip(KEYS, [(4, 9, 14), (14, 10), (4, 9, 10)], strict=False))
A, B = jax.random.normal(KEYS[3], (14, 3)), jax.random.normal(KEYS[4], (3, 10))
S = jnp.float32(0.7)


def thin(x, w, a, b, s):
    return x @ w + s * ((x @ a) @ b)


def test_value_and_every_gradient_are_those_of_the_thin_products():
    """The base's weight and the scaling among them: whoever asks for a gradient gets it."""
    y, pull = jax.vjp(formed, X, W, A, B, S)
    expected, expected_pull = jax.vjp(thin, X, W, A, B, S)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
    for name, got, want in zip("xwabs", pull(DY), expected_pull(DY), strict=True):
        scale = np.abs(want).max()
        np.testing.assert_allclose(got / scale, want / scale, atol=2e-6, err_msg=name)


def test_it_pays_from_shapes_alone():
    def x(rows, d_in, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((rows, d_in), dtype)

    w = jax.ShapeDtypeStruct((576, 1536), jnp.float32)
    assert pays_to_form(x(512, 576), w) and pays_to_form(x(419, 576), w)
    assert not pays_to_form(x(418, 576), w)  # 576 * 1536 / (576 + 1536) = 418.9
    assert not pays_to_form(x(4, 576), w)  # a step of decoding
    assert not pays_to_form(x(512, 576, jnp.bfloat16), jax.ShapeDtypeStruct((576, 1536), jnp.bfloat16))
    assert not pays_to_form(x(512, 576), Biased(w, w))


@pytest.mark.parametrize("rows", [1, 40])
def test_both_ways_are_taken_and_agree_with_the_dense_matrix(rows):
    x = jax.random.normal(KEYS[0], (rows, 14))
    adapter, dense = lora.LoRA(A, B, S), W + S * (A @ B)
    for w, bias in ((W, 0.0), (Biased(W, DY[0, 0]), DY[0, 0])):
        np.testing.assert_allclose(adapter.matmul(x, w), x @ dense + bias, rtol=2e-5, atol=2e-5)
    assert pays_to_form(x, W) == (rows == 40)
