"""(IA)3 (Liu et al. 2022, arXiv 2205.05638): a learned scale for each output of keys and values, each input of down.

`(x @ W + b) * l` or `(x * l) @ W + b`: a vector a matrix, and no product more. It stands over the bias, as PEFT's does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lora_jax.adapters import placement
from lora_jax.adapters.base import Adapter, Tree, partition
from lora_jax.adapters.method import Method, Option, PeftFormat
from lora_jax.errors import InputError
from lora_jax.untrusted.fields import Setting
from lora_jax.weights import Biased, dense, pytree, split_bias


@pytree
class IA3(Adapter):
    """A scale of one weight's inputs, or of its outputs; the other is None."""

    over_bias = True

    inputs: Any  # (..., in)
    outputs: Any  # (..., out)

    def matmul(self, x: Float[Array, "... in"], w: Any) -> Float[Array, "... out"]:
        if self.inputs is not None:
            x = (x * self.inputs).astype(x.dtype)
        return x @ w if self.outputs is None else ((x @ w) * self.outputs).astype(x.dtype)

    def merge(self, w: Any) -> Any:
        matrix, bias = split_bias(w)
        merged = dense(matrix, jnp.float32)  # (..., in, out)
        if self.inputs is not None:
            merged = merged * self.inputs[..., :, None]
        if self.outputs is not None:
            merged = merged * self.outputs[..., None, :]
            bias = None if bias is None else (bias * self.outputs).astype(bias.dtype)
        merged = merged.astype(w.dtype)
        return merged if bias is None else Biased(merged, bias)

    def identity(self, w: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.ones((w.shape[0], *leaf.shape[1:]), leaf.dtype), self)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        found = {
            side: scale.shape[-1] for side, scale in (("in", self.inputs), ("out", self.outputs)) if scale is not None
        }
        here = dict(zip(("in", "out"), shape[-2:], strict=True))
        if any(here[side] != width for side, width in found.items()):
            raise InputError(f"{name}: the adapter is for {found} and the base's matrix is {here}: another base?")


def init(
    key: PRNGKeyArray,
    params: Tree,
    *,
    targets: str | Sequence[str] = ("k_proj", "v_proj", "down_proj"),
    feedforward: str | Sequence[str] = ("down_proj",),
    dtype: Any = jnp.float32,
) -> tuple[Tree, Tree]:
    """Fresh `(adapters, constants)` for the weights that `targets` picks: all ones, so that the start is the base.

    Of those that `feedforward` picks too the inputs are scaled, of the others the outputs. Nothing is random. Raises
    InputError for a target that matches nothing.
    """
    shapes, chosen = placement.shapes(params), placement.select(params, targets)
    by_input = set(placement.select(params, feedforward)) if feedforward else set()
    kinds: dict[str, Hashable] = {name: name in by_input for name in chosen}

    def make(names: list[str]) -> IA3:
        (d_in, d_out), n = shapes[names[0]], len(names)
        if names[0] in by_input:
            return IA3(jnp.ones((n, d_in), dtype), None)
        return IA3(None, jnp.ones((n, d_out), dtype))

    return partition(placement.build(params, kinds, make), lambda field: True)


def tensors(path: str, adapter: Any) -> dict[str, Any]:
    """PEFT's `ia3_l`: (1, in) for inputs, (out, 1) for outputs."""
    if path.endswith("embed_tokens"):
        raise InputError("PEFT has no (IA)3 on embed_tokens, so it could not be saved: choose other targets")
    of_inputs = adapter.inputs is not None
    return {"ia3_l": np.asarray(adapter.inputs)[None, :] if of_inputs else np.asarray(adapter.outputs)[:, None]}


def settings(named: Mapping[str, Any], targets: list[str]) -> dict[str, Any]:
    """Which of the targets are scaled at their inputs: PEFT names them as it names targets."""
    kinds = {target: {named[path].inputs is not None for path in named if path.endswith(target)} for target in targets}
    if mixed := [target for target, found in kinds.items() if len(found) > 1]:
        raise InputError(f"{mixed[0]} is scaled at its inputs in some layers only, which PEFT's files cannot say")
    feedforward = [target for target, found in kinds.items() if found == {True}]
    return {
        "fan_in_fan_out": False,
        "feedforward_modules": feedforward,
        "init_ia3_weights": True,
        "modules_to_save": None,
    }


def from_peft(path: str, tensors: dict[str, Any], settings: Mapping[str, Any]) -> IA3:
    """The adapter of one module, in float32; the tensor's shape says what it scales."""
    if "ia3_l" not in tensors:
        raise InputError(f"the tensor {path}.ia3_l is missing")
    scale = jnp.asarray(tensors.pop("ia3_l"), jnp.float32)
    if scale.ndim != 2 or 1 not in scale.shape:
        raise InputError(f"{path}.ia3_l has the shape {scale.shape}: (1, inputs) or (outputs, 1) is expected")
    return IA3(scale[0], None) if scale.shape[0] == 1 else IA3(None, scale[:, 0])


METHOD = Method(
    title="(IA)3",
    paper="Liu et al. 2022, arXiv 2205.05638",
    change="(x @ W + b) * l, or (x * l) @ W + b",
    init=init,
    adapter=IA3,
    options={
        "targets": placement.TARGETS,
        "feedforward": Option(
            "those of the targets whose inputs are scaled, not their outputs, named as targets are",
            placement.read_targets,
            ("mlp", ["up_proj"], ["o_proj"], r".*\.(down|up)_proj"),
        ),
    },
    rate=3e-3,  # the paper's
    peft=PeftFormat(
        marks={"peft_type": "IA3"},
        tensors=tensors,
        settings=settings,
        adapter=from_peft,
        trains=frozenset({"inputs", "outputs"}),
        fields={"feedforward_modules": Setting([], list | str)},
        refused=("fan_in_fan_out",),
    ),
)
