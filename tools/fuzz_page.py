"""The part of docs/guarded_files.md that says how many altered files ended in which way, from the record of a run."""

import json
import textwrap

from readme import RECORDS

RECORD = RECORDS / "fuzz.json"


def fuzzed() -> str:
    """A sentence, and a row a format: the ways to end that were seen, or that must be seen."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    table, limits = record["table"], record["limits"]
    ends = [*next(iter(table.values()))]
    totals = {end: sum(row[end] for row in table.values()) for end in ends}
    bad = sum(totals[end] for end in record["bad"])
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    made = f"{record['date']}; {record['machine']}; {versions}"
    each = f"{limits['seconds']:g} s of a processor and {limits['bytes'] / 2**30:g} GiB"
    files = f"{record['files']:,} altered files, seed {record['seed']}, each with at most {each}"
    said = f"{files} ({made}): {bad:,} ended badly."
    shown = [end for end in ends if end not in record["bad"] or totals[end]]
    lines = [
        f"| format | {' | '.join(shown)} | all else |",
        "|---" * (len(shown) + 2) + "|",
        *(_row(name, row, shown) for name, row in table.items()),
        _row("**all**", totals, shown),
    ]
    return textwrap.fill(said, 119) + "\n\n" + "\n".join(lines) + "\n"


def _row(name: str, row: dict[str, int], shown: list[str]) -> str:
    rest = sum(count for end, count in row.items() if end not in shown)
    return f"| {name} | {' | '.join(f'{row[end]:,}' for end in shown)} | {rest} |"
