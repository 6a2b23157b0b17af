"""Marks for a class, some of which does not wish the grader well. A submission can cost nobody but itself."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from exercises.hostile import HEAD, RIGHT, SOLUTIONS, program, source
from exercises.marking import IDS, hand_in, marked

from lora_jax.errors import InputError
from lora_jax.exercises import registry
from lora_jax.exercises.grading import isolation
from lora_jax.exercises.grading.entries import find
from lora_jax.exercises.grading.grader import grade

ROOT = Path(__file__).resolve().parents[2]


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
    assert [row["submission"] for row in table] == ["anna", "bert", PAGE.replace("\udce9", "é"), "work.zip"]
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
