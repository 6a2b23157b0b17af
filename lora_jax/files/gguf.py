"""Models and tokenizers from GGUF files, dequantized by the `gguf` library's own functions.

Letters: H query heads, K key/value heads, C head size.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.errors import InputError
from lora_jax.files.assemble import Tensors, assemble, check_config
from lora_jax.files.backends import SPLITS, begin_with, byte_level, sentencepiece
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.rope import RopeScaling, rope_frequencies
from lora_jax.transformer import Config, Params, projection_shapes

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
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # token types


def load(path: str | Path, dtype: Any = jnp.float32) -> tuple[Config, Params]:
    """`(config, params)` of a GGUF model of the architectures llama and qwen2, every weight dequantized to `dtype`.

    The head is tied where the file has no `output.weight`. Raises InputError in one sentence where the file is not a
    GGUF, is cut short, is of another architecture, or its tensors are not exactly the model's.
    """
    reader = _open(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in found.items()}
    factors = found.pop(ROPE_FACTORS, None)
    shapes.pop(ROPE_FACTORS, None)
    config = _config(reader, path, set(found))
    check_config(config, str(path))
    if factors is not None:
        config = _with_rope_factors(config, np.asarray(factors.data, np.float32), reader, path)
    permuted = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def read(name: str) -> np.ndarray:
        array = _dequantize(found[_spell(name)], path).reshape(shapes[_spell(name)])
        heads = permuted.get(name.split(".")[-2])
        return _unpermute(array, heads) if heads and _architecture(reader, path) == "llama" else array

    return config, assemble(config, Tensors(str(path), shapes, read, _spell), dtype)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a GGUF file: byte-level BPE, or SentencePiece's BPE. Raises InputError for other kinds."""
    reader = _open(path)
    kind, pre = (_field(reader, f"tokenizer.ggml.{key}", None) for key in ("model", "pre"))
    pre = "default" if pre is None else pre
    scores = _field(reader, "tokenizer.ggml.scores", None)
    if not ((kind == "gpt2" and pre in SPLITS) or (kind == "llama" and scores is not None)):
        raise InputError(
            f"{path} holds a tokenizer of kind {kind!r} with pre-tokenizer {pre!r}, but only byte-level BPE ('gpt2') "
            f"with one of {', '.join(SPLITS)}, and SentencePiece's BPE ('llama') with its scores can be rebuilt: load "
            "tokenizer.json from the model's own folder instead."
        )
    tokens = _required(reader, path, "tokenizer.ggml.tokens")
    types = _field(reader, "tokenizer.ggml.token_type", [1] * len(tokens))

    def of(*wanted: int) -> list[str]:
        return [token for token, kind in zip(tokens, types, strict=True) if kind in wanted]

    def id_of(key: str) -> int | None:
        index = _field(reader, f"tokenizer.ggml.{key}_token_id", None)
        if index is not None and not 0 <= index < len(tokens):
            raise InputError(f"{path}: {key}_token_id is {index}, but the file has {len(tokens)} tokens.")
        return index

    def named(key: str) -> str | None:
        return None if (index := id_of(key)) is None else tokens[index]

    whole = {"special": of(CONTROL, UNKNOWN), "added": of(USER_DEFINED)}
    if kind == "llama":
        backend = sentencepiece(
            tokens,
            scores,
            unknown=named("unknown") or next(iter(of(UNKNOWN)), None),
            prefix=_field(reader, "tokenizer.ggml.add_space_prefix", True),
            **whole,
        )
    else:
        merges = _required(reader, path, "tokenizer.ggml.merges")
        backend = byte_level(tokens, [tuple(merge.split(" ", 1)) for merge in merges], split=pre, **whole)
    bos = named("bos")
    # What llama.cpp assumes where a file is silent.
    if bos is not None and _field(reader, "tokenizer.ggml.add_bos_token", kind == "llama" or pre == "llama-bpe"):
        begin_with(backend, bos)
    others = {f"{name}_token": named(key) for name, key in (("unk", "unknown"), ("sep", "seperator"), ("mask", "mask"))}
    return Tokenizer(
        backend,
        bos_token=bos,
        eos_token=named("eos"),
        pad_token=named("padding"),
        chat_template=_field(reader, "tokenizer.chat_template", None),
        ends=tuple(index for key in ("eos", "eot", "eom") if (index := id_of(key)) is not None),
        others={name: token for name, token in others.items() if token is not None},
    )


def _open(path: str | Path) -> Any:
    """A reader of the file at `path` (`gguf.GGUFReader`), which never runs past the file's end."""
    import gguf

    class Reader(gguf.GGUFReader):
        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            array = super()._get(offset, dtype, count, override_order)
            if len(array) < count:  # a slice past the end is merely short, and a loop over such slices endless
                raise ValueError("it ends too early: was it cut short?")
            return array

    try:
        return Reader(str(path))
    except OSError as error:
        raise InputError(f"could not open {path} ({error.strerror or error}): give the path of a GGUF file.") from error
    except Exception as error:  # the library answers damage with whatever the damage makes it stumble over
        raise InputError(f"{path} is not a readable GGUF file ({error}).") from error


def _field(reader: Any, key: str, default: Any) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _required(reader: Any, path: str | Path, key: str) -> Any:
    if (value := _field(reader, key, None)) is None:
        raise InputError(f"{path} does not say {key}, which is needed.")
    return value


def _architecture(reader: Any, path: str | Path) -> str:
    return _required(reader, path, "general.architecture")


def _config(reader: Any, path: str | Path, names: set[str]) -> Config:
    architecture = _architecture(reader, path)
    if architecture not in ARCHITECTURES:
        raise InputError(f"{path} is of architecture {architecture!r}; supported are {', '.join(ARCHITECTURES)}.")
    if (parts := _field(reader, "split.count", 1)) > 1:
        raise InputError(f"{path} is one of {parts} parts of a model: join them with `gguf-split --merge` first.")

    def get(key: str, default: Any = None) -> Any:
        value = _field(reader, f"{architecture}.{key}", default)
        return _required(reader, path, f"{architecture}.{key}") if value is None else value

    D, H = get("embedding_length"), get("attention.head_count")
    C = get("attention.key_length", get("rope.dimension_count", D // H))
    scaling = get("rope.scaling.type", "none")
    for what, value, expected in (
        ("rope.dimension_count", get("rope.dimension_count", C), C),
        ("attention.value_length", get("attention.value_length", C), C),
        ("expert_count", get("expert_count", 0), 0),
        ("rope.scaling.type", scaling, "none"),
    ):
        if value != expected:
            raise InputError(f"{path}: {architecture}.{what} is {value}, but only {expected} is supported here.")
    config = Config(
        vocab_size=get("vocab_size", len(_field(reader, "tokenizer.ggml.tokens", ())) or None),
        hidden_size=D,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=H,
        num_key_value_heads=get("attention.head_count_kv", H),
        head_dim=C,
        rope_theta=float(get("rope.freq_base", 10_000.0)),
        # The file holds a float32; the shortest decimal that rounds to it is what was meant: 1e-05.
        rms_norm_eps=float(str(np.float32(get("attention.layer_norm_rms_epsilon")))),
        max_position_embeddings=get("context_length"),
        tie_word_embeddings="output.weight" not in names,
    )
    biases = (
        name
        for part, projections in projection_shapes(config).items()
        for name in projections
        if _spell(f"model.layers.0.{part}.{name}.bias") in names
    )
    return dataclasses.replace(config, biases=tuple(biases))


def _with_rope_factors(config: Config, factors: np.ndarray, reader: Any, path: str | Path) -> Config:
    """The configuration with the Llama 3 scaling that the file's table of frequency divisors spells out.

    The table fixes the factor. The other three are not in the file; all of Llama 3.1 to 3.3 share theirs, and the
    table says whether this model does too: if not, InputError.
    """
    context = _field(reader, f"{_architecture(reader, path)}.rope.scaling.original_context_length", 8192)
    scaling = RopeScaling(float(factors.max()), 1.0, 4.0, context)
    shape = config.head_dim, config.rope_theta
    expected = np.asarray(rope_frequencies(*shape) / rope_frequencies(*shape, scaling))
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise InputError(f"{path}: {ROPE_FACTORS} is not Llama 3's table of {expected.size} divisors: not supported.")
    return dataclasses.replace(config, rope_scaling=scaling if factors.max() > 1 else None)


def _spell(name: str) -> str:
    """GGUF's name of a tensor: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, module = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[module]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def _dequantize(tensor: Any, path: str | Path) -> np.ndarray:
    import gguf

    try:
        return gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:  # the gguf library's word for a type that it cannot dequantize
        raise InputError(
            f"{path}: {tensor.name} is stored as {tensor.tensor_type.name}, which the gguf library cannot dequantize."
        ) from error


def _unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * C, ...) from GGUF's order for rotating neighbours, back to that for rotating halves."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])  # (H, C/2, 2, ...)
    return pairs.swapaxes(1, 2).reshape(array.shape)
