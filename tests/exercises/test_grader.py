"""Marks for a class, some of which does not wish the grader well. A submission can cost nobody but itself."""

import csv
import json
import os
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from lora_jax.errors import InputError
from lora_jax.exercises import registry
from lora_jax.exercises.grading import isolation
from lora_jax.exercises.grading.entries import find
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
# What kills others or deletes runs only where it is shut in: elsewhere it has the rights of whoever runs the test.
SHUT_IN = ("kills_its_parents", "deletes_its_folder")
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
    hostile = {name: case for name, case in HOSTILE.items() if namespaces or name not in SHUT_IN}
    answers = {name: source(program(body)) for name, (body, _) in hostile.items()}
    answers |= {name: source(program(body, "\n" + RIGHT)) for name, body in HARMLESS.items()}
    rows, table = marked(hand_in(tmp_path / "in", answers), tmp_path, monkeypatch)
    for name, (_, says) in hostile.items():
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


def cells_of(*sources):
    return json.dumps({"cells": [{"cell_type": "code", "source": one} for one in sources], "nbformat": 4})


ENTRIES = {  # by name: what is in the file, and what must be said of it ("" where it is marked)
    "work.zip": (b"PK\x03\x04", "a zip file: unpack it and hand in the notebook"),
    "work.ipynb.zip": (b"PK\x03\x04", "a zip file: unpack it"),
    "work.tar.gz": (b"\x1f\x8b", "a packed file: unpack it"),
    "work.rar": (b"Rar!", "a packed file: unpack it"),
    "zipped.ipynb": (b"PK\x03\x04", "a zip file: unpack it"),
    "no_suffix": (b"PK\x03\x04", "a zip file: unpack it"),
    "page.html": (b"<!DOCTYPE html>", "a web page: hand in the notebook that it was made from"),
    "page.ipynb.html": (b"<html>", "a web page: hand in the notebook"),
    "saved.ipynb": (b"\n<!DOCTYPE html>", "a web page: hand in the notebook"),
    "PAGE.PDF": (b"%PDF-1.7", "a PDF: hand in the notebook"),
    "words.docx": (b"PK\x03\x04", "a document of a word processor"),
    "photo.JPG": (b"\xff\xd8\xff", "a picture"),
    "marks.csv": (b"a,b", "a table"),
    "words.txt": (b"def f(): pass", "a text file"),
    "renamed.ipynb.txt": (b"{", "a notebook whose name ends in .txt: rename it to end in .ipynb"),
    "renamed.json": (cells_of("a = 1").encode(), "a notebook whose name ends in .json: rename it"),
    "renamed": (cells_of("a = 1").encode(), "a notebook whose name ends in nothing: rename it"),
    "renamed.py.txt": (b"a = 1", "a program whose name ends in .txt: rename it to end in .py"),
    "half.ipynb.crdownload": (b"{", "rename it to end in .ipynb"),
    "half.crdownload": (b"{", "an unfinished download: hand in the whole file"),
    "shortcut.url": (b"[", "a shortcut"),
    "empty.ipynb": (b"", "an empty file"),
    "empty.zip": (b"", "an empty file"),
    "tool.exe": (b"MZ", "a file of another kind: hand in a notebook"),
    ".hidden.ipynb": (b"{}", "a hidden file: rename it"),
    "ANNA.IPYNB": (b"{}", ""),
    "bert.PY": (b"a = 1", ""),
    "__init__.py": (b"a = 1", ""),
    "ümit, hw (1).ipynb": (b"{}", ""),
}
# A name in bytes that are no letters, where the file system takes such.
PAGE = os.fsdecode(b"caf\xe9.html") if sys.platform.startswith("linux") else "cafe.html"
SYSTEM = (
    ".DS_Store", "._anna.ipynb", "__MACOSX/._x", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/x-checkpoint.ipynb",
    "~$words.docx", ".~lock.words.odt#", "__pycache__/x.pyc", ".git/config", "Icon\r", "$RECYCLE.BIN/x.ipynb",
)  # fmt: skip


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_every_entry_is_marked_or_told_what_would_be_right(tmp_path):
    fill(tmp_path, {name: content for name, (content, _) in ENTRIES.items()})
    fill(tmp_path, dict.fromkeys(SYSTEM, b"{}"))
    for name, to in (("link.ipynb", "ANNA.IPYNB"), ("link", "folder"), ("broken.ipynb", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / to)
    os.mkfifo(tmp_path / "pipe.ipynb")
    found = {one.name: one for one in find(tmp_path)}
    assert found.keys() == {*ENTRIES, "link.ipynb", "link", "broken.ipynb", "pipe.ipynb"}
    for name, (_, says) in ENTRIES.items():
        assert len(found[name].files) == (not says), name
        assert [says in remark and name in remark for remark in found[name].remarks] == [True] * bool(says), name
    for name in ("link.ipynb", "link", "broken.ipynb"):
        assert found[name].remarks == (f"{name} is a link, not followed: hand in the file itself",)
    assert "no file and no folder" in found["pipe.ipynb"].remarks[0]


def test_what_a_folder_holds_is_marked_or_told(tmp_path):
    fill(
        tmp_path,
        {
            "archive/work.zip": b"PK\x03\x04",
            "pages/one.html": b"<html>",
            "pages/two.pdf": b"%PDF-",
            "system/.DS_Store": b"x",
            "system/.ipynb_checkpoints/hw-checkpoint.ipynb": b"{}",
            ".config/hw.ipynb": b"{}",
            "both/deep/hw3.ipynb": b"{}",
            "both/hw4.zip": b"PK\x03\x04",
            "both/hw5.ipynb.txt": b"{}",
            "both/photo.png": b"\x89PNG",
            "both/__MACOSX/._hw3.ipynb": b"{}",
            "both/venv/pyvenv.cfg": b"",
            "both/venv/lib/module.py": b"a = 1",
            "both/.venv/lib/module.py": b"a = 1",
        },
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "both" / "link.py").symlink_to(tmp_path / "both" / "photo.png")
    found = {one.name: one for one in find(tmp_path)}
    none = "there is no .ipynb or .py file in it: "
    for name, says in {
        "archive": f"{none}work.zip is a zip file: unpack it and hand in the notebook",
        "pages": f"{none}one.html is a web page: hand in the notebook that it was made from; two.pdf is a PDF: "
        "hand in the notebook that it was made from",
        "system": f"{none}it is empty",
        "empty": f"{none}it is empty",
        ".config": ".config is a hidden folder: rename it to begin with another letter",
    }.items():
        assert (found[name].files, found[name].remarks) == ((), (says,))
    assert [file.name for file in found["both"].files] == ["hw3.ipynb"]
    assert [remark.split(" is ")[0] for remark in found["both"].remarks] == [
        f"not read: {name}" for name in ("hw4.zip", "hw5.ipynb.txt", "link.py")
    ]
    assert found.keys() == {"archive", "pages", "system", "empty", ".config", "both"}


def test_notebooks_with_magics_are_marked_and_all_else_has_a_row(tmp_path, monkeypatch):
    """From the folder to the table: what only IPython reads costs no mark, and what cannot be marked says why."""
    product = f"%%time\n{program('%time made = (x @ a) @ b' + chr(10) + 'files = !ls', chr(10) + RIGHT)}jnp.sum?"
    rest = [code for name, code in SOLUTIONS.items() if name not in ("lora_product", "lora_merge")]
    waiting = "import asyncio\nasync def load():\n    return 1\none = await load()\n"
    merge = waiting + SOLUTIONS["lora_merge"].replace("alpha /", "one * alpha /")
    cells = ["%matplotlib inline\nx = !ls", HEAD, "%%bash\nls -l", product, "b = (", *rest, merge]
    folder = tmp_path / "in"
    fill(
        folder,
        {
            "anna/HW.IPYNB": cells_of(*cells).encode(),
            "bert/hw-Copy1.ipynb": cells_of(HEAD, program("return x")).encode(),
            "bert/hw.ipynb": cells_of(*cells).encode(),
            f"bert/{'ü' * 100}.py": b"a = 1",
            "work.zip": b"PK\x03\x04",
            PAGE: b"<html>",
        },
    )
    rows, table = marked(folder, tmp_path, monkeypatch, seconds=120)
    assert rows["anna"]["marks"] == dict.fromkeys(IDS, 1)
    assert rows["anna"]["remarks"] == []
    assert rows["bert"]["marks"] == {id: int(id != "3.2") for id in IDS}
    assert rows["bert"]["remarks"][-1] == (
        "3.2 answered in 2 files: the first by name counts, hw-Copy1.ipynb, not hw.ipynb"
    )
    assert rows["work.zip"] == {
        "name": "work.zip",
        "marks": dict.fromkeys(IDS),
        "total": 0,
        "remarks": ["work.zip is a zip file: unpack it and hand in the notebook"],
    }
    assert [row["submission"] for row in table] == ["anna", "bert", PAGE.replace("\udce9", "?"), "work.zip"]
    assert table[-1]["remarks"] == rows["work.zip"]["remarks"][0]


def test_a_machine_without_ipython_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="notebooks are read with IPython"):
        grade(say=print, folder=tmp_path)


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
    (tmp_path / ".DS_Store").touch()
    with pytest.raises(InputError, match="holds no submission"):
        grade(say=print, folder=tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        grade(say=print, folder=tmp_path / ".DS_Store")
    with pytest.raises(InputError, match="--seconds"):
        grade(say=print, folder=tmp_path, seconds=0)
    with pytest.raises(InputError, match="notebook 99 has no exercises"):
        grade(say=print, folder=tmp_path, notebooks=[99])
