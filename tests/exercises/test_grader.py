"""Marks for a class, some of which does not wish the grader well. A submission can cost nobody but itself."""

import csv
import os
import shutil
import tempfile
import textwrap
from pathlib import Path

import pytest

from lora_jax.errors import InputError
from lora_jax.exercises import registry
from lora_jax.exercises.grading import isolation
from lora_jax.exercises.grading.grader import grade
from lora_jax.exercises.low_rank import EXERCISES

ROOT = Path(__file__).resolve().parents[2]
SOLUTIONS = {exercise.name: exercise.solution for exercise in EXERCISES}
HEAD = "import os, shutil, sys\nimport jax\nimport jax.numpy as jnp\nimport numpy as np\n\n"
RIGHT = "return x @ w + alpha / a.shape[1] * (x @ a) @ b"
IDS = [exercise.id for exercise in EXERCISES]

# Bodies of lora_product, exercise 3.2, and what the remark on it must say; the other four answers are right.
HOSTILE = {
    "loops": ("while True: pass", "took more than"),
    "loops_stubbornly": (
        """
        import signal
        for number in (1, 2, 13, 15):
            signal.signal(number, signal.SIG_IGN)
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
        "took more than",
    ),
    "raises": ("raise ValueError('odd')", "raised ValueError: odd"),
    "exits": ("sys.exit(0)", "raised SystemExit"),
    "exits_at_once": ("os._exit(0)", "ended the process"),
    "kills_itself": ("os.kill(os.getpid(), 9)", "ended the process"),
    "kills_its_parents": (
        "os.kill(os.getppid(), 9); os.killpg(os.getpgid(os.getppid()), 9); os.killpg(0, 9)",
        "ended the process",
    ),
    "overflows_the_stack": ("import ctypes; ctypes.string_at(0)", "ended the process"),
    "patches_the_checker": (
        """
        from lora_jax.exercises import low_rank, outcomes, registry
        from lora_jax.exercises.grading import submissions
        outcomes.verdict = submissions.verdict = lambda *_: outcomes.Outcome("correct")
        low_rank.is_close = low_rank.np.allclose = lambda *_: True
        low_rank.judge_product.__code__ = (lambda *_: None).__code__
        return x
        """,
        "has shape",
    ),
    "returns_an_object_that_equals_all": (
        """
        class Any:
            shape, dtype, size = (x.shape[0], w.shape[1]), np.dtype("float32"), 1
            __eq__ = __le__ = lambda *_: True
            __array__ = lambda self, *_, **__: np.zeros(self.shape, "float32")
        return Any()
        """,
        "not yet",
    ),
    "returns_a_huge_array": ("return np.broadcast_to(np.float32(0), (10**6, 10**6))", "more than 8 MB"),
    "returns_a_list_in_itself": ("found = []; found.append(found); return found", "nested more than"),
    "returns_a_huge_number": ("return 10 ** 5000", "300 digits"),
    "returns_a_function": ("return lambda: 1", "holds a function"),
    "takes_all_memory": ("return bytearray(40 * 10**9)", "raised MemoryError"),
    # Its own folder alone, by its whole path: where there are no namespaces this test runs with the user's own rights.
    "deletes_its_folder": (
        """
        shutil.rmtree(os.environ['HOME'], ignore_errors=True)
        """,
        "3.2 not yet",
    ),
    "answers_with_a_pipe": ("os.mkfifo('3.2.json'); os._exit(0)", "could not be read"),
    "answers_with_a_link": ("os.symlink('/etc/hostname', '3.2.json'); os._exit(0)", "could not be read"),
    "answers_with_another_form": ("open('3.2.json', 'w').write('[]'); os._exit(0)", "could not be read"),
    "answers_with_garbage": ("open('3.2.json', 'w').write('[' * 10**6); os._exit(0)", "could not be read"),
}
# Bodies that end in the right answer: what they do besides must not matter.
HARMLESS = {
    "prints_megabytes": "print('x' * 30_000_000); os.write(1, b'y' * 1_000_000)",
    "forks": """
        for _ in range(4):
            if os.fork() == 0:
                import time
                time.sleep(1000)
        """,
    "spawns_and_lets_go": """
        import subprocess
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        """,
    "changes_its_arguments": "x[:] = x + 0; w += 0",
}


def program(body, end=""):
    return f"def lora_product(x, w, a, b, alpha):\n{textwrap.indent(textwrap.dedent(body).strip() + end, '    ')}\n"


def source(product):
    others = [code for name, code in SOLUTIONS.items() if name != "lora_product"]
    return HEAD + "\n\n".join([*others, product])


def marked(folder, tmp_path, monkeypatch, **options):
    """The rows of the submissions by name, and of the csv; what a submission started is gone afterwards."""
    place = tmp_path / "temporary"
    place.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    found = grade(say=lambda _: None, folder=folder, csv=tmp_path / "marks.csv", notebooks=[3], as_root=True, **options)
    assert not list(place.iterdir())
    if isolation.has_namespaces():
        assert not [process for process in os.listdir("/proc") if _stands_in(process, str(place))]
    with open(tmp_path / "marks.csv", newline="") as file:
        return {row["name"]: row for row in found["submissions"]}, list(csv.DictReader(file))


def _stands_in(process, place):
    try:
        return process.isdecimal() and os.readlink(f"/proc/{process}/cwd").startswith(place)
    except OSError:
        return False


def hand_in(folder, answers):
    folder.mkdir()
    for name, code in answers.items():
        (folder / name).mkdir()
        (folder / name / "answers.py").write_text(code)
    return folder


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("namespaces", [True, False])
def test_a_submission_costs_only_its_own_marks(namespaces, tmp_path, monkeypatch):
    if namespaces and not isolation.has_namespaces():
        pytest.skip("this machine gives a user no namespaces")  # the other parameter runs everywhere
    if not namespaces:
        monkeypatch.setattr(isolation, "has_namespaces", lambda: False)
    answers = {name: source(program(body)) for name, (body, _) in HOSTILE.items()}
    answers |= {name: source(program(body, "\n" + RIGHT)) for name, body in HARMLESS.items()}
    rows, table = marked(hand_in(tmp_path / "in", answers), tmp_path, monkeypatch)
    for name, (_, says) in HOSTILE.items():
        expected = {id: int(id != "3.2") for id in IDS}
        assert rows[name]["marks"] == expected, (name, rows[name])
        assert says in rows[name]["remarks"][0], name
    for name in HARMLESS:
        assert rows[name]["total"] == 5, (name, rows[name])
    assert [int(row["total"]) for row in table] == [row["total"] for row in rows.values()]


# What namespaces shut off can be seen only where Linux gives them.
@pytest.mark.skipif(not isolation.has_namespaces(), reason="this machine gives a user no namespaces")
def test_with_namespaces_nothing_outside_can_be_reached(tmp_path, monkeypatch):
    """Right only where the network, the other processes and the files outside are out of reach."""
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    attempts = {
        "network": "import socket\ntry: socket.create_connection(('127.0.0.1', PORT), 2)\nexcept OSError: ",
        "writes": "try: open(TREASURE, 'w')\nexcept OSError: ",
        "deletes": "try: os.remove(TREASURE)\nexcept OSError: ",
        "undoes": "if os.system('mount -o remount,bind,rw / 2>/dev/null') != 0: ",
        "kills_all": "if len([p for p in os.listdir('/proc') if p.isdecimal()]) < 5: ",
    }
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        given = f"PORT = {server.getsockname()[1]}\nTREASURE = {str(treasure)!r}\n"
        answers = {name: given + source(program(body + RIGHT)) for name, body in attempts.items()}
        # Other tests run beside it: a right answer must not run out of time.
        rows, _ = marked(hand_in(tmp_path / "in", answers), tmp_path, monkeypatch, seconds=120)
    assert {name: row["total"] for name, row in rows.items()} == dict.fromkeys(attempts, 5)
    assert treasure.read_text() == "mine"


def test_too_much_of_it_is_not_waited_for(tmp_path, monkeypatch):
    """A submission that never ends anywhere is stopped a few times, and then not asked any more."""
    monkeypatch.setattr("lora_jax.exercises.grading.submissions.RESTARTS", 2)
    code = "\n".join(f"def {name}(*_):\n    while True: pass" for name in SOLUTIONS)
    rows, _ = marked(hand_in(tmp_path / "in", {"never": code}), tmp_path, monkeypatch, seconds=1)
    assert [remark.split(": ")[1].split()[0] for remark in rows["never"]["remarks"]] == ["it"] * 2 + ["not"] * 3


@pytest.mark.slow
@pytest.mark.alone
def test_the_notebooks_themselves(tmp_path):
    """The solved ones have every mark, and the learner's none: no later cell of theirs counts as an answer."""
    for name, place in (("solved", "notebooks/solutions"), ("untouched", "notebooks")):
        shutil.copytree(ROOT / place, tmp_path / name, ignore=shutil.ignore_patterns("s*", "runs", ".*"))
    found = grade(say=lambda _: None, folder=tmp_path, as_root=True)["submissions"]
    assert [(row["total"], set(row["marks"].values()), row["remarks"]) for row in found] == [
        (len(registry.every()), {1}, []),
        (0, {None}, []),
    ]


def test_root_is_refused_where_nothing_shuts_a_submission_in(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "has_namespaces", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(InputError, match="as root it could delete every file"):
        grade(say=print, folder=hand_in(tmp_path / "in", {"one": source(program(RIGHT))}))


def test_there_must_be_something_to_mark(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        grade(say=print, folder=tmp_path / "none")
    with pytest.raises(InputError, match="holds no submission"):
        grade(say=print, folder=tmp_path)
    with pytest.raises(InputError, match="--seconds"):
        grade(say=print, folder=tmp_path, seconds=0)
    with pytest.raises(InputError, match="notebook 99 has no exercises"):
        grade(say=print, folder=tmp_path, notebooks=[99])
