"""The exercises of notebook 01: what a model holds, what it is asked, how wrong it is, and a step that mends it.

Letters: B batch, T time, V vocabulary, D width, F feed-forward width, L layers, H query heads, K key/value heads, C
head size. A judge knows plausible mistakes by the answers that they give.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_jax.exercises.registry import Exercise

Arguments = tuple[Any, ...]
Cases = list[Arguments]
Rng = np.random.Generator

VOCABULARY = 2048  # of the small model
TOLERANCE = 1e-5  # float32 summed in another order differs by less; the mistakes differ by far more


def sizes(rng: Rng) -> Cases:
    """Four shapes of models, no two numbers in one alike; tied and untied in turn."""
    found: Cases = []
    for i in range(4):
        K = int(rng.integers(2, 4))
        V, D, F, L = (int(rng.integers(*ends)) for ends in ((90, 150), (20, 40), (50, 60), (4, 6)))
        found.append((V, D, F, L, 3 * K, K, int(rng.choice([10, 14])), i % 2 == 0))
    return found


def parameters(V: int, D: int, F: int, L: int, H: int, K: int, C: int, *, norms: int = 2, last: int = 1,
               matrices: int = 3, heads: int = 1) -> int:  # fmt: skip
    """How many numbers a model of `heads` matrices of (V, D) holds, with so many norms and matrices in a layer."""
    attention = D * H * C + 2 * D * K * C + H * C * D
    return heads * V * D + L * (attention + matrices * D * F + norms * D) + last * D


def judge_count(arguments: Arguments, answer: Any) -> str | None:
    *letters, tied = arguments
    V, D, F, L, H, K, C = letters
    heads = 1 if tied else 2
    right = parameters(*letters, heads=heads)
    if answer == right:
        return None
    mistakes = {
        parameters(V, D, F, L, H, H, C, heads=heads): "k_proj and v_proj are (D, K * C): they have K heads, not H",
        parameters(*letters, heads=heads, matrices=2): "a gated feed-forward has three matrices: gate, up and down",
        parameters(*letters, heads=heads, last=0): "one norm more stands behind the last layer: D numbers",
        parameters(*letters, heads=heads, norms=0): "each layer has two norms of D numbers",
        parameters(*letters, heads=heads, norms=0, last=0): "the norms hold numbers too: two a layer and a last one",
        parameters(V, D, F, 1, H, K, C, heads=heads): "there are L layers, and you counted one",
        parameters(*letters, heads=0): "the embedding is missing: V rows of D numbers",
        right + L * (2 * D * D - 2 * D * H * C): "q_proj is (D, H * C), and H * C need not be D",
        parameters(*letters, heads=2): "where the head is tied it is the embedding itself: count it once",
        parameters(*letters, heads=1): "where the head is not tied there is one more matrix, lm_head, of (D, V)",
    }
    why = mistakes.get(answer, "write down the shape of every array of one layer, then what stands outside the layers")
    return f"for V={V}, D={D}, F={F}, L={L}, H={H}, K={K}, C={C}, tied={tied} it is {right:,}, not {answer:,}: {why}."


def rows(rng: Rng) -> Cases:
    """Two cases of three rows: one whole document, several side by side, and some with padding behind them."""
    found: Cases = []
    for T in (11, 14):
        tokens = np.stack([rng.permutation(90)[:T] for _ in range(3)]).astype(np.int32) + 1
        cut, end = int(rng.integers(2, T - 5)), int(rng.integers(T - 4, T - 1))
        segments = np.ones((3, T), np.int32)
        segments[1:, cut:] = 2
        segments[2, end:] = 0
        found.append((np.where(segments == 0, 0, tokens), segments))
    return found


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
        if np.array_equal(targets[learned], tokens[learned]):
            return "your targets are the tokens themselves, which the model sees: shift them by one."
        if np.array_equal(targets[:, 1:], tokens[:, :-1]):
            return "you shifted the wrong way: at position t the target is token t + 1, not token t - 1."
        if np.array_equal(targets, np.roll(tokens, -1, 0)):
            return "you shifted across the rows: shift along time, axis 1."
        return "the target at position t is the token at t + 1 of the same row."
    if np.array_equal(mask != 0, ~learned):
        return "your mask is the wrong way round: it is 1 where the target is to be learned, and 0 elsewhere."
    if np.any((mask == 0) & learned):
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


def guesses(rng: Rng) -> Cases:
    """Logits whose rows differ in how much is masked; the last are so large that a bare exponential overflows."""
    found: Cases = []
    for B, T, V, offset in ((3, 5, 7, 0.0), (2, 6, 11, 0.0), (4, 3, 9, 1000.0)):
        logits = np.round(8 * rng.normal(0, 2, (B, T, V))) / 8 + offset  # eighths: exact in float32 at any offset
        mask = np.ones((B, T), np.float32)
        mask[:, -1] = 0
        mask[0, 1:] = 0
        found.append((logits.astype(np.float32), rng.integers(0, V, (B, T)).astype(np.int32), mask))
    return found


def log_softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    z = logits.astype(np.float64) - logits.max(axis=axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


def judge_nll(arguments: Arguments, answer: Any) -> str | None:
    logits, targets, mask = arguments

    def at_targets(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values.astype(np.float64), targets[..., None], axis=-1)[..., 0]

    if isinstance(answer, np.ndarray):
        return f"return one number, the mean over the tokens that count, not an array of shape {answer.shape}."
    nats = -at_targets(log_softmax(logits))  # (B, T)
    right = float(np.sum(nats * mask) / np.sum(mask))
    if math.isclose(answer, right, rel_tol=TOLERANCE):
        return None
    if not math.isfinite(answer):
        return (f"with logits near {logits.mean():.0f} your answer is {answer}: exp overflows; subtract each row's "
                "largest logit first, or use jax.nn.log_softmax.")  # fmt: skip
    over_time = -at_targets(log_softmax(logits, axis=1))  # (B, T)
    each = np.sum(nats * mask, axis=1) / np.sum(mask, axis=1)
    mistakes = (
        (-right, "the sign is wrong: a log-probability is negative, and the loss is its negative"),
        (right * np.sum(mask), "you summed: divide by the number of tokens that count"),
        (np.mean(nats * mask), "you divided by all positions: divide by the sum of the mask"),
        (np.mean(nats), "you counted the masked positions too: multiply by the mask"),
        (np.mean(over_time * mask), "two at once: the softmax runs over time, and you divided by all positions"),
        (right / math.log(2), "that is in bits: take the natural logarithm, for nats"),
        (math.exp(right), "that is the perplexity, exp of the loss: leave the exponential out"),
        (np.mean(each), "you took the mean of the rows' means: every token counts alike, so sum all, then divide once"),
        (-np.sum(at_targets(logits) * mask) / np.sum(mask), "these are the bare logits: they need a log-softmax first"),
        (-np.sum(np.exp(-nats) * mask) / np.sum(mask), "these are probabilities: take their logarithm"),
        (np.sum(over_time * mask) / np.sum(mask), "your softmax runs over time: it goes over the vocabulary, axis -1"),
    )  # fmt: skip
    for value, why in mistakes:
        if math.isclose(answer, value, rel_tol=TOLERANCE):
            return f"{why}."
    return (f"the answer is {answer:.4f} where it should be {right:.4f}: take the log-softmax over the last axis, pick "
            "each target's entry, and average the negatives over the mask.")  # fmt: skip


def judge_random_loss(arguments: Arguments, answer: Any) -> str | None:
    if math.isclose(answer, math.log(VOCABULARY), abs_tol=0.1):
        return None
    mistakes = (
        (math.log2(VOCABULARY), "that is in bits: the loss here is in nats, the natural logarithm"),
        (math.log10(VOCABULARY), "that is a logarithm to the base 10: take the natural one"),
        (-math.log(VOCABULARY), "the sign is wrong: the loss is minus the logarithm of a probability below 1"),
        (VOCABULARY, "that is the perplexity, between how many tokens it hesitates: the loss is its logarithm"),
        (1 / VOCABULARY, "that is the probability of the right token: the loss is minus its logarithm"),
        (1 - 1 / VOCABULARY, "that is how often a guess is wrong: the loss is -ln of the right token's chance"),
        (0, "a loss of 0 means certain and right: a random model is neither"),
    )
    for value, why in mistakes:
        if math.isclose(answer, value, rel_tol=0.01, abs_tol=1e-9):
            return f"{why}."
    way = "high" if answer > math.log(VOCABULARY) else "low"
    return f"too {way}: to a model that knows nothing each of V tokens is about as likely; take -ln of that chance."


def trees(rng: Rng) -> Cases:
    """Parameters and gradients in trees of three shapes, no two rates alike."""

    def tree(i: int) -> Any:
        def array(*shape: int) -> np.ndarray:
            return rng.normal(0, 1, shape).astype(np.float32)

        inner = {"q_proj": array(2, 3, 4), "o_proj": array(2, 4, 3)}
        return [{"w": array(3, 2), "b": array(2)}, {"layers": {"self_attn": inner}, "norm": array(3)},
                {"runs": [{"w": array(4)}, {"w": array(5)}], "embed_tokens": array(6, 3)}][i]  # fmt: skip

    return [(tree(i), tree(i), rate) for i, rate in enumerate((0.1, 0.03, 0.25))]


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The arrays of a tree by their paths, such as "layers.norm"."""
    if not isinstance(tree, dict | list | tuple):
        return {path: np.asarray(tree)}
    found: dict[str, Any] = {}
    for name, node in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found |= leaves(node, f"{path}.{name}".lstrip("."))
    return found


def judge_step(arguments: Arguments, answer: Any) -> str | None:
    old, slope, rate = leaves(arguments[0]), leaves(arguments[1]), arguments[2]
    new = leaves(answer)
    if set(new) != set(old):
        lost = sorted(set(old) - set(new)) or sorted(set(new) - set(old))
        return f"the tree has another shape than `params` ({lost[0]} differs): jax.tree.map keeps it, however deep."
    if wrong := [p for p in old if new[p].shape != old[p].shape]:
        return f"{wrong[0]} has shape {new[wrong[0]].shape}, and had {old[wrong[0]].shape}: a step changes no shape."

    def made_by(rule: Any) -> bool:
        return all(np.allclose(new[p], rule(old[p], slope[p]), rtol=TOLERANCE, atol=TOLERANCE) for p in old)

    if made_by(lambda w, g: w - rate * g):
        return None
    mistakes = (
        (lambda w, g: w, "nothing moved: subtract rate times the gradient"),
        (lambda w, g: w + rate * g, "you walked uphill: the gradient points where the loss grows, so subtract it"),
        (lambda w, g: w - g, "you left out the rate: multiply the gradient by it"),
        (lambda w, g: -rate * g, "that is the update alone: add it to the parameters"),
        (lambda w, g: w - g / rate, "you divided by the rate: multiply by it"),
        (lambda w, g: w * (1 - rate * g), "you scaled the parameters by the gradient: subtract it from them"),
        (lambda w, g: w - rate * w, "you subtracted the parameters from themselves: use the gradients"),
        (lambda w, g: w - rate * np.sign(g), "you used the gradient's sign alone: its size counts too"),
    )
    for rule, why in mistakes:
        if made_by(rule):
            return f"{why}."
    return "some array is not w - rate * g: every array of the tree, however deep, takes the same step."


EXERCISES = (
    Exercise(
        id="1.1", name="count_parameters", title="Count what a model holds", minutes=15, difficulty=2,
        cases=sizes, judge=judge_count,
        hints=("List the arrays of one layer with their shapes: seven matrices, and two norms of D numbers.",
               "q_proj is (D, H * C), k_proj and v_proj are (D, K * C), o_proj is (H * C, D).",
               "Outside the layers stand the embedding (V, D), one norm, and, where the head is not tied, (D, V)."),
        solution='''
def count_parameters(V, D, F, L, H, K, C, tied):
    """How many numbers a model holds, an int; where the head is `tied`, the embedding serves as the head."""
    attention = D * H * C + 2 * D * K * C + H * C * D
    layer = attention + 3 * D * F + 2 * D
    return V * D + L * layer + D + (0 if tied else D * V)
''',
    ),
    Exercise(
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
    ),
    Exercise(
        id="1.3", name="next_token_loss", title="Find the mistakes in a loss", minutes=15, difficulty=3,
        cases=guesses, judge=judge_nll,
        hints=("What is exp of 1,000 in float32? jax.nn.log_softmax takes each row's largest logit off first.",
               "Of each position only one entry counts: jnp.take_along_axis(..., targets[..., None], axis=-1).",
               "Multiply by the mask before you sum, and divide by the mask's sum, not by B * T."),
        solution='''
def next_token_loss(logits, targets, mask):
    """The mean, in nats, over the tokens that `mask` (B, T) keeps, of -log p(target). `logits` are (B, T, V)."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(nats * mask) / jnp.sum(mask)
''',
    ),
    Exercise(
        id="1.4", name="random_loss", title="Predict the loss of a model that knows nothing", minutes=5, difficulty=1,
        cases=lambda rng: [()], judge=judge_random_loss,
        hints=("If all V tokens are equally likely, which probability does the right one get?",
               "The loss is minus the natural logarithm of that probability."),
        solution="random_loss = np.log(2048)",
    ),
    Exercise(
        id="1.5", name="gradient_step", title="A step over any tree", minutes=5, difficulty=1,
        cases=trees, judge=judge_step,
        hints=("The gradient points where the loss grows.",
               "jax.tree.map(f, params, gradients) calls f on each pair of arrays and keeps the shape of the tree."),
        solution='''
def gradient_step(params, gradients, rate):
    """`params` after one step of gradient descent; both trees have the same shape, and so has the result."""
    return jax.tree.map(lambda w, g: w - rate * g, params, gradients)
''',
    ),
)  # fmt: skip
