"""Small real files of every format that the package reads, altered by chance and read: what came of each.

python tools/fuzz.py --files 50000 --seed 1                 # minutes on two cores; prints the table
python tools/fuzz.py --files 50000 --seed 1 --record        # and writes it to figures/data/fuzz.json
python tools/fuzz.py --seed 1 --one 4711                    # one file again: what was altered, and the whole traceback
python tools/fuzz.py --seed 1 --one 4711 --keep FOLDER      # the same, its folder kept to look at

Nothing is written but in a temporary folder, and no process is ended but those started here.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from importlib import metadata
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"  # what runs once is compiled fast
os.environ |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "XLA_FLAGS": QUICK}
sys.path.insert(0, str(Path(__file__).parents[1]))
import gguf  # noqa: E402, F401
import jax  # noqa: E402, F401
import jinja2.sandbox  # noqa: E402, F401
import safetensors.numpy  # noqa: E402, F401
import tokenizers  # noqa: E402, F401
from fuzzing import worker  # noqa: E402
from fuzzing.formats import FORMATS, ROOT  # noqa: E402
from fuzzing.originals import write_all  # noqa: E402

import lora_jax.commands.cli  # noqa: E402, F401

RECORD = ROOT / "figures" / "data" / "fuzz.json"
GOOD = ("a sentence", "the right result", "another result")
BAD = ("unseen", "no sentence", "not finite", "traceback", "too long", "too much memory", "abort", "fuzzer")
SECONDS = 2.0  # of a processor, for one file
WALL = 20.0  # by the clock: for what waits and computes nothing
FILES = 3000  # that one worker reads before another takes its place

fork = multiprocessing.get_context("fork")


class Worker:
    """A process with the number that it is at, and since when."""

    def __init__(self, seed: int, originals: Path, scratch: Path, quiet: bool = True) -> None:
        self.connection, theirs = fork.Pipe()
        arguments = (theirs, seed, originals, scratch, quiet)
        self.process = fork.Process(target=worker.run, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.scratch, self.number, self.done, self.began, self.spent = scratch, -1, 0, time.monotonic(), 0.0
        self.making = False

    def give(self, number: int) -> None:
        self.number, self.making, self.began = number, True, time.monotonic()
        self.connection.send(number)

    def begin(self) -> None:
        """The file is made, and is read from now on."""
        self.making, self.began, self.spent = False, time.monotonic(), self.seconds()

    def seconds(self) -> float:
        """Of a processor, until now."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    @property
    def late(self) -> bool:
        starting = self.number < 0 or self.making
        wall = time.monotonic() - self.began
        return wall > 600 if starting else self.seconds() - self.spent > SECONDS or wall > WALL

    def end(self) -> None:
        """End it and what it started: its group is its own."""
        pid = self.process.pid
        if pid is not None and self.process.is_alive():
            try:
                assert os.getpgid(pid) == pid != os.getpgrp()
                os.killpg(pid, signal.SIGKILL)
            except (ProcessLookupError, AssertionError):
                self.process.kill()
        self.process.join()
        self.connection.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def fuzz(
    seed: int, numbers: list[int], workers: int, folder: Path, say: Any, until: float
) -> dict[int, tuple[str, str]]:
    """`{number: (outcome, what was said)}` of the altered files of these numbers, as many as are begun by `until`."""
    originals = _originals(folder)
    left, found = collections.deque(numbers), {}
    names = iter(range(10**9))

    def start() -> Worker:
        return Worker(seed, originals, folder / f"worker-{next(names)}")

    team = [start() for _ in range(workers)]
    told = time.monotonic()
    while team:
        if time.monotonic() > until:
            left.clear()
        wait([one.connection for one in team], timeout=0.1)
        for one in list(team):
            lost, outcome = False, ""
            try:
                while one.connection.poll():
                    answer = one.connection.recv()
                    if answer == worker.MADE:  # what counts is the time to read it
                        one.begin()
                        continue
                    if answer is not None:
                        found[answer[0]] = answer[1:]
                    elif one.number >= 0:
                        raise AssertionError("it started twice")
                    if left and one.done < FILES:
                        one.done += 1
                        one.give(left.popleft())
                    else:
                        lost = True
                        break
            except (EOFError, ConnectionError):
                lost, outcome = True, "abort"
            if not lost and one.late:
                lost, outcome = True, "too long"
            if lost:
                if outcome and one.number < 0:
                    raise SystemExit("a worker could not start: the files as they are cannot be read")
                if outcome:
                    found[one.number] = (outcome, "")
                team.remove(one)
                one.end()
                if left:
                    team.append(start())
        if time.monotonic() - told > 10:
            told = time.monotonic()
            bad = sum(outcome in BAD for outcome, _ in found.values())
            say(f"{len(found):,} of {len(numbers):,} files, {bad:,} of them ended badly")
    return found


def _originals(folder: Path) -> Path:
    """The files as they are, made in a process of its own: what it starts, forked workers could not use."""
    originals = folder / "originals"
    process = fork.Process(target=write_all, args=(originals,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the files to alter could not be made")
    return originals


def tabled(seed: int, found: dict[int, tuple[str, str]]) -> dict[str, dict[str, int]]:
    """How many files of each format ended in each way."""
    table: dict[str, dict[str, int]] = {name: dict.fromkeys((*GOOD, *BAD), 0) for name in FORMATS}
    for number, (outcome, _) in found.items():
        table[worker.plan(seed, number)[0].name][outcome] += 1
    return table


def again(seed: int, number: int, folder: Path) -> None:
    """One file again, in this process: what it is, and all that is said of it."""
    originals = _originals(folder)
    scratch = folder / "again"
    shutil.copytree(originals, scratch)
    form, _ = worker.plan(seed, number)
    right = worker.digest(form.read(scratch / form.folder))
    path = scratch / form.folder / form.file
    worker.make(seed, number, originals, path)
    print(f"{form.name}: {path}")
    print(*worker.judged(form, scratch / form.folder, right), sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=500, help="altered files, over all formats in turn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="no file is begun after so many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--formats", default="", help="only formats that this expression finds")
    parser.add_argument("--one", type=int, help="the number of one file to read again")
    parser.add_argument("--keep", type=Path, help="a new folder for the files, which stays")
    parser.add_argument("--record", action="store_true", help=f"write the table to {RECORD.relative_to(ROOT)}")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
    if given.keep:
        given.keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = given.keep or Path(temporary)
        if given.one is not None:
            again(given.seed, given.one, folder)
            return 0
        names = [*FORMATS]
        numbers = [n for n in range(given.files) if re.search(given.formats, names[n % len(names)])]
        say = functools.partial(print, file=sys.stderr, flush=True)
        began = time.monotonic()
        found = fuzz(given.seed, numbers, given.workers, folder, say, began + 60 * given.minutes)
        seconds = time.monotonic() - began
    return report(given, found, seconds)


def report(given: argparse.Namespace, found: dict[int, tuple[str, str]], seconds: float) -> int:
    """Print the table and the first bad ones; 1 where there are any."""
    table = tabled(given.seed, found)
    shown = [name for name in (*GOOD, *BAD) if any(row[name] for row in table.values()) or name in GOOD]
    print(f"{'':34}" + "".join(f"{name:>18}" for name in shown))
    for name, row in table.items():
        if any(row.values()):
            print(f"{name:34}" + "".join(f"{row[outcome] or '':>18}" for outcome in shown))
    bad = {number: end for number, end in sorted(found.items()) if end[0] in BAD}
    print(f"{len(found):,} files in {seconds:.0f} s, {len(bad):,} ended badly")
    kinds: dict[Any, list[int]] = {}
    for number, (outcome, said) in bad.items():
        last = said.strip().splitlines()[-1][:150] if said.strip() else ""
        kinds.setdefault((worker.plan(given.seed, number)[0].name, outcome, last), []).append(number)
    for (name, outcome, last), numbers in sorted(kinds.items(), key=lambda item: -len(item[1]))[:80]:
        print(f"{len(numbers):5} {outcome}: {name}: {last}  (--seed {given.seed} --one {numbers[0]})")
    if given.record:
        record = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
            "versions": {
                name: metadata.version(name) for name in ("jax", "safetensors", "tokenizers", "gguf", "jinja2")
            },
            "files": len(found),
            "seed": given.seed,
            "seconds": round(seconds),
            "limits": {"seconds": SECONDS, "bytes": worker.MEMORY},
            "bad": BAD,
            "table": table,
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
