"""The part of docs/memory.md that says how far the estimate is off, from the records that a benchmark makes of it."""

import json
import sys
import textwrap

from readme import RECORDS, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from draw import draw
from estimate_error import JUDGED, LIMIT, SEEN, summary

from lora_jax.memory import peak
from lora_jax.memory.estimate import estimate
from lora_jax.memory.setup import Setup
from lora_jax.memory.steps import parameters
from lora_jax.memory.units import size

RECORD, VIEW = RECORDS / "estimate_error.json", RECORDS / "estimate_seen.json"
EACH = 25  # a changed estimate changes nearly every row, so that each 25th tells of it


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def setups(draws: dict[int, int]) -> dict[tuple[int, int], Setup]:
    """Every step that was drawn, by seed and index."""
    return {(seed, i): setup for seed, count in draws.items() for i, setup in enumerate(draw(seed, count))}


def outdated() -> list[str]:
    """A sentence for each record with an estimate that is not the present one."""
    found = []
    for path, draws in ((RECORD, JUDGED), (VIEW, SEEN)):
        drawn, rows = setups(draws), read(path)["rows"][::EACH]
        if any(row["estimate"] != estimate(drawn[row["seed"], row["index"]]).total for row in rows):
            found.append(f"{path.name} is of another estimate: run benchmarks/estimate_error.py, then this again")
    return found


def margin() -> str:
    """What the estimate's margin means for a verdict."""
    said = (
        f"So it carries a margin of {peak.MARGIN:.0%}, which nearly every plan is within (the tables count those that "
        "are not): `plan` says that a step *fits* where the estimate and its margin do, that it *does not fit* where "
        "the estimate alone does not, and *too close: --compile* in between. Below "
        f"{size(peak.SMALL, ',.0f')} one array more or less is a large share, and the compiler is asked."
    )
    return textwrap.fill(said, 119) + "\n"


def points() -> list[dict]:
    """What the figure shows: each plan of 1 GB and more that is judged, by the version of JAX that made it."""
    drawn = setups(JUDGED)
    return [
        {
            "group": made,
            "method": drawn[row["seed"], row["index"]].name,
            "bytes": plan,
            "error": row["estimate"] / plan - 1,
        }
        for made in read(RECORD)["made_by"]
        for row in read(RECORD)["rows"]
        if isinstance(plan := row["plans"].get(made), int) and plan >= peak.SMALL
    ]


def table(record: dict) -> list[str]:
    """The summary, a line for each version of JAX."""
    head = ["plans by", *next(iter(record["summary"].values()))]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for made in record["made_by"]:
        found = summary(record["rows"], made)
        cells = [f"{value:.2%}" if isinstance(value, float) else str(value) for value in found.values()]
        lines.append(f"| {' | '.join([made, *cells])} |")
    return lines


def errors() -> str:
    """How far off it is on the steps that were drawn before it was written; every row, under a fold."""
    record, drawn = read(RECORD), setups(JUDGED)
    made = list(record["made_by"])
    head = ["row", "parameters", "method", "step", *(f"{one}, MB" for one in made), "estimate, MB"]
    lines = [
        *table(record),
        "",
        f"<details><summary>Every step that was drawn; bold: 1 GB and more, and further off than {LIMIT:.0%}</summary>",
        "",
        f"| {' | '.join([*head, *(f'error, {one}' for one in made)])} |",
        "|---" * (len(head) + len(made)) + "|",
        *(_line(row, drawn[row["seed"], row["index"]], made) for row in record["rows"]),
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


LEFT_OUT = "too small to be judged"


def _line(row: dict, setup: Setup, made: list[str]) -> str:
    plans = [row["plans"].get(one) for one in made]
    cells = [
        str(row["index"]),
        f"{parameters(setup.config) / 1e6:,.1f}M",
        setup.name,
        _said(setup),
        *(f"{plan / 1e6:,.1f}" if isinstance(plan, int) else f"not compiled: {plan or LEFT_OUT}" for plan in plans),
        f"{row['estimate'] / 1e6:,.1f}",
        *(_error(row["estimate"], plan) for plan in plans),
    ]
    return f"| {' | '.join(cells)} |"


def _error(estimated: int, plan: int | str | None) -> str:
    if not isinstance(plan, int):
        return "-"
    error = estimated / plan - 1
    return f"**{error:+.2%}**" if plan >= peak.SMALL and abs(error) > LIMIT else f"{error:+.2%}"


def _said(setup: Setup) -> str:
    said = [
        f"{setup.batch} x {setup.length} tokens",
        setup.dtype,
        setup.said,
        "float32 constants" if setup.quantize == "nf4" and not setup.double_quantization else "",
        f"attention {setup.attention}",
        "rematerialized" if setup.remat else "",
        setup.optimizer,
        f"{setup.moments} moments" if setup.moments else "",
        "float32 master" if setup.rounds == "master" else "",
    ]
    return ", ".join(filter(None, said))


def seen() -> str:
    """How far off it is on the steps that were in view while it was written, and on those below what it speaks of."""
    record = read(VIEW)
    small = [
        abs(row["estimate"] / plan - 1)
        for row in record["rows"]
        for plan in row["plans"].values()
        if isinstance(plan, int) and plan < peak.SMALL
    ]
    worst = (
        f"Of the {len(small)} plans below {size(peak.SMALL, ',.0f')} the estimate is more than {LIMIT:.0%} off in "
        f"{sum(error > LIMIT for error in small)}, and {max(small):.0%} at worst: these are to be compiled."
    )
    told = [textwrap.fill(text, 119) for text in (earlier(record["earlier"]), worst)]
    return "\n".join([*table(record), "", told[0], "", told[1]]) + "\n"


def earlier(forms: list[dict]) -> str:
    """What the earlier forms of the estimate came to on the steps that judged them, which are in view since."""
    said = []
    for form in forms:
        of = [
            f"{found['of 1 GB and more']} plans by {made}, {found['median']:.2%} at the median, "
            f"{found['ninth decile']:.1%} at the ninth decile, at worst {found['over']:.1%} over and "
            f"{-found['under']:.1%} under, {found['beyond margin']} beyond the margin"
            for made, found in form["summary"].items()
        ]
        said.append(f"The {form['form']} ({form['commit']}, seed {form['seed']}) came to this: {'; '.join(of)}.")
    return " ".join(["Among them are the steps that judged earlier forms of it.", *said])
