"""Training steps drawn by chance, from a million parameters to a hundred billion: what the estimate is tried on."""

from __future__ import annotations

import random
from typing import TypeVar

from lora_jax.memory.setup import Setup
from lora_jax.transformer import Config

SMALLEST, LARGEST = 1e6, 1e11  # parameters
T = TypeVar("T")


def draw(seed: int, count: int) -> list[Setup]:
    """`count` steps by chance; the same ones for the same seed, for ever (only `Random.random` is asked)."""
    chance = random.Random(seed)
    return [_setup(chance) for _ in range(count)]


def _setup(chance: random.Random) -> Setup:
    config = _shape(chance, _between(chance, SMALLEST, LARGEST))
    method = _pick(chance, {"full": 3, "lora": 4, "qlora": 3})
    dtype = _pick(chance, {"bfloat16": 7, "float32": 3})
    targets = _pick(chance, {"all-linear": 5, "attention": 2, ("q_proj", "v_proj"): 3})
    rank = _pick(chance, dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 1))
    freeze_a, double = chance.random() < 0.2, chance.random() < 0.6
    optimizer = _pick(chance, {"adamw": 7, "adafactor": 1, "sgd": 1, "momentum": 1})
    moments = _pick(chance, {None: 6, "float32": 2, "bfloat16": 2})
    master = chance.random() < 0.3
    batch, length = round(_between(chance, 1, 16)), _between(chance, 128, 4096)
    options = {"rank": rank, "targets": targets if isinstance(targets, str) else list(targets)}
    return Setup(
        config,
        method="full" if method == "full" else "lora",
        options={} if method == "full" else options | ({"freeze_a": True} if freeze_a else {}),
        quantize="nf4" if method == "qlora" else None,
        batch=batch,
        length=round(length / 128) * 128 if chance.random() < 0.7 else round(length),
        double_quantization=double,
        dtype=dtype,
        remat=chance.random() < 0.5,
        attention=_pick(chance, {"blockwise": 6, "dense": 4}),
        optimizer=optimizer,
        moments=moments if optimizer in ("adamw", "momentum") else None,
        rounding=("master" if master else "nearest") if method == "full" and dtype == "bfloat16" else None,
    )


def _shape(chance: random.Random, parameters: float) -> Config:
    """A Llama-like model of about so many parameters: its width is the one that comes nearest."""
    head = 64 if parameters < 3e8 or chance.random() < 0.2 else 128
    aspect, ratio = _between(chance, 24, 160), 2 + 2 * chance.random()  # width to layers, feed-forward to width
    tied, group = chance.random() < 0.5, _pick(chance, {1: 3, 2: 1, 3: 1, 4: 2, 8: 2})
    vocabulary, odd = _between(chance, 2048, 131_072), chance.random() < 0.25

    def at(heads: int) -> tuple[Config, int]:
        width = heads * head
        layers = max(2, round(width / aspect))
        inner = round(width * ratio / 64) * 64
        kv = max(n for n in range(1, heads + 1) if heads % n == 0 and n * group <= max(heads, group))
        # An embedding of more than a third of the model is not seen: a small model has a small vocabulary.
        block = 2 * width * width + 2 * width * kv * head + 3 * width * inner + 2 * width
        V = min(vocabulary, max(2048, layers * block / 2 / width))
        V = round(V) if odd else round(V / 64) * 64
        config = Config(V, width, inner, layers, heads, kv, head, tie_word_embeddings=tied)
        return config, layers * block + (1 if tied else 2) * V * width + width

    return min(map(at, range(1, 161)), key=lambda found: abs(found[1] - parameters))[0]


def _between(chance: random.Random, low: float, high: float) -> float:
    """Log-uniformly."""
    return float(low * (high / low) ** chance.random())


def _pick(chance: random.Random, weights: dict[T, int]) -> T:
    at = chance.random() * sum(weights.values())
    for value, weight in weights.items():
        at -= weight
        if at < 0:
            return value
    return value
