"""A ledger: named bytes. Every rung of the ladder of evidence writes one, so that any two can be laid side by side.

Bytes are integers. GB means 1e9 bytes, GiB 2**30. A row is exact where it follows from shapes alone, and an estimate
where a compiler or a device has a say in it.

What a step is given is a fold over its trees: every leaf goes to one row, by its path (`row_of`), whatever the method.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from lora_jax.adapters.base import Tree, num_bytes
from lora_jax.memory.units import size
from lora_jax.untrusted import json_text

# The rows of a training step, in the order of a table. The first six are static: held whatever the batch.
STATIC = ("weights", "quantization constants", "adapters", "adapter constants", "optimizer state", "gradients")
# "not at once": below 0, where not all of the gradients and the saved activations are there at the fullest moment.
MOVING = ("batch", "saved activations", "not at once", "logits and loss", "workspace")
ROWS = (*STATIC, *MOVING)


def row_of(name: str, full: bool) -> str | None:
    """The row of a leaf of `step(trainable, opt_state, frozen, batch)`, by its path, as JAX also calls it in a program.

    `frozen` is (params, constants), and with `full`, where everything trains, None. Of a quantized weight the `codes`
    stand for the weight; the rest are constants. None for what is no argument of a step.
    """
    rows = {
        "trainable": "weights" if full else "adapters",
        "opt_state": "optimizer state",
        "batch": "batch",
        "frozen[1]": "adapter constants",
        "frozen[0]": "quantization constants" if re.search(r"\.(constants|scale)\b", name) else "weights",
    }
    return next((row for start, row in rows.items() if name.startswith(start)), None)


def given(trainable: Tree, opt_state: Tree, frozen: Tree, batch: Tree) -> Counter[str]:
    """The bytes of a step's arguments (arrays or shapes) by row."""
    rows = Counter[str]()
    trees = {"trainable": trainable, "opt_state": opt_state, "frozen": frozen, "batch": batch}
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            row = row_of(name + jax.tree_util.keystr(path), full=frozen is None)
            assert row is not None, f"{name}{jax.tree_util.keystr(path)} has no row"
            rows[row] += num_bytes(leaf)
    return rows


@dataclass(frozen=True)
class Row:
    """One component's bytes, and whether they follow from shapes alone."""

    name: str
    bytes: int
    exact: bool


@dataclass(frozen=True)
class Ledger:
    """Rows of bytes under a title. `ledger["weights"]` is 0 where there is no such row."""

    title: str
    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> int:
        return next((row.bytes for row in self.rows if row.name == name), 0)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def total(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def static(self) -> int:
        """The bytes of the rows that no batch changes."""
        return sum(self[name] for name in STATIC)

    def table(self) -> str:
        """The rows as text, in powers of ten and of two, with a total; estimates carry a tilde."""
        lines = [self.title]
        for row in (*self.rows, Row("total", self.total, all(row.exact for row in self.rows))):
            mark = " " if row.exact else "~"
            lines.append(f"{row.name:24}{mark}{size(row.bytes, ',.3f'):>14}{size(row.bytes, ',.3f', True):>16}")
        return "\n".join(lines)

    def compare(self, other: Ledger) -> str:
        """Both ledgers row by row as text, with the error of this one against the other."""
        lines = [f"{self.title} against {other.title}", f"{'':24}{'this':>14}{'other':>14}{'error':>10}"]
        names = dict.fromkeys([row.name for row in (*self.rows, *other.rows)])
        pairs = [(name, self[name], other[name]) for name in names] + [("total", self.total, other.total)]
        for name, mine, theirs in pairs:
            error = f"{mine / theirs - 1:+.2%}" if theirs else ("-" if not mine else "only here")
            lines.append(f"{name:24}{size(mine, ',.3f'):>14}{size(theirs, ',.3f'):>14}{error:>10}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        rows = [{"name": row.name, "bytes": row.bytes, "exact": row.exact} for row in self.rows]
        return {"title": self.title, "rows": rows, "total": self.total}

    @staticmethod
    def from_json(found: dict[str, Any] | str) -> Ledger:
        """The ledger that `as_json` described, given parsed or as text."""
        table = json_text.loads(found, "the ledger") if isinstance(found, str) else found
        return Ledger(table["title"], tuple(Row(row["name"], row["bytes"], row["exact"]) for row in table["rows"]))


def ledger(title: str, exact: dict[str, int], estimated: dict[str, int] | None = None) -> Ledger:
    """A ledger of the rows given by name, in the order of ROWS (others behind), empty ones left out."""
    estimated = estimated or {}
    given = {**exact, **estimated}
    names = [name for name in ROWS if name in given] + [name for name in given if name not in ROWS]
    return Ledger(title, tuple(Row(name, given[name], name in exact) for name in names if given[name]))
