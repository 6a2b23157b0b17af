"""Exercise 3.3: adapters as a pytree of their own, drawn at random.

Letters: R rank; a matrix is (in, out), A is (in, R), B is (R, out).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_jax.exercises.judging import wrong_shape
from lora_jax.exercises.registry import Exercise

CHANCE = 1e-12  # a right answer is refused by bad luck no oftener


def cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Neighbouring seeds and the same once more, for matrices of which three have one shape; then unlike sizes.

    `up_proj` is narrower than its rank, so that its bound is seen to be 1 / sqrt(in), exactly. The last is 1 by 1.
    """
    shapes = {"q_proj": (48, 40), "down_proj": (96, 48), "k_proj": (48, 24), "o_proj": (48, 40), "gate_proj": (48, 40)}
    seed = int(rng.integers(10, 1000))
    return [*((seed + more, shapes, 6) for more in (0, 1, 2)), (seed, shapes, 6),
            (seed, {"up_proj": (2, 5)}, 96), (0, {"v_proj": (1, 1)}, 1)]  # fmt: skip


def judge(arguments: tuple[Any, ...], answer: Any) -> str | None:
    _, shapes, rank = arguments
    if not isinstance(answer, dict) or set(answer) != set(shapes):
        return f"return a dict with an entry for each matrix: {', '.join(shapes)}."
    for name, size in shapes.items():
        if not isinstance(answer[name], dict) or set(answer[name]) != {"a", "b"}:
            return f'the entry of {name} should be a dict {{"a": ..., "b": ...}}: what trains, and nothing else.'
        reason = _pair(name, size, rank, answer[name]["a"], answer[name]["b"])
        if reason:
            return reason
    return _same_numbers({name: np.asarray(answer[name]["a"]) for name in shapes}) or _uniform(
        np.concatenate([np.ravel(answer[name]["a"]) * np.sqrt(d_in) for name, (d_in, _) in shapes.items()])
    )


def _pair(name: str, size: tuple[int, int], rank: int, given_a: Any, given_b: Any) -> str | None:
    """What is wrong with the pair of one matrix."""
    d_in, d_out = size
    a, b = (np.asarray(factor, np.float64) for factor in (given_a, given_b))
    if a.shape == (rank, d_in) != (d_in, rank):
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
    for factor, array in (("a", given_a), ("b", given_b)):
        if (dtype := np.asarray(array).dtype) not in (np.float32, np.float64):
            return f"{factor} of {name} is {dtype}: what trains is float32, so that small updates are not lost."
    bound = 1 / np.sqrt(d_in)
    if abs(a).max() > bound * (1 + 1e-6):
        return f"a of {name} holds {abs(a).max():.2f}: draw it uniformly from -1/sqrt(in) to 1/sqrt(in)."
    short = -np.log(CHANCE) / a.size  # the share of the bound that a.size draws leave out at its end, by CHANCE
    if short < 0.5 and (a.min() >= 0 or a.max() <= 0):
        return f"a of {name} has numbers of one sign alone: give `uniform` both ends, -1/sqrt(in) and 1/sqrt(in)."
    if short < 0.5 and abs(a).max() < (1 - short) * bound:
        return f"a of {name} is not spread as far as 1/sqrt(in), {bound:.3f}: its largest is {abs(a).max():.3f}."
    if len(np.unique(a)) < 0.98 * a.size:
        return f"a of {name} has {len(np.unique(a))} numbers for {a.size} places: draw each, and in float32."
    return None


def _uniform(drawn: np.ndarray) -> str | None:
    """Whether numbers are spread evenly over -1 to 1: their distribution's largest distance from the even one.

    By chance it is above `far` no oftener than `CHANCE` (Dvoretzky, Kiefer and Wolfowitz; Massart 1990).
    """
    far = np.sqrt(np.log(2 / CHANCE) / (2 * drawn.size))
    even = (np.sort(drawn) + 1) / 2
    if np.abs(even - (np.arange(drawn.size) + 0.5) / drawn.size).max() > far + 0.5 / drawn.size:
        return "a is not spread evenly: a uniform draw has as many numbers near its ends as near 0."
    return None


def _same_numbers(drawn: dict[str, np.ndarray]) -> str | None:
    """One key for all matrices gives those of one shape the same a."""
    names = list(drawn)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if drawn[one].shape == drawn[other].shape and np.array_equal(drawn[one], drawn[other]):
                return f"{one} and {other} got the same numbers: split the key, one for each matrix."
    return None


def together(cases: list[tuple[Any, ...]], answers: list[Any]) -> str | None:
    """A seed gives the same numbers each time, and another seed gives every matrix other ones."""
    for i, (seed, shapes, _) in enumerate(cases):
        for (other, others, _), answer in zip(cases[:i], answers[:i], strict=True):
            if shapes != others:
                continue
            same = [name for name in shapes if np.array_equal(answers[i][name]["a"], answer[name]["a"])]
            if seed == other and len(same) < len(shapes):
                return f"seed {seed}, asked twice, gives other numbers: draw from jax.random.key(seed) alone."
            if seed != other and same:
                return f"seeds {other} and {seed} give {same[0]} the same numbers: let the seed decide all keys."
    return None


LORA_INIT = Exercise(
    id="3.3",
    name="lora_init",
    title="Adapters as a pytree of their own",
    minutes=15,
    difficulty=2,
    cases=cases,
    judge=judge,
    together=together,
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
)
