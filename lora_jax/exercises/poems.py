"""The exercises of notebook 05: sampling, an adapter's bytes, forgetting, latency, and two adapters mixed.

Letters: V vocabulary, R rank. A LoRA changes a weight by `scaling * a @ b`, with a of (in, R) and b of (R, out).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_jax.exercises.judging import is_close, named, number
from lora_jax.exercises.registry import Exercise

Case = tuple[Any, ...]
TOLERANCE = 1e-5  # rounding of float32


# 5.1: sampling.
def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def _sampling_cases(rng: np.random.Generator) -> list[Case]:
    sizes = [(int(rng.integers(7, 10)), 3), (int(rng.integers(10, 14)), 5), (6, 6)]  # the last keeps every token
    return [
        (rng.normal(0, 1.5, V).astype(np.float32), float(t), k)
        for (V, k), t in zip(sizes, (rng.uniform(0.4, 0.8), rng.uniform(1.4, 2.5), 0.7), strict=True)
    ]


def _judge_sampling(arguments: Case, answer: Any) -> str | None:
    logits, temperature, k = arguments
    found, logits = np.asarray(answer, np.float64), logits.astype(np.float64)
    if found.shape != logits.shape:
        return f"your answer has shape {found.shape}: return a probability for each of the {logits.size} tokens."
    if not np.isfinite(found).all():
        return "there are values that are not finite: subtract the largest logit before exp, or use jax.nn.softmax."
    keep = logits >= np.sort(logits)[-k]
    likeliest = np.where(keep, logits, -np.inf)
    expected = softmax(likeliest / temperature)
    if is_close(found, expected, TOLERANCE) and not found[~keep].any():
        return None
    mistakes = [
        ("you multiplied the logits by the temperature: divide them by it.", softmax(likeliest * temperature)),
        ("the temperature has no effect: divide the logits by it, not the probabilities.", softmax(likeliest)),
        ("these are the model's plain probabilities: neither the temperature nor k is used.", softmax(logits)),
        ("a logit of 0 forbids no token, since exp(0) is 1: put -inf there.",
         softmax(np.where(keep, logits / temperature, 0))),
        ("the values are right and in order of size: leave each at its own token's place.", np.sort(expected)[::-1]),
    ]  # fmt: skip
    if abs(found.sum() - 1) > 1e-5:
        return f"your probabilities sum to {found.sum():.3f}: drop tokens first and take the softmax of what is left."
    if (kept := int((found > 0).sum())) not in (k, logits.size):
        return f"{kept} tokens have a chance where k is {k}: keep exactly k."
    if message := named(found, mistakes, TOLERANCE):
        return message
    if kept != k:
        return f"every token has a chance: only the {k} likeliest may be drawn, the rest has probability 0."
    if found[np.argmax(logits)] < found.max():
        return "the likeliest token is not the one of the highest logit: keep the k largest logits, not the smallest."
    return "the tokens are the right ones and their probabilities are not: take softmax(logits / temperature) of them."


# 5.2: the bytes of an adapter.
def _bytes_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for width in (4, 2):
        shapes = [tuple(int(n) for n in rng.choice(np.arange(20, 200), 2, replace=False)) for _ in range(3)]
        cases.append((shapes, int(rng.integers(5, 9)), int(rng.integers(10, 20)), width))
    return cases


def _judge_bytes(arguments: Case, answer: Any) -> str | None:
    shapes, rank, layers, width = arguments
    inputs, outputs = (sum(side) for side in zip(*shapes, strict=True))
    expected = layers * rank * (inputs + outputs) * width
    if number(answer) == expected:
        return None
    whole = layers * sum(i * o for i, o in shapes) * width
    mistakes = [
        (whole, "that is the full matrices: of each the file holds A of (in, rank) and B of (rank, out) instead."),
        (whole * rank, "that is rank full matrices: A and B hold rank * (in + out) numbers, a sum and not a product."),
        (layers * (inputs + outputs) * width, "the rank is missing: A is (in, rank) and B is (rank, out)."),
        (layers * rank * inputs * width, "that is A alone: B of (rank, out) is in the file too."),
        (layers * rank * outputs * width, "that is B alone: A of (in, rank) is in the file too."),
        (2 * layers * rank * inputs * width, "you took every matrix to be square: B is (rank, out), not (rank, in)."),
        (expected // layers, "that is one layer: every layer has factors of its own."),
        (expected // width, "that is how many numbers there are: each takes bytes_per_number bytes."),
        (expected * 8, "that is bits: a byte is eight of them, and bytes_per_number is in bytes already."),
        (expected * 4, "four times too much: gradients and AdamW's moments are needed in training, not in the file."),
    ]
    message = next((message for wrong, message in mistakes if answer == wrong), None)
    return message or f"for {shapes}, rank {rank}, {layers} layers, {width} bytes it is {expected:,}, not {answer:,}."


# 5.3: how much of an adapter.
def _volume_cases(rng: np.random.Generator) -> list[Case]:
    """The best volume for verse is the fifth of seven; the budget ends before it, behind it, and at the base."""
    cases = []
    for last in (2, 5, 0):
        volumes = np.round(np.cumsum([0, *rng.uniform(0.15, 0.3, 6)]), 3)
        falls = [*rng.uniform(0.06, 0.1, 4), *-rng.uniform(0.06, 0.1, 2)]
        verse = 4.6 - np.cumsum([0, *falls])
        stories = 2.4 + np.cumsum([0, *rng.uniform(0.05, 0.08, 6)])
        allowed = float((stories[last] + stories[last + 1]) / 2 - stories[0])
        cases.append((volumes.tolist(), verse.tolist(), stories.tolist(), allowed))
    return cases


def _judge_volume(arguments: Case, answer: Any) -> str | None:
    volumes, verse, stories, allowed = arguments
    within = [i for i, loss in enumerate(stories) if loss <= stories[0] + allowed]
    best = min(within, key=lambda i: verse[i])
    if number(answer) == volumes[best]:
        return None
    if answer == best or answer in verse or answer in stories:
        return "that is a position in the list, or a loss: return the volume that stands there."
    if answer not in volumes:
        return f"{answer:.4g} was not measured: choose one of the volumes."
    at = volumes.index(answer)
    if at in within and at == within[-1]:
        return "that is the loudest volume that the budget allows, and a quieter one has the lower loss on verse."
    if at in within and at == 0:
        return "that is the base: `allowed` bounds how far the loss on stories rises above stories[0], not the loss."
    if at in within:
        return "another volume within the budget has a lower loss on verse: take the lowest of those within it."
    if verse[at] == min(verse):
        return "that is best for verse whatever is forgotten: drop first the volumes that forget more than is allowed."
    return f"there the loss on stories is {stories[at] - stories[0]:.3f} above the base's; {allowed:.3f} is allowed."


# 5.4: the products of an adapted block.
def _judge_products(_: Case, answer: Any) -> str | None:
    known: dict[float, str] = {
        0: "none is left only after merging: here A and B stand beside W.",
        2: "that is one matrix: a block has seven (q, k, v, o, gate, up, down), and each carries an adapter.",
        7: "seven matrices carry an adapter, and each brings two products: x @ A, and that times B.",
        8: "the three matrices of the feed-forward part carry adapters too.",
        21: "that counts x @ W too, which the base has already: how many more are there?",
        28: "each matrix brings two products, x @ A and that times B: the sum with x @ W is no product.",
        420: "that is all thirty blocks: how many in one?",
    }
    if number(answer) == 14:
        return None
    return known.get(answer, f"not {answer:g}: count the matrices with an adapter, and how many products each brings.")


# 5.5: two adapters in one.
def _mix_cases(rng: np.random.Generator) -> list[Case]:
    def adapter(inputs: int, rank: int, outputs: int) -> dict[str, Any]:
        a, b = rng.normal(size=(inputs, rank)), rng.normal(size=(rank, outputs))
        return {"a": a.astype(np.float32), "b": b.astype(np.float32), "scaling": float(rng.uniform(1.3, 3))}

    # Equal ranks first: averaging the factors is then possible, and wrong.
    sizes = ((7, 3, 3, 5), (6, 2, 4, 9))
    return [(adapter(i, one, o), adapter(i, other, o), float(rng.uniform(0.15, 0.4))) for i, one, other, o in sizes]


def _judge_mix(arguments: Case, answer: Any) -> str | None:
    one, other, t = arguments
    if not (isinstance(answer, tuple | list) and len(answer) == 2):
        return "return two arrays, `a, b`."
    a, b = (np.asarray(factor, np.float64) for factor in answer)
    (inputs, r1), (r2, outputs) = one["a"].shape, other["b"].shape
    if a.ndim == b.ndim == 2 and a.shape == (inputs, r1) and b.shape == (r1, outputs) and r1 == r2:
        return (
            f"rank {r1} is too small for both, and averaging factors mixes each A with the other's B: "
            "put the factors side by side, which makes rank R1 + R2."
        )
    if a.shape != (inputs, r1 + r2) or b.shape != (r1 + r2, outputs):
        return (
            f"a is {a.shape} and b is {b.shape}, and they should be {(inputs, r1 + r2)} and {(r1 + r2, outputs)}: "
            "A's go side by side (axis 1), B's one under the other (axis 0)."
        )
    first, second, s1, s2 = one["a"] @ one["b"], other["a"] @ other["b"], one["scaling"], other["scaling"]
    if is_close(a @ b, (1 - t) * s1 * first + t * s2 * second, TOLERANCE):
        return None
    mistakes = [
        ("the scalings are missing: each update is scaling * A @ B.", (1 - t) * first + t * second),
        ("that is both updates in full: weigh the first by 1 - t and the second by t.", s1 * first + s2 * second),
        ("neither t nor the scalings are used: a @ b should be (1-t) s1 A1 B1 + t s2 A2 B2.", first + second),
        ("the weights are swapped: at t = 0 only the first is left.", t * s1 * first + (1 - t) * s2 * second),
    ]
    squared = "A and B are multiplied, so what stands on both is squared: put weights and scalings on one of the two."
    powers = ((2, 1), (1, 2), (2, 2))
    mistakes += [(squared, (1 - t) ** p * s1**q * first + t**p * s2**q * second) for p, q in powers]
    why = named(a @ b, mistakes, TOLERANCE)
    return why or "a @ b is not (1-t) s1 A1 B1 + t s2 A2 B2: print both for small shapes."


EXERCISES = (
    Exercise(
        id="5.1",
        name="next_token_probabilities",
        title="The temperature sharpens or flattens, and k cuts off the tail",
        minutes=10,
        difficulty=2,
        cases=_sampling_cases,
        judge=_judge_sampling,
        hints=(
            "Three steps: divide the logits by the temperature, drop all but the k largest, take the softmax.",
            "exp(-inf) is 0: put -jnp.inf where a logit is below the k-th largest, which jnp.sort(logits)[-k] finds.",
        ),
        solution='''def next_token_probabilities(logits, temperature, k):
    """The chance of each token to be drawn: logits (V,), temperature above 0, the k likeliest kept -> (V,)."""
    kept = jnp.where(logits >= jnp.sort(logits)[-k], logits, -jnp.inf)
    return jax.nn.softmax(kept / temperature)
''',
    ),
    Exercise(
        id="5.2",
        name="adapter_file_bytes",
        title="An adapter's file holds rank * (in + out) numbers for each matrix",
        minutes=5,
        difficulty=1,
        cases=_bytes_cases,
        judge=_judge_bytes,
        hints=(
            "A is (in, rank) and B is (rank, out): how many numbers are they together?",
            "Sum rank * (in + out) over the shapes; then every layer, then the bytes of a number.",
        ),
        solution='''def adapter_file_bytes(shapes, rank, layers, bytes_per_number):
    """Bytes of the factors A and B of every layer; shapes lists the (in, out) of one layer's matrices -> int."""
    numbers = sum(rank * (n_in + n_out) for n_in, n_out in shapes)
    return layers * numbers * bytes_per_number
''',
    ),
    Exercise(
        id="5.3",
        name="choose_volume",
        title="As much verse as the stories can bear",
        minutes=10,
        difficulty=2,
        cases=_volume_cases,
        judge=_judge_volume,
        hints=(
            "volumes[0] is 0, so stories[0] is the base's own loss: what is forgotten is measured from there.",
            "First keep the volumes within the budget, then take the one of them whose loss on verse is lowest.",
        ),
        solution='''def choose_volume(volumes, verse, stories, allowed):
    """The volume best for verse where the loss on stories is at most `allowed` above the base's; lists -> a number."""
    within = [i for i, loss in enumerate(stories) if loss - stories[0] <= allowed]
    return volumes[min(within, key=lambda i: verse[i])]
''',
    ),
    Exercise(
        id="5.4",
        name="extra_products",
        title="Seven matrices, two products each",
        minutes=5,
        difficulty=1,
        cases=lambda rng: [()],
        judge=_judge_products,
        hints=(
            "A block has q, k, v, o, gate, up and down. What does x @ W + s (x @ A) @ B need beside x @ W?",
            "Two products for each of the seven.",
        ),
        solution="extra_products = 14\n",
    ),
    Exercise(
        id="5.5",
        name="mix_adapters",
        title="Two adapters are one adapter of the sum of their ranks",
        minutes=12,
        difficulty=3,
        cases=_mix_cases,
        judge=_judge_mix,
        hints=(
            "[A1 A2] times B1 over B2 is A1 B1 + A2 B2: put the factors side by side instead of adding them.",
            "Concatenate (1-t) * s1 * A1 and t * s2 * A2 along axis 1, and B1 and B2 along axis 0.",
        ),
        solution='''def mix_adapters(one, other, t):
    """`a, b` with a @ b = (1-t) s1 A1 B1 + t s2 A2 B2; dicts of a (in, R), b (R, out), scaling; ranks may differ."""
    left, right = (1 - t) * one["scaling"] * one["a"], t * other["scaling"] * other["a"]
    return jnp.concatenate([left, right], axis=1), jnp.concatenate([one["b"], other["b"]], axis=0)
''',
    ),
)
