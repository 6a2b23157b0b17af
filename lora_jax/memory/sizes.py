"""The static bytes of a step, by hand: weights, NF4's constants, adapters, optimizer state. No batch changes them.

Letters: D width, F feed-forward width, Q = query heads * head size, KV = key/value heads * head size, V vocabulary,
L layers, R rank; I in, O out of one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_jax.errors import InputError
from lora_jax.memory.setup import Setup

if TYPE_CHECKING:
    from lora_jax.transformer import Config

ITEMSIZE = {"float32": 4, "int32": 4, "bfloat16": 2}  # bytes
COUNT = 4  # an optimizer's count of steps, int32
NF4_BLOCK, NF4_GROUP = 64, 256  # quantize.BLOCK and GROUP: weights to a constant, constants to a constant of theirs
FACTORED = 128  # optax.adafactor factors where both of a tensor's largest dimensions have at least so many
SHORTHANDS = {"all-linear": ("self_attn", "mlp"), "attention": ("self_attn",), "mlp": ("mlp",)}


def matrices(config: Config) -> dict[str, tuple[int, int]]:
    """The (in, out) of each matrix of a block, by its name in one layer ("self_attn.q_proj")."""
    D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
    Q, KV = config.num_attention_heads * C, config.num_key_value_heads * C
    return {
        "self_attn.q_proj": (D, Q),
        "self_attn.k_proj": (D, KV),
        "self_attn.v_proj": (D, KV),
        "self_attn.o_proj": (Q, D),
        "mlp.gate_proj": (D, F),
        "mlp.up_proj": (D, F),
        "mlp.down_proj": (F, D),
    }


def targeted(config: Config, targets: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """The matrices of a block that `targets` picks: a shorthand, or names ("q_proj"), each for all layers.

    Raises InputError for what picks nothing here: a single layer's name, the embedding, the head, a regular expression.
    """
    found = matrices(config)
    if isinstance(targets, str) and targets in SHORTHANDS:
        return {name: shape for name, shape in found.items() if name.split(".")[0] in SHORTHANDS[targets]}
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    picked: dict[str, tuple[int, int]] = {}
    for target in names:
        hit = {name: shape for name, shape in found.items() if name == target or name.endswith(f".{target}")}
        if not hit or isinstance(targets, str):
            raise InputError(
                f"the formula cannot count the target {target!r}: give it {', '.join(SHORTHANDS)}, or a list of names "
                f"of a block's matrices ({', '.join(name.split('.')[1] for name in found)})"
            )
        picked |= hit
    if not picked:
        raise InputError("there is no target: name at least one of a block's matrices")
    return picked


def arrays(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every array of the weights, stacked over layers, by its path."""
    D, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    found: dict[str, tuple[int, ...]] = {"embed_tokens": (V, D), "norm": (D,)}
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[f"layers.{name}"] = (L, D)
    for name, (i, o) in matrices(config).items():
        found[f"layers.{name}"] = (L, i, o)
        if name.split(".")[1] in config.biases:
            found[f"layers.{name}.bias"] = (L, o)
    return found if config.tie_word_embeddings else found | {"lm_head": (D, V)}


def parameters(config: Config) -> int:
    """How many numbers the weights are."""
    return sum(math.prod(shape) for shape in arrays(config).values())


def weight_bytes(config: Config, dtype: str) -> int:
    """Parameters x bytes of one. 100 billion in bfloat16: 200 GB."""
    return parameters(config) * ITEMSIZE[dtype]


def lora_parameters(config: Config, rank: int, targets: str | Sequence[str] = "all-linear") -> int:
    """The factors of every targeted matrix: A (I, R) and B (R, O), so R * (I + O) a matrix a layer."""
    return config.num_hidden_layers * sum(rank * (i + o) for i, o in targeted(config, targets).values())


def nf4_bytes(rows: int, columns: int, double_quantization: bool = True) -> tuple[int, int]:
    """`(codes, constants)` of one NF4 matrix in bytes.

    Two codes to a byte, rows rounded up to a pair. A block of 64 down a column shares one float32 constant: 4 + 32 / 64
    = 4.5 bits a weight. With double quantization the constant is a byte, 256 constants share a float32, and all of them
    one more (their mean): 4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits and 4 bytes.
    """
    codes, blocks = math.ceil(rows / 2) * columns, math.ceil(rows / NF4_BLOCK) * columns
    return codes, (blocks + 4 * math.ceil(blocks / NF4_GROUP) + 4 if double_quantization else 4 * blocks)


def base_bytes(setup: Setup) -> tuple[int, int]:
    """`(weights, quantization constants)`: a QLoRA's blocks have NF4 matrices; embeddings, norms, biases, head stay."""
    config, size = setup.config, ITEMSIZE[setup.dtype]
    if setup.method != "qlora":
        return weight_bytes(config, setup.dtype), 0
    L, quantized = config.num_hidden_layers, matrices(config).values()
    each = [nf4_bytes(i, o, setup.double_quantization) for i, o in quantized]
    plain = parameters(config) - L * sum(i * o for i, o in quantized)
    return plain * size + L * sum(codes for codes, _ in each), L * sum(constants for _, constants in each)


def trained(setup: Setup) -> list[tuple[tuple[int, ...], str]]:
    """The (shape, dtype) of every array that trains: the weights, or each target's A (L, I, R) and B (L, R, O)."""
    config, L, R = setup.config, setup.config.num_hidden_layers, setup.rank
    if setup.method == "full":
        return [(shape, setup.dtype) for shape in arrays(config).values()]
    found: list[tuple[tuple[int, ...], str]] = []
    for name, (i, o) in targeted(config, setup.targets).items():
        if min(i, o) < R:
            raise InputError(f"layers.N.{name}: rank must be 1 to {min(i, o)} for a {i} x {o} matrix, not {R}")
        found += [((L, R, o), "float32")] if setup.freeze_a else [((L, i, R), "float32"), ((L, R, o), "float32")]
    return found


def trainable_bytes(setup: Setup) -> int:
    """What trains; its gradient is of the same shapes and dtypes, so of as many bytes."""
    return sum(math.prod(shape) * ITEMSIZE[dtype] for shape, dtype in trained(setup))


def constant_bytes(setup: Setup) -> int:
    """What an adapter holds and does not train, in float32: a scaling for each target and layer, and A where frozen."""
    if setup.method == "full":
        return 0
    config, targets = setup.config, targeted(setup.config, setup.targets).values()
    frozen = sum(i * setup.rank for i, _ in targets) if setup.freeze_a else 0
    return 4 * config.num_hidden_layers * (len(targets) + frozen)


def optimizer_bytes(setup: Setup) -> int:
    """The optimizer's state. optax's rules, for what trains (or its float32 master copy, which is then state too):

    - AdamW: mu in `moments` or the dtype of what trains, nu in the dtype of what trains, a count.
    - Momentum: a trace in `moments` or the dtype of what trains. SGD: nothing.
    - Adafactor: see `adafactor_bytes`.
    """
    arrays = [(shape, "float32" if setup.master else dtype) for shape, dtype in trained(setup)]
    own = sum(math.prod(shape) * ITEMSIZE[dtype] for shape, dtype in arrays)
    first = sum(math.prod(shape) * ITEMSIZE[setup.moments or dtype] for shape, dtype in arrays)
    state = {
        "adamw": first + own + COUNT,
        "momentum": first,
        "sgd": 0,
        "adafactor": COUNT + sum(adafactor_bytes(shape, dtype) for shape, dtype in arrays),
    }
    return state[setup.optimizer] + (own if setup.master else 0)


def adafactor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Adafactor's state for one array (arXiv 1804.04235), as optax keeps it.

    The second moment of an array whose two largest dimensions have 128 or more is a row and a column: the shape without
    its largest dimension, and without its second largest (a stack of layers is one array: L may be one of the two).
    Any other array's is whole. A number stands in for what is absent: one for the whole moment where it is factored,
    two for row and column where it is not.
    """
    size, *rest = sorted(shape, reverse=True)
    factored = bool(rest) and rest[0] >= FACTORED
    numbers = math.prod(shape)
    return ITEMSIZE[dtype] * (numbers // size + numbers // rest[0] + 1 if factored else numbers + 2)
