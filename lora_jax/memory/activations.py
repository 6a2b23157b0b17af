"""What the backward pass is left with, by hand: every array that a step keeps, from the shape of the model alone.

Letters: B batch, T length, N = B * T tokens, D width, F feed-forward width, H query heads, K key/value heads,
G = H / K, C head size, V vocabulary, L layers; of blockwise attention, P the length of a block and Z blocks.

The package decides what is kept, and five rules of it are all that stands below:

- A block keeps its input, what its large products made (`transformer.KEPT`), and no norm, gated product or x @ A, which
  are worked out again. With rematerialized blocks it keeps its input alone. Methods do not differ in this: a LoRA
  needs the same arrays to reach the layers below it, so it saves no activation memory.
- Blockwise attention keeps `mixed` and the log-sum-exp block by block, the last block padded: Z * P >= T. Dense
  attention does not read `mixed` again; it is kept where o_proj trains or is adapted, whose input it is.
- The last norm stands outside the blocks. Autodiff keeps its input in float32, the mean square's root and the root's
  derivative (4 bytes a token each) and the scale as one row; where the scale trains, the normed stream too.
- A learned prompt is a sequence of its own, read once a step: it keeps what a batch of one keeps, and its keys and
  values, which every sequence sees. Where the two attentions are joined, both results are needed: `mixed` is kept.
- The loss forms its gradients on the way forward and keeps them: d_x in the dtype of the stream, d_head in float32,
  and the number of tokens learned.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import jax

from lora_jax.adapters.base import Tree
from lora_jax.attention import BLOCK
from lora_jax.errors import InputError
from lora_jax.memory.setup import Setup
from lora_jax.transformer import Config

ITEMSIZE = {"float32": 4, "int32": 4, "bfloat16": 2, "key<fry>": 8}  # bytes
LOSS = ("d_x", "d_head", "tokens learned")  # the roles that are the loss's
# The roles that are the adapters': those on some layers are spread over all of them, and dropout has keys. Not counted
# here, since they grow with no batch.
ADAPTERS = ("spread adapters", "dropout's keys")


@dataclass(frozen=True)
class Kept:
    """One array that is kept for the backward pass, by its role in the step."""

    role: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


def even(length: int, most: int = BLOCK) -> tuple[int, int]:
    """`(pieces, length of one)`: `length` in pieces of at most `most`, as even as can be."""
    piece = math.ceil(length / math.ceil(length / most))
    return math.ceil(length / piece), piece


def check(trainable: Tree, *, full: bool) -> None:
    """Raise InputError for adapters on the embedding or the head: what they keep is not counted here."""
    if not full and (odd := [name for name in trainable if name not in ("layers", "prompt")]):
        raise InputError(
            f"the estimate counts adapters in the layers alone, and not on {', '.join(odd)}: choose other targets"
        )


def prompt_length(trainable: Tree) -> int:
    """P, the embeddings of a learned prompt; 0 where there is none."""
    return sum(leaf.shape[0] for leaf in jax.tree.leaves(trainable.get("prompt")))


def trains(trainable: Tree, name: str) -> bool:
    """Whether anything trains under that name."""
    return any(f"'{name}'" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(trainable))


def block_arrays(setup: Setup, trainable: Tree) -> tuple[Kept, ...]:
    """What one block makes that `transformer.KEPT` names, without L in front."""
    c, dtype, B, T = setup.config, setup.dtype, setup.batch, setup.length
    N, F, C, H, K = B * T, c.intermediate_size, c.head_dim, c.num_attention_heads, c.num_key_value_heads
    Z, P = even(T)
    mixed = {
        "dense": (Kept("mixed", (B, T, H, C), dtype),) if trains(trainable, "o_proj") or "prompt" in trainable else (),
        "blockwise": (
            Kept("mixed", (Z, B, K, H // K * P, C), dtype),
            Kept("log_sum_exp", (Z, B, K, H // K * P), "float32"),
        ),
    }
    return (
        Kept("q", (B, T, H, C), dtype),
        Kept("k", (B, T, K, C), dtype),
        Kept("v", (B, T, K, C), dtype),
        *mixed[setup.attention],
        Kept("stream", (N, c.hidden_size), dtype),
        Kept("gate", (N, F), dtype),
        Kept("up", (N, F), dtype),
    )


def kept(setup: Setup, trainable: Tree) -> tuple[Kept, ...]:
    """Every array that autodiff keeps of the step's loss, arguments aside: equal to rung 2 role by role."""
    c, dtype, B, T = setup.config, setup.dtype, setup.batch, setup.length
    N, D, L = B * T, c.hidden_size, c.num_hidden_layers
    layers = (Kept("block input", (N, D), dtype), *(() if setup.remat else block_arrays(setup, trainable)))
    return (
        *kept_of_prompt(setup, trainable),
        *((Kept("token ids", (B, T, 1), "int32"),) if "embed_tokens" in trainable else ()),  # whose rows get gradients
        Kept("angles", (B, T, c.head_dim // 2), "float32"),
        Kept("segments", (B, T), "int32"),
        *(Kept(one.role, (L, *one.shape), one.dtype) for one in layers),
        Kept("final norm", (N, D), "float32"),
        Kept("final norm", (N, 1), "float32"),
        Kept("final norm", (N, 1), "float32"),
        Kept("final norm", (1, D), dtype),
        *((Kept("final norm", (N, D), dtype),) if "norm" in trainable else ()),
        Kept("d_x", (N, D), dtype),
        Kept("d_head", head_shape(c), "float32"),
        Kept("tokens learned", (), "float32"),
    )


def kept_of_prompt(setup: Setup, trainable: Tree) -> tuple[Kept, ...]:
    """What a learned prompt keeps: up to the last layer what a sequence does, and its keys and values."""
    if not (P := prompt_length(trainable)):
        return ()
    c = setup.config
    text = kept(dataclasses.replace(setup, batch=1, length=P), {"layers": trainable.get("layers", {})})
    own = (one for one in text if one.role not in (*LOSS, "final norm"))
    past = Kept("past", (c.num_hidden_layers, P, c.num_key_value_heads, c.head_dim), setup.dtype)
    return (*(dataclasses.replace(one, role=f"prompt's {one.role}") for one in own), past, past)


def head_shape(config: Config) -> tuple[int, int]:
    """(D, V), or (V, D) where the head is the embedding's twin."""
    V, D = config.vocab_size, config.hidden_size
    return (V, D) if config.tie_word_embeddings else (D, V)


def saved_bytes(setup: Setup, trainable: Tree) -> int:
    """Saved activations: all that is kept of the stream and the blocks, up to the loss."""
    return sum(one.bytes for one in kept(setup, trainable) if one.role not in LOSS)


def kept_by_layers(setup: Setup, trainable: Tree) -> int:
    """The part of it that is the layers' and what all of them share: there as long as there are layers to go back."""
    others = (*LOSS, "token ids", "final norm")
    return sum(one.bytes for one in kept(setup, trainable) if one.role not in others)
