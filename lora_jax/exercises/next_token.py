"""Two exercises of notebook 01 on the next token: what each position is asked (1.2), and a loss to be mended (1.3).

Letters: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_jax.exercises.judging import SIXTEEN_BITS, number, within_rounding
from lora_jax.exercises.registry import Exercise

Arguments = tuple[Any, ...]
Cases = list[Arguments]
Rng = np.random.Generator


# 1.2: what each position is asked.
def rows(rng: Rng) -> Cases:
    """Rows with one document, with several, with padding; then what is easily forgotten.

    The third case has documents of one token, a row of padding alone, ids that float32 cannot hold, a 0 that is a token
    and padding that is not 0: only `segments` tells. The last has nothing to learn: one row of one token.
    """
    found: Cases = []
    for T in (11, 14):
        tokens = np.stack([rng.permutation(90)[:T] for _ in range(3)]).astype(np.int32) + 1
        cut, end = int(rng.integers(2, T - 5)), int(rng.integers(T - 4, T - 1))
        segments = np.ones((3, T), np.int32)
        segments[1:, cut:] = 2
        segments[2, end:] = 0
        found.append((np.where(segments == 0, 0, tokens), segments))
    segments = np.array([[1, 2, 3, 3, 3, 4, 4, 0, 0], [0] * 9, [1, 1, 1, 2, 3, 4, 5, 5, 5]], np.int32)
    tokens = 2**24 + 2 * rng.integers(0, 1000, segments.shape, np.int32) + 1
    tokens[0, 3], tokens[2, 1:3] = 0, 7
    one = (np.array([[int(rng.integers(1, 90))]], np.int32), np.array([[1]], np.int32))
    return [*found, (tokens, segments), one]


def judge_targets(arguments: Arguments, answer: Any) -> str | None:
    tokens, segments = arguments
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return "return two arrays of the shape of `tokens`: the targets and the mask."
    targets, mask = (np.asarray(a) for a in answer)
    for name, array in (("targets", targets), ("mask", mask)):
        if array.shape != tokens.shape:
            return (f"your {name} have shape {array.shape}: keep {tokens.shape}, one entry a token, and let the mask "
                    "be 0 where nothing follows.")  # fmt: skip
    same = segments[:, 1:] == segments[:, :-1]
    learned = np.pad(same & (segments[:, 1:] != 0), ((0, 0), (0, 1)))
    after = np.roll(tokens, -1, axis=1)
    if not np.array_equal(targets[learned], after[learned]):
        return _wrong_targets(targets, tokens, learned)
    if np.array_equal(mask != 0, ~learned):
        return "your mask is the wrong way round: it is 1 where the target is to be learned, and 0 elsewhere."
    if np.any((mask == 0) & learned):
        if np.array_equal(mask != 0, learned & (tokens != 0)) or np.array_equal(mask != 0, learned & (after != 0)):
            return "your mask asks whether a token is 0, which may be a word like any other: padding is segment 0."
        return (f"your mask is 0 at {np.sum((mask == 0) & learned)} positions whose next token stands in the same "
                "document: compare the segment at t with the one at t + 1.")  # fmt: skip
    extra = (mask != 0) & ~learned
    if np.any(extra[:, -1] & (segments[:, -1] != 0)):
        return "your mask is 1 at the end of a row: nothing follows there (a roll brings back the row's first token)."
    if np.any(extra & (segments == 0)):
        return "your mask is 1 on padding: segment 0 is no text, and there is nothing to learn from it."
    if np.any(extra):
        return "your mask is 1 where a document ends and the next begins: no token tells which document follows."
    return None if np.all(mask[learned] == 1) else "your mask is neither 0 nor 1 somewhere: it counts tokens."


def _wrong_targets(targets: np.ndarray, tokens: np.ndarray, learned: np.ndarray) -> str:
    if np.array_equal(targets[learned], tokens[learned]):
        return "your targets are the tokens themselves, which the model sees: shift them by one."
    if np.array_equal(targets[:, 1:], tokens[:, :-1]):
        return "you shifted the wrong way: at position t the target is token t + 1, not token t - 1."
    if np.array_equal(targets, np.roll(tokens, -1, 0)):
        return "you shifted across the rows: shift along time, axis 1."
    if targets.dtype.kind != "i" and targets.dtype.kind != "u":
        return f"your targets are {targets.dtype}, which cannot hold every id: keep the dtype of `tokens`."
    return "the target at position t is the token at t + 1 of the same row."


# 1.3: a loss with three mistakes.
def guesses(rng: Rng) -> Cases:
    """First logits of usual size, with rows that differ in how much is masked: here every mistake but one shows.

    Then those for which exp is too large or too small in float32: all logits near 1,000; each position on a level of
    its own; within one position 200 and 1,000 apart. At last one token alone, and a batch with nothing masked.
    """

    def case(B: int, T: int, V: int, offset: Any = 0.0, masked: bool = True) -> Arguments:
        logits = np.round(8 * rng.normal(0, 2, (B, T, V))) / 8 + offset  # eighths: exact in float32 at any offset
        mask = np.ones((B, T), np.float32)
        if masked:
            mask[:, -1] = 0
            mask[0, 1:] = 0
        return logits.astype(np.float32), rng.integers(0, V, (B, T)).astype(np.int32), mask

    levels = rng.permutation([-1000.0, -300.0, -90.0, 0.0, 90.0, 300.0, 1000.0, 2000.0]).reshape(2, 4, 1)
    apart = np.array([[[200, 0, 0], [0, 1000, 0], [-200, 0, 0]]], np.float32)
    far = (apart, np.array([[1, 0, 0]], np.int32), np.ones((1, 3), np.float32))
    return [case(3, 5, 7), case(4, 3, 9, 1000.0), case(2, 4, 6, levels), far, case(1, 1, 2, masked=False),
            case(3, 4, 5, masked=False)]  # fmt: skip


def log_softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    z = logits.astype(np.float64) - logits.max(axis=axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


def judge_nll(arguments: Arguments, answer: Any) -> str | None:
    logits, targets, mask = arguments

    def at_targets(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values.astype(np.float64), targets[..., None], axis=-1)[..., 0]

    def mean(values: np.ndarray) -> float:
        return float(np.sum(values * mask) / np.sum(mask))

    if isinstance(answer, np.ndarray):
        return f"return one number, the mean over the tokens that count, not an array of shape {answer.shape}."
    nats, answer = -at_targets(log_softmax(logits)), number(answer)  # (B, T)
    right, largest = mean(nats), np.abs(logits).max(-1)  # of a position, what a sum over its logits may round
    if within_rounding(answer, right, mean(largest + nats + 1), logits.shape[-1] + nats.size + 8):
        return None
    spread, levels = float(np.ptp(logits, axis=-1).max()), float(np.ptp(logits.max(-1)))
    if spread > 100 and not answer > right:
        return (f"of logits that lie {spread:,.0f} apart float32 makes a probability of exactly 0, and a number added "
                "to it, or a bound, is a wrong one: take the logarithm without forming p, by log_softmax.")  # fmt: skip
    if spread > 100:
        return (f"of logits that lie {spread:,.0f} apart float32 makes a probability of exactly 0, whose logarithm is "
                "infinite: take the logarithm without forming p, as jax.nn.log_softmax does.")  # fmt: skip
    if not math.isfinite(answer):
        if levels > 50:
            return ("positions whose logits lie on other levels need other numbers taken off: the largest logit of "
                    "each position, not one for many.")  # fmt: skip
        return (f"with logits near {logits.mean():.0f} your answer is {answer}: exp overflows; subtract each "
                "position's largest logit first, or use jax.nn.log_softmax.")  # fmt: skip
    softmaxes = {
        "time": -at_targets(log_softmax(logits, axis=1)),
        "the batch": -at_targets(log_softmax(logits, axis=0)),
    }
    mistakes = [
        (value, f"your softmax runs over {over}: it goes over the vocabulary, axis -1")
        for over, wrong in softmaxes.items()
        for value in (np.mean(wrong * mask), mean(wrong), np.mean(wrong), np.sum(wrong * mask))
    ]
    each = np.sum(nats * mask, axis=1) / np.sum(mask, axis=1)
    mistakes += [
        (-right, "the sign is wrong: a log-probability is negative, and the loss is its negative"),
        (right * np.sum(mask), "you summed: divide by the number of tokens that count"),
        (np.mean(nats * mask), "you divided by all positions: divide by the sum of the mask"),
        (right * np.sum(mask) / len(mask), "you divided by the number of rows: divide by the sum of the mask"),
        (np.mean(nats), "you counted the masked positions too: multiply by the mask"),
        (right / math.log(2), "that is in bits: take the natural logarithm, for nats"),
        (math.exp(min(right, 700.0)), "that is the perplexity, exp of the loss: leave the exponential out"),
        (np.mean(each), "you took the mean of the rows' means: every token counts alike, so sum all, then divide once"),
        (-mean(at_targets(logits)), "these are the bare logits: they need a log-softmax first"),
        (-mean(np.exp(-nats)), "these are probabilities: take their logarithm"),
    ]  # fmt: skip
    for value, why in mistakes:
        if math.isclose(answer, value, rel_tol=1e-5):
            return f"{why}."
    if abs(answer - right) < 2.0**-6 * (right + largest.max()):
        return f"the answer is {answer:.6g} where it should be {right:.6g}: {SIXTEEN_BITS}"
    return (f"the answer is {answer:.4f} where it should be {right:.4f}: take the log-softmax over the last axis, pick "
            "each target's entry, and average the negatives over the mask.")  # fmt: skip


NEXT_TOKENS = Exercise(
    id="1.2", name="next_tokens", title="What each position is asked", minutes=10, difficulty=2,
    cases=rows, judge=judge_targets,
    hints=("jnp.roll(tokens, -1, axis=1) puts token t + 1 at place t; what comes to the last place must not count.",
           "A target counts where segments[:, 1:] equals segments[:, :-1] and is not 0; add a column of zeros."),
    solution='''
def next_tokens(tokens, segments):
    """(targets, mask), each (B, T) as `tokens` and `segments` are; segment 0 is padding. The mask is 1 or 0."""
    targets = jnp.roll(tokens, -1, axis=1)
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
    return targets, jnp.pad(same.astype(jnp.float32), ((0, 0), (0, 1)))
''',
)  # fmt: skip

NEXT_TOKEN_LOSS = Exercise(
    id="1.3", name="next_token_loss", title="Find the mistakes in a loss", minutes=15, difficulty=3,
    cases=guesses, judge=judge_nll,
    hints=("What is exp of 1,000 in float32? And the logarithm of exp(-200)? jax.nn.log_softmax forms neither.",
           "Of each position only one entry counts: jnp.take_along_axis(..., targets[..., None], axis=-1).",
           "Multiply by the mask before you sum, and divide by the mask's sum, not by B * T."),
    solution='''
def next_token_loss(logits, targets, mask):
    """The mean, in nats, over the tokens that `mask` (B, T) keeps, of -log p(target). `logits` are (B, T, V)."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(nats * mask) / jnp.sum(mask)
''',
)  # fmt: skip
