"""A layer's way back, by hand: what is worked on in its feed-forward, its attention and its projections.

Beside the saved arrays and the gradients, and as an estimate, as `phases` says. Numbers are counted in letters (see
`letters`); everything returned is bytes.
"""

from __future__ import annotations

from lora_jax.memory import activations
from lora_jax.memory.letters import F32, WORKSPACE, Letters, room


def feed_forward(s: Letters) -> int:
    """The products of a layer's feed-forward; with rematerialized blocks, attention's arrays beside them."""
    work = sum(size for role, size in s.again.items() if role not in ("gate", "up"))
    if s.setup.remat and s.by_scores:  # scores and weights, made again and waiting for their own turn
        work += s.scores * (F32 + s.e)
    elif s.setup.remat and s.one_block:
        work += s.scores * F32
    if s.full:
        return work + _full(s)
    if s.adapted:
        return work + (_adapted(s) if s.rounds else _adapted_in_float32(s))
    return work + (_over_nf4(s) if s.quantized else _frozen(s))


def _full(s: Letters) -> int:
    """d_gate and d_up, once each and once side by side (one product then makes d_h), and silu(gate) * up."""
    wide, stream, matrix = s.wide * s.e, s.stream * s.e, s.D * s.F * s.e
    if s.early:
        return 5 * wide + 3 * stream
    if not s.setup.remat:
        return 5 * wide + (3 * s.D + s.Q) * s.N * s.e + WORKSPACE + matrix
    work = 3 * wide + room(2 * wide) + 3 * stream + 2 * matrix  # d and both normed streams; slices of two matrices
    if s.ragged and s.merged(s.e):  # padded for a gradient already
        work += stream if s.soon else wide + stream
    if not s.by_scores:  # where d_q will grow, `mixed` laid out anew; if late, where d_k and d_v will too
        work += (s.Q + s.D) * s.N * s.e + (0 if s.soon else 2 * s.N * s.KV * F32)
    return work


def _adapted(s: Letters) -> int:
    """An adapted feed-forward in bfloat16: its products are float32 until they are rounded, both terms by themselves.

    Whichever is more: d_product's two terms, with d_gate, d_up and silu(gate) * up as they are rounded (rematerialized:
    with gate and up, once more summed), or d_h's four. A's gradient waits for what it was multiplied with.
    """
    setup, wide, stream, query = s.setup, s.wide, s.stream * s.e, s.N * s.Q * s.e
    rounded = 3 * wide * s.e
    extra = s.N * setup.rank * F32  # x @ A comes with x @ W, side by side
    if setup.remat:
        rounded = wide * s.e  # padded ones each by itself, and not together
        if not s.ragged or s.quantized or wide * F32 < 4 * WORKSPACE:
            rounded += max(2 * wide * s.e, WORKSPACE)
        waiting = stream + query + (0 if setup.freeze_a else 2 * stream + query)
        waiting += 7 * s.N * setup.rank * s.e  # each matrix's x @ A, or d @ B, for the gradient of the other factor
        codes, dense = ((s.matrices - s.D * s.F) // 2, 2 * s.D * s.F * s.e) if s.quantized else (0, 0)
        return max(4 * wide * F32, 4 * s.stream * F32 + dense) + extra + rounded + waiting + codes
    narrow = 4 * s.stream * F32 + 2 * extra + WORKSPACE
    return rounded + stream + max(room(2 * wide * F32) + extra, narrow)


def _adapted_in_float32(s: Letters) -> int:
    """An adapted feed-forward whose products stay float32: in float32, or of rank 1, where XLA takes sums instead."""
    setup, wide, stream, matrix = s.setup, s.wide * F32, s.stream * F32, s.D * s.F
    if not setup.remat and s.e < F32:
        return 2 * wide + (2 * s.wide + s.stream + (1 if s.quantized else 2) * matrix) * s.e
    if not setup.remat:
        work = (4 - (setup.rank == 1)) * wide + 3 * stream + matrix * s.e
        # q, k and v by blocks, and where their gradients will grow.
        return work + ((2 * s.Q + 4 * s.KV - s.D) * s.N * F32 if s.early else 0)
    if s.e < F32:
        # gate, up and d_product; d_gate, d_up, the product as they are rounded. NF4 codes as they are; plain matrices
        # in float32 but for the one that is through.
        work = 3 * wide + s.wide * s.e + max(2 * s.wide * s.e, WORKSPACE)
        if not s.quantized:
            work += wide if s.ragged else 0
            return work + 4 * s.stream * s.e + (s.matrices - matrix) * F32
        work += 0 if setup.freeze_a else wide
        return work + (1 if setup.freeze_a else 3) * stream + 2 * s.stream * s.e + s.matrices // 2
    # gate and up, d_product, d_gate and d_up: terms are summed as they come; the matrix that is at work.
    streams = 6 if not setup.freeze_a else 5 if setup.rank == 1 else 3
    work = 3 * wide + room(2 * wide) + streams * stream
    if s.quantized:
        return work + 2 * s.N * s.KV * F32 + (matrix + 2 * s.D * s.Q) // 2
    return work + (s.D + setup.rank) * s.F * F32 + (WORKSPACE if setup.rank > 1 and 2 * wide >= WORKSPACE else 0)


def _over_nf4(s: Letters) -> int:
    """Frozen NF4 matrices: their products are float32 until they are rounded."""
    wide, streams, dense = s.wide, (s.Q + s.D) * s.N * s.e, s.D * s.F * s.e
    if not s.setup.remat:
        return wide * F32 + 2 * wide * s.e + streams + 2 * s.stream * F32 + dense
    # d_gate and d_up as they are rounded, beside the three in float32; or both matrices, to multiply with.
    return room(2 * wide * s.e) + max(3 * wide * F32, 2 * dense) + streams + _inputs(s) + (s.matrices - s.D * s.F) // 2


def _frozen(s: Letters) -> int:
    """Frozen plain matrices: nothing of the feed-forward waits for a gradient."""
    wide, stream, matrix = s.wide * s.e, s.stream * s.e, s.D * s.F * s.e
    if not s.setup.remat:
        return 3 * wide + 4 * stream + 2 * matrix + WORKSPACE
    # gate and up, d_product, d_gate and d_up; or the last two's matrices, side by side, or a product's workspace.
    last = room(2 * max(wide, matrix)) if s.merged(s.e) else 2 * (wide + matrix)
    anew = not s.by_scores or s.e == F32
    if s.e < F32 and s.setup.rank == 1:  # no products of adapters: nothing is padded for them, or waits
        return 3 * wide + last + (1 + anew) * stream
    pads = 2 if s.ragged and "o_proj" in s.targets else 0
    return 3 * wide + last + _inputs(s) + (1 + anew + pads) * stream


def _inputs(s: Letters) -> int:
    """What was multiplied with attention's adapted matrices and made again: the gradient of A waits for it."""
    if s.setup.freeze_a:
        return 0
    normed = s.D if s.targets & {"q_proj", "k_proj", "v_proj"} else 0
    return (normed + (s.Q if "o_proj" in s.targets else 0)) * s.N * s.e


def attention(s: Letters) -> int:
    """Attention, with what the feed-forward and o_proj hold for the layer's end.

    In blocks: q, d_out and d_q, k and v by blocks (padded), d_k and d_v in float32; of one pair of blocks the weights
    and d_weights in float32, and rounded, and d_q. By scores: the scores in float32, d_weights and d_scores, beside q
    and k, d_out and v (adapters in bfloat16: the weights too, where heads are not grouped).
    """
    setup = s.setup
    if s.by_scores:
        waiting = not s.grouped if not s.full else s.setup.remat and s.D <= 512
        weights = s.e < F32 and (waiting or (s.setup.remat and not s.full and s.setup.rank == 1))
        arrays = s.scores * (F32 + s.e) + max(s.scores * (2 if weights else 1) * s.e, WORKSPACE)
        return _held(s) + arrays + 2 * (s.Q + s.KV) * s.N * s.e
    blocks, length = activations.even(setup.length)
    padded = setup.batch * blocks * length
    pair = setup.batch * setup.config.num_attention_heads * length**2
    work = _held(s) + 2 * pair * F32 + max(2 * pair * s.e, WORKSPACE)
    if s.one_block:  # no loop, and nothing to grow
        return work + padded * 2 * (s.Q + s.KV) * s.e
    slices = setup.batch * length * (s.Q if s.e < F32 else 3 * s.Q + 2 * s.KV) * F32
    return work + slices + padded * ((3 * s.Q + 2 * s.KV) * s.e + 2 * s.KV * F32)


def projections(s: Letters) -> int:
    """q, k and v, at the end, counted for all three being adapted.

    In bfloat16 both terms of each one's d_x in float32, d_q, d_k, d_v and the normed stream, twice. Else: d_q, d_k,
    d_v and what they are products of, and of the terms those that are not through.
    """
    if s.rounds:
        extra = 3 * s.N * s.setup.rank * F32 + (s.Q + 2 * s.D + 2 * s.KV) * s.N * s.e
        return _held(s) + 6 * s.stream * F32 + extra
    numbers = s.Q + 2 * s.KV + 3 * s.D if s.setup.rank > 1 else 2 * s.Q + 2 * s.KV + 2 * s.D
    return _held(s) + numbers * s.N * F32 + WORKSPACE


def _held(s: Letters) -> int:
    """What the feed-forward and o_proj leave for their weights' gradients, which XLA mostly puts off to the end."""
    setup, stream = s.setup, s.stream * s.e
    if s.adapted and s.e == F32 and setup.remat:
        if s.quantized or setup.freeze_a or setup.rank == 1:  # through: d_stream, and what A of q, k and v is fed
            return stream * (1 if setup.freeze_a else 2)
        return 2 * s.wide * F32 + (s.Q + 3 * s.D) * s.N * F32  # d_gate and d_up; d, `mixed` too
    work = sum(size for role, size in s.again.items() if role not in ("gate", "up", "stream"))
    if s.by_scores and s.adapted and not s.grouped and s.scores * F32 > 6 * s.wide * s.e:
        return work + 2 * stream  # gradients first; that twice 3 * wide is the border is fitted, to a handful of steps
    if s.full:
        return work + _held_in_full(s)
    if s.early:
        return work + stream
    if s.adapted and s.e < F32 and setup.rank == 1 and setup.remat:  # the three as they are rounded
        return work + 3 * s.wide * s.e + 2 * stream
    if s.adapted and s.e < F32 and setup.rank == 1 and s.merged(F32):
        if s.wide * F32 < WORKSPACE and not s.quantized:
            return work + 2 * s.wide * F32 + 3 * s.stream * F32
        return work + stream + (3 * s.wide * s.e if s.quantized else 0)
    if s.adapted and s.rounds:  # d_gate, d_up and the product; streams; for A of o_proj, `mixed` laid out anew
        work += 0 if setup.freeze_a else s.Q * s.N * s.e
        return work + 3 * s.wide * s.e + (2 if setup.remat else 3) * stream + _padding(s)
    if s.adapted and setup.freeze_a:  # B's gradient needs d alone
        return work + (3 * s.wide * F32 + 4 * stream if s.e == F32 else 2 * s.wide * F32 + s.stream * F32 + stream)
    if s.adapted:  # A's needs the inputs too: of down_proj, gate and up, o_proj
        return work + 3 * s.wide * F32 + (3 * s.D + s.Q) * s.N * F32 + (2 * stream if s.e < F32 else 0)
    if "o_proj" in s.targets:
        each = s.e if s.rounds else F32
        return work + (s.D if setup.freeze_a else 2 * s.D + s.Q) * s.N * each + 2 * stream
    return work + 2 * stream


def _held_in_full(s: Letters) -> int:
    """Full fine-tuning's: what was multiplied, or its product."""
    stream = s.stream * s.e
    if s.setup.remat:  # the gradients themselves, and the slices of attention's matrices
        return (3 * s.D * s.F + 4 * s.D * s.Q) * s.e + 4 * stream
    if s.early:  # the product; d_stream, the layer's d
        return s.wide * s.e + 2 * stream
    return 3 * s.wide * s.e + 4 * stream  # d_gate, d_up and the product; d_stream, the layer's d, two normed streams


def _padding(s: Letters) -> int:
    """What stays of padding: two of the sums, d_h as it comes beside x @ A, wait for their slices, with one stream.

    Over NF4 the two are products apart.
    """
    if s.quantized or not s.ragged:
        return 0
    return 2 * s.N * (s.D + s.setup.rank) * F32 + s.stream * s.e
