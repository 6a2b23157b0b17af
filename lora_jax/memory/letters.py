"""A setup in the letters of the formula's peak, and the few rules of XLA's that more than one of its moments needs.

e bytes of one number of the stream; N tokens; D width, F feed-forward width, Q = query heads * head size, KV =
key/value heads * head size, V vocabulary, R rank; H query heads, T length, and in blocks P the length of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lora_jax.memory import activations, sizes
from lora_jax.memory.setup import Setup

F32 = 4  # bytes
# What XLA grants cuBLASLt beside its operands on a card of Hopper's generation: one for each product as it runs.
WORKSPACE = 4 * 2**20
MERGED = 64 * 2**20  # bytes of operands and result up to which XLA was seen to make one product of two, side by side
SMALL = 4 * 2**20  # numbers in a feed-forward's operands and result up to which adapters' gradients were seen early
SOON = 20_000_000  # the same of full fine-tuning with rematerialized blocks


@dataclass(frozen=True)
class Letters:
    """A setup in letters."""

    setup: Setup
    e: int
    N: int
    D: int
    F: int
    Q: int
    KV: int
    V: int
    full: bool
    quantized: bool
    targets: frozenset[str]

    @property
    def wide(self) -> int:
        """The numbers in one array as wide as the feed-forward."""
        return self.N * self.F

    @property
    def stream(self) -> int:
        """The numbers in one array as wide as the stream."""
        return self.N * self.D

    @property
    def adapted(self) -> bool:
        """Whether the feed-forward has adapters: its wide arrays are then float32 until they are rounded."""
        return "gate_proj" in self.targets or "up_proj" in self.targets

    @property
    def rounds(self) -> bool:
        """Whether the adapters' products are multiplied in bfloat16: of rank 1 they are sums, and taken in float32."""
        return self.e < F32 and self.setup.rank > 1

    @property
    def scores(self) -> int:
        """How many scores there are where all are there at once."""
        return self.setup.batch * self.setup.config.num_attention_heads * self.setup.length**2

    @property
    def grouped(self) -> bool:
        """Whether query heads share key/value heads."""
        return self.Q > self.KV

    @property
    def by_scores(self) -> bool:
        """Whether attention has all scores at once."""
        return self.setup.attention == "scores"

    @property
    def one_block(self) -> bool:
        """Whether attention in blocks has one: its loop is none, and its scores can wait like those of all."""
        return not self.by_scores and activations.even(self.setup.length)[0] == 1

    @property
    def one_chunk(self) -> bool:
        """Whether the loss has one chunk: there is no loop, and the head's gradient need not grow in float32."""
        return activations.even(self.N)[0] == 1

    @property
    def ragged(self) -> bool:
        """Whether cuBLAS needs the tokens padded: in bfloat16, other than 8k of them."""
        return self.e < F32 and self.N % 8 > 0

    @property
    def frees(self) -> bool:
        """Whether a wide array that a gradient is made of takes more than that gradient and its workspace."""
        return self.wide * self.e > WORKSPACE + self.D * self.F * F32

    @property
    def early(self) -> bool:
        """Whether the feed-forward has what trains of it worked out before attention goes backward, in blocks.

        XLA tries several orders and keeps the one whose peak it finds lowest. Full fine-tuning was seen to have its
        gradients early where they free memory and gate's and up's are one product; adapters in float32, where small.
        """
        if self.setup.remat or self.by_scores:
            return False
        if self.full:
            return self.frees and self.merged(self.e) and not self.ragged
        some = self.adapted and self.e == F32 and self.setup.rank > 1 and (self.quantized or self.setup.freeze_a)
        return some and self.wide + self.stream + self.D * self.F <= SMALL

    @property
    def soon(self) -> bool:
        """The same of full fine-tuning with rematerialized blocks: where the gradients are small besides."""
        small = self.D * self.F * F32 <= WORKSPACE // 2 and self.wide + self.stream + self.D * self.F <= SOON
        return self.full and self.setup.remat and not self.by_scores and self.frees and small

    @property
    def matrices(self) -> int:
        """The numbers in one layer's matrices."""
        return sum(i * o for i, o in sizes.matrices(self.setup.config).values())

    @cached_property
    def again(self) -> dict[str, int]:
        """What a rematerialized block makes again for its backward pass, in bytes by role."""
        return {one.role: one.bytes for one in activations.block_arrays(self.setup)} if self.setup.remat else {}

    def merged(self, itemsize: int) -> bool:
        """Whether XLA makes one product of gate's and up's, whose result has numbers of `itemsize` bytes."""
        return self.wide * itemsize + (self.stream + self.D * self.F) * self.e <= MERGED


def letters(setup: Setup) -> Letters:
    c, full = setup.config, setup.method == "full"
    targets = () if full else sizes.targeted(c, setup.targets)
    return Letters(
        setup,
        sizes.ITEMSIZE[setup.dtype],
        setup.batch * setup.length,
        c.hidden_size,
        c.intermediate_size,
        c.num_attention_heads * c.head_dim,
        c.num_key_value_heads * c.head_dim,
        c.vocab_size,
        full,
        setup.method == "qlora",
        frozenset(name.split(".")[1] for name in targets),
    )


def room(arrays: int) -> int:
    """What arrays and a workspace take that are not there at once: smaller arrays leave no hole that it would fit."""
    return arrays if arrays >= WORKSPACE else arrays + WORKSPACE
