"""Models from GGUF files, dequantized by the `gguf` library's own functions.

Letters: H query heads, K key/value heads, C head size.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.errors import InputError
from lora_jax.files import gguf_header
from lora_jax.files.assemble import Tensors, assemble, check_config
from lora_jax.files.gguf_header import Tensor
from lora_jax.files.gguf_tokenizer import load_tokenizer, texts
from lora_jax.rope import RopeScaling, rope_frequencies
from lora_jax.transformer import Config, Params, projection_shapes
from lora_jax.untrusted import binary
from lora_jax.untrusted.fields import Fields
from lora_jax.untrusted.json_text import shown

__all__ = ["load", "load_tokenizer"]

ARCHITECTURES = ("llama", "qwen2")
NAMES = {  # Hugging Face's -> GGUF's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FACTORS = "rope_freqs.weight"


def load(path: str | Path, dtype: Any = jnp.float32) -> tuple[Config, Params]:
    """`(config, params)` of a GGUF model of the architectures llama and qwen2, every weight dequantized to `dtype`.

    The head is tied where the file has no `output.weight`. Raises InputError in one sentence where the file is not a
    GGUF, is cut short, is of another architecture, or its tensors are not exactly the model's.
    """
    header = gguf_header.read(path)
    said, found = header.said, dict(header.tensors)
    factors = found.pop(ROPE_FACTORS, None)
    with binary.opened(path) as file:
        config = _config(said, set(found))
        check_config(config, str(path))
        if factors is not None:
            config = _with_rope_factors(config, factors, said, file)
        permuted = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

        def read(name: str) -> np.ndarray:
            array = _dequantize(found[_spell(name)], file)
            heads = permuted.get(name.split(".")[-2])
            return _unpermute(array, heads) if heads and _architecture(said) == "llama" else array

        shapes = {name: tensor.shape for name, tensor in found.items()}
        return config, assemble(config, Tensors(str(path), shapes, read, _spell), dtype)


def _architecture(said: Fields) -> str:
    return said.text("general.architecture")


def _config(said: Fields, names: set[str]) -> Config:
    path, architecture = said.where, _architecture(said)
    if architecture not in ARCHITECTURES:
        raise InputError(f"{path} is of architecture {shown(architecture)}; supported are {', '.join(ARCHITECTURES)}.")
    if (parts := said.integer("split.count", 1, low=0)) > 1:
        raise InputError(f"{path} is one of {parts} parts of a model: join them with `gguf-split --merge` first.")

    def size(key: str, default: int | None = None) -> int:
        return said.integer(f"{architecture}.{key}", default, high=2**63 - 1)

    def number(key: str, default: float | None = None) -> float:
        return said.number(f"{architecture}.{key}", default)

    D, H = size("embedding_length"), size("attention.head_count")
    C = size("attention.key_length", size("rope.dimension_count", max(D // H, 1)))
    for what, value, expected in (
        ("rope.dimension_count", size("rope.dimension_count", C), C),
        ("attention.value_length", size("attention.value_length", C), C),
        ("expert_count", said.integer(f"{architecture}.expert_count", 0, low=0), 0),
        ("rope.scaling.type", said.text(f"{architecture}.rope.scaling.type", "none"), "none"),
    ):
        if value != expected:
            raise InputError(f"{path}: {architecture}.{what} is {value}, but only {expected} is supported here.")
    config = Config(
        vocab_size=size("vocab_size", len(texts(said, "tokenizer.ggml.tokens", [])) or None),
        hidden_size=D,
        intermediate_size=size("feed_forward_length"),
        num_hidden_layers=size("block_count"),
        num_attention_heads=H,
        num_key_value_heads=size("attention.head_count_kv", H),
        head_dim=C,
        rope_theta=number("rope.freq_base", 10_000.0),
        # The file holds a float32; the shortest decimal that rounds to it is what was meant: 1e-05.
        rms_norm_eps=float(str(np.float32(number("attention.layer_norm_rms_epsilon")))),
        max_position_embeddings=size("context_length"),
        tie_word_embeddings="output.weight" not in names,
    )
    biases = (
        name
        for part, projections in projection_shapes(config).items()
        for name in projections
        if _spell(f"model.layers.0.{part}.{name}.bias") in names
    )
    return dataclasses.replace(config, biases=tuple(biases))


def _with_rope_factors(config: Config, tensor: Tensor, said: Fields, file: binary.Binary) -> Config:
    """The configuration with the Llama 3 scaling that the file's table of frequency divisors spells out.

    The table fixes the factor. The other three are not in the file; all of Llama 3.1 to 3.3 share theirs, and the
    table says whether this model does too: if not, InputError.
    """
    context = said.integer(f"{_architecture(said)}.rope.scaling.original_context_length", 8192)
    size = config.head_dim // 2
    if tensor.shape == (size,):
        factors = _dequantize(tensor, file)
        if np.isfinite(factors).all() and factors.min() > 0:
            scaling = RopeScaling(float(factors.max()), 1.0, 4.0, context)
            shape = config.head_dim, config.rope_theta
            expected = np.asarray(rope_frequencies(*shape) / rope_frequencies(*shape, scaling))
            if np.allclose(factors, expected, rtol=1e-3):
                return dataclasses.replace(config, rope_scaling=scaling if factors.max() > 1 else None)
    raise InputError(f"{said.where}: {ROPE_FACTORS} is not Llama 3's table of {size} divisors: not supported.")


def _spell(name: str) -> str:
    """GGUF's name of a tensor: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, module = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[module]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def _dequantize(tensor: Tensor, file: binary.Binary) -> np.ndarray:
    import gguf

    rows = gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind)
    try:
        with np.errstate(all="ignore"):  # what is no number is told by the name of its tensor
            data = np.frombuffer(file.read(tensor.start, tensor.count), np.uint8).reshape(rows)
            return gguf.dequantize(data, tensor.kind).reshape(tensor.shape)
    except NotImplementedError as error:  # the gguf library's word for a type that it cannot dequantize
        raise InputError(
            f"{file.path}: {tensor.name} is stored as {tensor.kind.name}, which the gguf library cannot dequantize."
        ) from error


def _unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * C, ...) from GGUF's order for rotating neighbours, back to that for rotating halves."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])  # (H, C/2, 2, ...)
    return pairs.swapaxes(1, 2).reshape(array.shape)
