"""Models by name: their shapes, as their `config.json` files give them, for planning without their weights.

Counts follow from the shapes; `tests/memory/test_planner.py` holds each against the published one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.files.huggingface_config import QKV, read_config
from lora_jax.rope import RopeScaling
from lora_jax.transformer import Config
from lora_jax.tuning.pretraining import NAME, SMALL
from lora_jax.untrusted import files


def _model(V: int, D: int, F: int, L: int, H: int, K: int, C: int = 128, *, tied: bool = False, **more: Any) -> Config:
    """V vocabulary, D width, F feed-forward width, L layers, H query heads, K key/value heads, C head size."""
    return Config(V, D, F, L, H, K, C, tie_word_embeddings=tied, **more)


def _smollm2(*shape: int, theta: float = 100_000.0) -> Config:
    return _model(49_152, *shape, tied=True, rope_theta=theta, max_position_embeddings=8192)


def _llama2(*shape: int) -> Config:
    return _model(32_000, *shape, max_position_embeddings=4096)


def _llama3(*shape: int, factor: float = 0.0, tied: bool = False) -> Config:
    """Llama 3; from 3.1 on its context is stretched by `factor` times, to 131,072."""
    scaling = RopeScaling(factor, 1.0, 4.0, 8192) if factor else None
    context = 131_072 if factor else 8192
    options: dict[str, Any] = {"rope_theta": 500_000.0, "rope_scaling": scaling, "max_position_embeddings": context}
    return _model(128_256, *shape, tied=tied, **options)


def _qwen(V: int, *shape: int, tied: bool = False) -> Config:
    """Qwen2.5 (arXiv 2412.15115): biases on q, k and v. The context is that of the instruct models."""
    options: dict[str, Any] = {"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768}
    return _model(V, *shape, tied=tied, biases=QKV, **options)


def _hundred_billion() -> Config:
    """A Llama-like model of exactly 100,000,000,000 parameters, so of 200 GB in bfloat16.

    An untied model has D * (2 V + 1 + L * (2 + 2 Q + 2 KV + 3 F)) of them. The bracket is odd, so D must hold all of
    the 2^11 in 10^11 = 2^11 * 5^11: 2,048, 10,240 or 51,200. With 10,240, 92 layers and F = 27,264 = 213 * 128, the
    bracket is 5^10 = 9,765,625 = 2 * 84,000 + 1 + 92 * 104,322.
    """
    return _model(84_000, 10_240, 27_264, 92, 80, 8, max_position_embeddings=8192)


def _gpt3() -> Config:
    """GPT-3 175B's matrices (arXiv 2005.14165, table 2.1) in this package's transformer.

    GPT-3's feed-forward is two matrices of D * 4 D; here it is gated, three matrices, so F = 2/3 * 4 D = 32,768 gives
    as many numbers. Rotary positions and norms without biases stand for GPT-3's learned positions (25 million numbers),
    biases and norms; the head is the embedding's twin, as there.
    """
    return _model(50_257, 12_288, 32_768, 96, 96, 96, tied=True, max_position_embeddings=2048)


MODELS = {
    NAME: SMALL,
    "smollm2-135m": _smollm2(576, 1536, 30, 9, 3, 64),
    "smollm2-360m": _smollm2(960, 2560, 32, 15, 5, 64),
    "smollm2-1.7b": _smollm2(2048, 8192, 24, 32, 32, 64, theta=130_000.0),
    "llama2-7b": _llama2(4096, 11_008, 32, 32, 32),
    "llama2-13b": _llama2(5120, 13_824, 40, 40, 40),
    "llama2-70b": _llama2(8192, 28_672, 80, 64, 8),
    "llama3-8b": _llama3(4096, 14_336, 32, 32, 8),
    "llama3-70b": _llama3(8192, 28_672, 80, 64, 8),
    "llama3.1-8b": _llama3(4096, 14_336, 32, 32, 8, factor=8.0),
    "llama3.1-70b": _llama3(8192, 28_672, 80, 64, 8, factor=8.0),
    "llama3.2-1b": _llama3(2048, 8192, 16, 32, 8, 64, factor=32.0, tied=True),
    "llama3.2-3b": _llama3(3072, 8192, 28, 24, 8, factor=32.0, tied=True),
    # Version 0.1, within the window of 4,096 tokens that its attention slides over.
    "mistral-7b": _model(32_000, 4096, 14_336, 32, 32, 8, max_position_embeddings=4096),
    "qwen2.5-0.5b": _qwen(151_936, 896, 4864, 24, 14, 2, 64, tied=True),
    "qwen2.5-1.5b": _qwen(151_936, 1536, 8960, 28, 12, 2, tied=True),
    "qwen2.5-3b": _qwen(151_936, 2048, 11_008, 36, 16, 2, tied=True),
    "qwen2.5-7b": _qwen(152_064, 3584, 18_944, 28, 28, 4),
    "qwen2.5-14b": _qwen(152_064, 5120, 13_824, 48, 40, 8),
    "qwen2.5-32b": _qwen(152_064, 5120, 27_648, 64, 40, 8),
    "qwen2.5-72b": _qwen(152_064, 8192, 29_568, 80, 64, 8),
    "100b": _hundred_billion(),
    "gpt3-175b": _gpt3(),
}


def config(name_or_path: str | Path) -> Config:
    """The shape of a model of MODELS by name, or of a `config.json` or a folder that holds one.

    Raises InputError where there is neither, or the file is none that `read_config` takes.
    """
    if str(name_or_path) in MODELS:
        return MODELS[str(name_or_path)]
    path = Path(name_or_path)
    if not files.exists(path):
        raise InputError(
            f"there is no model {str(name_or_path)!r} to plan for: give a config.json, a folder with one, or "
            f"{', '.join(MODELS)}"
        )
    return read_config(path / "config.json" if path.is_dir() else path)
