"""The exercises of notebook 01: what a model holds, what it is asked, how wrong it is, and a step that mends it.

Letters: V vocabulary, D width, F feed-forward width, L layers, H query heads, K key/value heads, C head size. A judge
knows plausible mistakes by the answers that they give. What a model is asked, and how wrong it is: `next_token.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_jax.exercises.judging import SIXTEEN_BITS, number, within_rounding
from lora_jax.exercises.next_token import NEXT_TOKEN_LOSS, NEXT_TOKENS
from lora_jax.exercises.registry import Exercise

Arguments = tuple[Any, ...]
Cases = list[Arguments]
Rng = np.random.Generator

VOCABULARY = 2048  # of the small model


def sizes(rng: Rng) -> Cases:
    """Shapes of models, no two numbers in one alike, tied and untied in turn; then the smallest, and two large ones.

    In the smallest the heads are together as wide as the model. The counts of the large ones are odd, and beyond what
    float32 can hold.
    """
    found: Cases = []
    for i in range(4):
        K = int(rng.integers(2, 4))
        V, D, F, L = (int(rng.integers(*ends)) for ends in ((90, 150), (20, 40), (50, 60), (4, 6)))
        found.append((V, D, F, L, 3 * K, K, int(rng.choice([10, 14])), i % 2 == 0))
    V, D, F = (4 * int(rng.integers(*ends)) + 2 for ends in ((12_500, 16_000), (513, 600), (1_025, 1_400)))
    return [
        *found,
        (int(rng.integers(13, 90)), 12, 5, 1, 4, 2, 3, False),
        (V, D + 1, F, 24, 12, 1, 64, True),
        (V + 1, D + 1, F, 25, 9, 3, 64, True),
    ]


def parameters(V: int, D: int, F: int, L: int, H: int, K: int, C: int, *, norms: int = 2, last: int = 1,
               matrices: int = 3, heads: int = 1) -> int:  # fmt: skip
    """How many numbers a model of `heads` matrices of (V, D) holds, with so many norms and matrices in a layer."""
    attention = D * H * C + 2 * D * K * C + H * C * D
    return heads * V * D + L * (attention + matrices * D * F + norms * D) + last * D


def judge_count(arguments: Arguments, answer: Any) -> str | None:
    *letters, tied = arguments
    V, D, F, L, H, K, C = letters
    heads, answer = 1 if tied else 2, number(answer)
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


def judge_random_loss(arguments: Arguments, answer: Any) -> str | None:
    answer = number(answer)
    if math.isclose(answer, math.log(VOCABULARY), abs_tol=0.05):  # one decimal is enough
        return None
    if math.isnan(answer):
        return "that is not a number: the logarithm of a number below 0 is none."
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
        if math.isclose(answer, value, rel_tol=1e-4 if value == 1 - 1 / VOCABULARY else 0.01, abs_tol=1e-9):
            return f"{why}."
    way = "high" if answer > math.log(VOCABULARY) else "low"
    return f"too {way}: to a model that knows nothing each of V tokens is about as likely; take -ln of that chance."


def trees(rng: Rng) -> Cases:
    """Parameters and gradients in trees of several shapes, no two rates alike.

    The third has gradients that stand in another order than the parameters: their names tell. The last two are a bare
    array, whose numbers are large, and a tree of single numbers, some of whose gradients are 0.
    """

    def array(*shape: int, scale: float = 1.0) -> np.ndarray:
        return rng.normal(0, scale, shape).astype(np.float32)

    def tree(i: int) -> Any:
        inner = {"q_proj": array(2, 3, 4), "o_proj": array(2, 4, 3)}
        runs = [{"w": array(4), "b": array(4)}, {"w": array(5)}]
        return [{"w": array(3, 2), "b": array(2)}, {"layers": {"self_attn": inner}, "norm": array(3)},
                {"runs": runs, "embed_tokens": array(6, 3)}][i]  # fmt: skip

    found = [(tree(i), tree(i), rate) for i, rate in enumerate((0.1, 0.03, 0.25))]
    slopes = found[2][1]
    slopes["runs"][0] = {name: slopes["runs"][0][name] for name in ("b", "w")}
    one = {"norm": array(1), "runs": [array(1, 1), array(1)]}
    still = {"norm": array(1), "runs": [np.zeros((1, 1), np.float32), array(1)]}
    return [*found, (array(5, scale=1e4), array(5), 1e-2), (one, still, 2.0)]


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The arrays of a tree by their paths, such as "layers.norm"; in a list, "[0]"."""
    if not isinstance(tree, dict | list | tuple):
        return {path: np.asarray(tree)}
    found: dict[str, Any] = {}
    for name, node in tree.items() if isinstance(tree, dict) else ((f"[{i}]", node) for i, node in enumerate(tree)):
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

    def is_step(p: str, gradient: Any, roundings: int = 3) -> bool:
        w, g = np.float64(old[p]), np.float64(gradient)
        return within_rounding(new[p], w - rate * g, np.abs(w) + rate * np.abs(g), roundings)

    wrong = [p for p in old if not is_step(p, slope[p])]
    if not wrong:
        return None

    def made_by(rule: Any) -> bool:
        return all(np.allclose(new[p], rule(old[p], slope[p]), rtol=1e-5, atol=1e-5) for p in old)

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
    if list(slope) != list(old) and all(
        old[p].shape == g.shape and is_step(p, g) for p, g in zip(old, slope.values(), strict=True)
    ):
        return "you paired arrays with gradients by the order in which they stand: pair them by their names."
    if all(is_step(p, slope[p], 2**17) for p in old):
        return SIXTEEN_BITS
    return (f"some array is not w - rate * g, {wrong[0] or 'the only one'}: every array of the tree, however deep, "
            "takes the same step.")  # fmt: skip


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
    NEXT_TOKENS,
    NEXT_TOKEN_LOSS,
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
