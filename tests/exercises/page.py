"""Writes docs/exercise_checks.md: `python tests/exercises/page.py`. A test asserts that the page is up to date."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))

from exercises import students_adapters, students_poems, styles, test_sentences  # noqa: E402, F401
from exercises.equivalents import EQUIVALENT  # noqa: E402
from exercises.kinds import KINDS  # noqa: E402
from exercises.mutants import mutants  # noqa: E402
from exercises.students import STUDENTS  # noqa: E402
from exercises.test_mutants import LISTED, STYLED, key  # noqa: E402

from lora_jax.exercises import registry  # noqa: E402
from lora_jax.exercises.outcomes import ask  # noqa: E402

PAGE = ROOT / "docs" / "exercise_checks.md"
WORDS = """# What the exercises' checks hold

A check calls an answer with cases of its own. It accepts every right answer, in whatever style, and refuses the rest
with one sentence. This page is made of the tables that the tests use, by `python tests/exercises/page.py`.

**How near is right.** A whole number must be equal. Another number may be off by twice the roundings to float32 that
its longest way of computing has; nothing computed in 16 bits is as near as that (`lora_jax/exercises/judging.py`).

**What every check asks.** The first case is asked once more at the end, so that an answer that keeps something between
its calls is refused; so is one that changes its arguments in place.

**Mutants.** A program changes each solution in one place: an operator, a comparison, a constant, a name, an axis; a
term, a call, a condition or a statement left out; arguments or results cast to 16 bits, or to float32 where whole
numbers are asked. With each of five seeds a mutant is refused, or it stands in a list with the reason why it is as
right as the solution, and `tests/exercises/test_mutants.py` fails where the list and what is accepted differ.

"""


def count(id: str, style: int) -> int:
    """How many mutants there are of a right answer."""
    exercise = registry.find(id)
    cases = exercise.draw(0)
    right = styles.made(styles.sources(id)[style], exercise.name)
    results = [ask(right, case)["answer"] for case in cases] if exercise.is_function else [right]
    return sum(1 for _ in mutants(styles.sources(id)[style], cases, results))


def text() -> str:
    """The whole page."""
    lines = [
        "| exercise | mutants | refused | equivalent | wrong answers | kinds of cases |",
        "|---|---|---|---|---|---|",
    ]
    totals = [0] * 4
    for exercise in registry.every():
        id = exercise.id
        made, same = count(id, 0), len(LISTED.get(id, ()))
        wrong = len(STUDENTS[id]) + len(test_sentences.KNOWN.get(id, ()))
        row = [made, made - same, same, wrong]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        lines.append(f"| {id} | {' | '.join(f'{n:,}' for n in row)} | {'; '.join(KINDS[id])} |")
    lines.append(f"| all | {' | '.join(f'{n:,}' for n in totals)} | |")
    others, same = sum(count(*one) for one in STYLED), sum(len(LISTED.get(key(*one), ())) for one in STYLED)
    styled = (
        f"\nSo are {len(STYLED)} right answers in other styles (NumPy, JAX, loops, einsum, float64): {others:,} "
        f"mutants,\n{others - same:,} refused and {same} equivalent.\n\n## Equivalent changes of solutions\n\n"
    )
    reasons = [
        f"- {id}: {', '.join(f'`{what}`' for what in whats)}: {why}."
        for id, found in EQUIVALENT.items()
        for why, whats in found.items()
    ]
    return WORDS + "\n".join(lines) + "\n" + styled + "\n".join(reasons) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
