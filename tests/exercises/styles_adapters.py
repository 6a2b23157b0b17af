"""Right answers in unlike styles to the exercises of notebooks 03 to 05; `styles.py` says what they are for."""

# ruff: noqa: B905, C408  (they are written as students write)

import math

import jax
import jax.numpy as jnp
import numpy as np
from exercises.styles import right


@right("3.1")
def one_by_one(singular_values, share):
    squares = np.asarray(singular_values, np.float64) ** 2
    held = 0.0
    for rank, square in enumerate(squares, 1):
        held += square
        if held >= share * squares.sum():
            return rank


@right("3.1")
def by_search(singular_values, share):
    held = np.cumsum(np.square(singular_values))
    return np.searchsorted(held, share * held[-1]) + 1


@right("3.1")
def by_counting(singular_values, share):
    held = jnp.cumsum(jnp.asarray(singular_values) ** 2)
    return 1 + jnp.sum(held / held[-1] < share)


@right("3.2")
def through_the_change(x, w, a, b, alpha):
    return jnp.asarray(x) @ (w + (alpha / b.shape[0]) * jnp.dot(a, b))


@right("3.2")
def by_einsum(x, w, a, b, alpha):
    update = np.einsum("ni,ir,ro->no", x, a, b)
    return np.einsum("ni,io->no", x, w) + update * alpha / len(b)


@right("3.2")
def in_float64(x, w, a, b, alpha):
    x = np.asarray(x, np.float64)
    return np.hstack([x, (alpha / a.shape[-1]) * x @ a]) @ np.vstack([w, b])


@right("3.3")
def by_numpy(seed, shapes, rank):
    rng = np.random.default_rng(seed)
    return {
        name: {"a": rng.uniform(-1, 1, (n_in, rank)) / math.sqrt(n_in), "b": np.zeros((rank, n_out))}
        for name, (n_in, n_out) in shapes.items()
    }


@right("3.3")
def by_folding(seed, shapes, rank):
    made = {}
    for i, name in enumerate(sorted(shapes)):
        key = jax.random.fold_in(jax.random.key(seed), i)
        unit = jax.random.uniform(key, (shapes[name][0], rank))
        made[name] = dict(a=(2 * unit - 1) * shapes[name][0] ** -0.5, b=jnp.zeros((rank, shapes[name][1])))
    return made


@right("3.3")
def key_after_key(seed, shapes, rank):
    key, adapters = jax.random.PRNGKey(seed), {}
    for name in shapes:
        key, own = jax.random.split(key)
        n_in, n_out = shapes[name]
        bound = 1 / jnp.sqrt(n_in)
        a = jax.random.uniform(own, (n_in, rank), jnp.float32, -bound, bound)
        adapters[name] = {"b": np.zeros((rank, n_out), np.float32), "a": a}
    return adapters


@right("3.4")
def by_shadows(x, a, b, scaling, dy):
    G = x.T @ dy
    return scaling * G @ b.T, scaling * a.T @ G


@right("3.4")
def by_autodiff(x, a, b, scaling, dy):
    return jax.vjp(lambda a, b: scaling * (x @ a) @ b, a, b)[1](jnp.asarray(dy))


@right("3.4")
def row_by_row(x, a, b, scaling, dy):
    da, db = np.zeros(a.shape), np.zeros(b.shape)
    for one, slope in zip(x, dy):
        da += np.outer(one, b @ slope)
        db += np.outer(one @ a, slope)
    return [scaling * da, scaling * db]


@right("3.5")
def layer_by_layer(w, a, b, alpha):
    return np.stack([(w[i] + alpha * (a[i] @ b[i]) / a.shape[2]).astype(w.dtype) for i in range(len(w))])


@right("3.5")
def by_vmap(w, a, b, alpha):
    merged = jax.vmap(lambda w, a, b: w.astype(jnp.float32) + (alpha / b.shape[0]) * a @ b)(w, a, b)
    return merged.astype(w.dtype)


@right("3.5")
def summed_in_float64(w, a, b, alpha):
    update = np.einsum("lir,lro->lio", a * (alpha / b.shape[1]), b)
    return (update.astype(np.float64) + w.astype(np.float64)).astype(w.dtype)


@right("4.1")
def matrix_by_matrix(shapes, layers, targets, rank):
    n = 0
    for name in targets:
        n_in, n_out = shapes[name]
        n += layers * (n_in * rank + rank * n_out)
    return {"optimizer state": 8 * n + 4, "gradients": n * 4, "adapters": np.int64(n * 4)}


@right("4.1")
def by_bytes_of_shapes(shapes, layers, targets, rank):
    factors = [(layers, shapes[t][0], rank) for t in targets] + [(layers, rank, shapes[t][1]) for t in targets]
    size = int(sum(np.prod(shape) for shape in factors)) * np.dtype(np.float32).itemsize
    return dict(adapters=size, gradients=size, **{"optimizer state": size + size + 4})


@right("4.1")
def with_jax(shapes, layers, targets, rank):
    sides = jnp.array([sum(shapes[name]) for name in targets])
    size = 4 * rank * layers * sides.sum()
    return {"adapters": size, "gradients": size, "optimizer state": 2 * size + 4}


@right("4.2")
def by_rows_of_the_table(N, D, F, H, K, C, size):
    widths = {"input": D, "q": H * C, "k": K * C, "v": K * C, "mixed": H * C, "stream": D, "gate": F, "up": F}
    return sum(size * N * width for width in widths.values()) + N * H * np.dtype(np.float32).itemsize


@right("4.2")
def factored(N, D, F, H, K, C, size):
    return 2 * N * (size * (D + F + C * (H + K)) + 2 * H)


@right("4.2")
def by_a_product(N, D, F, H, K, C, size):
    return jnp.asarray(N * (np.array([D, H * C, K * C, F]).sum() * 2 * size + H * 4))


@right("4.3")
def column_by_column(rows, columns, double):
    blocks = math.ceil(rows / 64) * columns
    constants = 4 * blocks
    if double:
        constants = blocks + math.ceil(blocks / 256) * 4 + 4
    return [rows // 2 * columns, constants]


@right("4.3")
def by_ranges(rows, columns, double):
    blocks = len(range(0, rows, 64)) * columns
    groups = len(range(0, blocks, 256))
    return np.int64(rows * columns / 2), blocks * 1 + groups * 4 + 4 if double else blocks * 4


@right("4.3")
def with_what_is_left(rows, columns, double):
    blocks, rest = divmod(rows, 64)
    blocks = jnp.int32((blocks + (rest > 0)) * columns)
    return jnp.asarray([columns * rows // 2, jnp.where(double, blocks + 4 * ((blocks + 255) // 256) + 4, 4 * blocks)])


@right("4.5")
def sum_of_rows(P, A, kept):
    full = {"weights": 2 * P, "gradients": 2 * P, "moments": 4 * P, "activations": kept}
    lora = {"weights": 2 * P, "adapters": 4 * A, "gradients": 4 * A, "moments": 8 * A, "activations": kept}
    return sum(full.values()) / sum(lora.values())


@right("4.5")
def by_what_is_saved(P, A, kept):
    full = 8 * P + kept
    return 1 / (1 - (6 * P - 16 * A) / full)


@right("4.5")
def as_a_jax_number(P, A, kept):
    return jnp.float32(8 * P + kept) / jnp.float32(2 * P + 16 * A + kept)


@right("5.1")
def by_sorting(logits, temperature, k):
    chances = np.zeros(logits.size)
    best = np.argsort(logits)[::-1][:k]
    odds = np.exp((logits[best].astype(np.float64) - logits.max()) / temperature)
    chances[best] = odds / odds.sum()
    return chances


@right("5.1")
def by_top_k(logits, temperature, k):
    values, places = jax.lax.top_k(jnp.asarray(logits) / temperature, k)
    return jnp.zeros(logits.shape).at[places].set(jax.nn.softmax(values))


@right("5.1")
def by_log_softmax(logits, temperature, k):
    kth = sorted(float(z) for z in logits)[-k]
    scaled = np.array([z / temperature if z >= kth else -np.inf for z in logits], np.float32)
    return jnp.exp(jax.nn.log_softmax(scaled))


@right("5.2")
def array_by_array(shapes, rank, layers, bytes_per_number):
    total = 0
    for _ in range(layers):
        for n_in, n_out in shapes:
            total += n_in * rank * bytes_per_number + rank * n_out * bytes_per_number
    return total


@right("5.2")
def by_one_sum(shapes, rank, layers, bytes_per_number):
    return rank * layers * bytes_per_number * np.sum(shapes)


@right("5.2")
def in_jax(shapes, rank, layers, bytes_per_number):
    sides = jnp.asarray(shapes)
    return jnp.sum(layers * rank * sides[:, 0] + layers * rank * sides[:, 1]) * bytes_per_number


@right("5.3")
def best_first(volumes, verse, stories, allowed):
    table = sorted(zip(verse, volumes, stories))
    return next(volume for _, volume, loss in table if loss <= stories[0] + allowed)


@right("5.3")
def one_pass(volumes, verse, stories, allowed):
    best = 0
    for i in range(1, len(volumes)):
        if not stories[i] - stories[0] > allowed and verse[i] < verse[best]:
            best = i
    return volumes[best]


@right("5.3")
def by_masking(volumes, verse, stories, allowed):
    stories = jnp.array(stories)
    return jnp.array(volumes)[jnp.argmin(jnp.where(stories - stories[0] <= allowed, jnp.array(verse), jnp.inf))]


@right("5.5")
def weights_below(one, other, t):
    a = np.hstack([other["a"], one["a"]])
    b = np.vstack([t * other["scaling"] * other["b"], (1 - t) * one["scaling"] * one["b"]])
    return [a, b]


@right("5.5")
def weights_on_both(one, other, t):
    first, second = ((1 - t) * one["scaling"]) ** 0.5, (t * other["scaling"]) ** 0.5
    a = jnp.concatenate([first * one["a"], second * other["a"]], -1)
    return a, jnp.concatenate([first * one["b"], second * other["b"]], 0)


@right("5.5")
def into_zeros(one, other, t):
    r = one["a"].shape[1]
    a = np.zeros((one["a"].shape[0], r + other["a"].shape[1]))
    b = np.zeros((a.shape[1], one["b"].shape[1]))
    a[:, :r], a[:, r:] = one["scaling"] * one["a"], other["scaling"] * other["a"]
    b[:r], b[r:] = (1 - t) * one["b"], t * other["b"]
    return a, b
