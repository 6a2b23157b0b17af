"""Whatever lies in a class's folder: each entry is one submission, and reading it harms nobody and never stops."""

import contextlib
import os
import shutil
import socket
import stat
import sys
import tempfile
from pathlib import Path

import pytest
from exercises.sixty import GOOD, nest, unnest, write

from lora_jax.errors import InputError
from lora_jax.exercises.grading import entries
from lora_jax.exercises.grading.entries import Submission, find, read_files

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names in any bytes are Linux'")


def fill(folder, files):
    for name, content in files.items():
        write(os.path.join(os.fsencode(folder), os.fsencode(name)), content)
    return folder


def only(folder):
    (found,) = find(folder)
    return found


@contextlib.contextmanager
def nobody():
    """As a user who is not root, who may read all; in a folder that such a user reaches."""
    folder = Path(tempfile.mkdtemp(prefix="class-"))
    root = os.geteuid() == 0
    try:
        folder.chmod(0o755)
        yield folder, (lambda: os.seteuid(65534)) if root else (lambda: None)
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_what_cannot_be_read_is_told_and_costs_no_other():
    with nobody() as (folder, become):
        fill(folder, {"anna/hw.ipynb": GOOD, "anna/two.py": b"a = 1", "anna/x.zip": b"PK", "bert/hw.py": b"a = 1"})
        fill(folder, {"carl.ipynb": GOOD, "dora/in/hw.ipynb": GOOD, "dora/out.py": b"a = 1"})
        for name in ("anna/hw.ipynb", "anna/x.zip", "bert", "carl.ipynb", "dora/in"):
            (folder / name).chmod(0)
        become()
        found = {one.name: one for one in find(folder)}
        right = "cannot be read (Permission denied): give whoever marks the right to read it"
        assert found["anna"].remarks == (f"not read: hw.ipynb {right}", f"not read: x.zip {right}")
        assert [file.name for file in found["anna"].files] == ["two.py"]
        assert found["bert"].remarks == (f"there is no .ipynb or .py file in it: bert {right}",)
        assert found["carl.ipynb"].remarks == (f"carl.ipynb {right}",)
        assert found["dora"].remarks == (f"not read: in {right}",)
        assert [name for name, _ in read_files(found["dora"])[0]] == ["out.py"]


def test_a_folder_whose_entries_may_not_be_looked_at_has_a_row_for_each():
    with nobody() as (folder, become):
        fill(folder, {"anna/hw.ipynb": GOOD, "bert.ipynb": GOOD})
        folder.chmod(0o444)  # names can be listed, and nothing else
        become()
        with pytest.raises(PermissionError):
            os.lstat(folder / "anna")
        assert [one.remarks[0].split(":")[0] for one in find(folder)] == [
            f"{name} cannot be read (Permission denied)" for name in ("anna", "bert.ipynb")
        ]


def test_the_classs_folder_itself_must_be_readable():
    with nobody() as (folder, become):
        (folder / "class").mkdir(mode=0)
        become()
        with pytest.raises(InputError, match=r"class cannot be read \(Permission denied\): give a folder"):
            find(folder / "class")


def test_a_folder_that_cannot_be_is_none(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name, says in (
        ("x" * 300, "there is no folder"),
        ("loop", "is not a folder"),
        ("file/x", "there is no folder"),
    ):
        with pytest.raises(InputError, match=says):
            find(tmp_path / name)
    with nobody() as (folder, become):
        (folder / "in" / "class").mkdir(parents=True)
        (folder / "in").chmod(0)
        become()
        with pytest.raises(InputError, match="there is no folder"):
            find(folder / "in" / "class")


def test_what_goes_away_between_two_looks_is_told(tmp_path, monkeypatch):
    fill(tmp_path, {"anna.ipynb": GOOD})
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*listed(path), "gone.ipynb"])
    gone = next(one for one in find(tmp_path) if one.name == "gone.ipynb")
    assert gone.files == ()
    assert gone.remarks == (
        "gone.ipynb cannot be read (No such file or directory): "
        "it went away while the folder was read, so mark it again",
    )


def test_what_becomes_something_else_after_it_was_found_is_neither_followed_nor_waited_for(tmp_path):
    names = ("gone", "link", "pipe", "folder", "socket", "grown", "shrunk", "stays")
    fill(tmp_path, {f"anna/{name}.py": b"a = 1" for name in names})
    secret = tmp_path / "secret"
    secret.write_text("mine")
    one = only_of(tmp_path, "anna")
    for name in names[:5]:
        (tmp_path / "anna" / f"{name}.py").unlink()
    (tmp_path / "anna" / "link.py").symlink_to(secret)
    os.mkfifo(tmp_path / "anna" / "pipe.py")
    (tmp_path / "anna" / "folder.py").mkdir()
    (tmp_path / "anna" / "shrunk.py").write_bytes(b"")
    os.truncate(tmp_path / "anna" / "grown.py", 31_000_000)
    with bound(tmp_path / "anna", "socket.py"):
        files, remarks = read_files(one)
    assert files == [("shrunk.py", b""), ("stays.py", b"a = 1")]
    large = "not read, since larger than 30 MB: grown.py (clear the outputs, save, and hand it in again)"
    assert sorted(remark.split(" cannot")[0] for remark in remarks) == [
        large,
        *(f"not read: {name}.py" for name in sorted(names[:5])),
    ]


def only_of(folder, name):
    return next(one for one in find(folder) if one.name == name)


@contextlib.contextmanager
def bound(folder, name):
    """A socket of this name; a path to one may have no more than 108 bytes."""
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(folder)
        try:
            made.bind(name)
        finally:
            os.chdir(here)
        yield


def test_no_pipe_socket_or_device_is_opened(tmp_path, monkeypatch):
    for folder in ("", "anna"):
        place = tmp_path / "class" / folder
        place.mkdir()
        os.mkfifo(place / "pipe.ipynb")
        with contextlib.suppress(PermissionError):  # of whoever is not root
            os.mknod(place / "null.ipynb", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (place / "loop.ipynb").symlink_to("loop.ipynb")
        (place / "up").symlink_to("..")
        (place / "zero.ipynb").symlink_to("/dev/zero")
    opened = os.open

    def watched(path, *arguments, **options):
        assert stat.S_ISREG(os.lstat(path).st_mode), path
        return opened(path, *arguments, **options)

    with bound(tmp_path / "class", "socket.py"):
        monkeypatch.setattr(os, "open", watched)
        found = find(tmp_path / "class")
        monkeypatch.undo()
    assert not any(one.files for one in found)
    assert {one.name for one in found} == set(os.listdir(tmp_path / "class"))
    for one in found:
        assert "is no file and no folder: " in one.remarks[0] or "is a link, not followed: " in one.remarks[0]


def test_a_submission_has_limits_and_what_is_beyond_them_is_told(tmp_path, monkeypatch):
    for name, value in (("MAX_FILE", 100), ("MAX_ALL", 150), ("MAX_FILES", 4)):
        monkeypatch.setattr(entries, name, value)
    fill(tmp_path, {f"anna/{n}.py": bytes([65 + n]) * 50 for n in range(3)})
    fill(tmp_path, {"anna/3.py": b"x" * 101, "anna/4.py": b"x", "anna/deep/5.ipynb": b"{}", "anna/6.py": b"x"})
    files, remarks = read_files(only(tmp_path))
    assert [name for name, _ in files] == ["0.py", "1.py", "deep/5.ipynb"]
    assert remarks == [
        "not read, since more than 4 files, and notebooks come first: 3.py, 4.py, 6.py",
        "not read, since the others are 0 MB together: 2.py",
    ]
    monkeypatch.setattr(entries, "MAX_FILES", 100)
    files, remarks = read_files(only(tmp_path))
    assert [name for name, _ in files] == ["0.py", "1.py", "4.py", "6.py", "deep/5.ipynb"]
    assert remarks == [
        "not read, since larger than 0 MB: 3.py (clear the outputs, save, and hand it in again)",
        "not read, since the others are 0 MB together: 2.py",
    ]


def test_the_limits_are_what_they_say(tmp_path):
    """Files of 30 MB are read, two of them; sparse ones, so that no disk is filled."""
    sizes = {"1.py": 30_000_000, "2.py": 30_000_001, "3.py": 10**13, "4.py": 30_000_000, "5.py": 1, "6.py": 0}
    fill(tmp_path, {f"anna/{name}": b"a" for name in sizes})
    one = only(tmp_path)
    for name, size in sizes.items():
        os.truncate(tmp_path / "anna" / name, size)
    files, remarks = read_files(one)
    assert [(name, len(data)) for name, data in files] == [("1.py", 30_000_000), ("4.py", 30_000_000), ("6.py", 0)]
    assert remarks == [
        "not read, since larger than 30 MB: 2.py, 3.py (clear the outputs, save, and hand it in again)",
        "not read, since the others are 60 MB together: 5.py",
    ]


def test_a_folder_of_very_many_files_is_not_looked_at_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "MAX_NAMES", 50)
    fill(tmp_path, {f"anna/{n:03}.png": b"\x89PNG" for n in range(200)})
    fill(tmp_path, {f"bert/{n:03}/x.png": b"" for n in range(200)})
    fill(tmp_path, {"carl/hw.ipynb": GOOD} | {f"carl/data/{n}.png": b"" for n in range(60)})
    for one in find(tmp_path):
        assert "more than 50 files and folders: leave out those that are not your answers" in one.remarks[0], one
        assert [file.name for file in one.files] == ["hw.ipynb"] * (one.name == "carl")


@pytest.mark.slow
def test_a_hundred_thousand_pictures_hide_no_notebook(tmp_path):
    (tmp_path / "anna").mkdir()
    for n in range(99_999):
        (tmp_path / "anna" / f"{n}.png").touch()
    (tmp_path / "anna" / "zz.ipynb").write_bytes(GOOD)
    one = only(tmp_path)
    assert ([file.name for file in one.files], one.remarks) == (["zz.ipynb"], ())
    (tmp_path / "anna" / "more.txt").touch()
    assert "more than 100,000 files and folders" in only(tmp_path).remarks[0]


def test_pictures_hide_no_notebook(tmp_path):
    files = {f"anna/{n}.png": b"\x89PNG" for n in range(500)}
    one = only(fill(tmp_path, {**files, "anna/zz.ipynb": GOOD}))
    assert ([file.name for file in one.files], one.remarks) == (["zz.ipynb"], ())
    (tmp_path / "anna" / "zz.ipynb").unlink()
    said = only(tmp_path).remarks[0]
    assert said.startswith("there is no .ipynb or .py file in it: 0.png is a picture: hand in a notebook")
    assert said.endswith("; and 495 files of other kinds")


def test_folders_in_folders_end_somewhere():
    """In a folder of its own: what a killed test leaves is too deep for pytest to delete."""
    folder = Path(tempfile.mkdtemp(prefix="class-"))
    nest(os.fsencode(folder / "anna"), 1200)
    try:
        deepest = "/".join(["anna", *["deep"] * 20])
        fill(folder, {f"{deepest}/20.py": b"a = 1", f"{deepest}/deep/21.py": b"b = 1"})
        one = only(folder)
        assert [file.name for file in one.files] == ["20.py"]
        assert one.remarks == ("not read: folders more than 20 deep: put the answers into the first",)
        assert read_files(one) == ([("20.py", b"a = 1")], [])
    finally:
        for name in ("20.py", "deep/21.py"):
            (folder / deepest / name).unlink(missing_ok=True)
        unnest(os.fsencode(folder / "anna"), 1200)
        folder.rmdir()


def test_a_path_that_is_too_long_is_told(tmp_path):
    """Fewer than 20 folders, which together have a longer name than the system takes."""
    here = os.open(tmp_path, os.O_RDONLY)
    for name in ["anna", *["x" * 250] * 18]:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("hw.ipynb", os.O_CREAT, dir_fd=here))
    os.close(here)
    one = only(tmp_path)
    assert one.files == ()
    assert "(File name too long): put it into fewer folders, or give them shorter names" in one.remarks[0]


@linux
def test_titles_are_distinct_and_in_the_order_of_the_entries(tmp_path):
    raw = [b"M\xfcller", "Müller".encode(), "Mu\u0308ller".encode(), b"M\x81ller", b"Muller", "Müller (2)".encode()]
    for name in raw:
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    found = find(tmp_path)
    assert [os.fsencode(one.name) for one in found] == sorted(raw, key=os.fsdecode)
    titles = ["Muller", "Müller", "Müller (3)", "Müller (2)", "Müller (4)", "Müller (5)"]
    assert [one.title for one in found] == titles


@linux
def test_names_of_files_are_letters_and_distinct(tmp_path):
    fill(
        tmp_path, {b"anna/\xfc.py".decode("utf-8", "surrogateescape"): b"1", "anna/ü.py": b"2", "anna/u\u0308.py": b"3"}
    )
    fill(tmp_path, {"anna/in\n/hw.py": b"4", "bert/deep/hw.ipynb": GOOD})
    anna, bert = find(tmp_path)
    assert sorted(read_files(anna)[0]) == [
        (r"in\n/hw.py", b"4"),
        ("ü (2).py", b"2"),
        ("ü (3).py", b"1"),
        ("ü.py", b"3"),
    ]
    assert read_files(bert)[0] == [("hw.ipynb", GOOD)]
    assert read_files(Submission("none", ())) == ([], [])


# What is in a file beside a notebook or alone, and what is said of it.
KINDS = {
    "hw.ipynb": {
        b"PK\x05\x06" + bytes(18): "a zip file: unpack",  # an empty one
        b"BZh9": "a packed file: unpack",
        b"\xfd7zXZ\0": "a packed file: unpack",
        b"<?xml version='1.0'?><html>": "a web page",
        "\ufeff<!DOCTYPE html>".encode("utf-16-le"): "a web page",
        b" \r\n\t\n": "an empty file: save it again",
        b"\xef\xbb\xbf": "an empty file: save it again",
        b"\xff\xfe": "an empty file: save it again",
        bytes(10_000): "a file of zeros: save it again",
        GOOD: "",
        GOOD.decode().encode("utf-16"): "",
        GOOD.decode().encode("utf-32-be"): "",
        b"\xef\xbb\xbf" + GOOD: "",
        b"\n" * 5000 + GOOD: "",
    },
    "hw.py": {GOOD: "a notebook whose name ends in .py: rename it to end in .ipynb", b"{}": "", b"{'cell': 1}": ""},
    "hw.ipynb.bak": {GOOD: "a notebook whose name ends in .bak: rename it to end in .ipynb"},
    "hw.ipynb ": {GOOD: "rename it to end in .ipynb"},
    "hw.txt": {GOOD.decode().encode("utf-16"): "a notebook whose name ends in .txt: rename it"},
    "hw.R": {b"x <- 1": "a program in another language: hand in a notebook (.ipynb) or a .py file"},
    ".hw.ipynb.icloud": {b"bplist00": "a file that is still in iCloud: hand in the whole file"},
    "hw.gsheet": {b"{}": "a shortcut"},
    "hw.py~": {b"a = 1": "a file of another kind"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), [(n, c, s) for n, k in KINDS.items() for c, s in k.items()])
def test_what_a_file_is_and_what_would_be_right(name, content, says, tmp_path):
    fill(tmp_path, {name: content, f"folder/{name}": content})
    alone = next(one for one in find(tmp_path) if one.name == name)
    folder = next(one for one in find(tmp_path) if one.name == "folder")
    assert [len(one.files) for one in (alone, folder)] == [int(not says)] * 2
    for one in (alone, folder):
        assert says in " ".join(one.remarks)
        assert bool(says) == bool(one.remarks)


def test_a_hidden_folder_is_mentioned_where_nothing_else_is_there(tmp_path):
    fill(tmp_path, {"anna/.work/hw.ipynb": GOOD, "bert/.git/hw.ipynb": GOOD})
    anna, bert = find(tmp_path)
    assert anna.remarks == ("there is no .ipynb or .py file in it: hidden folders are not looked into: .work",)
    assert bert.remarks == ("there is no .ipynb or .py file in it: it is empty",)


@pytest.mark.parametrize("name", [
    ".dropbox", ".tmp.drivedownload", "@eaDir", ".sync_0123.db", ".owncloudsync.log", "Thumbs.db", "Desktop.ini",
    "._x.ipynb", ".DS_Store", "~$hw.docx", ".ipynb_checkpoints",
])  # fmt: skip
def test_what_a_cloud_or_a_system_leaves_is_no_submission(name, tmp_path):
    fill(tmp_path, {name: b"x", f"anna/{name}": b"x", "anna/hw.ipynb": GOOD})
    assert [(one.name, len(one.files), one.remarks) for one in find(tmp_path)] == [("anna", 1, ())]
