"""The exercises of notebook 03: the rank of a change, and LoRA written by hand.

Letters: N rows of a product, R rank; a matrix is (in, out), A is (in, R), B is (R, out), and s = alpha / R.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from lora_jax.exercises.judging import EPS, is_close, named, nearly, within_rounding, wrong_shape
from lora_jax.exercises.lora_init import LORA_INIT
from lora_jax.exercises.registry import Exercise

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def rank_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """First spectra where each mistake shows; then shares that a rank holds exactly, and a long, flat spectrum.

    The exact ones: equal values; squares of 9, 4, 1, 1 and 1 of 16; all of it, with zeros behind; one value. Their sums
    are powers of two, so that a share is exact in float32 whether it is divided or multiplied.
    """

    def case(n: int, rank: int) -> tuple[Any, ...]:
        while True:
            values = np.sort(rng.exponential(size=n) ** 2)[::-1].astype(np.float32)
            held = np.cumsum(values.astype(np.float64) ** 2) / np.sum(values.astype(np.float64) ** 2)
            share = float(held[rank - 2] + held[rank - 1]) / 2  # far from both, so that rounding decides nothing
            if first_to_hold(values, share) - rank > 1 and held[rank - 1] - held[rank - 2] > 1e-3:
                return values, share

    uneven = 2.0 ** int(rng.integers(0, 4)) * np.array([3, 2, 1, 1, 1], np.float32)
    return [
        case(23, 5), case(41, 7),
        (np.full(4, 2.0, np.float32), 0.5), (uneven, 9 / 16), (uneven, 13 / 16), (256 * uneven, 7 / 8),
        (np.array([3, 2, 1, 1, 1, 0, 0], np.float32), 1.0), (np.array([2.5], np.float32), 0.9), flat_spectrum(rng),
    ]  # fmt: skip


def flat_spectrum(rng: np.random.Generator) -> tuple[Any, ...]:
    """So many values that a sum in 16 bits stands still, so near 1 that 16 bits call all of them 1."""
    while True:
        values = np.repeat(1 + rng.uniform((4.0e-4, -2.3e-4), (4.7e-4, -1.6e-4)), 1200).astype(np.float32)
        held, rank = np.cumsum(values.astype(np.float64) ** 2), int(rng.integers(1210, 1400))
        share = float((held[rank - 2] + held[rank - 1]) / 2 / held[-1])
        rounded = [
            found
            for kind in (np.float16, BFLOAT16)
            for found in (
                first_to_hold(values.astype(kind), share, 2),
                first_to_hold(values, float(np.array(share).astype(kind)), 2),
            )
        ]
        if rank not in rounded:
            return values, share


def first_to_hold(values: np.ndarray, share: float, power: int = 1) -> int:
    """The first rank whose values, to that power, are the share of all."""
    sums = np.cumsum(values.astype(np.float64) ** power)
    return int(np.argmax(sums >= share * sums[-1])) + 1


def judge_rank(arguments: tuple[Any, ...], answer: Any) -> str | None:
    values, share = arguments
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return "return one whole number, the rank."
    right, plain = first_to_hold(values, share, 2), first_to_hold(values, share, 1)
    if answer == right:
        return None
    if answer == right - 1:
        return f"one too few ({answer} for {right}): positions count from 0 and ranks from 1."
    if answer in (plain, plain - 1) and plain - right > 1:
        return "you summed the singular values: a matrix's squared norm is the sum of their squares."
    if answer == right + 1:
        return f"one too many ({answer} for {right}): a rank that reaches the share exactly is enough."
    if len(values) > 1000 and abs(answer - right) < 0.2 * right:
        return (
            f"{answer} for {right} of {len(values)} values: so long a sum in 16 bits is off, or one in another order."
        )
    return f"for a share of {share:.0%} the rank is {right}, not {answer}: sum the squares from the largest on."


def product_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Sizes that all differ; in the third the update is small beside the base; the last is of one row and rank 1."""

    def case(n: int, d_in: int, d_out: int, rank: int, alpha: float, base: float = 1) -> tuple[Any, ...]:
        sizes = ((n, d_in), (d_in, d_out), (d_in, rank), (rank, d_out))
        x, w, a, b = (rng.standard_normal(size).astype(np.float32) for size in sizes)
        return x, np.float32(base) * w, a, b, alpha

    return [case(5, 7, 11, 3, 6.1), case(4, 13, 9, 2, 7.3), case(6, 5, 8, 4, 1.1, 100), case(1, 3, 4, 1, 0.6)]


def judge_product(arguments: tuple[Any, ...], answer: Any) -> str | None:
    x, w, a, b, alpha = arguments
    rank = a.shape[1]
    x, w, a, b = (np.asarray(m, np.float64) for m in (x, w, a, b))
    base, update = x @ w, x @ a @ b
    right = base + alpha / rank * update
    size = abs(x) @ abs(w) + alpha / rank * (abs(x) @ abs(a) @ abs(b))  # of all that is added up, without signs
    if within_rounding(answer, right, size, x.shape[1] + rank + 4):
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
        or nearly(answer, right, size)
        or "the numbers differ from x @ w + (alpha / rank) * (x @ a) @ b."
    )


def gradient_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    def case(n: int, d_in: int, d_out: int, rank: int, scaling: float) -> tuple[Any, ...]:
        sizes = ((n, d_in), (d_in, rank), (rank, d_out), (n, d_out))
        x, a, b, dy = (rng.standard_normal(size).astype(np.float32) for size in sizes)
        return x, a, b, scaling, dy

    return [case(5, 7, 11, 3, 2.1), case(6, 13, 9, 4, 0.6), case(1, 3, 4, 1, 3.3)]  # the last: one row, and rank 1


def judge_gradients(arguments: tuple[Any, ...], answer: Any) -> str | None:
    x, a, b, s, dy = arguments
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return "return a pair: the gradient of a, then the gradient of b."
    x, a, b, dy = (np.asarray(m, np.float64) for m in (x, a, b, dy))
    da, db = s * x.T @ (dy @ b.T), s * (x @ a).T @ dy
    sizes = [abs(s) * m for m in (abs(x.T) @ (abs(dy) @ abs(b.T)), (abs(x) @ abs(a)).T @ abs(dy))]
    roundings = [len(x) + b.shape[1] + 4, len(x) + x.shape[1] + 4]
    right = [within_rounding(*one) for one in zip(answer, (da, db), sizes, roundings, strict=True)]
    if all(right):
        return None
    if is_close(answer[0], db) and is_close(answer[1], da):
        return "the two are swapped: the gradient of a comes first."
    if is_close(answer[0], da / s) and is_close(answer[1], db / s):
        return "both lack the scaling: s stands in front of (x @ a) @ b, so it stands in front of both gradients."
    for i, (name, found, expected, factor) in enumerate(
        (("a", answer[0], da, "dy @ b.T"), ("b", answer[1], db, "x @ a"))
    ):
        if right[i]:
            continue
        mistakes = {
            f"the gradient of {name} lacks the scaling s.": expected / s,
            f"the gradient of {name} is a mean over the rows of x: it is their sum.": expected / len(x),
            f"the gradient of {name} is transposed: it has the shape of {name}.": expected.T,
            f"the gradient of {name} is scaled twice.": expected * s,
            f"the gradient of {name} has the wrong sign.": -expected,
            f"that is the gradient of the whole matrix: the gradient of {name} has {factor} in it.": s * x.T @ dy,
        }
        return (
            named(found, mistakes.items())
            or wrong_shape(f"the gradient of {name}", found, expected.shape, f"the same as {name}.")
            or nearly(found, expected, sizes[i])
            or f"the gradient of {name} is wrong: start from {factor}."
        )
    return None


def merge_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    def case(layers: int, d_in: int, d_out: int, rank: int, alpha: float, dtype: Any) -> tuple[Any, ...]:
        sizes = ((layers, d_in, d_out), (layers, d_in, rank), (layers, rank, d_out))
        w, a, b = (rng.standard_normal(size).astype(np.float32) for size in sizes)
        return w.astype(dtype), a, b, alpha

    return [
        case(2, 8, 6, 3, 7.1, np.float32), case(3, 9, 7, 4, 10.3, BFLOAT16),
        case(2, 12, 5, 2, 3.3, np.float16), case(1, 4, 3, 1, 0.6, np.float32),
    ]  # fmt: skip


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
    right = base + alpha / rank * update
    size = np.abs(base) + alpha / rank * (np.abs(a).astype(np.float64) @ np.abs(b))
    # All is computed in float32 and rounded once, to the dtype of w: so an answer lies between the rounded ends of what
    # float32 may give.
    ends = [(right + sign * 2 * (rank + 4) * EPS * size).astype(w.dtype).astype(np.float64) for sign in (-1, 1)]
    if answer.dtype == w.dtype and np.all((ends[0] <= answer) & (answer <= ends[1])):
        return None
    known = named(answer, mistakes.items(), 1e-4 if w.dtype == np.float32 else 2.0**-8)
    if known is not None or not within_rounding(answer, right, size, 2**17):
        return known or "the numbers differ from w + (alpha / rank) * a @ b."
    if answer.dtype != w.dtype:
        return f"the merged weight is in {answer.dtype} and w in {w.dtype}: end with .astype(w.dtype)."
    return ("numbers are rounded on the way: work in float32, the update too, and round to the dtype of w once, at "
            "the end.")  # fmt: skip


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
    LORA_INIT,
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
