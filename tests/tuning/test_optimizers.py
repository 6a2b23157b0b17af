"""Optimizers by name, and the float32 master copy: what it is for, and that it is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lora_jax.errors import InputError
from lora_jax.tuning import optimizers


def follow(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_steps_below_bfloat16s_resolution_add_up_in_the_master_alone():
    """1 - 64 * 2**-10 = 0.9375: each step is an eighth of what bfloat16 can tell from 1."""
    start, steps = {"w": jnp.ones(3, jnp.bfloat16)}, [{"w": jnp.full(3, 2.0**-10, jnp.bfloat16)}] * 64
    plain, _ = follow(optimizers.make("sgd", 1.0), start, steps)
    found, state = follow(optimizers.make("sgd", 1.0, master=True), start, steps)
    assert plain["w"].tolist() == [1.0] * 3
    assert found["w"].tolist() == [0.9375] * 3 and found["w"].dtype == jnp.bfloat16
    assert state.weights["w"].dtype == jnp.float32


def test_what_is_used_is_always_the_master_rounded():
    draw = np.random.default_rng(0)
    start = {"w": jnp.asarray(draw.standard_normal((7, 5)), jnp.bfloat16)}
    steps = [{"w": jnp.asarray(draw.standard_normal((7, 5)), jnp.bfloat16)} for _ in range(9)]
    found, state = follow(optimizers.make("adamw", 1e-3, master=True), start, steps)
    np.testing.assert_array_equal(found["w"], state.weights["w"].astype(jnp.bfloat16))
    full, _ = follow(optax.adamw(1e-3), *jax.tree.map(lambda x: x.astype(jnp.float32), (start, steps)))
    np.testing.assert_array_equal(state.weights["w"], full["w"])


@pytest.mark.parametrize(("name", "moments"), [("adamw", 2), ("momentum", 1), ("sgd", 0)])
def test_moments_have_the_dtype_asked_for(name, moments):
    state = optimizers.make(name, moments=jnp.float32).init({"w": jnp.ones((4, 3), jnp.bfloat16)})
    kinds = sorted(str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.shape == (4, 3))
    # AdamW's second moment has the dtype of what trains, whatever is asked: optax's rule.
    assert kinds == {0: [], 1: ["float32"], 2: ["bfloat16", "float32"]}[moments]


def test_adafactor_holds_rows_and_columns():
    state = optimizers.make("adafactor").init({"w": jnp.ones((200, 300))})
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 600


def test_another_optimizer_is_refused():
    with pytest.raises(InputError, match="there is no optimizer 'lion': choose adamw, adafactor, sgd, momentum"):
        optimizers.make("lion")
