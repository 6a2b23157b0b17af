"""Exercise 5.1: the chances of one draw, by a temperature and the k likeliest tokens. V: vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_jax.exercises.judging import TINY, is_close, named, nearly, within_rounding
from lora_jax.exercises.registry import Exercise

Case = tuple[Any, ...]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def cases(rng: np.random.Generator) -> list[Case]:
    """First usual logits, where each mistake shows; then what is easily forgotten. No two logits at the k-th are alike.

    One token kept, one token at all, the two largest alike; all logits far below 0 or above; logits hundreds apart with
    a temperature that brings them near each other again, and a temperature that drives usual ones apart.
    """

    def case(V: int, k: int, temperature: float, scale: float = 1.5, level: float = 0) -> Case:
        eighths = rng.choice(np.arange(-40, 40), V, replace=False) / 8  # no two alike, and exact in float32
        return (scale / 1.5 * eighths + level).astype(np.float32), temperature, k

    def usual(V: int, k: int, temperature: float) -> Case:
        return rng.normal(0, 1.5, V).astype(np.float32), temperature, k

    two, temperature, _ = case(9, 3, 0.75)
    order = np.argsort(two)
    two[order[-2]] = two[order[-1]]
    return [
        usual(9, 3, float(rng.uniform(0.4, 0.8))), usual(12, 5, float(rng.uniform(1.4, 2.5))), usual(6, 6, 0.7),
        case(8, 1, 1.5), case(1, 1, 0.5), (two, temperature, 3),
        case(7, 4, 0.5, level=-2000), case(7, 4, 0.5, level=2000), case(9, 3, 64.0, scale=120), case(9, 3, 2.0**-8),
        case(9, 9, 64.0, scale=120),
    ]  # fmt: skip


def judge(arguments: Case, answer: Any) -> str | None:
    logits, temperature, k = arguments
    found, logits = np.asarray(answer, np.float64), logits.astype(np.float64)
    if found.shape != logits.shape:
        return f"your answer has shape {found.shape}: return a probability for each of the {logits.size} tokens."
    if not np.isfinite(found).all():
        return "there are values that are not finite: subtract the largest logit before exp, or use jax.nn.softmax."
    keep = logits >= np.sort(logits)[-k]
    likeliest = np.where(keep, logits, -np.inf)
    expected = softmax(likeliest / temperature)
    # Dividing and subtracting logits moves an exponent by so many roundings of the largest of them.
    roundings = logits.size + 8 + int(4 * np.abs(logits).max() / temperature)
    if within_rounding(found, expected, expected, roundings) and not found[~keep].any():
        return None
    tail = found[~keep]
    mistakes = [
        ("you multiplied the logits by the temperature: divide them by it.", softmax(likeliest * temperature)),
        ("the temperature has no effect: divide the logits by it, not the probabilities.", softmax(likeliest)),
        ("these are the model's plain probabilities: neither the temperature nor k is used.", softmax(logits)),
        ("every token has a chance: only the {k} likeliest may be drawn, the rest has probability 0.",
         softmax(logits / temperature)),
        ("a logit of 0 forbids no token, since exp(0) is 1: put -inf there.",
         softmax(np.where(keep, logits / temperature, 0))),
        ("the values are right and in order of size: leave each at its own token's place.", np.sort(expected)[::-1]),
        ("the values are right and in order of size: leave each at its own token's place.", np.sort(expected)),
    ]  # fmt: skip
    if abs(found.sum() - 1) > 2.0**-7:
        return f"your probabilities sum to {found.sum():.3f}: drop tokens first and take the softmax of what is left."
    spread = np.ptp(logits[keep])
    if spread > 50 * min(1, temperature) and temperature > 1 and (found[keep] == 0).any():
        return (f"of logits that lie {spread:,.0f} apart the softmax is 0 in float32, and no temperature brings that "
                "back: divide the logits by the temperature first.")  # fmt: skip
    if (kept := int((found > 0).sum())) not in (k, logits.size) and expected[keep].min() > TINY:
        return f"{kept} tokens have a chance where k is {k}: keep exactly k."
    if message := named(found, mistakes, 1e-5):
        return message.format(k=k)
    if kept != k and tail.any():
        return f"every token has a chance: only the {k} likeliest may be drawn, the rest has probability 0."
    if found[np.argmax(logits)] < found.max() and not is_close(found, expected, 2.0**-5):
        return "the likeliest token is not the one of the highest logit: keep the k largest logits, not the smallest."
    return nearly(found, expected, 4 * expected) or (
        "the tokens are the right ones and their probabilities are not: take softmax(logits / temperature) of them."
    )


NEXT_TOKEN_PROBABILITIES = Exercise(
    id="5.1",
    name="next_token_probabilities",
    title="The temperature sharpens or flattens, and k cuts off the tail",
    minutes=10,
    difficulty=2,
    cases=cases,
    judge=judge,
    hints=(
        "Three steps: divide the logits by the temperature, drop all but the k largest, take the softmax.",
        "exp(-inf) is 0: put -jnp.inf where a logit is below the k-th largest, which jnp.sort(logits)[-k] finds.",
    ),
    solution='''def next_token_probabilities(logits, temperature, k):
    """The chance of each token to be drawn: logits (V,), temperature above 0, the k likeliest kept -> (V,)."""
    kept = jnp.where(logits >= jnp.sort(logits)[-k], logits, -jnp.inf)
    return jax.nn.softmax(kept / temperature)
''',
)
