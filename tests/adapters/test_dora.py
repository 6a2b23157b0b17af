"""DoRA against dense algebra: its columns' lengths, its gradient without the norm's, and a base in four bits."""

import jax
import jax.numpy as jnp
import numpy as np
import small as tiny
from close import close, difference, rounding

from lora_jax import quantize
from lora_jax.adapters import dora, lora
from lora_jax.adapters.base import Adapted, attach, combine, merge
from lora_jax.weights import dense

CONFIG, PARAMS = tiny.model()
DRAW = np.random.default_rng(5)


def drawn(*shape):
    return jnp.asarray(DRAW.standard_normal(shape), jnp.float32)


W, A, B, M, X = drawn(24, 36), drawn(24, 3), drawn(3, 36), jnp.abs(drawn(36)) + 0.5, drawn(5, 24)
S = jnp.asarray(0.7)


def test_the_magnitude_is_the_length_of_each_column():
    merged = dora.DoRA(A, B, S, magnitude=M).merge(W)
    close(np.linalg.norm(np.asarray(merged, np.float64), axis=0), M, rounding(24 + 3 + 4))
    turned = np.asarray(W, np.float64) + 0.7 * np.asarray(A, np.float64) @ np.asarray(B, np.float64)
    cosines = np.sum(turned * np.asarray(merged), axis=0) / np.linalg.norm(turned, axis=0) / np.asarray(M)
    close(cosines, np.ones(36), rounding(24 + 3 + 4))


def test_the_gradient_is_that_of_a_norm_that_does_not_change():
    """By hand, c = m / norm: dA = s * x^T @ (c * dy) @ B^T, dB = s * A^T @ x^T @ (c * dy), dm = sum(dy * y) / m."""
    dy = drawn(5, 36)

    def total(a, b, m):
        return jnp.sum(dy * (X @ Adapted(W, dora.DoRA(a, b, S, magnitude=m))))

    found = jax.grad(total, argnums=(0, 1, 2))(A, B, M)
    x, w, a, b, m, d = (np.asarray(one, np.float64) for one in (X, W, A, B, M, dy))
    turned = w + 0.7 * a @ b
    c = m / np.linalg.norm(turned, axis=0)
    through = x.T @ (c * d)
    expected = (0.7 * through @ b.T, 0.7 * a.T @ through, np.sum(d * (x @ turned * c), axis=0) / m)
    close(found, tuple(map(jnp.asarray, expected)), rounding(5 + 36 + 24 + 10))
    whole = jax.grad(lambda a: jnp.sum(dy * (X @ ((W + S * a @ B) * M / jnp.linalg.norm(W + S * a @ B, axis=0)))))(A)
    assert difference(found[0], whole) > 1e-2  # the norm's own gradient would be seen


def test_dropout_drops_inputs_of_the_low_rank_part_only():
    """And not those of the base's share, as PEFT's does: see docs/design.md."""

    def product(b, key):
        one = dora.DoRA(A, b, S, dropout=jnp.float32(0.5), magnitude=M)
        return X @ Adapted(W, one.randomize(jax.random.key(key)))

    assert difference(product(B, 1), product(B, 2)) > 1e-2
    assert tiny.raw(product(0 * B, 1)) == tiny.raw(product(0 * B, 2))


def test_it_starts_as_lora_does_with_the_lengths_of_the_base():
    adapters, _ = dora.init(jax.random.key(4), PARAMS, rank=3, targets=["q_proj"])
    plain, _ = lora.init(jax.random.key(4), PARAMS, rank=3, targets=["q_proj"])
    one, other = (tree["layers"]["self_attn"]["q_proj"] for tree in (adapters, plain))
    assert tiny.raw((one.a, one.b)) == tiny.raw((other.a, other.b))
    close(one.magnitude, np.linalg.norm(PARAMS["layers"]["self_attn"]["q_proj"], axis=1), rounding(24 + 2))


def test_over_a_base_in_four_bits_the_lengths_are_those_of_what_is_held():
    params = quantize.quantize_layers(PARAMS, "nf4")
    adapters, constants = dora.init(jax.random.key(4), params, rank=3, targets=["up_proj"])
    one = combine(adapters, constants)["layers"]["mlp"]["up_proj"]
    held = dense(params["layers"]["mlp"]["up_proj"], jnp.float32)
    close(one.magnitude, np.linalg.norm(held, axis=1), rounding(24 + 2))
    merged = merge(params, tiny.shaken(adapters), constants)["layers"]["mlp"]["up_proj"]
    adapted = attach(params, tiny.shaken(adapters), constants)["layers"]["mlp"]["up_proj"]
    x = drawn(3, 5, 24)
    product = jax.vmap(lambda x, w: x @ w)(x, adapted)
    close(product, np.einsum("lni,lio->lno", np.asarray(x), np.asarray(merged)), rounding(3 * 24))
