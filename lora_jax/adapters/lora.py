"""LoRA (Hu et al. 2021, arXiv 2106.09685): `x @ W + s * (x @ A) @ B`, with W frozen and A, B of low rank.

Letters: R rank, D the model's width; A is (in, R), B is (R, out), and s, the scaling, is alpha / R.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lora_jax.adapters import placement
from lora_jax.adapters.base import Adapted, Adapter, Tree, partition
from lora_jax.adapters.method import Method, Option, PeftFormat
from lora_jax.errors import InputError
from lora_jax.untrusted import patterns
from lora_jax.untrusted.fields import Setting
from lora_jax.untrusted.json_text import read_numbers
from lora_jax.weights import dense, matmul_f32, product_f32, pytree, rows

ALPHA = Setting(8, float, -1e9, 1e9)  # with any rank and any weight it stays finite in float32


@pytree
class LoRA(Adapter):
    """The factors of one weight's change, `s * A @ B`; every field leads with L where the weight does."""

    a: Any  # (..., in, R)
    b: Any  # (..., R, out)
    scaling: Any  # (...,)
    dropout: Any = None  # (...,) the share of inputs dropped; None where there is no dropout
    key: Any = None  # (...,) this step's randomness, put there by `randomize`

    def matmul(self, x: Float[Array, "... in"], w: Any) -> Float[Array, "... out"]:
        # Scaled where it is small: s on (..., R) costs nothing, on (..., out) a pass over memory each way.
        xa = self.scaling * product_f32(self._drop(x), self.a)  # (..., R)
        return matmul_f32(x, w, product_f32(xa.astype(x.dtype), self.b))

    def rows(self, ids: Int[Array, "..."], w: Any) -> Float[Array, "... out"]:
        found = w[ids]  # (..., D)
        return (found + self.scaling * (rows(self.a, ids) @ self.b)).astype(found.dtype)

    def merge(self, w: Any) -> Any:
        scaling = self.scaling[..., None, None]
        return (dense(w, jnp.float32) + scaling * (self.a @ self.b)).astype(w.dtype)  # (..., in, out)

    def identity(self, w: Any) -> LoRA:
        return jax.tree.map(lambda leaf: jnp.zeros((w.shape[0], *leaf.shape[1:]), leaf.dtype), self)

    def randomize(self, key: PRNGKeyArray) -> LoRA:
        if self.dropout is None:
            return self
        shape = self.dropout.shape
        return dataclasses.replace(self, key=jax.random.split(key, shape) if shape else key)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        if (found := (self.a.shape[-2], self.b.shape[-1])) != shape[-2:]:
            raise InputError(
                f"{name}: the adapter is for a {found} matrix and the base's is {shape[-2:]}: another base?"
            )

    def transposed(self, w: Any) -> Adapted:
        return Adapted(w.T, dataclasses.replace(self, a=self.b.mT, b=self.a.mT))

    def _drop(self, x: Array) -> Array:
        if self.key is None:
            return x
        keep = jax.random.bernoulli(self.key, 1 - self.dropout, x.shape)
        return jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)


def scaling(alpha: float, rank: int, rank_stabilized: bool = False) -> float:
    """alpha / R, or alpha / sqrt(R), which keeps gradients alike at high rank (rsLoRA, arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def init(
    key: PRNGKeyArray,
    params: Tree,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = "all-linear",
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    rank_stabilized: bool = False,
    dropout: float = 0.0,
    freeze_a: bool = False,
    dtype: Any = jnp.float32,
) -> tuple[Tree, Tree]:
    """Fresh `(adapters, constants)` for the weights that `targets` picks (see `placement.select`).

    A is uniform within 1 / sqrt(in), as PEFT's; B is zero, so that the start is the base. `alpha` is twice the rank
    where none is given. The patterns give some weights a rank or alpha of their own: {"q_proj": 4} or
    {r"layers\\.[01]\\.mlp\\..*": 32}. `freeze_a` trains B alone (LoRA-FA, arXiv 2308.03303). Raises InputError for a
    rank that is not 1 to min(in, out), an alpha that is no number, a dropout that is not 0 to below 1, and a target
    that matches nothing.
    """
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be at least 0 and below 1, not {dropout}")
    shapes, names, ranks, scalings = placement.shapes(params), placement.select(params, targets), {}, {}
    own_ranks, own_alphas = (patterns.resolve(given or {}, names) for given in (rank_pattern, alpha_pattern))
    for name in names:
        d_in, d_out = shapes[name]
        r = own_ranks.get(name, rank)
        if not isinstance(r, int) or isinstance(r, bool) or not 1 <= r <= min(d_in, d_out):
            raise InputError(f"{name}: rank must be 1 to {min(d_in, d_out)} for a {d_in} x {d_out} matrix, not {r}")
        own_alpha = own_alphas.get(name, 2 * r if alpha is None else alpha)
        if not ALPHA.holds(own_alpha):
            raise InputError(f"{name}: alpha must be a number of {ALPHA.low:g} to {ALPHA.below:g}, not {own_alpha!r}")
        ranks[name], scalings[name] = r, scaling(own_alpha, r, rank_stabilized)

    def make(names: list[str]) -> LoRA:
        (d_in, d_out), r, n = shapes[names[0]], ranks[names[0]], len(names)
        bound = 1 / math.sqrt(d_in)
        # By name, since a tree map sorts the names in `params`: the start must not depend on their order.
        numbers = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
        keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)
        return LoRA(
            a=jax.vmap(lambda key: jax.random.uniform(key, (d_in, r), dtype, -bound, bound))(keys),
            b=jnp.zeros((n, r, d_out), dtype),
            scaling=jnp.asarray([scalings[name] for name in names], jnp.float32),
            dropout=jnp.full((n,), dropout, jnp.float32) if dropout else None,
        )

    trains = {"b"} if freeze_a else {"a", "b"}
    return partition(placement.build(params, ranks, make), lambda field: field in trains)


# Its files: https://huggingface.co/docs/peft, LoRA. PEFT's matrices are (out, in): its `lora_A` is A transposed.


def _keys(path: str) -> tuple[str, str]:
    if path.endswith("embed_tokens"):
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A.weight", "lora_B.weight"


def tensors(path: str, adapter: Any) -> dict[str, Any]:
    """PEFT's `lora_A` (R, in) and `lora_B` (out, R)."""
    return dict(zip(_keys(path), (np.asarray(adapter.a).T, np.asarray(adapter.b).T), strict=True))


def settings(named: Mapping[str, Any], targets: list[str]) -> dict[str, Any]:
    """Rank, alpha and dropout; where they differ by module, the most common ones and what departs from them."""
    ranks = {path: adapter.a.shape[-1] for path, adapter in named.items()}
    alphas = {path: _alpha(adapter) for path, adapter in named.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    dropouts = {float(str(np.float32(adapter.dropout))) for adapter in named.values() if adapter.dropout is not None}
    return {
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": max(dropouts, default=0.0),
        "modules_to_save": None,
        "r": rank,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "use_dora": False,
        "use_rslora": False,
    }


def _alpha(adapter: Any) -> float:
    """The alpha that gives this scaling again, bit for bit; a whole number where one does."""
    s, rank = float(adapter.scaling), adapter.a.shape[-1]
    whole = round(s * rank)
    return whole if np.float32(scaling(whole, rank)) == np.float32(s) else s * rank


def from_peft(path: str, tensors: dict[str, Any], settings: Mapping[str, Any]) -> LoRA:
    """The adapter of one module; the factors become float32."""
    if missing := [key for key in _keys(path) if key not in tensors]:
        raise InputError(f"the tensor {path}.{missing[0]} is missing; {path} needs both factors")
    a, b = (jnp.asarray(tensors.pop(key), jnp.float32).T for key in _keys(path))
    rank = settings["rank_pattern"].get(path, settings["r"])
    if a.shape[1:] != (rank,) or b.shape[:-1] != (rank,):
        raise InputError(f"{path} has factors {a.shape} and {b.shape}, and its configuration says rank {rank}")
    s = scaling(settings["alpha_pattern"].get(path, settings["lora_alpha"]), rank, settings["use_rslora"])
    dropout = jnp.float32(settings["lora_dropout"]) if settings["lora_dropout"] else None
    return LoRA(a, b, jnp.float32(s), dropout)


PEFT = PeftFormat(
    marks={"peft_type": "LORA"},
    tensors=tensors,
    settings=settings,
    adapter=from_peft,
    trains=frozenset({"a", "b"}),
    fields={
        "r": Setting(8, int, low=1),
        "lora_alpha": ALPHA,
        "lora_dropout": Setting(0.0, float, 0, 1),
        "use_rslora": Setting(False, bool),
        "rank_pattern": Setting({}, dict, low=1, values=int),
        "alpha_pattern": ALPHA._replace(default={}, of=dict, values=float),
    },
    plain={"bias": ("none",), "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva")},
    refused=(
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "layer_replication",
        "alora_invocation_tokens",
        "target_parameters",
        "trainable_token_indices",
        "use_qalora",
        "use_bdlora",
        "arrow_config",
        "kasa_config",
    ),
)

METHOD = Method(
    title="LoRA",
    paper="Hu et al. 2021, arXiv 2106.09685",
    change="x @ W + s * (x @ A) @ B",
    init=init,
    adapter=LoRA,
    options={
        "rank": Option("rank of the adapters", int, (5, 3)),
        "alpha": Option("scale of the adapters, divided by the rank (twice the rank where not given)", float, (3.0,)),
        "targets": placement.TARGETS,
        "dropout": Option("share of the adapters' inputs dropped in training", float, (0.0, 0.25)),
        "rank_pattern": Option('ranks by name, as JSON: {"q_proj": 4}', read_numbers, ({r"layers\.0\..*": 2},)),
        "alpha_pattern": Option('alphas by name, as JSON: {"q_proj": 4}', read_numbers, ({"v_proj": 9.0},)),
        "rank_stabilized": Option("divide alpha by the root of the rank (rsLoRA)", None, (True,)),
        "freeze_a": Option("train B alone (LoRA-FA)", None, (False, False, True)),
    },
    rate=1e-3,  # about ten times that of full fine-tuning (arXiv 2405.09673)
    peft=PEFT,
)
