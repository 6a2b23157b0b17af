"""The three traps of fine-tuning memory, each seen in what the compiler plans and in what autodiff keeps."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from small import quick_compilation  # noqa: F401

from lora_jax import Config, attach, init, lora, quantize, transformer
from lora_jax.adapters.base import num_bytes
from lora_jax.memory import residuals
from lora_jax.memory.setup import Setup
from lora_jax.memory.steps import build
from lora_jax.training import make_step

L, D, F, V, R, B, T = 6, 48, 112, 31, 4, 2, 9
CONFIG = Config(V, D, F, L, 3, 1, 16)
BATCH = {"tokens": jax.ShapeDtypeStruct((B, T), jnp.int32)}
POINTER = 8  # bytes: XLA on a CPU writes a table with an address for each array that a program returns


def planned(program, *arguments):
    return program.lower(*arguments).compile().memory_analysis()


def leaves(tree):
    return len(jax.tree.leaves(tree))


# The first trap: frozen by stop_gradient, and still in the tree that the gradient is taken over.


def stopped(both, constants, batch):
    params, adapters = both
    return transformer.loss(CONFIG, attach(jax.lax.stop_gradient(params), adapters, constants), batch)


def apart(adapters, frozen, batch):
    params, constants = frozen
    return transformer.loss(CONFIG, attach(params, adapters, constants), batch)


@pytest.fixture(scope="module")
def trees():
    """`(params, adapters, constants)` as shapes."""

    def make():
        params = init(jax.random.key(0), CONFIG)
        return params, *lora.init(jax.random.key(1), params, rank=R)

    return jax.eval_shape(make)


def test_a_stopped_gradient_is_allocated_all_the_same(trees):
    params, adapters, constants = trees
    zeros = planned(jax.jit(jax.grad(stopped)), (params, adapters), constants, BATCH)
    needed = planned(jax.jit(jax.grad(apart)), adapters, (params, constants), BATCH)
    assert needed.output_size_in_bytes == num_bytes(adapters) + POINTER * leaves(adapters)
    more = zeros.output_size_in_bytes - needed.output_size_in_bytes
    assert more == num_bytes(params) + POINTER * leaves(params)  # a full set of zeros


def test_and_the_optimizer_keeps_moments_of_it(trees):
    params, adapters, constants = trees
    optimizer = optax.adamw(1e-3)
    plans = [
        planned(make_step(loss, optimizer), trains, jax.eval_shape(optimizer.init, trains), frozen, BATCH)
        for loss, trains, frozen in ((stopped, (params, adapters), constants), (apart, adapters, (params, constants)))
    ]
    arguments, temporary = (
        getattr(plans[0], name) - getattr(plans[1], name) for name in ("argument_size_in_bytes", "temp_size_in_bytes")
    )
    assert arguments == 2 * num_bytes(params)  # mu and nu
    assert temporary > num_bytes(params)  # the gradients, and what the update makes of them


# The second: a weight that is dequantized in front of a product is kept for the backward pass.


def plainly(x, w):
    return x @ w.dense(x.dtype)


def as_the_package_does(x, w):
    return x @ w


WHOLE = 4 * L * D * D  # bytes: all layers' matrices in float32


def scanned(product, adapters, stack, x):
    def body(x, layer):
        w, (a, b) = layer
        return jnp.tanh(product(x, w) + x @ a @ b), None

    return jnp.sum(jax.lax.scan(body, x, (stack, adapters))[0])


def quantized_case():
    """`(adapters, stack, x)` as shapes: L layers of one (D, D) matrix in NF4, each with a LoRA beside it."""

    def make():
        key = jax.random.key(0)
        adapters = jnp.zeros((L, D, R)), jnp.zeros((L, R, D))
        return adapters, quantize.nf4(jax.random.normal(key, (L, D, D))), jnp.zeros((B, D))

    return jax.eval_shape(make)


@pytest.mark.parametrize(("product", "copies"), [(plainly, 1), (as_the_package_does, 0)])
def test_a_dequantized_weight_is_kept_unless_it_is_made_again(product, copies):
    def pull(adapters, stack, x):
        return jax.vjp(lambda adapters: scanned(product, adapters, stack, x), adapters)[1]

    kept = jax.tree.leaves(jax.eval_shape(pull, *quantized_case()))
    assert sum(leaf.shape == (L, D, D) and leaf.dtype == jnp.float32 for leaf in kept) == copies


def test_and_the_compiler_plans_a_whole_copy_of_the_model():
    temporary = {
        product: planned(jax.jit(jax.grad(functools.partial(scanned, product))), *quantized_case()).temp_size_in_bytes
        for product in (plainly, as_the_package_does)
    }
    assert temporary[plainly] - temporary[as_the_package_does] > WHOLE * (L - 1) / L
    assert temporary[as_the_package_does] < WHOLE


# The third: LoRA removes gradients and optimizer state. What a batch brings, it does not touch.


def step_plan(method, batch):
    options = {} if method == "full" else {"rank": R}
    setup = Setup(CONFIG, method, options, batch=batch, length=64, dtype="float32")
    step = build(setup)
    return residuals.residuals(setup)["saved activations"], planned(step.step, *step.arguments)


def test_a_longer_batch_costs_lora_what_it_costs_full_fine_tuning():
    kept, growth, held = {}, {}, {}
    for method in ("full", "lora"):
        (few, small), (many, large) = step_plan(method, 3), step_plan(method, 6)
        kept[method] = many - few
        growth[method] = large.temp_size_in_bytes - small.temp_size_in_bytes
        held[method] = large.argument_size_in_bytes
    outside = 4 * 3 * 64 * (D + 1)  # the normed stream and the token ids, which full fine-tuning keeps once
    assert kept["full"] - kept["lora"] == outside
    assert growth["lora"] >= kept["lora"]
    assert growth["lora"] > 0.95 * growth["full"], growth
    assert held["lora"] < held["full"] / 2  # which is what it does save
