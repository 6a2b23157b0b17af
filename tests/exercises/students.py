"""Wrong answers as students write them, at least six of unlike kinds for each exercise: none may be called right.

Each is nearly right: for the visible example, for usual sizes, for sorted input, for moderate numbers, or in exact
arithmetic. `test_students.py` asks them all; the sentences that learners get are in the tests of each notebook.
"""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

STUDENTS = {}
HALF = ml_dtypes.bfloat16


def students(id, **answers):
    STUDENTS.setdefault(id, {}).update(answers)


def whole(function):
    """The same with every number of the result in float32."""
    return lambda *arguments: jax.tree.map(np.float32, function(*arguments))


# Notebook 01.
def count(V, D, F, L, H, K, C, tied, *, q=None, gates=3, norms=2, last=1):
    layer = 2 * D * (q or H * C) + 2 * D * K * C + gates * D * F + norms * D
    return V * D * (1 if tied else 2) + L * layer + last * D


students(
    "1.1",
    in_float32=whole(count),
    in_bytes=lambda *shape: 4 * count(*shape),
    heads_as_wide_as_the_model=lambda V, D, F, L, H, K, C, tied: count(V, D, F, L, H, K, C, tied, q=D),
    head_size_from_the_width=lambda V, D, F, L, H, K, C, tied: count(V, D, F, L, H, K, D // H, tied),
    tied_the_other_way_round=lambda *shape: count(*shape[:-1], not shape[-1]),
    with_biases=lambda V, D, F, L, H, K, C, tied: count(V, D, F, L, H, K, C, tied) + L * (H * C + 2 * K * C),
    one_layer_too_many=lambda V, D, F, L, *rest: count(V, D, F, L + 1, *rest),
    a_norm_too_many=lambda *shape: count(*shape, last=2),
    in_a_list=lambda *shape: [count(*shape)],
    in_millions=lambda *shape: count(*shape) / 1e6,
    by_heart=lambda *shape: 46032,
)


def mask_of(segments):
    return np.pad((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0), ((0, 0), (0, 1)))


def in_place(tokens, segments):
    mask = mask_of(segments)
    tokens[:, :-1] = tokens[:, 1:]
    return tokens, mask


students(
    "1.2",
    padding_by_token=lambda tokens, segments: (
        np.roll(tokens, -1, 1), mask_of(segments) & (np.roll(tokens, -1, 1) != 0)),
    flattened=lambda tokens, segments: (np.roll(tokens, -1), np.roll(segments, -1) == segments),
    rolled_mask=lambda tokens, segments: (np.roll(tokens, -1, 1), np.roll(mask_of(segments), 1, 1)),
    only_padding_masked=lambda tokens, segments: (np.roll(tokens, -1, 1), segments != 0),
    two_documents_at_most=lambda tokens, segments: (
        np.roll(tokens, -1, 1), mask_of(np.minimum(segments, 2))),
    ends_not_learned=lambda tokens, segments: (
        np.roll(tokens, -1, 1), mask_of(segments) & np.roll(mask_of(segments), -1, 1)),
    ids_in_float32=lambda tokens, segments: (np.roll(tokens, -1, 1).astype(np.float32), mask_of(segments)),
    ids_in_a_byte=lambda tokens, segments: (np.roll(tokens, -1, 1).astype(np.uint8), mask_of(segments)),
    mask_first=lambda tokens, segments: (mask_of(segments), np.roll(tokens, -1, 1)),
    cut_short=lambda tokens, segments: (tokens[:, 1:], mask_of(segments)[:, :-1]),
    changes_its_tokens=in_place,
    a_weight_for_each_document=lambda tokens, segments: (np.roll(tokens, -1, 1), mask_of(segments) * segments),
)  # fmt: skip


def picked(values, targets):
    return jnp.take_along_axis(jnp.asarray(values), targets[..., None], axis=-1)[..., 0]


def average(nats, mask):
    return jnp.sum(nats * mask) / jnp.sum(mask)


def loss(logits, targets, mask):
    return average(-picked(jax.nn.log_softmax(logits, -1), targets), mask)


def bare_softmax(logits):
    return jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)


students(
    "1.3",
    log_of_a_softmax=lambda z, t, m: average(-jnp.log(picked(jax.nn.softmax(z, -1), t)), m),
    log_of_a_softmax_in_float64=lambda z, t, m: average(
        -np.log(picked(np.exp(np.float64(z) - z.max(-1, keepdims=True)), t)
                / np.exp(np.float64(z) - z.max(-1, keepdims=True)).sum(-1)), m),
    a_small_number_added=lambda z, t, m: average(-jnp.log(picked(jax.nn.softmax(z, -1), t) + 1e-9), m),
    clipped_probability=lambda z, t, m: average(-jnp.log(jnp.clip(picked(jax.nn.softmax(z, -1), t), 1e-30)), m),
    clipped_logits=lambda z, t, m: loss(np.clip(z, -50, 50), t, m),
    one_largest_for_all=lambda z, t, m: average(-jnp.log(picked(bare_softmax(z - z.max()), t)), m),
    one_largest_for_a_row=lambda z, t, m: average(-picked(
        (s := z - z.max((1, 2), keepdims=True)) - jnp.log(jnp.exp(s).sum(-1, keepdims=True)), t), m),
    overflowing_logsumexp=lambda z, t, m: average(jnp.log(jnp.exp(z).sum(-1)) - picked(z, t), m),
    softmax_over_the_batch=lambda z, t, m: average(-picked(jax.nn.log_softmax(z, 0), t), m),
    means_of_rows=lambda z, t, m: jnp.mean(
        jnp.sum(-picked(jax.nn.log_softmax(z, -1), t) * m, 1) / jnp.maximum(m.sum(1), 1)),
    mask_ignored=lambda z, t, m: loss(z, t, np.ones_like(m)),
    in_bits=lambda z, t, m: loss(z, t, m) / math.log(2),
    in_16_bits=lambda z, t, m: loss(z.astype(HALF), t, m),
    rounded_to_cents=lambda z, t, m: round(float(loss(z, t, m)), 2),
    targets_shifted_again=lambda z, t, m: loss(z[:, :-1], t[:, 1:], m[:, 1:]) if t.shape[1] > 1 else loss(z, t, m),
    squared_error=lambda z, t, m: average((1 - picked(jax.nn.softmax(z, -1), t)) ** 2, m),
    in_an_array=lambda z, t, m: loss(z, t, m)[None],
)  # fmt: skip
students("1.4", in_bits=11, log10=math.log10(2048), inverse=1 / math.log(2048), probability=1 / 2048,
         of_another_vocabulary=math.log(50257), half=math.log(1024), as_text="ln 2048", nothing=0.0)  # fmt: skip


def step(params, gradients, rate):
    return jax.tree.map(lambda w, g: w - rate * g, params, gradients)


def step_in_place(params, gradients, rate):
    for w, g in zip(jax.tree.leaves(params), jax.tree.leaves(gradients), strict=True):
        w -= rate * g
    return params


def by_order(params, gradients, rate):
    if isinstance(params, dict):
        pairs = zip(params, params.values(), gradients.values(), strict=True)
        return {name: by_order(w, g, rate) for name, w, g in pairs}
    if isinstance(params, list):
        return [by_order(w, g, rate) for w, g in zip(params, gradients, strict=True)]
    return params - rate * gradients


students(
    "1.5",
    in_place=step_in_place,
    paired_by_order=by_order,
    top_level_alone=lambda p, g, rate: {name: p[name] - rate * g[name] if hasattr(p[name], "shape") else p[name]
                                        for name in p} if isinstance(p, dict) else p - rate * g,
    a_fixed_rate=lambda p, g, rate: step(p, g, 0.1),
    in_16_bits=lambda p, g, rate: jax.tree.map(lambda w: np.asarray(w, HALF), step(p, g, rate)),
    update_in_16_bits=lambda p, g, rate: jax.tree.map(lambda w, g: w - np.asarray(rate * g, HALF).astype("f4"), p, g),
    normalized=lambda p, g, rate: jax.tree.map(lambda w, g: w - rate * g / (np.linalg.norm(g) + 1e-8), p, g),
    clipped=lambda p, g, rate: jax.tree.map(lambda w, g: w - rate * np.clip(g, -1, 1), p, g),
    decayed=lambda p, g, rate: jax.tree.map(lambda w, g: w - rate * (g + 0.01 * w), p, g),
    matrices_alone=lambda p, g, rate: jax.tree.map(lambda w, g: w - rate * g if w.ndim > 1 else w, p, g),
    a_list_of_arrays=lambda p, g, rate: jax.tree.leaves(step(p, g, rate)),
)  # fmt: skip


# Notebook 02.
def parameters(c, **other):
    c = c | other
    D, C = c["hidden_size"], c["head_dim"]
    layer = 2 * D * C * (c["num_attention_heads"] + c["num_key_value_heads"]) + 3 * D * c["intermediate_size"] + 2 * D
    return D * c["vocab_size"] * (2 - c["tie_word_embeddings"]) + c["num_hidden_layers"] * layer + D


students(
    "2.1",
    in_float32=whole(parameters),
    head_size_from_the_width=lambda c: parameters(c, head_dim=c["hidden_size"] // c["num_attention_heads"]),
    all_heads_alike=lambda c: parameters(c, num_key_value_heads=c["num_attention_heads"]),
    always_tied=lambda c: parameters(c, tie_word_embeddings=True),
    never_tied=lambda c: parameters(c, tie_word_embeddings=False),
    tied_the_other_way_round=lambda c: parameters(c, tie_word_embeddings=not c["tie_word_embeddings"]),
    four_times_as_wide=lambda c: parameters(c, intermediate_size=4 * c["hidden_size"]),
    in_bytes=lambda c: 2 * parameters(c),
    in_millions=lambda c: round(parameters(c) / 1e6),
    with_biases=lambda c: parameters(c) + c["num_hidden_layers"] * c["num_attention_heads"] * c["head_dim"],
    a_layer_too_few=lambda c: parameters(c, num_hidden_layers=c["num_hidden_layers"] - 1),
    changes_the_config=lambda c: parameters(c) + 0 * len(c.pop("head_dim") * [0]),
)


def state(P, master, moments=4, count=4, gradients=2, weights=2):
    held = 12 * P if master else moments * P
    return {"weights": weights * P, "gradients": gradients * P, "optimizer state": held + count}


students(
    "2.2",
    in_float32=whole(state),
    no_count=lambda P, master: state(P, master, count=0),
    count_of_8=lambda P, master: state(P, master, count=8),
    a_count_for_each=lambda P, master: state(P, master, count=4 * P),
    master_ignored=lambda P, master: state(P, True),
    master_never=lambda P, master: state(P, False),
    master_the_other_way=lambda P, master: state(P, not master),
    float32_gradients=lambda P, master: state(P, master, gradients=4 if master else 2),
    copy_among_the_weights=lambda P, master: state(P, master, weights=6 if master else 2),
    a_sum=lambda P, master: sum(state(P, master).values()),
    a_tuple=lambda P, master: tuple(state(P, master).values()),
    even_numbers_alone=lambda P, master: state(P // 2 * 2, master),
    in_gigabytes=lambda P, master: {name: size / 1e9 for name, size in state(P, master).items()},
)


def working(N, D, F, Q, K, size, remat, again=(2, 1, 2, 2)):
    made = again[0] * F + again[1] * D + again[2] * Q + again[3] * K
    return N * size * (4 * F + 4 * D + (made if remat else 0))


students(
    "2.3",
    in_float32=whole(working),
    always_made_again=lambda *a: working(*a[:-1], True),
    never_made_again=lambda *a: working(*a[:-1], False),
    the_other_way=lambda *a: working(*a[:-1], not a[-1]),
    always_2_bytes=lambda N, D, F, Q, K, size, remat: working(N, D, F, Q, K, 2, remat),
    keys_as_wide_as_queries=lambda N, D, F, Q, K, size, remat: working(N, D, F, Q, Q, size, remat),
    heads_as_wide_as_the_model=lambda N, D, F, Q, K, size, remat: working(N, D, F, D, K, size, remat),
    product_not_made_again=lambda N, D, F, Q, K, size, remat: working(N, D, F, Q, K, size, remat) - N * size * F,
    with_the_block_input=lambda *a: working(*a, again=(2, 2, 2, 2)),
    numbers=lambda *a: working(*a) // a[5],
    of_one_token=lambda N, *a: working(1, *a),
)


def save(size, speeds, pieces):
    each = [size / pieces / speed for speed in speeds]
    return sum(each) + (pieces - 1) * max(each)


students(
    "2.4",
    one_piece_too_many=lambda size, speeds, pieces: save(size, speeds, pieces) + size / pieces / min(speeds),
    nothing_overlaps=lambda size, speeds, pieces: sum(size / one for one in speeds),
    slowest_alone=lambda size, speeds, pieces: size / min(speeds),
    last_is_slowest=lambda size, speeds, pieces: (
        size / pieces * (sum(1 / s for s in speeds) + (pieces - 1) / speeds[-1])
    ),
    first_is_slowest=lambda size, speeds, pieces: (
        size / pieces * (sum(1 / s for s in speeds) + (pieces - 1) / speeds[0])
    ),
    two_hops_alone=lambda size, speeds, pieces: save(size, speeds[:2], pieces),
    whole_bytes_a_piece=lambda size, speeds, pieces: save(size // pieces * pieces, speeds, pieces),
    whole_seconds=lambda size, speeds, pieces: math.ceil(save(size, speeds, pieces)),
    equal_hops_once=lambda size, speeds, pieces: save(size, sorted(set(speeds)), pieces),
    sorted_in_place=lambda size, speeds, pieces: speeds.sort() or save(size, speeds, pieces),
    mean_speed=lambda size, speeds, pieces: size / (sum(speeds) / len(speeds)),
    in_bits=lambda size, speeds, pieces: save(8 * size, speeds, pieces),
    in_minutes=lambda size, speeds, pieces: save(size, speeds, pieces) / 60,
)


def cards(P, whole, card_gib):
    return -(-8 * P // (card_gib * 2**30 - whole))


students(
    "2.5",
    one_too_many=lambda P, whole, gib: 8 * P // (gib * 2**30 - whole) + 1,
    rounded_down=lambda P, whole, gib: 8 * P // (gib * 2**30 - whole),
    rounded=lambda P, whole, gib: round(8 * P / (gib * 2**30 - whole)),
    not_rounded=lambda P, whole, gib: 8 * P / (gib * 2**30 - whole),
    gigabytes=lambda P, whole, gib: -(-8 * P // (gib * 10**9 - whole)),
    megabytes=lambda P, whole, gib: math.ceil(8 * P / (gib * 1000 * 2**20 - whole)),
    whole_shared=lambda P, whole, gib: -(-(8 * P + whole) // (gib * 2**30)),
    whole_forgotten=lambda P, whole, gib: -(-8 * P // (gib * 2**30)),
    as_given=lambda P, whole, gib: math.ceil((6 * P + whole) / (gib * 1e9)),
    in_float32=lambda P, whole, gib: math.ceil(np.float32(8 * P) / np.float32(gib * 2**30 - whole)),
    two_at_least=lambda P, whole, gib: max(2, cards(P, whole, gib)),
    with_a_master_copy=lambda P, whole, gib: cards(2 * P, whole, gib),
)
