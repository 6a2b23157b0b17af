"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): a few embeddings, learned, that every sequence begins with.

They stand at no weight. Attached, they are the `prompt` of the tree, which the transformer reads once a step, and not
once a sequence. Merged, they are the same entry: no matrix can take them in, so a model directory cannot hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lora_jax.adapters.base import Adapter, Tree, partition
from lora_jax.adapters.method import Method, Option, PeftFormat
from lora_jax.errors import InputError
from lora_jax.untrusted.fields import Setting
from lora_jax.weights import pytree


@pytree
class Prompt(Adapter):
    """The learned embeddings."""

    adds = True

    embeddings: Any  # (P, D)

    def onto(self, w: Any) -> Array:
        return self.embeddings if w is None else jnp.concatenate([w, self.embeddings])  # behind a prompt that is there

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        if self.embeddings.shape[-1] != shape[-1]:
            found = self.embeddings.shape[-1]
            raise InputError(f"{name}: the prompt is {found} wide and the base's embeddings {shape[-1]}: another base?")


def init(key: PRNGKeyArray, params: Tree, *, virtual_tokens: int = 20, dtype: Any = jnp.float32) -> tuple[Tree, Tree]:
    """Fresh `(adapters, constants)`: the embeddings of as many tokens, drawn by chance and all different.

    So the start is the base that has read these tokens, which trains better than random numbers do (section 3.2 there).
    Raises InputError for a number of tokens that is not 1 to the size of the vocabulary.
    """
    vocabulary = params["embed_tokens"].shape[0]
    if isinstance(virtual_tokens, bool) or not isinstance(virtual_tokens, int) or not 1 <= virtual_tokens <= vocabulary:
        raise InputError(f"virtual_tokens must be 1 to {vocabulary}, the size of the vocabulary, not {virtual_tokens}")
    ids = jax.random.choice(key, vocabulary, (virtual_tokens,), replace=False)
    tree = {"prompt": Prompt(jnp.asarray(params["embed_tokens"][ids], dtype))}
    return partition(tree, lambda field: True)


def tensors(path: str, adapter: Any) -> dict[str, Any]:
    """PEFT's `prompt_embeddings` (P, D)."""
    return {"prompt_embeddings": np.asarray(adapter.embeddings)}


def settings(named: Mapping[str, Any], targets: list[str]) -> dict[str, Any]:
    """Their number and width; what else PEFT wants to know it finds in the model."""
    (adapter,) = named.values()
    count, width = adapter.embeddings.shape
    return {
        "num_transformer_submodules": 1,
        "num_virtual_tokens": count,
        "prompt_tuning_init": "RANDOM",
        "token_dim": width,
    }


def from_peft(path: str, tensors: dict[str, Any], settings: Mapping[str, Any]) -> Prompt:
    """The prompt, in float32."""
    if "prompt_embeddings" not in tensors:
        raise InputError("the tensor prompt_embeddings is missing")
    embeddings = jnp.asarray(tensors.pop("prompt_embeddings"), jnp.float32)
    if embeddings.ndim != 2 or len(embeddings) != settings["num_virtual_tokens"]:
        said = settings["num_virtual_tokens"]
        raise InputError(
            f"prompt_embeddings is of {embeddings.shape}, and its configuration says {said} virtual tokens"
        )
    return Prompt(embeddings)


METHOD = Method(
    title="prompt tuning",
    paper="Lester et al. 2021, arXiv 2104.08691",
    change="embeddings in front of every sequence",
    init=init,
    adapter=Prompt,
    options={"virtual_tokens": Option("embeddings that are learned", int, (3, 7))},
    rate=3e-2,  # of 0.003, 0.01, 0.03 and 0.1 the best in 60 steps of the small model on poems
    peft=PeftFormat(
        marks={"peft_type": "PROMPT_TUNING"},
        tensors=tensors,
        settings=settings,
        adapter=from_peft,
        trains=frozenset({"embeddings"}),
        fields={"num_virtual_tokens": Setting(0, int, low=1)},
        plain={"num_transformer_submodules": (1, None)},
        entry="prompt",
    ),
)
