"""What is kept for the backward pass, array by array: each saving is a choice, and its plain form would keep more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.association import formed
from lora_jax.transformer import gate, rms_norm

B, T, D, F, R = 2, 7, 12, 20, 3


def kept(function, *arguments):
    """Shapes of what autodiff keeps, each with how many bytes a number."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(function, *a)[1], *arguments))
    return sorted((leaf.shape, leaf.dtype.itemsize) for leaf in leaves)


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gate_keeps_its_two_inputs(dtype):
    wide = shaped(B, T, F, dtype=dtype)
    assert kept(gate, wide, wide) == [((B, T, F), wide.dtype.itemsize)] * 2
    assert len(kept(lambda g, u: jax.nn.silu(g) * u, wide, wide)) > 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_norm_keeps_its_input_in_the_inputs_dtype(dtype):
    x, scale = shaped(B, T, D, dtype=dtype), shaped(D, dtype=dtype)
    size = x.dtype.itemsize
    assert kept(lambda x, scale: rms_norm(x, scale, 1e-5), x, scale) == [((B, T, D), size), ((D,), size)]


def test_lora_keeps_the_input_and_not_the_small_product():
    arguments = shaped(B, T, D), shaped(D, F), shaped(D, R), shaped(R, F), shaped()
    assert kept(formed, *arguments) == sorted((x.shape, 4) for x in arguments)


def test_the_gate_and_the_norm_are_what_they_say():
    rng = np.random.default_rng(0)
    g, u, x, scale = (rng.normal(size=shape).astype(np.float32) for shape in ((T, F), (T, F), (T, D), (D,)))
    np.testing.assert_allclose(gate(g, u), g / (1 + np.exp(-g)) * u, rtol=2e-5, atol=1e-6)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 1e-5), expected, rtol=2e-5, atol=1e-6)
