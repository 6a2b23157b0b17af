"""The peak of a step, by hand: what is in memory at each of the moments that can be the fullest, on an NVIDIA GPU.

The logits and the backward pass through the layers do not live together, nor does one product's workspace with
another's. So the peak is the largest of the moments, and not their sum. Each is the layers' saved arrays, the gradients
that exist by then, and what is being worked on, which is counted array by array below.

The counts were read off XLA's buffer assignments for an H100 (jaxlib 0.10.2), at the peak. Where they follow from the
step's own code they say so; where they follow from the order in which XLA runs independent products, they are what it
does, and this is where the formula is an estimate.

Letters: e bytes of one number of the stream; N tokens; D width, F feed-forward width, Q = query heads * head size,
KV = key/value heads * head size, V vocabulary, R rank; H query heads, T length, and in blocks P the length of one.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_jax.memory import activations, sizes
from lora_jax.memory.setup import Setup

F32 = 4  # bytes
# What XLA grants cuBLASLt beside its operands on a card of Hopper's generation: one for each product as it runs.
WORKSPACE = 4 * 2**20


@dataclass(frozen=True)
class _Step:
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
    def padded(self) -> int:
        """What stays of padding, in bfloat16: other than 8k tokens are padded for cuBLAS.

        Two of the sums, d_h as it comes beside x @ A, wait padded for their slices, with one padded stream. Over NF4
        the two are products apart.
        """
        aligned = self.quantized or self.N % 8 == 0
        return 0 if aligned else 2 * self.N * (self.D + self.setup.rank) * F32 + self.N * self.D * self.e

    @property
    def matrices(self) -> int:
        """The numbers in one layer's matrices."""
        return sum(i * o for i, o in sizes.matrices(self.setup.config).values())

    @property
    def again(self) -> dict[str, int]:
        """What a rematerialized block makes again for its backward pass, by role."""
        return {one.role: one.bytes for one in activations.block_arrays(self.setup)} if self.setup.remat else {}


def _letters(setup: Setup) -> _Step:
    c, full = setup.config, setup.method == "full"
    targets = () if full else sizes.targeted(c, setup.targets)
    return _Step(
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


def moments(setup: Setup) -> dict[str, int]:
    """The temporary bytes, beside a step's arguments, of each moment that can be the fullest."""
    s = _letters(setup)
    saved = activations.stacked_bytes(setup) + _angles(s)
    gradients = saved + _gradients(s)
    found = {
        "forward, feed-forward": saved + _forward_feed_forward(s),
        "loss": saved + _loss(s),
        "backward, feed-forward": gradients + _backward_feed_forward(s),
        "backward, attention": gradients + _backward_attention(s),
        "update": sizes.trainable_bytes(setup) + (s.V * s.D * (F32 - s.e) if s.full else 0),
    }
    if setup.attention == "scores":
        found["forward, attention"] = saved + _forward_scores(s)
    if s.adapted and s.targets & {"q_proj", "k_proj", "v_proj"}:
        found["backward, projections"] = gradients + _backward_projections(s)
    return found


def peak(setup: Setup) -> tuple[str, int]:
    """`(moment, bytes)` of the fullest."""
    found = moments(setup)
    name = max(found, key=lambda moment: found[moment])
    return name, found[name]


def _angles(s: _Step) -> int:
    """The angles of the rotations in float32, C / 2 to a token, and their cosines and sines in the stream's dtype."""
    return s.N * s.setup.config.head_dim // 2 * (F32 + 2 * s.e)


def _gradients(s: _Step) -> int:
    """The gradients there are while the layers run backward: the scan carries those of all layers from its start.

    Of the embedding's there is nothing yet. The head's is complete: in float32 as the loss forms it, or rounded where
    a master copy waits for it; Adafactor has used it by then where the head is a matrix of its own. With the weights
    of the last norm come its input and the loss's d_x, which its scale's gradient needs at the end.
    """
    everything = sizes.trainable_bytes(s.setup)
    if not s.full:
        return everything
    tied = s.setup.config.tie_word_embeddings
    head = s.V * s.D * (s.e if s.setup.master else F32)
    used = s.setup.optimizer == "adafactor" and not tied
    return everything - s.V * s.D * s.e * (1 if tied else 2) + (0 if used else head) + 2 * s.N * s.D * s.e


def _forward_feed_forward(s: _Step) -> int:
    """The last product of a layer on its way forward.

    Alive: the layer's input, the stream, the normed stream and `mixed`; gate, up and silu(gate) * up; one matrix's
    slice of its stack. A quantized or adapted product is float32 until it is rounded, and of adapted ones both terms
    wait for their sum (of rank 1 an outer product, which needs no array). Those of adapted q and v wait for their
    stacks.
    """
    wide, setup = s.N * s.F, s.setup
    if s.adapted and setup.rank > 1:
        work = 4 * wide * F32
    elif s.adapted or s.quantized:
        work = 2 * wide * F32 + max(wide * (F32 if s.adapted else 0), WORKSPACE) + wide * s.e
    else:
        work = 3 * wide * s.e + WORKSPACE
    waiting = F32 * s.N * (s.Q * ("q_proj" in s.targets) + s.KV * ("v_proj" in s.targets))
    return work + (3 * s.D + s.Q) * s.N * s.e + s.D * s.F * s.e + waiting


def _forward_scores(s: _Step) -> int:
    """All scores in float32, masked and exp'd, the weights as they are rounded, the mask, beside q, k, v and x."""
    return s.scores * (2 * F32 + s.e + 1) + (s.D + s.Q + 2 * s.KV) * s.N * s.e


def _loss(s: _Step) -> int:
    """One chunk of the loss: its logits and their gradient; x, cut into chunks, and d_x as it grows, beside the stream.

    Where the head trains its gradient grows in float32, in place.
    """
    _, chunk = activations.even(s.N)
    return 3 * s.N * s.D * s.e + 2 * chunk * s.V * s.e + (F32 * s.V * s.D if s.full else 0) + WORKSPACE


def _backward_feed_forward(s: _Step) -> int:
    """The products of a layer's feed-forward, backward; with rematerialized blocks, attention's arrays beside them."""
    setup, wide = s.setup, s.N * s.F
    work = sum(size for role, size in s.again.items() if role not in ("gate", "up"))
    if setup.remat and setup.attention == "scores":  # scores, or weights too, made again and waiting for their own turn
        work += s.scores * (F32 + (s.e if s.full or s.grouped else 0))
    if s.full:
        # d_gate and d_up, once each and once side by side (one product then makes d_h), and silu(gate) * up.
        work += 5 * wide * s.e + (3 * s.D + s.Q) * s.N * s.e + WORKSPACE
        # Rematerialized: the slices of all the layer's matrices, the first gradients, two norms in float32.
        work += (s.matrices + 2 * s.D * s.F) * s.e if setup.remat else s.D * s.F * s.e
        work += 2 * s.N * s.D * F32 if setup.remat and s.e < F32 else 0
    elif s.adapted and s.rounds:
        work += _backward_adapted(s)
    elif s.adapted and setup.remat:
        # Both terms of gate and of up, of d_product; d_gate, d_up and the product (for A's gradient) in float32.
        terms = 7 - setup.freeze_a - 2 * (setup.rank == 1)
        work += terms * wide * F32 + (3 if s.quantized else 1) * wide * s.e
        work += (1 if setup.freeze_a else 3) * s.N * s.D * F32 + 2 * s.N * s.D * s.e
        # NF4 codes as they are; plain matrices in float32 but for the one that is through (of rank 1, XLA's sums take
        # float32 copies in bfloat16 too; no step with both was among those looked at).
        work += s.matrices // 2 if s.quantized else (s.matrices - s.D * s.F) * F32
    elif s.adapted:
        work += (4 - (setup.rank == 1)) * wide * F32 + (wide * s.e if s.e < F32 else 0) + 3 * s.N * s.D * F32
        work += s.D * s.F * (s.e if s.quantized or s.e == F32 else s.e + F32)
    elif s.quantized and setup.remat:
        # d_gate and d_up as they are rounded, beside the three in float32; or both matrices, to multiply with.
        work += 2 * wide * s.e + max(3 * wide * F32, 2 * s.D * s.F * s.e) + (s.Q + s.D) * s.N * s.e
        work += _inputs(s) + (s.matrices - s.D * s.F) // 2
    elif s.quantized:
        work += wide * F32 + 2 * wide * s.e + (s.Q + s.D) * s.N * s.e + 2 * s.N * s.D * F32 + s.D * s.F * s.e
    else:
        work += (5 if setup.remat else 3) * wide * s.e + 4 * s.N * s.D * s.e + 2 * s.D * s.F * s.e + WORKSPACE
    return work


def _backward_adapted(s: _Step) -> int:
    """The products of an adapted feed-forward in bfloat16: float32 until they are rounded, both terms by themselves.

    Whichever is more: d_product's two terms, with d_gate, d_up and silu(gate) * up as they are rounded (rematerialized:
    with gate and up, once more summed), or d_h's four. A's gradient waits for what it was multiplied with.
    """
    setup, wide = s.setup, s.N * s.F
    rounded, stream = 3 * wide * s.e, s.N * s.D * s.e
    extra = s.N * setup.rank * F32  # x @ A comes with x @ W, side by side
    if setup.remat:
        waiting = stream + s.N * s.Q * s.e + (0 if setup.freeze_a else 2 * stream + s.N * s.Q * s.e)
        codes, dense = ((s.matrices - s.D * s.F) // 2, 2 * s.D * s.F * s.e) if s.quantized else (0, 0)
        return max(4 * wide * F32, 4 * s.N * s.D * F32 + dense) + extra + rounded + waiting + codes
    narrow = 4 * s.N * s.D * F32 + 2 * extra + WORKSPACE
    return rounded + stream + max(2 * wide * F32 + extra, narrow)


def _inputs(s: _Step) -> int:
    """What was multiplied with attention's adapted matrices and made again: the gradient of A waits for it."""
    if s.setup.freeze_a:
        return 0
    normed = s.D if s.targets & {"q_proj", "k_proj", "v_proj"} else 0
    return (normed + (s.Q if "o_proj" in s.targets else 0)) * s.N * s.e


def _held(s: _Step) -> int:
    """What the feed-forward and o_proj leave for their weights' gradients, which XLA puts off to the layer's end."""
    setup, wide, stream = s.setup, s.N * s.F, s.N * s.D
    work = sum(size for role, size in s.again.items() if role not in ("gate", "up", "stream"))
    if setup.attention == "scores" and s.adapted and not s.grouped and s.scores * F32 > 2 * 3 * wide * s.e:
        return work + 2 * stream * s.e  # gradients first; that twice is the border is fitted, to a handful of steps
    if s.full and setup.remat:  # the gradients themselves, and the slices of attention's matrices
        return work + (3 * s.D * s.F + 4 * s.D * s.Q) * s.e + 4 * stream * s.e
    if s.full:  # d_gate, d_up and the product; d_stream, the layer's d, two normed streams
        return work + 3 * wide * s.e + 4 * stream * s.e
    if s.adapted and s.rounds:  # d_gate, d_up and the product; streams; for A of o_proj, `mixed` laid out anew
        work += 0 if setup.freeze_a else s.Q * s.N * s.e
        return work + 3 * wide * s.e + (2 if setup.remat else 3) * stream * s.e + s.padded
    if s.adapted and setup.freeze_a:  # B's gradient needs d alone
        return work + 2 * wide * F32 + stream * (F32 + s.e)
    if s.adapted:  # A's needs the inputs too: of down_proj, gate and up, o_proj
        return work + 3 * wide * F32 + (3 * s.D + s.Q) * s.N * F32 + 2 * stream * s.e
    if "o_proj" in s.targets:
        each = s.e if s.rounds else F32
        return work + (s.D if setup.freeze_a else 2 * s.D + s.Q) * s.N * each + 2 * stream * s.e
    return work + 2 * stream * s.e


def _backward_attention(s: _Step) -> int:
    """Attention, backward, with what is held for the layer's end.

    In blocks: q, d_out and d_q, k and v by blocks (padded), d_k and d_v in float32; of one pair of blocks the weights
    and d_weights in float32, and rounded, and d_q. By scores: the scores in float32, d_weights and d_scores, beside q
    and k, d_out and v (adapters in bfloat16: the weights too, where heads are not grouped).
    """
    setup, c = s.setup, s.setup.config
    if setup.attention == "scores":
        weights = not s.full and not s.grouped and s.e < F32
        arrays = s.scores * (F32 + s.e) + max(s.scores * (2 if weights else 1) * s.e, WORKSPACE)
        return _held(s) + arrays + 2 * (s.Q + s.KV) * s.N * s.e
    blocks, length = activations.even(setup.length)
    padded = setup.batch * blocks * length
    pair = setup.batch * c.num_attention_heads * length**2
    loop = 2 * pair * F32 + max(2 * pair * 2, WORKSPACE) + setup.batch * length * s.Q * F32
    return _held(s) + loop + padded * ((3 * s.Q + 2 * s.KV) * s.e + 2 * s.KV * F32)


def _backward_projections(s: _Step) -> int:
    """q, k and v, backward, at the end, counted for all three being adapted.

    In bfloat16 both terms of each one's d_x in float32, d_q, d_k, d_v and the normed stream, twice. Else: d_q, d_k,
    d_v and what they are products of, and of the terms those that are not through.
    """
    setup = s.setup
    if s.rounds:
        extra = 3 * s.N * setup.rank * F32 + (s.Q + 2 * s.D + 2 * s.KV) * s.N * s.e
        return _held(s) + 6 * s.N * s.D * F32 + extra
    numbers = 3 * s.Q + 2 * s.KV + 2 * s.D if setup.rank == 1 else 4 * s.Q + 2 * s.KV + 4 * s.D
    return _held(s) + numbers * s.N * F32 + WORKSPACE
