"""Right answers in unlike styles, at least three for each function: every check accepts them, whatever the seed.

They are also what `mutants.py` changes in one place. Each is complete in itself, since it is read as text.
"""

# ruff: noqa: B905  (they are written as students write)

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.exercises import registry

MODULES = {"np": np, "jnp": jnp, "jax": jax, "math": math}
STYLES = {}


def right(id):
    def keep(function):
        STYLES.setdefault(id, []).append(function)
        return function

    return keep


def sources(id):
    """The texts of the solution of an exercise, and of its other right answers."""
    texts = [inspect.getsource(one).partition("\n")[2] for one in STYLES.get(id, [])]  # without the decorator
    return [registry.find(id).solution.strip() + "\n", *texts]


def made(source, name, **helpers):
    """What a text defines: the variable or function of that name, or the only function that it has."""
    space = MODULES | helpers
    exec(source, space)  # our own text
    return (
        space[name]
        if name in space
        else [v for k, v in space.items() if inspect.isfunction(v) and k not in helpers][-1]
    )


@right("1.1")
def by_shapes(V, D, F, L, H, K, C, tied):
    layer = [(D, H * C), (D, K * C), (D, K * C), (H * C, D), (D, F), (D, F), (F, D), (D,), (D,)]
    outside = [(V, D), (D,)]
    if not tied:
        outside.append((D, V))
    return sum(np.prod(shape) for shape in outside) + L * sum(np.prod(shape) for shape in layer)


@right("1.1")
def factored(V, D, F, L, H, K, C, tied):
    heads = 2 - tied
    return D * (heads * V + L * (2 * C * (H + K) + 3 * F + 2) + 1)


@right("1.1")
def as_jax(V, D, F, L, H, K, C, tied):
    layer = jnp.array([D * H * C, D * K * C, D * K * C, H * C * D, 3 * D * F, 2 * D])
    return L * layer.sum() + V * D + D + jnp.where(tied, 0, V * D)


@right("1.2")
def by_loops(tokens, segments):
    targets, mask = np.zeros(tokens.shape, int), np.zeros(tokens.shape, bool)
    for b in range(tokens.shape[0]):
        for t in range(tokens.shape[1] - 1):
            targets[b, t] = tokens[b, t + 1]
            mask[b, t] = segments[b, t] == segments[b, t + 1] and segments[b, t] > 0
    return [targets, mask]


@right("1.2")
def by_concatenation(tokens, segments):
    nothing = jnp.zeros_like(tokens[:, :1])
    targets = jnp.concatenate([tokens[:, 1:], nothing], axis=1)
    following = jnp.concatenate([segments[:, 1:], nothing], axis=1)
    return targets, jnp.where((following == segments) & (segments > 0), 1.0, 0.0)


@right("1.2")
def by_assignment(tokens, segments):
    targets = np.roll(tokens, -1, 1)
    mask = (np.roll(segments, -1, 1) == segments).astype(np.int32)
    mask[:, -1] = 0
    mask[segments == 0] = 0
    return targets, mask


@right("1.3")
def by_logsumexp(logits, targets, mask):
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    nats = jax.nn.logsumexp(logits, axis=-1) - picked
    return (nats * mask).sum() / mask.sum()


@right("1.3")
def by_one_hot(logits, targets, mask):
    z = logits.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    chosen = np.einsum("btv,btv->bt", log_p, np.eye(logits.shape[-1])[targets])
    return -np.average(chosen, weights=mask)


@right("1.3")
def token_by_token(logits, targets, mask):
    total, count = 0.0, 0
    for z, target, counts in zip(logits.reshape(-1, logits.shape[-1]), targets.ravel(), mask.ravel()):
        if counts:
            top = max(z)
            total += float(top) + math.log(sum(math.exp(float(one) - float(top)) for one in z)) - float(z[target])
            count += 1
    return total / count


@right("1.5")
def by_leaves(params, gradients, rate):
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [w - jnp.float32(rate) * g for w, g in zip(leaves, jax.tree.leaves(gradients))])


@right("1.5")
def by_recursion(params, gradients, rate):
    if isinstance(params, dict):
        return {name: by_recursion(params[name], gradients[name], rate) for name in params}
    if isinstance(params, list):
        return [by_recursion(w, g, rate) for w, g in zip(params, gradients)]
    return np.add(params, np.multiply(-rate, gradients, dtype=np.float64))


@right("1.5")
def by_scaling_first(params, gradients, rate):
    steps = jax.tree.map(lambda g: -rate * jnp.asarray(g), gradients)
    return jax.tree.map(jnp.add, params, steps)


@right("2.1")
def list_of_arrays(config):
    D, C = config["hidden_size"], config["head_dim"]
    layer = 0
    for heads in ("num_attention_heads", "num_key_value_heads"):
        layer += 2 * D * config[heads] * C
    for _ in ("gate", "up", "down"):
        layer += D * config["intermediate_size"]
    layer += D + D
    total = config["vocab_size"] * D + D
    for _ in range(config["num_hidden_layers"]):
        total += layer
    if not config["tie_word_embeddings"]:
        total += D * config["vocab_size"]
    return np.int64(total)


@right("2.1")
def by_tables(config):
    tables = 1 if config["tie_word_embeddings"] else 2
    D, L = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"] + config["num_key_value_heads"]
    wide = 2 * heads * config["head_dim"] + 3 * config["intermediate_size"] + 2
    return D * (tables * config["vocab_size"] + L * wide + 1)


@right("2.1")
def as_a_jax_number(config):
    D, V, F = (config[name] for name in ("hidden_size", "vocab_size", "intermediate_size"))
    Q, KV = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    block = jnp.int32(D) * (Q + Q + KV + KV + F + F + F + 1 + 1)
    return block * config["num_hidden_layers"] + V * D * (2 - config["tie_word_embeddings"]) + D


@right("2.2")
def row_by_row(P, master):
    rows = {"optimizer state": 4, "gradients": P + P, "weights": P * 2}
    for _ in ("mu", "nu"):
        rows["optimizer state"] += (4 if master else 2) * P
    if master:
        rows["optimizer state"] += 4 * P
    return rows


@right("2.2")
def by_itemsize(P, master):
    moment = np.dtype(np.float32 if master else np.float16).itemsize
    state = P * (moment + moment + (4 if master else 0)) + np.dtype(np.int32).itemsize
    return dict(zip(("weights", "gradients", "optimizer state"), np.array([2 * P, 2 * P, state], np.int64)))


@right("2.2")
def as_floats(P, master):
    each = 12.0 if master else 4.0
    return {"gradients": 2.0 * P, "optimizer state": each * P + 4.0, "weights": 2.0 * P}


@right("2.3")
def by_arrays(N, D, F, Q, K, size, remat):
    arrays = [("d_gate", F), ("d_up", F), ("d_product", F), ("product", F)]
    arrays += [("d_stream", D), ("normed", D), ("normed too", D), ("d_h", D)]
    if remat:
        arrays += [("gate", F), ("up", F), ("stream", D), ("q", Q), ("mixed", Q), ("k", K), ("v", K)]
    return sum(N * width * size for _, width in arrays)


@right("2.3")
def two_formulas(N, D, F, Q, K, size, remat):
    if remat:
        return size * N * (6 * F + 5 * D + 2 * (Q + K))
    return size * N * 4 * (F + D)


@right("2.3")
def as_a_product(N, D, F, Q, K, size, remat):
    counts = np.array([6, 5, 2, 2] if remat else [4, 4, 0, 0])
    return jnp.asarray(counts @ np.array([F, D, Q, K]) * N * size)


@right("2.4")
def piece_by_piece(size, speeds, pieces):
    free = [0.0] * len(speeds)
    for _ in range(pieces):
        there = 0.0
        for hop, speed in enumerate(speeds):
            there = max(there, free[hop]) + size / pieces / speed
            free[hop] = there
    return free[-1]


@right("2.4")
def by_the_slowest(size, speeds, pieces):
    seconds = size / np.array(speeds, float)
    return (seconds.sum() + (pieces - 1) * seconds.max()) / pieces


@right("2.4")
def as_jax_numbers(size, speeds, pieces):
    piece = size / pieces
    return jnp.sum(piece / jnp.array(speeds)) + (pieces - 1) * piece / min(speeds)


@right("2.5")
def by_ceil(P, whole, card_gib):
    return math.ceil(8 * P / (card_gib * 1024**3 - whole))


@right("2.5")
def card_by_card(P, whole, card_gib):
    return len(range(0, 8 * P, (card_gib << 30) - whole))


@right("2.5")
def by_divmod(P, whole, card_gib):
    cards, rest = divmod(P * 4 * 2, card_gib * 2**30 - whole)
    return jnp.int32(cards + (rest > 0))
