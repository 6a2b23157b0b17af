"""Run the learner's notebooks, each in a kernel of its own, and compare their outputs with the committed ones.

    python tools/run_notebooks.py          # all of them, in order
    python tools/run_notebooks.py 03       # those whose name begins so

Prints the seconds of each, and every difference; the exit status is 1 where there is one.
"""

from __future__ import annotations

import copy
import sys

import nbformat
from build_notebooks import execute
from compare import differences
from masters import NOTEBOOKS


def main(names: list[str]) -> int:
    failures = 0
    chosen = [p for p in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")) if not names or p.name.startswith(tuple(names))]
    if not chosen:
        sys.exit(f"no notebook begins with {' or '.join(names)}")
    for path in chosen:
        expected = nbformat.read(path, as_version=4)
        found = copy.deepcopy(expected)
        seconds = execute(found, path.parent)
        print(f"{path.name}: {seconds:.0f} s", flush=True)
        for sentence in differences(found, expected):
            print(f"{path.name}, {sentence}")
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
