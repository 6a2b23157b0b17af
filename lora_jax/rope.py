"""Positions as rotations: each pair of a head's features turns by an angle that grows with the position.

Letters: B batch, T time, N heads, C head size, P = C / 2 pairs that rotate together.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the long wavelengths (Llama 3.1 model card; `rope_type: llama3` in Hugging Face)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@jax.named_scope("rope")
def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[Array, " P"]:
    """Radians a position for each pair of a head's features: theta^(-2i/C) (arXiv 2104.09864), rescaled for Llama 3.

    Llama 3 divides by `factor` where the wavelength is longer than the original context / `low_freq_factor`, leaves
    alone where it is shorter than the original context / `high_freq_factor`, and interpolates between.
    """
    frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if (s := scaling) is None:
        return frequencies
    turns = s.original_max_position_embeddings * frequencies / (2 * jnp.pi)  # full turns in the original context
    share = jnp.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)
    return share * frequencies + (1 - share) * frequencies / s.factor


@jax.named_scope("rope")
def rope(x: Float[Array, "B T N C"], angles: Float[Array, "B T P"]) -> Float[Array, "B T N C"]:
    """Rotate feature i with feature i + C/2 by its angle (Hugging Face's half rotation)."""
    cos, sin = (f(angles)[:, :, None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))  # (B, T, 1, P)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)  # (B, T, N, C)
