"""No full-precision copy of a quantized base is held: not for the backward pass, not in the step, not in generation.

Each check is seen to fail where the product is written as autodiff and XLA would have it.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from small import quick_compilation  # noqa: F401

from lora_jax import Config, attach, init, lora, quantize, transformer
from lora_jax.adapters.base import num_bytes
from lora_jax.generation import sample
from lora_jax.quantize import quantize_layers
from lora_jax.training import make_step

L, D, F, B, T = 12, 64, 160, 2, 4
CONFIG = Config(
    vocab_size=31,
    hidden_size=D,
    intermediate_size=F,
    num_hidden_layers=L,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=32,
)
SHAPES = {(D, 96), (D, 32), (96, D), (D, F), (F, D)}  # of the matrices, (in, out)
LAYER = 4 * (2 * D * 96 + 2 * D * 32 + 3 * D * F)  # bytes of a layer's matrices in float32
KINDS = {
    "float32": lambda params: params,
    "nf4": lambda params: quantize_layers(params, "nf4"),
    "nf4, float32 constants": lambda params: quantize_layers(params, "nf4", double_quantization=False),
    "int8": lambda params: quantize_layers(params, "int8"),
}
QUANTIZED = list(KINDS)[1:]
TOKENS = jax.ShapeDtypeStruct((B, T), jnp.int32)


def shapes(kind):
    """`(params, adapters, constants)` as shapes."""

    def make():
        params = KINDS[kind](init(jax.random.key(0), CONFIG))
        return params, *lora.init(jax.random.key(1), params, rank=4, targets=["q_proj", "down_proj"])

    return jax.eval_shape(make)


def loss(remat, adapters, frozen, batch):
    params, constants = frozen
    return transformer.loss(CONFIG, attach(params, adapters, constants), batch, remat=remat)


def kept_matrices(kind, remat):
    """How many whole stacks of matrices, wider than a byte a number, the backward pass is given."""
    params, adapters, constants = shapes(kind)

    def pull(params, adapters, constants, tokens):
        return jax.vjp(lambda adapters: loss(remat, adapters, (params, constants), {"tokens": tokens}), adapters)[1]

    kept = jax.tree.leaves(jax.eval_shape(pull, params, adapters, constants, TOKENS))
    return sum(leaf.shape[:1] == (L,) and leaf.shape[1:] in SHAPES and leaf.dtype.itemsize > 1 for leaf in kept)


@functools.cache
def step_plan(kind, remat):
    """The bytes that the compiler plans for a training step beside its arguments and results."""
    params, adapters, constants = shapes(kind)
    optimizer = optax.adam(1e-3)
    step = make_step(functools.partial(loss, remat), optimizer)
    state = jax.eval_shape(optimizer.init, adapters)
    plan = step.lower(adapters, state, (params, constants), {"tokens": TOKENS}).compile().memory_analysis()
    arguments = num_bytes((adapters, state, params, constants, {"tokens": TOKENS}))
    assert plan.argument_size_in_bytes == arguments  # the leaf that says `in` and the dtype has no bytes
    return plan.temp_size_in_bytes


def written_plainly(x, w):
    return jnp.matmul(x, w.dense(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_no_matrix_is_kept_for_the_backward_pass(kind, remat):
    assert kept_matrices("float32", remat) == 7  # the arguments themselves
    assert kept_matrices(kind, remat) == 0


def test_written_plainly_every_matrix_would_be_kept(monkeypatch):
    monkeypatch.setattr(quantize, "_product", written_plainly)
    monkeypatch.setattr(jax, "checkpoint", lambda body, **_: body)  # the block's own would hide it
    assert kept_matrices("nf4", False) == 7
    monkeypatch.undo()
    monkeypatch.setattr(jax, "checkpoint", lambda body, **_: body)
    assert kept_matrices("nf4", False) == 0


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("kind", QUANTIZED[::2])
def test_the_step_holds_a_layers_matrices_at_most(kind, remat):
    """Twelve layers' in float32 would be 12 times as much."""
    assert step_plan(kind, remat) - step_plan("float32", remat) < LAYER


def test_written_plainly_the_step_would_hold_them_all(monkeypatch):
    plain = step_plan("float32", False)
    monkeypatch.setattr(quantize, "_product", written_plainly)
    monkeypatch.setattr(jax, "checkpoint", lambda body, **_: body)
    assert step_plan.__wrapped__("nf4", False) - plain > L * LAYER


def generation(kind, layers=L, new_tokens=6):
    """The compiled program of generation by a model of so many layers."""
    params = shapes(kind)[0]
    cut = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((layers, *leaf.shape[1:]), leaf.dtype), params["layers"])
    params, config = {**params, "layers": cut}, dataclasses.replace(CONFIG, num_hidden_layers=layers)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return sample.lower(config, params, TOKENS, TOKENS, key, new_tokens=new_tokens).compile()


def carried(program):
    """How many whole float32 matrices the loops of a program are given or hand on."""
    loops = [line.split(" while(")[0] for line in program.as_text().splitlines() if " while(" in line]
    assert loops
    found = [tuple(map(int, dims.split(","))) for line in loops for dims in re.findall(r"f32\[([\d,]+)\]", line)]
    return sum(dims[-2:] in SHAPES for dims in found)


@pytest.mark.parametrize("kind", QUANTIZED[::2])
def test_generation_holds_a_layers_matrices_at_most(kind):
    whole, program = generation("float32"), generation(kind)
    planned = [x.memory_analysis().temp_size_in_bytes for x in (whole, program)]
    assert planned[1] - planned[0] < LAYER
    assert carried(whole) > 0 and carried(program) == 0


def test_no_matrix_is_taken_out_of_the_loop_over_tokens(monkeypatch):
    """One layer is no loop; without the barrier XLA forms its matrices, which no token changes, beforehand."""
    assert carried(generation("nf4", layers=1)) == 0
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda x: x)
    assert carried(generation("nf4", layers=1, new_tokens=7)) == 7  # one token more, so that it is traced anew
