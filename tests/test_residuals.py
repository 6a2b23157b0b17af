"""What is kept for the backward pass, array by array: each saving is a choice, and its plain form would keep more."""

import jax
import jax.numpy as jnp
import pytest

from lora_jax import Config, attach, init, lora, transformer

B, T, V, D, F, L, H, K, C, R = 2, 7, 31, 12, 20, 5, 3, 1, 8, 4
N = B * T
CONFIG = Config(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=F,
    num_hidden_layers=L,
    num_attention_heads=H,
    num_key_value_heads=K,
    head_dim=C,
)
BLOCK_INPUT = [(N, D)]
PRODUCTS = {
    "dense": [(B, T, H, C), (B, T, K, C), (B, T, K, C), (B, T, H, C), (N, D), (N, F), (N, F)],
    "blockwise": [
        (B, T, H, C),
        (B, T, K, C),
        (B, T, K, C),
        (1, B, K, H * T, C),
        (1, B, K, H * T),
        (N, D),
        (N, F),
        (N, F),
    ],
}


def kept(dtype=jnp.float32, adapted=True, beside=None, **options):
    """The shapes of what autodiff keeps of the layers, parameters aside, L in front taken off; all of `dtype`."""
    params = jax.eval_shape(lambda: init(jax.random.key(0), CONFIG, dtype)) | (beside or {})
    adapters, constants = jax.eval_shape(lambda params: lora.init(jax.random.key(1), params, rank=R), params)
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def stream(adapters, constants, params, tokens):
        params = attach(params, adapters, constants) if adapted else params
        return transformer.hidden_states(CONFIG, params, tokens, **options)

    trees = adapters, constants, params, tokens
    # The parameters that the backward pass reads are arguments, and not kept anew: they are told apart by their shapes.
    own = {leaf.shape for leaf in jax.tree.leaves(trees)}
    leaves = jax.tree.leaves(jax.eval_shape(lambda *trees: jax.vjp(stream, *trees)[1], *trees))
    layers = [leaf for leaf in leaves if leaf.shape[:1] == (L,) and leaf.shape not in own]
    assert all(leaf.dtype == dtype or leaf.shape[1:] == (1, B, K, H * T) for leaf in layers)
    return sorted(leaf.shape[1:] for leaf in layers)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("attention", ["dense", "blockwise"])
def test_a_block_keeps_what_its_products_made_and_nothing_else(attention, adapted, dtype):
    """No norm's output, no gated product, no softmax, no x @ A; float32 only where the softmax needs it."""
    assert kept(dtype, adapted, attention=attention) == sorted(BLOCK_INPUT + PRODUCTS[attention])


def test_remat_keeps_each_blocks_input_alone():
    assert kept(attention="blockwise", remat=True) == BLOCK_INPUT


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
def test_a_past_adds_nothing_to_what_is_kept(attention):
    past = transformer.Past(*[jax.ShapeDtypeStruct((L, 9, K, C), jnp.float32)] * 2)
    assert kept(beside={"past": past}, attention=attention) == sorted(BLOCK_INPUT + PRODUCTS[attention])
    assert kept(beside={"past": past}, attention=attention, remat=True) == BLOCK_INPUT


def test_without_the_policy_far_more_is_kept(monkeypatch):
    monkeypatch.setattr(jax, "checkpoint", lambda body, **_: body)
    assert len(kept(attention="dense")) > 2 * len(BLOCK_INPUT + PRODUCTS["dense"])
