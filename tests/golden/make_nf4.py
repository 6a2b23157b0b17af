"""Make `nf4_*.npz`: matrices as bitsandbytes 0.50.2 quantizes them on a CPU (needs torch and bitsandbytes).

python tests/golden/make_nf4.py

Arrays are in bitsandbytes' own order, (out, in): `w`, the `codes` of it, and what they are worth again, with float32
constants (`plain`) and with quantized ones (`double`); the constants before and after (`absmax`, `constants`, `scale`,
`offset`). int8 is its `int8_vectorwise_quant`, a scale a row.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch

HERE = Path(__file__).parent


def codes(packed: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """A byte holds two codes, the first in its upper half."""
    return torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[: shape[0] * shape[1]].reshape(shape).numpy()


def quantized(w: torch.Tensor) -> dict[str, np.ndarray]:
    packed, plain = bnb.quantize_4bit(w, quant_type="nf4")
    _, double = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    int8, scale, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(w.clone())
    return {
        "w": w.float().numpy(),
        "codes": codes(packed, w.shape),
        "absmax": plain.absmax.numpy(),
        "plain": bnb.dequantize_4bit(packed, plain).float().numpy(),
        "constants": double.absmax.numpy(),
        "scale": double.state2.absmax.numpy(),
        "offset": double.offset.numpy(),
        "double": bnb.dequantize_4bit(packed, double).float().numpy(),
        "map": double.state2.code.numpy(),
        "int8_codes": int8.numpy(),
        "int8_scale": scale.numpy(),
    }


def rows(w: torch.Tensor) -> dict[str, np.ndarray]:
    """Row by row: so its blocks, which otherwise run on from one row into the next, end where the rows do."""
    each = [bnb.quantize_4bit(row, quant_type="nf4") for row in w]
    return {
        "w": w.numpy(),
        "codes": np.concatenate([codes(packed.reshape(-1), (1, w.shape[1])) for packed, _ in each]),
        "absmax": np.stack([state.absmax.numpy() for _, state in each]),
        "plain": np.stack([bnb.dequantize_4bit(*pair).reshape(-1).numpy() for pair in each]),
    }


def matrix(seed: int, out: int, wide: int) -> torch.Tensor:
    """Normal, each row of a size of its own, in steps of 2**-12: the mean of the constants then has no rounding in it
    that hangs on the order of the sum."""
    rng = np.random.default_rng(seed)
    w = np.round(4096 * rng.standard_normal((out, wide)) * rng.uniform(0.01, 0.2, (out, 1))) / 4096
    w[3, 64:128] = 0  # a block of zeros
    return torch.tensor(w, dtype=torch.float32)


def ties() -> torch.Tensor:
    """One block with every value and every midpoint of the sixteen, and floats just above and below each midpoint."""
    values = bnb.get_4bit_type("nf4", device="cpu").numpy()
    middle = (values[1:] + values[:-1]) / 2
    near = [values, middle, np.nextafter(middle, np.float32(-2)), np.nextafter(middle, np.float32(2))]
    return torch.tensor(np.concatenate(near)[None, :64])


if __name__ == "__main__":
    cases = {
        "float32": quantized(matrix(0, 90, 192)),
        "bfloat16": quantized(matrix(1, 34, 128).to(torch.bfloat16)),
        "odd": rows(matrix(2, 7, 141)),
        "ties": rows(ties()),
    }
    for name, arrays in cases.items():
        np.savez_compressed(HERE / f"nf4_{name}.npz", **arrays)
