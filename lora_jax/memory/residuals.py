"""Rung 2: what autodiff keeps for the backward pass of the package's own step, array by array. Nothing is allocated.

`jax.vjp` gives a loss and a function that pulls its gradient back. What that function holds on to are the residuals:
arguments that are read again (weights, adapters), constants of the program (NF4's table of values), and arrays made on
the way forward. The last are what a step's memory grows by, and they alone are counted. Tracing the vjp on shapes says
which equation of the program made each array, and with that its role.
"""

from __future__ import annotations

from typing import Any

import jax

from lora_jax.memory.activations import LOSS, Kept
from lora_jax.memory.ledger import Ledger, ledger
from lora_jax.memory.setup import Setup
from lora_jax.memory.steps import build


def kept(setup: Setup) -> tuple[Kept, ...]:
    """Every array that autodiff keeps of the step's loss, arguments and constants of the program aside."""
    step = build(setup)

    def pull(trainable: Any, frozen: Any, batch: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda trainable: step.loss(trainable, frozen, batch), trainable)[1])

    program = jax.make_jaxpr(pull)(step.trainable, step.frozen, step.batch).jaxpr
    made = {id(var): (at, i) for at, eqn in enumerate(program.eqns) for i, var in enumerate(eqn.outvars)}
    scans = [at for at, eqn in enumerate(program.eqns) if eqn.primitive.name == "scan"]
    if len(scans) != 2:
        raise RuntimeError(f"a step scans its layers and then the chunks of its loss: {len(scans)} scans, and not two")
    layers, loss = scans
    arrays = []
    for var in program.outvars:
        if id(var) in made:
            at, i = made[id(var)]
            role = _role(program.eqns[at], i, at, layers, loss, tuple(var.aval.shape))
            arrays.append(Kept(role, tuple(var.aval.shape), str(var.aval.dtype)))
    return tuple(arrays)


def _role(eqn: Any, output: int, at: int, layers: int, loss: int, shape: tuple[int, ...]) -> str:
    """The role of one output of the equation at `at`, given where the layers and the loss are scanned."""
    if at < layers:
        return {"i": "token ids" if len(shape) == 3 else "segments", "f": "angles"}[eqn.outvars[output].aval.dtype.kind]
    if at == layers:
        return _role_in_layer(eqn, output)
    if at < loss:
        return "final norm"
    return {0: "tokens learned"}.get(len(shape), "d_head" if at == loss else "d_x")


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
    """The bytes of `kept` as a ledger: saved activations, and what the loss keeps."""
    arrays = kept(setup)
    rows = {
        "saved activations": sum(one.bytes for one in arrays if one.role not in LOSS),
        "kept by the loss": sum(one.bytes for one in arrays if one.role in LOSS),
    }
    return ledger("kept by autodiff", rows)


def by_role(setup: Setup) -> dict[str, int]:
    """The bytes of `kept` by role."""
    totals: dict[str, int] = {}
    for one in kept(setup):
        totals[one.role] = totals.get(one.role, 0) + one.bytes
    return totals
