"""Where the machine is at fault no mark is lost: a busy processor, limits from outside, an end in the middle."""

import csv
import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from exercises.hostile import RIGHT, program, source
from exercises.marking import IDS, hand_in, marked

from lora_jax.errors import InputError
from lora_jax.exercises.grading import grader, isolation
from lora_jax.exercises.grading.clock import Clock
from lora_jax.exercises.grading.grader import grade

SPINS = "import sys; print(flush=True)\nwhile True: pass"
PR_SET_CHILD_SUBREAPER = 36
GRADE = [sys.executable, "-m", "lora_jax", "grade"]
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="time is counted by Linux's /proc")


def spinning(stack, count):
    """So many processes that take what they get of the processors."""
    for _ in range(count):
        # Of its own session each, since Linux may share the processors out by session.
        started = subprocess.Popen([sys.executable, "-c", SPINS], stdout=subprocess.PIPE, start_new_session=True)
        process = stack.enter_context(started)
        stack.callback(process.kill)
        process.stdout.readline()


@linux
def test_a_second_of_work_is_charged_as_such_and_sleep_is_charged_whole():
    with ExitStack() as stack:
        spinning(stack, 3 * os.cpu_count())
        worker = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", SPINS], stdout=subprocess.PIPE, start_new_session=True)
        )
        sleeper = stack.enter_context(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]))
        stack.callback(worker.kill)
        stack.callback(sleeper.kill)
        worker.stdout.readline()
        clocks = {process: Clock(process.pid) for process in (worker, sleeper)}
        time.sleep(0.5)
        for clock in clocks.values():
            clock.restart()
        began = time.monotonic()
        for _ in range(40):
            time.sleep(0.05)
            for clock in clocks.values():
                clock.look()
        passed = time.monotonic() - began
    assert clocks[sleeper].charged > 0.9 * passed
    # It has one part of four; how even the parts are is the kernel's affair, and other tests run beside this one.
    assert 0 < clocks[worker].charged < 0.7 * passed


@linux
@pytest.mark.slow
@pytest.mark.alone
def test_marks_are_the_same_at_a_tenth_of_the_processor(tmp_path, monkeypatch):
    answers = {name: source(program(body)) for name, body in (("anna", RIGHT), ("never", "while True: pass"))}
    with ExitStack() as stack:
        spinning(stack, 9 * os.cpu_count())
        began = time.monotonic()
        rows, _ = marked(hand_in(tmp_path / "in", answers), tmp_path, monkeypatch, seconds=2)
        passed = time.monotonic() - began
    assert {name: row["total"] for name, row in rows.items()} == {"anna": 5, "never": 4}
    assert "took more than 2 seconds" in rows["never"]["remarks"][0]
    assert passed > 20  # a clock on the wall would have stopped what is right


def limited(which, most, folder):
    """The grader under a hard limit from outside."""
    set_it = f"""import os, resource, sys
resource.setrlimit(resource.{which}, ({most}, {most}))
os.execv(sys.argv[1], sys.argv[1:])"""
    command = [sys.executable, "-c", set_it, *GRADE, str(folder), "--notebooks", "3"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "most"),
    [("RLIMIT_AS", 4_000_000_000), ("RLIMIT_FSIZE", 100_000), ("RLIMIT_CPU", 600), ("RLIMIT_NOFILE", 200)],
)
def test_a_limit_from_outside_costs_no_mark(which, most, tmp_path):
    done = limited(which, most, hand_in(tmp_path / "in", {"anna": source(program(RIGHT))}))
    assert "anna: 5 of 5" in done.stdout, done


@pytest.mark.skipif(not isolation.has_namespaces(), reason="the limit is set where a submission is shut in")
def test_where_nothing_can_run_nothing_is_marked(tmp_path, monkeypatch):
    """A limit that JAX does not fit: one sentence before the first submission, and not a class of zeros."""
    monkeypatch.setattr(isolation, "LIMITS", isolation.LIMITS | {"RLIMIT_AS": 400_000_000})
    folder = hand_in(tmp_path / "in", {"anna": source(program(RIGHT))})
    with pytest.raises(InputError, match=r"no submission can be run here.*ulimit -a"):
        grade(say=lambda _: None, folder=folder, csv=tmp_path / "marks.csv", notebooks=[3], as_root=True)


def test_what_cannot_be_judged_has_no_mark(tmp_path, monkeypatch):
    """A process that cannot be made, a file that is gone, an error that nobody thought of: each is its row's alone."""
    start, mark = isolation.start, grader.mark

    def refused(arguments, folder=None):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(11, "Resource temporarily unavailable")
        return start(arguments, folder)

    def strange(submission, *others):
        if submission.title == "bert":
            raise RuntimeError("nobody thought of this")
        return mark(submission, *others)

    folder = hand_in(tmp_path / "in", {name: source(program(RIGHT)) for name in ("anna", "bert", "gone")})
    monkeypatch.setattr(grader, "mark", strange)
    find = grader.find

    def then_one_goes(folder):
        found = find(folder)
        (folder / "gone" / "answers.py").unlink()
        monkeypatch.setattr(isolation, "start", refused)
        return found

    monkeypatch.setattr(grader, "find", then_one_goes)
    said = []
    isolation.has_namespaces()  # it tries once
    rows, table = marked(folder, tmp_path, monkeypatch, said.append)
    assert {name: set(row["marks"].values()) for name, row in rows.items()} == {name: {None} for name in rows}
    assert "could not be judged: Resource temporarily unavailable" in rows["anna"]["remarks"][0]
    assert "nobody thought of this" in rows["bert"]["remarks"][0]
    assert "answers.py" in rows["gone"]["remarks"][0]
    assert "10 marks of 2 submissions could not be judged" in said[-1]
    assert [row["3.2"] for row in table] == ["", "", ""]


def orphans_are_left():
    """Whether this process, which takes in what has lost its parent, has a child that still runs."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(
    not isolation.has_namespaces(), reason="elsewhere what is killed may leave processes: docs/teaching.md"
)
def test_whenever_it_is_stopped_nothing_is_left(tmp_path):
    """Killed, terminated and interrupted at moments of its whole life: no process stays, and the table is whole."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    answers = {name: source(program("import time; time.sleep(0.3); " + RIGHT)) for name in ("anna", "bert", "carl")}
    answers["never"] = source(program("while True: pass"))
    folder, table = hand_in(tmp_path / "in", answers), tmp_path / "marks.csv"
    moments = random.Random(0)
    for number in range(12):
        how = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
        command = [*GRADE, str(folder), "--notebooks", "3", "--csv", str(table)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(moments.uniform(0, 8))
        process.send_signal(how)
        began = time.monotonic()
        printed, said = process.communicate()
        took = time.monotonic() - began
        assert took < 10, (how, took)
        if printed and process.returncode > 0:  # else it was still starting, or was killed
            assert said == "lora_jax: stopped; the table, if there is one, holds what was marked until then\n"
        deadline = time.monotonic() + 10  # what a killed grader leaves ends by itself, at once
        while orphans_are_left():
            assert time.monotonic() < deadline, Path("/proc/self/task", str(os.getpid()), "children").read_text()
            time.sleep(0.05)
        if table.exists():
            with open(table, newline="", encoding="utf-8-sig") as file:
                assert all(
                    set(row) == {"number", "submission", *IDS, "total", "remarks"} for row in csv.DictReader(file)
                )
        leftover = [path.name for path in tmp_path.iterdir() if path.name.startswith(".marks.csv")]
        assert how == signal.SIGKILL or not leftover
