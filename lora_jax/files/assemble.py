"""From a file's tensors to the transformer's tree and back: the names, shapes and checks that all formats share.

Hugging Face's names serve as the common tongue. A matrix is (out, in) in files and (in, out), stacked over the layers,
in the tree. Letters: D model width, F feed-forward width, H query heads, K key/value heads, C head size, V vocabulary,
L layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.errors import InputError
from lora_jax.files.huggingface_config import biases_around
from lora_jax.transformer import Config, Params, projection_shapes
from lora_jax.untrusted.binary import fits_memory
from lora_jax.weights import Biased, Weight, split_bias

NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Tensors:
    """What a file holds, before any of it is read."""

    where: str  # the path, for messages
    shapes: Mapping[str, tuple[int, ...]]  # under the file's own names; matrices are (out, in)
    read: Callable[[str], np.ndarray]  # the tensor of a Hugging Face name, floating
    spell: Callable[[str], str] = str  # Hugging Face's name -> the file's


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under Hugging Face's name, with its shape there: (out, in), (D,) or (V, D)."""
    D, V = config.hidden_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for layer in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{layer}.{norm}.weight": (D,) for norm in NORMS}
        for part, projections in projection_shapes(config).items():
            for name, (width_in, width_out) in projections.items():
                shapes[f"model.layers.{layer}.{part}.{name}.weight"] = (width_out, width_in)
                if name in config.biases:
                    shapes[f"model.layers.{layer}.{part}.{name}.bias"] = (width_out,)
    shapes["model.norm.weight"] = (D,)
    return shapes if config.tie_word_embeddings else shapes | {"lm_head.weight": (V, D)}


def check_config(config: Config, where: str) -> None:
    """Raise InputError where the sizes do not make a transformer."""
    for owner in (config, config.rope_scaling):
        for field in dataclasses.fields(owner) if owner is not None else ():
            value = getattr(owner, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value < math.inf:
                raise InputError(f"{where}: {field.name} is {value}, but must be positive and finite.")
    if (
        config.rope_scaling is not None
        and not config.rope_scaling.low_freq_factor < config.rope_scaling.high_freq_factor
    ):
        raise InputError(
            f"{where}: low_freq_factor is {config.rope_scaling.low_freq_factor:g}, but must be smaller than "
            f"high_freq_factor, {config.rope_scaling.high_freq_factor:g}."
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise InputError(
            f"{where}: {config.num_attention_heads} query heads cannot share {config.num_key_value_heads} key/value "
            "heads evenly: num_key_value_heads must divide num_attention_heads."
        )
    if config.head_dim % 2:
        raise InputError(f"{where}: head_dim is {config.head_dim}, but rotary embeddings need an even one.")


def check_tensors(config: Config, tensors: Tensors) -> None:
    """Raise InputError unless the file holds exactly the model's tensors, in their shapes."""
    if config.num_hidden_layers > len(tensors.shapes):  # a damaged count must not be counted out
        raise InputError(
            f"{tensors.where} says that it has {config.num_hidden_layers} layers, but holds only {len(tensors.shapes)} "
            "tensors."
        )
    expected = {tensors.spell(name): shape for name, shape in tensor_shapes(config).items()}
    if missing := [name for name in expected if name not in tensors.shapes]:
        first = missing[0]
        raise InputError(
            f"{tensors.where} lacks {first} of shape {expected[first]}{_others(missing)}: "
            f"{len(expected)} tensors expected, {len(expected) - len(missing)} of them found."
        )
    if unexpected := [name for name in tensors.shapes if name not in expected]:
        raise InputError(
            f"{tensors.where} holds {unexpected[0]} of shape {tuple(tensors.shapes[unexpected[0]])}"
            f"{_others(unexpected)}, which this model has no place for."
        )
    for name, shape in expected.items():
        if tuple(tensors.shapes[name]) != shape:
            raise InputError(
                f"{tensors.where}: {name} has shape {tuple(tensors.shapes[name])}, but the configuration asks for "
                f"{shape}."
            )


def assemble(config: Config, tensors: Tensors, dtype: Any = jnp.float32) -> Params:
    """The transformer's tree, read tensor by tensor into stacked arrays of `dtype`.

    Never more than one stacked array is held twice. Raises InputError naming the file and the tensor.
    """
    check_tensors(config, tensors)
    dtype = jnp.dtype(dtype)
    shapes = tensor_shapes(config)
    fits_memory(f"{tensors.where}: its weights", dtype.itemsize * sum(map(math.prod, shapes.values())))

    def fetch(name: str) -> np.ndarray:
        with np.errstate(over="ignore"):  # what overflows is caught below
            array = tensors.read(name).astype(dtype, copy=False)
        if not np.isfinite(array).all():
            raise InputError(
                f"{tensors.where}: {tensors.spell(name)} holds values that are not finite numbers in {dtype.name}."
            )
        return array

    def stacked(suffix: str) -> Any:
        shape = shapes[f"model.layers.0.{suffix}"][::-1]
        whole = np.empty((config.num_hidden_layers, *shape), dtype)  # (L, in, out) or (L, out)
        for layer in range(config.num_hidden_layers):
            whole[layer] = fetch(f"model.layers.{layer}.{suffix}").T
        return jnp.array(whole)

    def single(name: str) -> Any:
        return jnp.array(fetch(name))

    def projection(part: str, name: str) -> Any:
        w = stacked(f"{part}.{name}.weight")
        return Biased(w, stacked(f"{part}.{name}.bias")) if name in config.biases else w

    layers: Params = {norm: stacked(f"{norm}.weight") for norm in NORMS}
    for part, projections in projection_shapes(config).items():
        layers[part] = {name: projection(part, name) for name in projections}
    params = {
        "embed_tokens": single("model.embed_tokens.weight"),
        "layers": layers,
        "norm": single("model.norm.weight"),
    }
    return params if config.tie_word_embeddings else params | {"lm_head": single("lm_head.weight").T}


def disassemble(config: Config, params: Params) -> dict[str, np.ndarray]:
    """Every tensor of the tree under Hugging Face's name and in its shape, contiguous, in its own dtype.

    A bias that the configuration has and the tree has not is zero. Raises InputError for weights that are neither
    arrays nor biased arrays: adapters are merged or exported first.
    """
    layers, named = params["layers"], {}
    tensors = {"model.embed_tokens.weight": _plain(params["embed_tokens"], "embed_tokens")}
    for norm in NORMS:
        named[f"{norm}.weight"] = np.asarray(layers[norm])
    for part, projections in projection_shapes(config).items():
        for name, (_, width_out) in projections.items():
            w, b = split_bias(layers[part][name])
            named[f"{part}.{name}.weight"] = _plain(w, f"layers.{part}.{name}").swapaxes(1, 2)
            if name in config.biases:
                zeros = np.zeros((w.shape[0], width_out), named[f"{part}.{name}.weight"].dtype)
                named[f"{part}.{name}.bias"] = zeros if b is None else np.asarray(b)
    for layer in range(config.num_hidden_layers):
        for suffix, whole in named.items():
            tensors[f"model.layers.{layer}.{suffix}"] = np.ascontiguousarray(whole[layer])
    tensors["model.norm.weight"] = np.asarray(params["norm"])
    if "lm_head" in params:
        tensors["lm_head.weight"] = np.ascontiguousarray(_plain(params["lm_head"], "lm_head").T)
    shapes = {name: array.shape for name, array in tensors.items()}
    check_tensors(config, Tensors("the tree of parameters", shapes, tensors.__getitem__))
    return tensors


def as_it_is(config: Config, params: Params) -> Config:
    """The configuration of what the tree holds: whether its head is tied, and which of its projections have biases.

    Raises InputError for what a model directory has no place for.
    """
    if odd := set(params) - {"embed_tokens", "layers", "norm", "lm_head"}:
        raise InputError(
            f"a model directory has no place for {', '.join(sorted(odd))}: keep the adapter beside its base instead"
        )
    found = {
        name
        for part, projections in projection_shapes(config).items()
        for name in projections
        if isinstance(params["layers"][part][name], Biased)
    }
    return dataclasses.replace(config, tie_word_embeddings="lm_head" not in params, biases=biases_around(found))


def _plain(w: Any, path: str) -> np.ndarray:
    if isinstance(w, Weight):
        raise InputError(f"{path} is {type(w).__name__}, not a plain array: merge or dequantize the model to save it.")
    return np.asarray(w)


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
