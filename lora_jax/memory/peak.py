"""The peak of a step's temporary memory, by hand: what lies beside the step's arguments at its fullest moment.

Letters: N tokens in a batch of B, e bytes of a number in the stream, D width, F feed-forward width, Q = query heads *
head size, K = key/value heads * head size, V vocabulary, L layers; S numbers in all scores, or in one pair of blocks.

A step is fullest in its layers, in its loss or in its update, and they do not add up. In the layers there are the saved
activations, the gradients, and the working set of one layer, which is its feed-forward's or its attention's:

- Feed-forward, arrays of F: the gradients of gate, of up and of their product, 3; the product, if down_proj's gradient
  needs it, 1; gate and up, if they were rematerialized, 2. A bfloat16 product that has two terms (of W and of an
  adapter) is float32 before it is rounded: as much again as the 3 and the 2; one of a dequantized W, as the 3. With an
  adapter of rank 1 XLA multiplies by elements, in float32: 3 more (the same step of rank 2 does without them).
- Beside them, arrays of D: the stream's gradient and both normed inputs, 3; one more if the feed-forward trains. With
  rematerialized blocks the stream, q, k, v and the mixed values: D + 2 Q + 2 K; with dense attention, the softmax too.
- Attention, going back: the block's input, its norm and the gradients of both, 4 of D; the gradients of q, k, v and the
  mixed values, 2 Q + 2 K; q, k and v, if they were rematerialized. Of all scores the softmax and its gradient in
  float32, and the scores' gradient in the stream's dtype. Of one pair of blocks the softmax and its gradient, both in
  float32 and rounded, and the gradients of k and v, which grow in float32.
- Dense attention, going forward: the scores, what hides some of them, the softmax, and a byte that says which.
- To the layer's end the feed-forward's 3 wait for the gradients of its weights. With adapters in bfloat16 they are
  float32, twice as much, but rounded by the time that all scores are largest; with adapters in float32 and
  rematerialized blocks none is left.

To this come a layer's matrices, as gradients if they train, else two of them as they are multiplied with. Scores have
the queries of all layers laid out anew between the passes. The head's gradient is float32, as chunks of the loss add up
to it; of few tokens it is formed late, and the logits' gradient waits for it.

In the loss there are one chunk's logits and their gradient, and arrays of D: the last layer's stream, its norm and the
gradient that goes back, 3. In full fine-tuning the head's gradient besides; and if there is more than one chunk, what
starts as zeros is there already: the layers' gradients, the embedding's if that is not the head's twin, and in bfloat16
what a chunk adds to the head's, rounded. In the update there is every gradient; the embedding's comes last, so that it
was not there before.

Every count stays or grows with batch and length, and so does the estimate. XLA also pads, fuses and reorders, each
version in its own way: hence MARGIN. docs/memory.md has the error on steps that were drawn before this was written.
"""

from __future__ import annotations

from lora_jax.adapters.base import Tree, num_bytes
from lora_jax.memory import activations
from lora_jax.memory.setup import Setup

MARGIN = 0.05  # the stated share by which a plan may exceed the estimate; docs/memory.md counts those beyond it
SMALL = 1_000_000_000  # bytes: in a smaller step one array more or less is a large share, so the compiler is asked
FLOAT32 = 4  # bytes


def temporary(setup: Setup, trainable: Tree) -> tuple[str, int]:
    """`(moment, bytes)`: the fullest of "layers", "loss" and "update", and what it holds beside the arguments."""
    c, B, T, e = setup.config, setup.batch, setup.length, activations.ITEMSIZE[setup.dtype]
    N, D, F, V = B * T, c.hidden_size, c.intermediate_size, c.vocab_size
    Q, K = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    remat, dense, few = setup.remat, setup.attention == "dense", activations.BLOCK
    S = B * c.num_attention_heads * (T if dense else min(T, few)) ** 2
    full, mlp = "embed_tokens" in trainable, activations.trains(trainable, "mlp")
    adapted, rounded = mlp and not full, e < FLOAT32
    sums = rounded and (adapted or setup.quantize is not None)
    thin = rounded and adapted and setup.options.get("rank") == 1

    saved = activations.kept_by_layers(setup, trainable)
    head = min(FLOAT32 * V * D, 2 * N * V * e) if full else 0
    gradients = num_bytes(trainable.get("layers")) + head
    matrices = (3 * D * F + 2 * D * Q + 2 * D * K if full else 2 * D * F) * e

    wide = 3 + mlp + 2 * remat + sums * (3 + 2 * remat * adapted) + 3 * thin
    feed_forward = N * e * (wide * F + (3 + mlp) * D + remat * (D + 2 * Q + 2 * K))
    feed_forward += dense * remat * S * (FLOAT32 + e * rounded)
    waiting = 3 if full else mlp * 3 * ((rounded or not remat) + (rounded and not dense))
    attention = N * e * (waiting * F + 4 * D + 2 * Q + 2 * K + remat * (Q + 2 * K))
    attention += S * (2 * FLOAT32 + e) if dense else 2 * S * (FLOAT32 + e) + 2 * N * K * FLOAT32
    layers = saved + gradients + matrices + max(feed_forward, attention)
    if dense:
        forward = S * (2 * FLOAT32 + e + 1) + N * e * (D + Q + 2 * K)
        between = (gradients if full else 0) + (0 if remat else c.num_hidden_layers * N * Q * e)
        layers = max(layers, saved + forward, saved + between)

    zeros = full and few < N  # of more than one chunk
    # The head's size in bfloat16: what a chunk adds to its gradient, or the head padded, as cuBLAS wants eights.
    twice = V * D * e if rounded and (zeros or V % 8) else 0
    loss = saved + 3 * N * D * e + 2 * min(N, few) * V * e + (FLOAT32 * V * D if full else 0) + twice
    if zeros:
        loss += num_bytes(trainable.get("layers")) + (0 if c.tie_word_embeddings else V * D * e)
    update = gradients + (V * D * e if full else 0)
    return max(("layers", layers), ("loss", loss), ("update", update), key=lambda moment: moment[1])
