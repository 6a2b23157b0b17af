"""Exercise 5.3: how much of an adapter, by what it teaches and what it makes the model forget."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_jax.exercises.judging import near, number
from lora_jax.exercises.registry import Exercise

Case = tuple[Any, ...]
UNIT = 2.0**-10  # of all numbers: so the bound is exact in float32 too, by subtracting or by adding


def cases(rng: np.random.Generator) -> list[Case]:
    """First curves as they are: the best volume for verse is the fifth of seven, and the budget ends before it, behind
    it, and at the base. Then what is easily forgotten: a rise of exactly what is allowed; stories that get better;
    a curve that comes back below the bound; nothing allowed; nothing better than the base; volumes in no order.
    """

    def steps(low: float, high: float, n: int = 6) -> list[int]:
        return [int(one) for one in rng.integers(int(low / UNIT), int(high / UNIT), n)]

    def case(volumes: Any, verse: Any, stories: Any, allowed: Any) -> Case:
        base = int(2.4 / UNIT)
        return ([UNIT * int(v) for v in volumes], [UNIT * (2 * base - int(v)) for v in verse],
                [UNIT * (base + int(v)) for v in stories], UNIT * int(allowed))  # fmt: skip

    found = []
    for last in (2, 5, 0):
        volumes = np.cumsum([0, *steps(0.15, 0.3)])
        volumes[volumes % 1024 == 0] += 1  # none is 1, which may be a position
        volumes[0] = 0
        falls, stories = [*steps(0.06, 0.1, 4), *(-f for f in steps(0.06, 0.1, 2))], np.cumsum([0, *steps(0.05, 0.08)])
        found.append(case(volumes, np.cumsum([0, *falls]), stories, (stories[last] + stories[last + 1]) // 2))
    a, b, c, d = np.cumsum(steps(0.05, 0.1, 4))
    bound = 514 + 4 * int(rng.integers(0, 40))  # 16 bits call it, or what stands on it, another number; and 177 178
    marks, rising = [0, 250, 500, 750, 900], [0, a, b, c, d]
    order = [0, *(1 + rng.permutation(4))]
    return [
        *found,
        case(marks, [0, 177, 178, 300, 350], [0, 50, bound, bound + 1, bound + 200], bound),  # exactly: the third
        case(marks, rising, rising, a),  # exactly: the second
        case(marks, [0, a, b, d, c], [0, -a, -b, -c, -d], a // 2),  # better stories are no harm: the fourth
        case(marks, [0, a, b, c, d], [0, a, d, d, b], c),  # back below the bound: the last
        case(marks, rising, [0, a, b, 0, c], 0),  # nothing allowed, and nothing lost by the fourth
        case(marks, [0, -a, -b, -c, -d], rising, d),  # verse gets worse: the base
        case([marks[i] for i in order], [rising[i] for i in order], [rising[i] for i in order], (b + c) // 2),
        case([0], [0], [0], a),
    ]


def judge(arguments: Case, answer: Any) -> str | None:
    volumes, verse, stories, allowed = arguments
    answer = number(answer)

    def best_of(within: list[int]) -> float | None:
        return volumes[min(within, key=lambda i: verse[i])] if within else None

    rises = [loss - stories[0] for loss in stories]
    within = [i for i, rise in enumerate(rises) if rise <= allowed]
    best = min(within, key=lambda i: verse[i])
    if near(answer, volumes[best], 1):
        return None
    if answer == best_of([i for i in within if rises[i] < allowed]):
        return f"a rise of exactly {allowed:.3f} is allowed: at most is <=, and not <."
    if answer == best_of([i for i in within if abs(rises[i]) <= allowed]):
        return "a loss on stories that falls is nothing forgotten: bound how far it rises, not the size of its change."
    first = next((i for i, rise in enumerate(rises) if rise > allowed), len(rises))
    if answer == best_of([i for i in within if i < first]):
        return "you stopped at the first volume that forgets too much: a later one may be within the budget again."
    if answer == best:
        return "that is a position in the list: return the volume that stands there."
    if answer in verse or answer in stories:
        return "that is a loss on verse, or a loss on stories: return the volume that stands at its place."
    if answer not in volumes:
        return f"{answer:.4g} was not measured: choose one of the volumes."
    at = volumes.index(answer)
    if at in within and answer == max(volumes[i] for i in within):
        return "that is the loudest volume that the budget allows, and a quieter one has the lower loss on verse."
    if at in within and at == 0:
        return "that is the base: `allowed` bounds how far the loss on stories rises above stories[0], not the loss."
    if at in within:
        return "another volume within the budget has a lower loss on verse: take the lowest of those within it."
    if verse[at] == min(verse):
        return "that is best for verse whatever is forgotten: drop first the volumes that forget more than is allowed."
    return f"there the loss on stories is {rises[at]:.3f} above the base's; {allowed:.3f} is allowed."


CHOOSE_VOLUME = Exercise(
    id="5.3",
    name="choose_volume",
    title="As much verse as the stories can bear",
    minutes=10,
    difficulty=2,
    cases=cases,
    judge=judge,
    hints=(
        "volumes[0] is 0, so stories[0] is the base's own loss: what is forgotten is measured from there.",
        "First keep the volumes within the budget, then take the one of them whose loss on verse is lowest.",
    ),
    solution='''def choose_volume(volumes, verse, stories, allowed):
    """The volume best for verse where the loss on stories is at most `allowed` above the base's; lists -> a number."""
    within = [i for i, loss in enumerate(stories) if loss - stories[0] <= allowed]
    return volumes[min(within, key=lambda i: verse[i])]
''',
)
