"""Wrong answers to the exercises of notebook 05, as students write them; `students.py` says what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
from exercises.students import HALF, students, whole


def cut(logits, k, filling=-np.inf):
    return jnp.where(logits >= jnp.sort(logits)[-k], logits, filling)


def chances(logits, temperature, k):
    return jax.nn.softmax(cut(logits, k) / temperature)


def bare(x):
    return jnp.exp(x) / jnp.exp(x).sum()


students(
    "5.1",
    no_largest_taken_off=lambda z, t, k: bare(cut(z, k) / t),
    one_number_taken_off=lambda z, t, k: bare((cut(z, k) - 50) / t),
    temperature_after_the_softmax=lambda z, t, k: (p := jax.nn.softmax(cut(z, k)) ** (1 / t)) / p.sum(),
    multiplied=lambda z, t, k: jax.nn.softmax(cut(z, k) * t),
    temperature_ignored=lambda z, t, k: jax.nn.softmax(cut(z, k)),
    k_ignored=lambda z, t, k: jax.nn.softmax(z / t),
    one_fewer=lambda z, t, k: chances(z, t, max(1, k - 1)) if len(z) > 1 else chances(z, t, 1),
    strictly_above=lambda z, t, k: jax.nn.softmax(jnp.where(z > jnp.sort(z)[-k], z, -jnp.inf) / t),
    smallest_kept=lambda z, t, k: jax.nn.softmax(jnp.where(z <= jnp.sort(z)[k - 1], z, -jnp.inf) / t),
    dropped_afterwards=lambda z, t, k: jnp.where(z >= jnp.sort(z)[-k], jax.nn.softmax(z / t), 0),
    filled_with_0=lambda z, t, k: jax.nn.softmax(cut(z, k, 0.0) / t),
    filled_with_a_small_number=lambda z, t, k: jax.nn.softmax(cut(z, k, -10.0) / t),
    in_order_of_size=lambda z, t, k: jnp.sort(chances(z, t, k))[::-1],
    for_sorted_logits=lambda z, t, k: jax.nn.softmax(jnp.where(jnp.arange(len(z)) < k, z, -jnp.inf) / t),
    only_the_kept=lambda z, t, k: jax.nn.softmax(jnp.sort(z)[-k:] / t),
    in_16_bits=lambda z, t, k: jax.nn.softmax(cut(jnp.asarray(z, jnp.bfloat16), k) / t),
    logarithms=lambda z, t, k: jax.nn.log_softmax(cut(z, k) / t),
    in_place=lambda z, t, k: np.putmask(z, z < np.sort(z)[-k], -np.inf) or jax.nn.softmax(z / t),
)


def size(shapes, rank, layers, width):
    return layers * rank * sum(n_in + n_out for n_in, n_out in shapes) * width


students(
    "5.2",
    in_float32=whole(size),
    shapes_counted_once=lambda s, rank, layers, width: size(set(s), rank, layers, width),
    product_of_sides=lambda s, rank, layers, width: layers * rank * sum(i * o for i, o in s) * width,
    a_alone=lambda s, rank, layers, width: layers * rank * sum(i for i, _ in s) * width,
    b_alone=lambda s, rank, layers, width: layers * rank * sum(o for _, o in s) * width,
    square_matrices=lambda s, rank, layers, width: 2 * layers * rank * sum(i for i, _ in s) * width,
    first_matrix_alone=lambda s, rank, layers, width: size(s[:1], rank, layers, width) if len(s) > 1 else 0,
    rank_forgotten=lambda s, rank, layers, width: size(s, 1, layers, width),
    layers_forgotten=lambda s, rank, layers, width: size(s, rank, 1, width),
    always_4_bytes=lambda s, rank, layers, width: size(s, rank, layers, 4),
    numbers=lambda s, rank, layers, width: size(s, rank, layers, 1),
    in_bits=lambda s, rank, layers, width: size(s, rank, layers, 8 * width),
    in_megabytes=lambda *args: size(*args) / 1e6,
    halves_of_a_rank=lambda s, rank, layers, width: size(s, rank // 2 * 2, layers, width),
)


def choose(volumes, verse, stories, within):
    kept = [i for i, loss in enumerate(stories) if within(loss - stories[0])] or [0]
    return volumes[min(kept, key=lambda i: verse[i])]


def stopped(volumes, verse, stories, allowed):
    best = 0
    for i, loss in enumerate(stories):
        if loss - stories[0] > allowed:
            break
        best = min(best, i, key=lambda j: verse[j])
    return volumes[best]


students(
    "5.3",
    less_than=lambda v, p, s, most: choose(v, p, s, lambda rise: rise < most),
    size_of_the_change=lambda v, p, s, most: choose(v, p, s, lambda rise: abs(rise) <= most),
    with_a_margin=lambda v, p, s, most: choose(v, p, s, lambda rise: rise <= most + 1e-2),
    nearly_equal_too=lambda v, p, s, most: choose(v, p, s, lambda rise: round(rise, 2) <= round(most, 2)),
    as_a_share=lambda v, p, s, most: choose(v, p, s, lambda rise: rise / s[0] <= most),
    only_where_it_rises=lambda v, p, s, most: choose(v, p, s, lambda rise: 0 < rise <= most),
    the_loss_itself=lambda v, p, s, most: choose(v, p, s, lambda rise: rise + s[0] <= most),
    budget_ignored=lambda v, p, s, most: choose(v, p, s, lambda rise: True),
    stops_at_the_first=stopped,
    loudest=lambda v, p, s, most: max(x for x, loss in zip(v, s, strict=True) if loss - s[0] <= most),
    last_in_the_list=lambda v, p, s, most: [x for x, loss in zip(v, s, strict=True) if loss - s[0] <= most][-1],
    best_for_stories=lambda v, p, s, most: v[int(np.argmin(s))],
    position=lambda v, p, s, most: v.index(choose(v, p, s, lambda rise: rise <= most)),
    position_among_those_within=lambda v, p, s, most: v[int(np.argmin(
        [q for q, loss in zip(p, s, strict=True) if loss - s[0] <= most]))],
    highest_loss=lambda v, p, s, most: choose(v, [-q for q in p], s, lambda rise: rise <= most),
    in_16_bits=lambda v, p, s, most: choose(v, p, np.array(s, HALF), lambda rise: rise <= most),
    sorts_its_argument=lambda v, p, s, most: v.sort() or choose(v, p, s, lambda rise: rise <= most),
)  # fmt: skip
students("5.4", one_matrix=2, one_a_matrix=7, attention_alone=8, with_the_base=21, with_sums=28, one_too_many=15,
         all_layers=420, as_text="14")  # fmt: skip


def side_by_side(one, other, left, right):
    """The factors put together, with the weights on the A's."""
    return np.hstack([left * one["a"], right * other["a"]]), np.vstack([one["b"], other["b"]])


def fitted(one, other):
    """The second's factors with the first's rank."""
    rank = one["a"].shape[1]
    return {
        "a": np.resize(other["a"], (len(other["a"]), rank)),
        "b": np.resize(other["b"], (rank, other["b"].shape[1])),
    }


students(
    "5.5",
    averaged_factors=lambda p, q, t: (
        (1 - t) * p["a"] + t * fitted(p, q)["a"], (1 - t) * p["b"] + t * fitted(p, q)["b"]),
    no_scalings=lambda p, q, t: side_by_side(p, q, 1 - t, t),
    one_scaling_for_both=lambda p, q, t: side_by_side(p, q, (1 - t) * p["scaling"], t * p["scaling"]),
    no_weights=lambda p, q, t: side_by_side(p, q, p["scaling"], q["scaling"]),
    swapped_weights=lambda p, q, t: side_by_side(p, q, t * p["scaling"], (1 - t) * q["scaling"]),
    half_of_each=lambda p, q, t: side_by_side(p, q, 0.5 * p["scaling"], 0.5 * q["scaling"]),
    weights_on_both=lambda p, q, t: tuple(f * g for f, g in zip(side_by_side(p, q, 1, 1), (
        np.repeat([(1 - t) * p["scaling"], t * q["scaling"]], [p["a"].shape[1], q["a"].shape[1]]),
        np.repeat([(1 - t) * p["scaling"], t * q["scaling"]], [p["a"].shape[1], q["a"].shape[1]])[:, None]),
        strict=True)),
    the_first_alone=lambda p, q, t: ((1 - t) * p["scaling"] * p["a"], p["b"]),
    crossed=lambda p, q, t: (np.hstack([(1 - t) * p["scaling"] * p["a"], t * q["scaling"] * q["a"]]),
                             np.vstack([q["b"], p["b"]])),
    in_16_bits=lambda p, q, t: tuple(np.asarray(one, HALF) for one in side_by_side(
        p, q, (1 - t) * p["scaling"], t * q["scaling"])),
    multiplied_out=lambda p, q, t: ((1 - t) * p["scaling"] * p["a"] @ p["b"] + t * q["scaling"] * q["a"] @ q["b"],
                                    np.eye(p["b"].shape[1])),
    divided_by_the_rank=lambda p, q, t: side_by_side(
        p, q, (1 - t) * p["scaling"] / (1 + p["a"].shape[1]), t * q["scaling"] / (1 + q["a"].shape[1])),
    transposed=lambda p, q, t: tuple(one.T for one in side_by_side(p, q, (1 - t) * p["scaling"], t * q["scaling"])),
)  # fmt: skip
