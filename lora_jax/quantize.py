"""Quantized weights: NF4, 4 bits a number with a constant a block (QLoRA, arXiv 2305.14314), and int8.

A quantized weight is frozen and is multiplied like any other. What is kept is the codes: the matrix itself is formed
where a product needs it and let go, and the backward pass forms it again rather than keep it.

Letters: I in, O out, K = ceil(I / 64) blocks down a column, G = ceil(K * O / 256) groups of blocks, L layers. Every
leaf of a stacked weight leads with L: each layer is quantized by itself, so that a scan can take it apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt8

from lora_jax.errors import InputError
from lora_jax.weights import Biased, Weight, pytree

BLOCK = 64  # weights that share a constant; they run along `in`
GROUP = 256  # constants that share a constant of their own, where they are quantized too
TINY = np.finfo(np.float32).tiny  # what a block of zeros is divided by: smaller numbers are flushed to zero

# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero: bitsandbytes' values (QLoRA, appendix E).
NF4_VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


def _dynamic_values() -> np.ndarray:
    """bitsandbytes' signed dynamic map of 8 bits (arXiv 1511.04561, 2110.02861): seven decades, finer towards 1."""
    values = [0.0, 1.0]
    for i in range(7):
        # The float32 bounds of torch.linspace, counted from the nearer end: others are off in the last bit.
        at, step = np.arange(2**i + 1), np.float64(np.float32(0.9) / np.float32(2**i))
        bounds = np.where(2 * at < 2**i, np.float32(0.1) + step * at, 1 - step * (2**i - at)).astype(np.float32)
        means = np.float32(10.0 ** (i - 6)) * ((bounds[:-1] + bounds[1:]) / 2)
        values += [*means.tolist(), *(-means).tolist()]
    return np.array(sorted(values), np.float32)


DYNAMIC_VALUES = _dynamic_values()


class _Quantized(Weight):
    """What the quantized weights share. They are frozen: no gradient flows into one, only through it."""

    like: Any  # (..., I, 0)

    @property
    def dtype(self) -> Any:
        return self.like.dtype

    def __rmatmul__(self, x: Float[ArrayLike, "... in"]) -> Float[Array, "... out"]:
        return _product(jnp.asarray(x), self)


@jax.custom_vjp
def _product(x: Array, w: Any) -> Array:
    # The barrier makes the matrix wait for x: else XLA sees that it depends on the codes alone, and in generation by a
    # model of one layer, where no loop over layers is left, it takes it out of the loop over tokens and holds it.
    x, w = jax.lax.optimization_barrier((x, w))
    return jnp.matmul(x, w.dense(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x: Array, w: Any) -> tuple[Array, Any]:
    return _product(x, w), w  # autodiff by itself would keep the matrix, which scan stacks: a whole copy of the model


def _backward(w: Any, d: Array) -> tuple[Array, None]:
    d, w = jax.lax.optimization_barrier((d, w))
    return jnp.matmul(d, w.dense(d.dtype).mT, preferred_element_type=jnp.float32).astype(d.dtype), None


_product.defvjp(_forward, _backward)


@pytree
class Constants:
    """Quantized constants, three numbers for which one float32 matrix stood: see `NF4`."""

    codes: Any  # (..., O, K) uint8, into DYNAMIC_VALUES
    scale: Any  # (..., G) float32, the largest magnitude of a group
    offset: Any  # (...,) float32, the mean that was taken off

    def dense(self) -> Float[Array, "... K O"]:
        *lead, O, K = self.codes.shape
        scale = jnp.repeat(self.scale, GROUP, axis=-1)[..., : O * K].reshape(*lead, O, K)
        return (jnp.asarray(DYNAMIC_VALUES)[self.codes] * scale + self.offset[..., None, None]).mT


@pytree
class NF4(_Quantized):
    """`W[i, o] = NF4_VALUES[code[i, o]] * constant[i // 64, o]`.

    A byte holds two codes: row i in its upper half and row ceil(I / 2) + i in its lower half, so that a matrix is two
    runs of rows, one after the other. Bits a weight, where sizes divide: 4 + 32 / 64 = 4.5, or with quantized
    constants 4 + 8 / 64 + 32 / (64 * 256) = 4.127 and one float32 a layer.
    """

    codes: Any  # (..., ceil(I / 2), O) uint8
    constants: Any  # (..., K, O) float32, or `Constants`
    like: Any  # (..., I, 0), no bytes: it says `in` and the dtype of the weight that was quantized

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.like.shape[:-1], self.codes.shape[-1])

    @jax.named_scope("dequantize")
    def dense(self, dtype: Any = None) -> Float[Array, " ... in out"]:
        rows = self.shape[-2]
        codes = jnp.concatenate([self.codes >> 4, self.codes & 15], axis=-2)[..., :rows, :]  # (..., I, O)
        constants = self.constants.dense() if isinstance(self.constants, Constants) else self.constants
        constants = jnp.repeat(constants, BLOCK, axis=-2)[..., :rows, :]  # (..., I, O)
        return (jnp.asarray(NF4_VALUES)[codes] * constants).astype(dtype or self.dtype)


@pytree
class Int8(_Quantized):
    """`W[i, o] = code[i, o] * scale[o] / 127`: a scale a column, its largest magnitude (LLM.int8, arXiv 2208.07339,
    without that paper's columns of outliers)."""

    codes: Any  # (..., I, O) int8
    scale: Any  # (..., O) float32
    like: Any  # (..., I, 0), no bytes: it says the dtype of the weight that was quantized

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @jax.named_scope("dequantize")
    def dense(self, dtype: Any = None) -> Float[Array, " ... in out"]:
        return (self.codes * (self.scale / 127)[..., None, :]).astype(dtype or self.dtype)


def _nearest(values: np.ndarray, x: Array) -> UInt8[Array, "..."]:
    """The code of the nearest value, the lower one of two: how many of the midpoints lie below."""
    midpoints = (values[:-1] + values[1:]) / 2
    return jnp.searchsorted(jnp.asarray(midpoints), x, side="left", method="compare_all").astype(jnp.uint8)


def _scaled(x: Array, largest: Array) -> Array:
    return jnp.clip(x * (1 / jnp.maximum(largest, TINY)), -1, 1)


def _quantize_constants(constants: Float[Array, "K O"]) -> Constants:
    offset = jnp.mean(constants)
    flat = (constants - offset).T.reshape(-1)  # (O * K,): in the order of bitsandbytes, whose matrix is (out, in)
    groups = jnp.pad(flat, (0, -flat.size % GROUP)).reshape(-1, GROUP)  # (G, 256)
    scale = jnp.max(jnp.abs(groups), axis=-1)  # (G,)
    codes = _nearest(DYNAMIC_VALUES, _scaled(groups, scale[:, None]))
    return Constants(codes.reshape(-1)[: flat.size].reshape(constants.T.shape), scale, offset)


def _nf4(w: Float[Array, "I O"], double_quantization: bool) -> NF4:
    I, O = w.shape
    w32 = w.astype(jnp.float32)
    blocks = jnp.pad(w32, ((0, -I % BLOCK), (0, 0))).reshape(-1, BLOCK, O)  # (K, 64, O)
    constants = jnp.max(jnp.abs(blocks), axis=1)  # (K, O)
    codes = _nearest(NF4_VALUES, _scaled(blocks, constants[:, None])).reshape(-1, O)[:I]  # (I, O)
    half = math.ceil(I / 2)
    low = jnp.pad(codes[half:], ((0, I % 2), (0, 0)))
    stored = _quantize_constants(constants) if double_quantization else constants
    return NF4(codes[:half] << 4 | low, stored, jnp.zeros((I, 0), w.dtype))


def _int8(w: Float[Array, "I O"]) -> Int8:
    w32 = w.astype(jnp.float32)
    scale = jnp.max(jnp.abs(w32), axis=0)  # (O,)
    codes = jnp.round(w32 * (127 * (1 / jnp.maximum(scale, TINY)))).astype(jnp.int8)
    return Int8(codes, scale, jnp.zeros((w.shape[0], 0), w.dtype))


@partial(jax.jit, static_argnums=(0, 2))
def _each_layer(quantize: Callable[..., Any], w: Array, options: tuple[Any, ...]) -> Any:
    # One layer at a time: the float32 copies that quantizing makes are then one layer's.
    return quantize(w, *options) if w.ndim == 2 else jax.lax.map(lambda layer: quantize(layer, *options), w)


def _quantize(quantize: Callable[..., Any], w: Any, *options: Any) -> Any:
    if isinstance(w, Biased):
        return dataclasses.replace(w, w=_quantize(quantize, w.w, *options))
    if isinstance(w, Weight):
        raise InputError(f"a weight that is {type(w).__name__} already cannot be quantized: start from plain arrays")
    if len(w.shape) not in (2, 3) or not jnp.issubdtype(w.dtype, jnp.floating):
        raise InputError(f"only (in, out) or (L, in, out) floats can be quantized, not {w.dtype} of {tuple(w.shape)}")
    return _each_layer(quantize, w, options)


def nf4(w: Any, double_quantization: bool = True) -> Any:
    """`w`, a plain array or a `Biased` one, (I, O) or (L, I, O), as `NF4`; a bias stays as it is.

    Codes and constants are those of bitsandbytes' `quantize_4bit` on the transpose, bit for bit, where 64 divides I
    (elsewhere its blocks run on from one column into the next, and here each column's last block is shorter). The one
    number that may differ, in its last bit, is the mean of the constants, since its sum runs in another order.
    """
    return _quantize(_nf4, w, double_quantization)


def int8(w: Any) -> Any:
    """`w`, a plain array or a `Biased` one, (I, O) or (L, I, O), as `Int8`; a bias stays as it is."""
    return _quantize(_int8, w)


def quantize_layers(params: Any, kind: str, *, double_quantization: bool = True) -> Any:
    """`params` with every matrix of every block as "nf4" or "int8"; embeddings, norms and head are shared, unchanged.

    `double_quantization` is NF4's alone. Raises InputError for another kind, and for weights that are no plain arrays.
    """
    kinds: dict[str, Callable[[Any], Any]] = {
        "nf4": partial(nf4, double_quantization=double_quantization),
        "int8": int8,
    }
    if kind not in kinds:
        raise InputError(f"there is no quantization {kind!r}: choose {' or '.join(kinds)}")

    def walk(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {name: walk(child) for name, child in node.items()}
        return kinds[kind](node) if len(node.shape) == 3 else node

    return {**params, "layers": walk(params["layers"])}
