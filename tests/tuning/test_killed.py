"""A run killed at any moment and started again ends in the same bytes as the run that nobody killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_run.py")


def start(*arguments):
    """The run as a process that is not of this one's group of open files, its lines readable as they come."""
    quick = "--xla_backend_optimization_level=0"  # some fifty runs compile what runs a moment
    environment = {
        **os.environ,
        "XLA_FLAGS": quick,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SCRIPT.parents[2]), *sys.path])),
    }
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process):
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def kill(process, what, count, delay):
    """Kill it `delay` seconds after it has said `what` for the `count`-th time; whether it was still running."""
    for line in process.stdout if what else ():
        count -= line.strip() == what
        if count == 0:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    return process.returncode == -signal.SIGKILL


def litter(folder):
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_a_run_killed_once_while_it_writes_ends_in_the_same_bytes(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, cut = start(tmp_path / "whole" / "c"), start(tmp_path / "cut" / "c", 7)
    assert kill(cut, "write", 7, 0.0)  # in the third checkpoint or the one before: three flushes each
    assert litter(tmp_path / "cut")
    assert (tmp_path / "cut" / "c").exists()
    finish(start(tmp_path / "cut" / "c"))
    finish(whole)
    expected = (tmp_path / "whole" / "c").read_bytes()
    assert (tmp_path / "cut" / "c").read_bytes() == expected
    assert os.listdir(tmp_path / "whole") == ["c"]


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_in_the_same_bytes(tmp_path):
    """Kills in the start-up, in steps, in writing and in renaming, run after run, until there were enough of each."""
    draw = random.Random(0)
    began = time.perf_counter()
    whole = start(tmp_path / "whole")
    finish(whole)
    lasts = time.perf_counter() - began
    expected = (tmp_path / "whole").read_bytes()
    kills = {"": 0, "step": 0, "write": 0, "rename": 0}
    runs, littered = 0, 0
    while runs < 2 or min(kills.values()) < 5 or sum(kills.values()) < 24:
        folder = tmp_path / str(runs)
        folder.mkdir()
        tries = 0
        while True:
            process = start(folder / "c")
            tries += 1
            what = min(kills, key=lambda name: (kills[name], draw.random())) if tries <= 6 else None
            if what is None:
                finish(process)
                break
            count = draw.randint(1, 3)
            delay = draw.uniform(0, lasts) if what == "" else draw.uniform(0, 0.04)
            before = len(litter(folder))
            if not kill(process, what, count, delay):
                break
            kills[what] += 1
            littered += len(litter(folder)) - before
        finish(start(folder / "c"))  # it may have been killed between its last word and its end
        assert (folder / "c").read_bytes() == expected
        runs += 1
    assert littered >= 3, "no kill landed in the writing of a checkpoint"
    print(f"{sum(kills.values())} kills in {runs} runs, {littered} while a checkpoint was written: {kills}")
