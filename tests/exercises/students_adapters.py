"""Wrong answers to the exercises of notebooks 03 to 05, as students write them: see `students.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from exercises.students import HALF, students, whole


# Notebook 03.
def first_to_hold(values, share, strictly=False):
    sums = np.cumsum(np.asarray(values, np.float64) ** 2)
    return int(np.argmax(sums > share * sums[-1] if strictly else sums >= share * sums[-1])) + 1


students(
    "3.1",
    strictly_more=lambda v, share: first_to_hold(v, share, strictly=True),
    place_for_rank=lambda v, share: first_to_hold(v, share) - 1,
    not_squared=lambda v, share: int(np.argmax(np.cumsum(v) >= share * v.sum())) + 1,
    from_the_smallest=lambda v, share: first_to_hold(v[::-1], share),
    share_of_the_count=lambda v, share: int(np.ceil(share * len(v))),
    largest_that_holds_less=lambda v, share: int(np.sum(np.cumsum(v**2) <= share * np.sum(v**2))),
    share_of_the_norm=lambda v, share: first_to_hold(v, share**2),
    share_squared_away=lambda v, share: first_to_hold(v, share**0.5),
    in_16_bits=lambda v, share: int(jnp.argmax(jnp.cumsum(jnp.asarray(v, HALF) ** 2)
                                               >= share * jnp.sum(jnp.asarray(v, HALF) ** 2))) + 1,
    beyond_a_tolerance=lambda v, share: first_to_hold(v, share + 1e-3),
    at_least_two=lambda v, share: max(2, first_to_hold(v, share)),
    in_an_array=lambda v, share: np.array([first_to_hold(v, share)]),
)  # fmt: skip


def product(x, w, a, b, scaling):
    return x @ w + scaling * (x @ a) @ b


students(
    "3.2",
    rank_forgotten=lambda x, w, a, b, alpha: product(x, w, a, b, alpha),
    alpha_forgotten=lambda x, w, a, b, alpha: product(x, w, a, b, 1 / a.shape[1]),
    whole_division=lambda x, w, a, b, alpha: product(x, w, a, b, alpha // a.shape[1]),
    divided_by_the_width=lambda x, w, a, b, alpha: product(x, w, a, b, alpha / a.shape[0]),
    a_fixed_scaling=lambda x, w, a, b, alpha: product(x, w, a, b, 2.0),
    a_square_root=lambda x, w, a, b, alpha: product(x, w, a, b, alpha / a.shape[1] ** 0.5),
    update_subtracted=lambda x, w, a, b, alpha: product(x, w, a, b, -alpha / a.shape[1]),
    in_16_bits=lambda x, w, a, b, alpha: np.asarray(product(x, w, a, b, alpha / a.shape[1]), HALF),
    update_in_16_bits=lambda x, w, a, b, alpha: x @ w + np.asarray(alpha / a.shape[1] * x @ a @ b, HALF).astype("f4"),
    scaled_twice=lambda x, w, a, b, alpha: x @ w + (alpha / len(b)) ** 2 * x @ a @ b,
    averaged_over_rows=lambda x, w, a, b, alpha: product(x, w, a, b, alpha / a.shape[1] / len(x)),
    transposed=lambda x, w, a, b, alpha: product(x, w, a, b, alpha / a.shape[1]).T,
    into_its_argument=lambda x, w, a, b, alpha: x @ np.add(w, np.float32(alpha / len(b)) * a @ b, out=w),
)  # fmt: skip


def adapters(seed, shapes, rank, *, bound=lambda n_in, n_out, rank: n_in**-0.5, draw=None, key=None, b=0.0):
    made = {}
    for i, (name, (n_in, n_out)) in enumerate(shapes.items()):
        own = jax.random.fold_in(jax.random.key(seed), i) if key is None else key(seed, i)
        one = jax.random.uniform(own, (n_in, rank), minval=-1) if draw is None else draw(own, (n_in, rank))
        made[name] = {"a": one * bound(n_in, n_out, rank), "b": jnp.full((rank, n_out), b)}
    return made


students(
    "3.3",
    seed_ignored=lambda *args: adapters(*args, key=lambda seed, i: jax.random.key(i)),
    seed_ignored_but_once=lambda *args: adapters(*args, key=lambda seed, i: jax.random.key((i and i + 7) or seed)),
    no_seed_at_all=lambda seed, shapes, rank: {
        name: {"a": np.random.uniform(-1, 1, (n_in, rank)) / n_in**0.5, "b": np.zeros((rank, n_out))}
        for name, (n_in, n_out) in shapes.items()},
    half_of_the_seeds=lambda *args: adapters(*args, key=lambda seed, i: jax.random.key(100 * (seed // 2) + i)),
    one_key=lambda *args: adapters(*args, key=lambda seed, i: jax.random.key(seed)),
    two_keys=lambda *args: adapters(*args, key=lambda seed, i: jax.random.key(2 * seed + i % 2)),
    normal=lambda *args: adapters(*args, draw=lambda key, size: jax.random.normal(key, size) / 3),
    clipped_normal=lambda *args: adapters(
        *args, draw=lambda key, size: jnp.clip(jax.random.normal(key, size) / 2, -1, 1)),
    positive=lambda *args: adapters(*args, draw=jax.random.uniform),
    signs=lambda *args: adapters(*args, draw=jax.random.rademacher),
    in_16_bits=lambda *args: jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), adapters(*args)),
    drawn_in_16_bits=lambda *args: adapters(*args, draw=lambda key, size: jax.random.uniform(
        key, size, jnp.bfloat16, -1).astype(jnp.float32)),
    one_row_for_all=lambda *args: adapters(*args, draw=lambda key, size: jnp.tile(
        jax.random.uniform(key, size[1:], minval=-1), (size[0], 1))),
    bound_of_the_output=lambda *args: adapters(*args, bound=lambda n_in, n_out, rank: n_out**-0.5),
    bound_of_the_rank=lambda *args: adapters(*args, bound=lambda n_in, n_out, rank: rank**-0.5),
    bound_of_in_plus_1=lambda *args: adapters(*args, bound=lambda n_in, n_out, rank: (n_in + 1) ** -0.5),
    kaiming=lambda *args: adapters(*args, bound=lambda n_in, n_out, rank: (3 / n_in) ** 0.5),
    b_nearly_zero=lambda *args: adapters(*args, b=1e-8),
    b_of_whole_numbers=lambda *args: {name: one | {"b": np.zeros(one["b"].shape, int)}
                                      for name, one in adapters(*args).items()},
)  # fmt: skip


def gradients(x, a, b, s, dy, *, da=1.0, db=1.0):
    return da * s * x.T @ (dy @ b.T), db * s * (x @ a).T @ dy


students(
    "3.4",
    mean_over_rows=lambda x, *rest: tuple(one / len(x) for one in gradients(x, *rest)),
    no_scaling=lambda x, a, b, s, dy: gradients(x, a, b, 1.0, dy),
    scaling_in_a_alone=lambda x, a, b, s, dy: gradients(x, a, b, s, dy, db=1 / s),
    scaling_in_b_alone=lambda x, a, b, s, dy: gradients(x, a, b, s, dy, da=1 / s),
    scaled_twice=lambda x, a, b, s, dy: gradients(x, a, b, s * s, dy),
    swapped=lambda *args: gradients(*args)[::-1],
    transposed=lambda *args: tuple(one.T for one in gradients(*args)),
    downhill=lambda *args: tuple(-one for one in gradients(*args)),
    in_16_bits=lambda *args: tuple(np.asarray(one, HALF) for one in gradients(*args)),
    of_the_whole_matrix=lambda x, a, b, s, dy: (s * x.T @ dy,) * 2,
    first_row_alone=lambda x, a, b, s, dy: gradients(x[:1], a, b, s, dy[:1]) if len(x) > 1 else (a, b),
    a_alone=lambda *args: gradients(*args)[0],
    as_if_b_were_zero=lambda x, a, b, s, dy: (np.zeros_like(a), gradients(x, a, b, s, dy)[1]),
)


def merged(w, a, b, scaling):
    return (w.astype(np.float32) + np.float32(scaling) * (a @ b)).astype(w.dtype)


students(
    "3.5",
    rounded_before_adding=lambda w, a, b, alpha: w + (alpha / a.shape[2] * a @ b).astype(w.dtype),
    factors_rounded=lambda w, a, b, alpha: merged(
        w, a.astype(w.dtype).astype("f4"), b.astype(w.dtype).astype("f4") * (1 + 1e-3), alpha / a.shape[2]),
    all_in_16_bits=lambda w, a, b, alpha: jnp.asarray(w, jnp.bfloat16) + jnp.asarray(
        alpha / a.shape[2], jnp.bfloat16) * (jnp.asarray(a, jnp.bfloat16) @ jnp.asarray(b, jnp.bfloat16)),
    always_float32=lambda w, a, b, alpha: w.astype(np.float32) + np.float32(alpha / a.shape[2]) * (a @ b),
    always_bfloat16=lambda w, a, b, alpha: merged(w.astype(HALF), a, b, alpha / a.shape[2]),
    rank_forgotten=lambda w, a, b, alpha: merged(w, a, b, alpha),
    whole_division=lambda w, a, b, alpha: merged(w, a, b, alpha // a.shape[2]),
    divided_by_the_width=lambda w, a, b, alpha: merged(w, a, b, alpha / a.shape[1]),
    divided_by_the_layers=lambda w, a, b, alpha: merged(w, a, b, alpha / len(a)),
    first_layer_for_all=lambda w, a, b, alpha: merged(w, a[:1], b[:1], alpha / a.shape[2]) if len(w) > 1 else w,
    subtracted=lambda w, a, b, alpha: merged(w, a, b, -alpha / a.shape[2]),
    cut_off_and_not_rounded=lambda w, a, b, alpha: np.trunc(merged(
        w.astype(np.float32), a, b, alpha / a.shape[2]) * 64).astype(w.dtype) / w.dtype.type(64),
    a_list_of_layers=lambda w, a, b, alpha: list(merged(w, a, b, alpha / a.shape[2])),
)  # fmt: skip


# Notebook 04.
def rows(shapes, layers, targets, rank, *, adapters=4, gradients=4, state=8, count=4):
    n = layers * sum(rank * sum(shapes[name]) for name in targets)
    return {"adapters": adapters * n, "gradients": gradients * n, "optimizer state": state * n + count}


students(
    "4.1",
    in_float32=whole(rows),
    no_count=lambda *args: rows(*args, count=0),
    in_bfloat16=lambda *args: rows(*args, adapters=2, gradients=2, state=4),
    one_moment=lambda *args: rows(*args, state=4),
    with_a_master_copy=lambda *args: rows(*args, state=12),
    every_matrix=lambda shapes, layers, targets, rank: rows(shapes, layers, list(shapes), rank),
    one_layer=lambda shapes, layers, targets, rank: rows(shapes, 1, targets, rank),
    square_matrices=lambda shapes, layers, targets, rank: rows(
        {name: (n_in, n_in) for name, (n_in, _) in shapes.items()}, layers, targets, rank),
    shapes_counted_once=lambda shapes, layers, targets, rank: rows(
        dict(enumerate({shapes[name] for name in targets})), layers,
        range(len({shapes[name] for name in targets})), rank) if len(targets) > 2
    else rows(shapes, layers, targets, rank),
    first_targets=lambda shapes, layers, targets, rank: rows(shapes, layers, list(shapes)[: len(targets)], rank),
    numbers=lambda *args: rows(*args, adapters=1, gradients=1, state=2),
    a_tuple=lambda *args: tuple(rows(*args).values()),
)  # fmt: skip


def kept(N, D, F, H, K, C, size, *, sums=4):
    return N * (size * 2 * (D + H * C + K * C + F) + sums * H)


students(
    "4.2",
    in_float32=whole(kept),
    one_size_for_all=lambda N, D, F, H, K, C, size: kept(N, D, F, H, K, C, size, sums=size),
    always_2_bytes=lambda N, D, F, H, K, C, size: kept(N, D, F, H, K, C, 2),
    no_log_sum_exp=lambda *args: kept(*args, sums=0),
    heads_as_wide_as_the_model=lambda N, D, F, H, K, C, size: N * (size * (4 * D + 2 * K * C + 2 * F) + 4 * H),
    all_heads_alike=lambda N, D, F, H, K, C, size: kept(N, D, F, H, H, C, size),
    squared_scores=lambda N, D, F, H, K, C, size: kept(N, D, F, H, K, C, size) + size * H * N * N,
    with_the_product=lambda N, D, F, H, K, C, size: kept(N, D, F, H, K, C, size) + N * F * size,
    numbers=lambda N, D, F, H, K, C, size: kept(N, D, F, H, K, C, size) // size,
    of_one_token=lambda N, *rest: kept(1, *rest),
    sums_of_key_heads=lambda N, D, F, H, K, C, size: kept(N, D, F, H, K, C, size) - 4 * N * (H - K),
)


def nf4(rows, columns, double, *, blocks=None, codes=None):
    blocks = -(-rows // 64) * columns if blocks is None else blocks
    constants = blocks + 4 * -(-blocks // 256) + 4 if double else 4 * blocks
    return rows * columns // 2 if codes is None else codes, constants


students(
    "4.3",
    in_float32=whole(nf4),
    one_block_too_many=lambda r, c, double: nf4(r, c, double, blocks=(r // 64 + 1) * c),
    short_blocks_dropped=lambda r, c, double: nf4(r, c, double, blocks=r // 64 * c),
    blocks_run_on=lambda r, c, double: nf4(r, c, double, blocks=-(-r * c // 64)),
    blocks_along_rows=lambda r, c, double: nf4(r, c, double, blocks=-(-c // 64) * r),
    a_byte_a_code=lambda r, c, double: nf4(r, c, double, codes=r * c),
    one_group_too_many=lambda r, c, double: (r * c // 2, (n := -(-r // 64) * c) + 4 * (n // 256 + 1) + 4) if double
    else nf4(r, c, False),
    groups_in_each_column=lambda r, c, double: (
        r * c // 2, (n := -(-r // 64)) * c + 4 * c * -(-n // 256) + 4) if double else nf4(r, c, False),
    never_double=lambda r, c, double: nf4(r, c, False),
    always_double=lambda r, c, double: nf4(r, c, True),
    no_mean=lambda r, c, double: (nf4(r, c, double)[0], nf4(r, c, double)[1] - 4 * double),
    in_all=lambda *args: sum(nf4(*args)),
    the_other_order=lambda *args: nf4(*args)[::-1],
)  # fmt: skip
students("4.4", holds=6, tokens=16384, gigabytes=47.5, twice=32, one=1, none=0, as_text="16")


def times(P, A, kept, *, weights=2, each=16, full=8, activations=1.0):
    return (full * P + kept) / (weights * P + each * A + activations * kept)


students(
    "4.5",
    upside_down=lambda *args: 1 / times(*args),
    no_weights=lambda *args: times(*args, weights=0),
    frozen_gradients=lambda *args: times(*args, weights=4),
    adapters_of_8_bytes=lambda *args: times(*args, each=8),
    adapters_of_12_bytes=lambda *args: times(*args, each=12),
    no_activations=lambda *args: times(*args, activations=0),
    half_of_the_activations=lambda *args: times(*args, activations=0.5),
    activations_shrink=lambda P, A, kept: times(P, A, kept, activations=A / P),
    as_given=lambda P, A, kept: times(P, A, kept, weights=0, each=8, activations=A / P),
    with_a_master_copy=lambda *args: times(*args, full=16),
    rounded=lambda *args: round(times(*args), 2),
    whole_division=lambda P, A, kept: (8 * P + kept) // (2 * P + 16 * A + kept),
    a_difference=lambda P, A, kept: 6 * P - 16 * A,
)
