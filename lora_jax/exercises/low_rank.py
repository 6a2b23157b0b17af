"""The exercises of notebook 03: the rank of a change, and LoRA written by hand.

Letters: N rows of a product, R rank; a matrix is (in, out), A is (in, R), B is (R, out), and s = alpha / R.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from lora_jax.exercises.judging import is_close, named, wrong_shape
from lora_jax.exercises.registry import Exercise

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def rank_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    def case(n: int, rank: int) -> tuple[Any, ...]:
        values = np.sort(rng.exponential(size=n) ** 2)[::-1].astype(np.float32)
        held = np.cumsum(values.astype(np.float64) ** 2) / np.sum(values.astype(np.float64) ** 2)
        return values, float(held[rank - 2] + held[rank - 1]) / 2  # far from both, so that rounding decides nothing

    # Of four equal values two hold half, exactly: `>` instead of `>=` is one too many.
    return [case(23, 5), (np.full(4, 3.0, np.float32), 0.5), case(41, 7)]


def judge_rank(arguments: tuple[Any, ...], answer: Any) -> str | None:
    values, share = arguments
    if np.ndim(answer) or isinstance(answer, str | dict):
        return "return one whole number, the rank."
    squares = np.cumsum(values.astype(np.float64) ** 2)
    plain = np.cumsum(values.astype(np.float64))

    def first(sums: np.ndarray) -> int:
        return int(np.argmax(sums >= share * sums[-1])) + 1

    right = first(squares)
    if answer == right:
        return None
    if answer == right - 1:
        return f"one too few ({answer} for {right}): positions count from 0 and ranks from 1."
    if answer == first(plain) or answer == first(plain) - 1:
        return "you summed the singular values: a matrix's squared norm is the sum of their squares."
    if answer == right + 1:
        return f"one too many ({answer} for {right}): a rank that reaches the share exactly is enough."
    return f"for a share of {share:.0%} the rank is {right}, not {answer}: sum the squares from the largest on."


def product_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    def case(n: int, d_in: int, d_out: int, rank: int, alpha: float) -> tuple[Any, ...]:
        sizes = ((n, d_in), (d_in, d_out), (d_in, rank), (rank, d_out))
        return (*(rng.standard_normal(size).astype(np.float32) for size in sizes), alpha)

    return [case(5, 7, 11, 3, 6.0), case(4, 13, 9, 2, 7.0)]


def judge_product(arguments: tuple[Any, ...], answer: Any) -> str | None:
    x, w, a, b, alpha = arguments
    rank = a.shape[1]
    x, w, a, b = (np.asarray(m, np.float64) for m in (x, w, a, b))
    base, update = x @ w, x @ a @ b
    right = base + alpha / rank * update
    if is_close(answer, right):
        return None
    mistakes = {
        f"your update is r times too large (here {rank}): divide alpha by the rank.": base + alpha * update,
        "your update is not scaled: multiply it by alpha / rank.": base + update,
        "the base is missing: add x @ w.": alpha / rank * update,
        "the update is missing: add s * (x @ a) @ b.": base,
        "only the update is scaled, not the base: s belongs to (x @ a) @ b alone.": alpha / rank * (base + update),
        "the scaling is upside down: alpha / rank, not rank / alpha.": base + rank / alpha * update,
        "divide by the rank, the inner dimension of a and b, and not by the width of x.": base
        + alpha / a.shape[0] * update,
        "alpha / sqrt(rank) is rsLoRA's scaling; here it is alpha / rank.": base + alpha / rank**0.5 * update,
    }
    return (
        wrong_shape("the product", answer, right.shape, "a row for each row of x, a column for each of w.")
        or named(answer, mistakes.items())
        or "the numbers differ from x @ w + (alpha / rank) * (x @ a) @ b."
    )


def init_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    shapes = {"q_proj": (48, 40), "down_proj": (96, 48), "k_proj": (48, 24), "o_proj": (48, 40)}
    return [(int(rng.integers(1000)), shapes, 6), (int(rng.integers(1000)), {"up_proj": (64, 30)}, 5)]


def judge_init(arguments: tuple[Any, ...], answer: Any) -> str | None:
    _, shapes, rank = arguments
    if not isinstance(answer, dict) or set(answer) != set(shapes):
        return f"return a dict with an entry for each matrix: {', '.join(shapes)}."
    for name, (d_in, d_out) in shapes.items():
        if not isinstance(answer[name], dict) or set(answer[name]) != {"a", "b"}:
            return f'the entry of {name} should be a dict {{"a": ..., "b": ...}}: what trains, and nothing else.'
        a, b = (np.asarray(answer[name][factor], np.float64) for factor in "ab")
        if a.shape == (rank, d_in):
            return f"a of {name} is (R, in): weights here are (in, out), so that a is (in, R)."
        reason = wrong_shape(f"a of {name}", a, (d_in, rank), "(in, R).") or wrong_shape(
            f"b of {name}", b, (rank, d_out), "(R, out)."
        )
        if reason:
            return reason
        if not a.any() and not b.any():
            return "a and b are both zero: then neither ever gets a gradient. Draw a, and leave b zero."
        if not a.any():
            return "a is zero and b is not: the start is the base all the same, but here it is b that starts at zero."
        if b.any():
            return "b is not zero: then the adapted model differs from the base before the first step."
        bound = 1 / np.sqrt(d_in)
        if abs(a).max() > bound * (1 + 1e-6):
            return f"a of {name} holds {abs(a).max():.2f}: draw it uniformly from -1/sqrt(in) to 1/sqrt(in)."
        if a.min() >= 0 or abs(a).max() < 0.8 * bound:
            return f"a of {name} is not spread from -1/sqrt(in) to 1/sqrt(in): give `uniform` both ends."
    return _same_numbers({name: np.asarray(answer[name]["a"]) for name in shapes})


def _same_numbers(drawn: dict[str, np.ndarray]) -> str | None:
    """One key for all matrices gives those of one shape the same a."""
    names = list(drawn)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if drawn[one].shape == drawn[other].shape and np.array_equal(drawn[one], drawn[other]):
                return f"{one} and {other} got the same numbers: split the key, one for each matrix."
    return None


def gradient_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    def case(n: int, d_in: int, d_out: int, rank: int, scaling: float) -> tuple[Any, ...]:
        sizes = ((n, d_in), (d_in, rank), (rank, d_out), (n, d_out))
        x, a, b, dy = (rng.standard_normal(size).astype(np.float32) for size in sizes)
        return x, a, b, scaling, dy

    return [case(5, 7, 11, 3, 2.0), case(6, 13, 9, 4, 0.5)]


def judge_gradients(arguments: tuple[Any, ...], answer: Any) -> str | None:
    x, a, b, s, dy = arguments
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return "return a pair: the gradient of a, then the gradient of b."
    x, a, b, dy = (np.asarray(m, np.float64) for m in (x, a, b, dy))
    da, db = s * x.T @ (dy @ b.T), s * (x @ a).T @ dy
    if is_close(answer[0], da) and is_close(answer[1], db):
        return None
    if is_close(answer[0], db) and is_close(answer[1], da):
        return "the two are swapped: the gradient of a comes first."
    if is_close(answer[0], da / s) and is_close(answer[1], db / s):
        return "both lack the scaling: s stands in front of (x @ a) @ b, so it stands in front of both gradients."
    for name, found, right, factor in (("a", answer[0], da, "dy @ b.T"), ("b", answer[1], db, "x @ a")):
        if is_close(found, right):
            continue
        mistakes = {
            f"the gradient of {name} lacks the scaling s.": right / s,
            f"the gradient of {name} is a mean over the rows of x: it is their sum.": right / len(x),
            f"the gradient of {name} is transposed: it has the shape of {name}.": right.T,
            f"the gradient of {name} is scaled twice.": right * s,
            f"that is the gradient of the whole matrix: the gradient of {name} has {factor} in it.": s * x.T @ dy,
        }
        return (
            named(found, mistakes.items())
            or wrong_shape(f"the gradient of {name}", found, right.shape, f"the same as {name}.")
            or f"the gradient of {name} is wrong: start from {factor}."
        )
    return None


def merge_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    def case(layers: int, d_in: int, d_out: int, rank: int, alpha: float, dtype: Any) -> tuple[Any, ...]:
        sizes = ((layers, d_in, d_out), (layers, d_in, rank), (layers, rank, d_out))
        w, a, b = (rng.standard_normal(size).astype(np.float32) for size in sizes)
        return w.astype(dtype), a, b, alpha

    return [case(2, 8, 6, 3, 7.0, np.float32), case(3, 9, 7, 4, 10.0, BFLOAT16)]


def judge_merge(arguments: tuple[Any, ...], answer: Any) -> str | None:
    w, a, b, alpha = arguments
    reason = wrong_shape("the merged weight", answer, w.shape, "(L, in, out), that of w; `@` works layer by layer.")
    if reason or not isinstance(answer, np.ndarray):
        return reason or "return the merged weight, an array."
    rank = a.shape[-1]
    base, update = w.astype(np.float64), a.astype(np.float64) @ b
    mistakes = {
        f"your update is r times too large (here {rank}): divide alpha by the rank.": base + alpha * update,
        "your update is not scaled: multiply it by alpha / rank.": base + update,
        "you divided by in: behind the layers, the rank is the last axis of a.": base + alpha / a.shape[1] * update,
        "the weight is missing: add w.": alpha / rank * update,
        "nothing was merged: add (alpha / rank) * a @ b.": base,
    }
    # bfloat16 keeps 8 bits of a number.
    tolerance = 1e-4 if w.dtype != BFLOAT16 else 2.0**-8
    if not is_close(answer, base + alpha / rank * update, tolerance):
        return named(answer, mistakes.items()) or "the numbers differ from w + (alpha / rank) * a @ b."
    if answer.dtype != w.dtype:
        return f"the merged weight is in {answer.dtype} and w in {w.dtype}: end with .astype(w.dtype)."
    return None


EXERCISES = (
    Exercise(
        id="3.1",
        name="rank_for_share",
        title="The rank that holds a share of a change",
        minutes=5,
        difficulty=1,
        cases=rank_cases,
        judge=judge_rank,
        hints=(
            "The squared norm of a matrix is the sum of its squared singular values.",
            "jnp.cumsum sums from the left; jnp.argmax of a list of booleans is the place of the first True.",
            "The place counts from 0: a rank of 1 is place 0.",
        ),
        solution='''def rank_for_share(singular_values, share):
    """The smallest rank whose singular values hold `share` of the squared norm; the values (n,) fall."""
    sums = jnp.cumsum(singular_values**2)
    return int(jnp.argmax(sums >= share * sums[-1])) + 1
''',
    ),
    Exercise(
        id="3.2",
        name="lora_product",
        title="x @ w with LoRA on it",
        minutes=5,
        difficulty=1,
        cases=product_cases,
        judge=judge_product,
        hints=(
            "Two paths are added: through w, and through a, then b.",
            "The rank is a.shape[1]. Scale the second path by alpha / rank.",
        ),
        solution='''def lora_product(x, w, a, b, alpha):
    """x (N, in), w (in, out), a (in, R), b (R, out) -> (N, out)."""
    scaling = alpha / a.shape[1]
    return x @ w + scaling * (x @ a) @ b
''',
    ),
    Exercise(
        id="3.3",
        name="lora_init",
        title="Adapters as a pytree of their own",
        minutes=15,
        difficulty=2,
        cases=init_cases,
        judge=judge_init,
        hints=(
            "jax.random.split(jax.random.key(seed), len(shapes)) gives a key for each matrix.",
            "jax.random.uniform(key, (d_in, rank), minval=-bound, maxval=bound), with bound = 1 / sqrt(in).",
            "b is jnp.zeros((rank, d_out)).",
        ),
        solution='''def lora_init(seed, shapes, rank):
    """shapes {name: (in, out)} -> {name: {"a": (in, R), "b": (R, out)}}: a uniform within 1/sqrt(in), b zero."""
    adapters = {}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    for key, (name, (d_in, d_out)) in zip(keys, shapes.items()):
        bound = d_in**-0.5
        a = jax.random.uniform(key, (d_in, rank), minval=-bound, maxval=bound)
        adapters[name] = {"a": a, "b": jnp.zeros((rank, d_out))}
    return adapters
''',
    ),
    Exercise(
        id="3.4",
        name="lora_gradients",
        title="The gradients of A and B by hand",
        minutes=15,
        difficulty=3,
        cases=gradient_cases,
        judge=judge_gradients,
        hints=(
            "For y = u @ v and dy, the gradient of y: du = dy @ v.T, and dv = u.T @ dy.",
            "Write y = s * h @ b with h = x @ a. The gradient of h is s * dy @ b.T.",
            "The gradient of a is x.T @ (the gradient of h). That of b is s * h.T @ dy.",
        ),
        solution='''def lora_gradients(x, a, b, scaling, dy):
    """x (N, in), a (in, R), b (R, out), dy (N, out) -> (gradient of a, gradient of b) of scaling * (x @ a) @ b."""
    dh = scaling * dy @ b.T  # (N, R)
    return x.T @ dh, scaling * (x @ a).T @ dy
''',
    ),
    Exercise(
        id="3.5",
        name="lora_merge",
        title="The merge, all layers at once",
        minutes=5,
        difficulty=2,
        cases=merge_cases,
        judge=judge_merge,
        hints=(
            "The merged weight is w + (alpha / rank) * a @ b, and `@` leaves the leading axis alone.",
            "The rank is a.shape[-1].",
            "End with .astype(w.dtype), so that the merged weight takes the place of w.",
        ),
        solution='''def lora_merge(w, a, b, alpha):
    """w (L, in, out), a (L, in, R), b (L, R, out) -> (L, in, out) in the dtype of w."""
    scaling = alpha / a.shape[-1]
    return (w + scaling * a @ b).astype(w.dtype)
''',
    ),
)
