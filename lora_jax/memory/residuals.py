"""Rung 2: what autodiff keeps for the backward pass of the package's own step, array by array. Nothing is allocated.

`jax.vjp` gives a loss and a function that pulls its gradient back. What that function holds on to are the residuals:
arguments that are read again (weights, adapters), constants of the program (NF4's table of values), and arrays made on
the way forward. The last are what a step's memory grows by, and they alone are counted. Tracing the vjp on shapes says
which equation of the program made each array, and with that its role.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from lora_jax.memory.activations import ADAPTERS, LOSS, Kept, prompt_length
from lora_jax.memory.ledger import Ledger, ledger
from lora_jax.memory.setup import Setup
from lora_jax.memory.steps import build


def kept(setup: Setup) -> tuple[Kept, ...]:
    """Every array that autodiff keeps of the step's loss, arguments and constants of the program aside.

    Of an accumulated batch these are the arrays of the part that goes through at once.
    """
    setup = setup.part
    step = build(setup)

    def pull(trainable: Any, frozen: Any, batch: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda trainable: step.loss(trainable, frozen, batch), trainable)[1])

    program = jax.make_jaxpr(pull)(step.trainable, step.frozen, step.batch).jaxpr
    made = {id(var): (at, i) for at, eqn in enumerate(program.eqns) for i, var in enumerate(eqn.outvars)}
    scans = [at for at, eqn in enumerate(program.eqns) if eqn.primitive.name == "scan"]
    if len(scans) not in (2, 3):
        raise RuntimeError(f"a step scans its layers, of a prompt first, then the chunks of its loss: not {len(scans)}")
    *reading, layers, loss = scans
    prompt = reading[0] if reading else -1
    arrays = []
    for var in program.outvars:
        if id(var) in made:
            at, i = made[id(var)]
            if at <= prompt:
                one = dataclasses.replace(setup, batch=1, length=prompt_length(step.trainable))
                eqn = program.eqns[at]
                role = "prompt's " + (_role_in_layer(eqn, i) if at == prompt else _role_before_layers(one, var.aval))
            elif at < layers:
                role = _role_before_layers(setup, var.aval)
            else:
                role = _role(program.eqns[at], i, at, layers, loss, len(var.aval.shape))
            arrays.append(Kept(role, tuple(var.aval.shape), str(var.aval.dtype)))
    return tuple(arrays)


def _role_before_layers(setup: Setup, array: Any) -> str:
    """The role of an array made before the layers are scanned; what is not of the tokens is of the adapters."""
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        return "dropout's keys"
    tokens, pairs = (setup.batch, setup.length), setup.config.head_dim // 2
    known = {(*tokens, 1): "token ids", tokens: "segments", (*tokens, pairs): "angles"}
    heads = (setup.config.num_key_value_heads, setup.config.head_dim)
    other = "past" if len(array.shape) == 4 and array.shape[2:] == heads else "spread adapters"
    return known.get(tuple(array.shape), other)


def _role(eqn: Any, output: int, at: int, layers: int, loss: int, rank: int) -> str:
    """The role of one output, of so many dimensions, of the equation at `at`, from the scan over layers on."""
    if at == layers:
        return _role_in_layer(eqn, output)
    if at < loss:
        return "final norm"
    return {0: "tokens learned"}.get(rank, "d_head" if at == loss else "d_x")


def _role_in_layer(eqn: Any, output: int) -> str:
    """The name under which a block keeps an array; its input carries none, and what leaves the last block is normed."""
    body = eqn.params["jaxpr"].jaxpr
    if eqn.outvars[output].aval.shape == body.outvars[output].aval.shape:  # carried, and so not stacked over layers
        return "final norm"
    var = body.outvars[output]
    if any(var is argument for argument in body.invars):
        return "block input"
    made = {id(out): inner for inner in body.eqns for out in inner.outvars}
    while "name" not in made[id(var)].params:  # what is kept is rounded to its dtype behind its name
        (var,) = made[id(var)].invars
    return made[id(var)].params["name"]


def residuals(setup: Setup) -> Ledger:
    """The bytes of `kept` as a ledger: saved activations, what the loss keeps, and what adapters do."""
    rows = {"saved activations": 0, "kept by the loss": 0, "kept of adapters": 0}
    for one in kept(setup):
        beside = "kept by the loss" if one.role in LOSS else "kept of adapters" if one.role in ADAPTERS else None
        rows[beside or "saved activations"] += one.bytes
    return ledger("kept by autodiff", rows)
