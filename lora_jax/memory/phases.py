"""The peak of a step, by hand: what is in memory at each of the moments that can be the fullest, on an NVIDIA GPU.

The logits and the backward pass through the layers do not live together, nor does one product's workspace with
another's. So the peak is the largest of the moments, and not their sum. Each is the layers' saved arrays, the gradients
that exist by then, and what is being worked on, which is counted array by array here and, for the way back, in
`backward`.

The counts were read off XLA's buffer assignments for an H100 (jaxlib 0.10.2), at the peak. Where they follow from the
step's own code they say so; where they follow from the order in which XLA runs independent products, they are what it
does, and this is where the formula is an estimate. The letters are those of `letters`.
"""

from __future__ import annotations

from lora_jax.memory import activations, backward, sizes
from lora_jax.memory.letters import F32, WORKSPACE, Letters, letters, room
from lora_jax.memory.setup import Setup

PACKING, TINY = 2**19, 32 * 2**20  # bytes, in steps whose arrays take no more than TINY


def moments(setup: Setup) -> dict[str, int]:
    """The temporary bytes, beside a step's arguments, of each moment that can be the fullest."""
    s = letters(setup)
    saved = activations.stacked_bytes(setup) + _angles(s)
    gradients = saved + _gradients(s)
    found = {
        "forward, feed-forward": saved + _forward_feed_forward(s),
        "loss": saved + _loss(s),
        "backward, feed-forward": gradients + backward.feed_forward(s),
        "backward, attention": gradients + backward.attention(s),
        "update": _update(s),
    }
    if s.by_scores:
        found["forward, attention"] = saved + _forward_scores(s)
        if not setup.remat:  # XLA lays the queries of all layers out anew before their way back
            queries = setup.config.num_hidden_layers * s.N * s.Q * s.e
            found["between forward and backward"] = (gradients if s.full else saved) + queries
    if s.adapted and s.targets & {"q_proj", "k_proj", "v_proj"}:
        found["backward, projections"] = gradients + backward.projections(s)
    return found


def peak(setup: Setup) -> tuple[str, int]:
    """`(moment, bytes)` of the fullest; on a tiny step's way back with what XLA's packing leaves between arrays."""
    found = moments(setup)
    name = max(found, key=lambda moment: found[moment])
    return name, found[name] + (PACKING if found[name] < TINY and name.startswith("backward") else 0)


def _angles(s: Letters) -> int:
    """The angles of the rotations in float32, C / 2 to a token, and their cosines and sines in the stream's dtype."""
    return s.N * s.setup.config.head_dim // 2 * (F32 + 2 * s.e)


def _gradients(s: Letters) -> int:
    """The gradients there are while the layers run backward: the scan carries those of all layers from its start.

    Of the embedding's there is nothing yet. The head's is complete: in float32 as the loss forms it, or rounded where
    a master copy waits for it; Adafactor has used it by then where the head is a matrix of its own. Of one chunk it
    comes last, and the gradient of the logits waits for it, padded. With the weights of the last norm come its input
    and the loss's d_x, which its scale's gradient needs at the end.
    """
    everything = sizes.trainable_bytes(s.setup)
    if not s.full:
        return everything
    tied, matrix = s.setup.config.tie_word_embeddings, s.V * s.D
    layers = everything - matrix * s.e * (1 if tied else 2)
    if s.one_chunk:
        head = (1 + s.ragged) * s.N * s.V * s.e
    elif s.setup.optimizer == "adafactor" and not tied:
        head = 0
    else:
        head = matrix * (s.e if s.setup.master else F32)
    return layers + head + (0 if s.early else 2 * s.stream * s.e)


def _forward_feed_forward(s: Letters) -> int:
    """The last product of a layer on its way forward.

    Alive: the layer's input, the stream, the normed stream and `mixed`; gate, up and silu(gate) * up; one matrix's
    slice of its stack; by scores the mask, and what it fills with, which XLA makes once for all layers. A quantized or
    adapted product is float32 until it is rounded. Of adapted ones both terms wait for their sum (of rank 1 an outer
    product, which needs no array), gate's beside up's where they are one product. Those of adapted attention wait for
    their stacks.
    """
    setup, wide = s.setup, s.wide
    if s.adapted and setup.rank > 1:
        work = 4 * wide * F32 if s.merged(F32) else 2 * wide * F32 + wide * s.e
    elif s.adapted or s.quantized:
        third = s.adapted and not (s.e < F32 and s.merged(F32))
        work = 2 * wide * F32 + max(wide * (F32 if third else 0), WORKSPACE) + wide * s.e
    else:
        work = 3 * wide * s.e + WORKSPACE
    waiting = 0
    if s.adapted or not s.quantized:
        waiting += s.Q * ("q_proj" in s.targets) + s.KV * ("v_proj" in s.targets)
    if s.quantized and not s.adapted and setup.rank == 1:
        waiting += (s.Q + s.D) * ("o_proj" in s.targets)
    if not s.adapted and setup.rank > 1:
        waiting += s.D * ("o_proj" in s.targets) + s.KV * ("k_proj" in s.targets and not s.by_scores)
    mask = s.scores * (F32 + 1) if s.by_scores else 0
    return work + (3 * s.D + s.Q) * s.N * s.e + s.D * s.F * s.e + waiting * s.N * F32 + mask


def _forward_scores(s: Letters) -> int:
    """All scores in float32, what fills where the mask is, the weights as they are rounded, the mask; q, k, v and x."""
    return s.scores * (2 * F32 + s.e + 1) + (s.D + s.Q + 2 * s.KV) * s.N * s.e


def _loss(s: Letters) -> int:
    """One chunk of the loss: its logits and their gradient; x, cut into chunks, and d_x as it grows, beside the stream.

    Where the head trains its gradient grows in float32, in place. In bfloat16 a vocabulary other than 8k is padded.
    """
    _, chunk = activations.even(s.N)
    logits = chunk * s.V * s.e
    logits += room(logits) if s.e == F32 and not s.full else logits + WORKSPACE
    pad = s.V * s.D * s.e if s.e < F32 and s.V % 8 else 0
    return 3 * s.stream * s.e + logits + (F32 * s.V * s.D if s.full else 0) + pad


def _update(s: Letters) -> int:
    """Every gradient, the head's in float32 as the loss has summed it; of one chunk, all but the embedding's."""
    everything, head = sizes.trainable_bytes(s.setup), s.V * s.D
    if not s.full:
        return everything
    if s.one_chunk:
        return everything - head * s.e + (1 + s.ragged) * s.N * s.V * s.e + WORKSPACE
    return everything + head * (F32 - s.e)
