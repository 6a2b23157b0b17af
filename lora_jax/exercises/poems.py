"""The exercises of notebook 05: sampling, an adapter's bytes, forgetting, latency, and two adapters mixed.

Letters: V vocabulary, R rank. A LoRA changes a weight by `scaling * a @ b`, with a of (in, R) and b of (R, out).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_jax.exercises.judging import named, nearly, number, within_rounding
from lora_jax.exercises.registry import Exercise
from lora_jax.exercises.sampling import NEXT_TOKEN_PROBABILITIES
from lora_jax.exercises.volume import CHOOSE_VOLUME

Case = tuple[Any, ...]


# 5.2: the bytes of an adapter.
def _bytes_cases(rng: np.random.Generator) -> list[Case]:
    """Two of unlike shapes; then two matrices of one shape, and more numbers than float32 can count; then 1 of all."""
    cases = []
    for width in (4, 2):
        shapes = [tuple(int(n) for n in rng.choice(np.arange(20, 200), 2, replace=False)) for _ in range(3)]
        cases.append((shapes, int(rng.integers(5, 9)), int(rng.integers(10, 20)), width))
    D, F = (64 * int(n) for n in rng.choice(np.arange(40, 80), 2, replace=False))
    return [
        *cases,
        ([(D, D), (D, D + 1), (D, F), (D, F), (F, D)], 65, 31, 4),
        ([(int(rng.integers(9, 90)), 7)], 1, 1, 1),
    ]


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
    sizes = ((7, 3, 3, 5), (6, 2, 4, 9), (4, 1, 2, 3), (4, 2, 1, 3))
    weights = (float(rng.uniform(0.15, 0.4)), float(rng.uniform(0.15, 0.4)), 0.0, 1.0)
    return [(adapter(i, one, o), adapter(i, other, o), t) for (i, one, other, o), t in zip(sizes, weights, strict=True)]


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
    first, second = (np.float64(each["a"]) @ each["b"] for each in (one, other))
    s1, s2, expected = (
        one["scaling"],
        other["scaling"],
        (1 - t) * one["scaling"] * first + t * other["scaling"] * second,
    )
    sizes = (np.abs(np.float64(each["a"])) @ np.abs(each["b"]) for each in (one, other))
    size = sum(weight * held for weight, held in zip(((1 - t) * s1, t * s2), sizes, strict=True))
    if within_rounding(a @ b, expected, size, 8):  # the weights, and each factor's numbers, are rounded a few times
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
    why = named(a @ b, mistakes, 1e-5) or nearly(a @ b, expected, size)
    return why or "a @ b is not (1-t) s1 A1 B1 + t s2 A2 B2: print both for small shapes."


EXERCISES = (
    NEXT_TOKEN_PROBABILITIES,
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
    CHOOSE_VOLUME,
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
