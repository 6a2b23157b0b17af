"""A model small enough to look at, every dimension different, for the tests of adapters and of training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import backward_pass, bfloat16_pass, forward_pass, rounding

from lora_jax import transformer
from lora_jax.adapters.base import attach
from lora_jax.adapters.placement import unstack

# L 3, D 24, F 36, H 4, K 2, C 14 (so that q is 24 x 56 and k, v are 24 x 28), V 50.
CONFIG = transformer.Config(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=14,
    tie_word_embeddings=False,
)
ROWS, LENGTH = 5, 9
FORWARD = rounding(forward_pass(CONFIG, LENGTH))  # for its logits, by two ways
IN_BFLOAT16 = rounding(bfloat16_pass(CONFIG), jnp.bfloat16)
BACKWARD = rounding(backward_pass(CONFIG, LENGTH, ROWS))  # for a gradient
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """For a module of tests that imports this: programs that run a moment need not be optimized for minutes."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def model(dtype=jnp.float32, **changes):
    """`(config, params)`, with matrices large enough that every one of them matters to the logits, biases too."""
    config = dataclasses.replace(CONFIG, **changes)

    def lively(path, leaf):
        if jax.tree_util.keystr(path, simple=True, separator=".").endswith(".b"):  # a bias is zero at first
            return jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape).astype(dtype)
        return (leaf * (10 if leaf.ndim + (leaf.shape[0] != 3) > 2 else 1)).astype(dtype)

    def make():
        return jax.tree_util.tree_map_with_path(lively, transformer.init(jax.random.key(0), config))

    return config, jax.jit(make)()


def tokens(rows=ROWS, length=LENGTH, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (rows, length)), jnp.int32)


def adapter_loss(config):
    def loss(adapters, frozen, batch):
        params, constants = frozen
        return transformer.loss(config, attach(params, adapters, constants, batch.get("key")), batch)

    return loss


def full_loss(config):
    return lambda params, frozen, batch: transformer.loss(config, params, batch)


def gradient_as_state():
    """An optimizer whose state is the last gradient, handed on unchanged."""
    return optax.GradientTransformation(optax.tree.zeros_like, lambda gradient, _, params=None: (gradient, gradient))


def shaken(tree, seed=7, size=0.1):
    """The tree with noise on every number, so that no B is zero."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + size * draw.standard_normal(x.shape), x.dtype), tree)


def raw(tree):
    """The bytes of every leaf, in order."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def locate(params, name):
    """`(node, key, layer)` of a name such as "layers.1.mlp.up_proj": its matrix is `node[key][layer]`."""
    parts = name.split(".")
    if parts[0] != "layers":
        return params, parts[0], ...
    return params["layers"][parts[2]], parts[3], int(parts[1])


def matrix(params, name):
    node, key, layer = locate(params, name)
    return np.asarray(node[key])[layer]


def with_changes(params, changes):
    """`params` with `changes[name]` added to the matrices of those names, in float64 by NumPy: dense algebra."""
    params = jax.tree.map(lambda leaf: leaf, params)  # new dicts, the same arrays
    for name, change in changes.items():
        node, key, layer = locate(params, name)
        whole = np.array(node[key], np.float64)
        whole[layer] += change
        node[key] = jnp.asarray(whole, params["norm"].dtype)
    return params


def lora_changes(params, adapters, constants):
    """s * A @ B of every name, in float64."""
    return {
        name: np.float64(lora.scaling) * (np.asarray(lora.a, np.float64) @ np.asarray(lora.b, np.float64))
        for name, lora in unstack(params, adapters, constants).items()
    }
