"""Files and folders appear whole or not at all."""

import errno
import os

import pytest

from lora_jax.errors import InputError
from lora_jax.files import atomic


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_and_replaced_and_nothing_else_stays(tmp_path):
    path = tmp_path / "new" / "notes.txt"
    atomic.write_bytes(path, b"first")
    atomic.write_bytes(path, b"second")
    assert path.read_bytes() == b"second" and names(path.parent) == ["notes.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    os.umask(mask := os.umask(0))
    return mask


def test_the_old_file_stands_until_the_block_ends(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"old")
    with atomic.writing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic.writing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["notes.txt"]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"could not write .*notes.txt \(No space left on device\): free some space"):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["notes.txt"]


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"could not write"):
        atomic.write_bytes(tmp_path / "file" / "notes.txt", b"")
    with pytest.raises(InputError, match=r"could not write"), atomic.writing_folder(tmp_path / "file" / "out"):
        pass


def test_a_symbolic_link_keeps_pointing(tmp_path):
    (tmp_path / "real.txt").write_bytes(b"old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    atomic.write_bytes(tmp_path / "link.txt", b"new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_bytes() == b"new"


def fill(path, **files):
    with atomic.writing_folder(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder


@pytest.mark.parametrize("before", [None, {}, {"a": "old"}])
def test_a_folder_appears_whole_over_nothing_an_empty_one_or_an_older_one(tmp_path, before):
    path = tmp_path / "out"
    if before is not None:
        path.mkdir()
        for name, text in before.items():
            (path / name).write_text(text)
    fill(path, a="new", b="more")
    assert {p.name: p.read_text() for p in path.iterdir()} == {"a": "new", "b": "more"}
    assert names(tmp_path) == ["out"]


def test_a_folder_with_files_of_the_users_is_not_replaced(tmp_path):
    path = tmp_path / "out"
    fill(path, a="old", diary="mine")
    with pytest.raises(InputError, match=r"also holds diary, which writing it anew would remove"):
        fill(path, a="new")
    assert (path / "a").read_text() == "old" and names(tmp_path) == ["out"]


def test_a_failed_folder_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "out"
    fill(path, a="old")
    with pytest.raises(RuntimeError), atomic.writing_folder(path) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (path / "a").read_text() == "old" and names(tmp_path) == ["out"]

    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(InputError, match=r"broken"):
        fill(path, a="new")
    assert (path / "a").read_text() == "old" and names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name", ["a" * 300, "b/" + "a" * 300, "a\0b", "\ud800", "/dev/null/a", "/proc/a/b"], ids=range(6)
)
def test_a_name_that_can_be_none_is_refused_in_a_sentence(name, tmp_path):
    with pytest.raises(InputError, match="could not write"):
        atomic.write_bytes(tmp_path / name, b"a")
    with pytest.raises(InputError, match="could not write"), atomic.writing_folder(tmp_path / name):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.name != "b"]


@pytest.mark.parametrize("name", ["a" * 255, "\u00e9" * 127, "\U0001f600" * 63, "a" * 230 + ".json"], ids=range(4))
def test_the_longest_names_that_a_disk_takes_are_written(name, tmp_path):
    atomic.write_bytes(tmp_path / name, b"a")
    assert (tmp_path / name).read_bytes() == b"a"
    with atomic.writing_folder(tmp_path / "in" / name) as folder:
        (folder / "b").write_bytes(b"b")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
    assert (tmp_path / "in" / name / "b").read_bytes() == b"b"


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_between_the_two_renames_leaves_one_whole_folder(tmp_path, monkeypatch, nth, when, error):
    """The old one is aside and the new one not there yet: an interrupt then once left nothing under the name."""
    path = tmp_path / "out"
    fill(path, a="old")
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(target)
        if when == "after" or len(calls) != nth:
            rename(source, target)
        if len(calls) == nth:
            raise error

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(error):
        fill(path, a="new")
    assert (path / "a").read_text() == ("new" if (nth, when) == (2, "after") else "old")
    assert names(tmp_path) == ["out"]


def test_what_does_not_fit_is_named_by_the_name_that_it_would_have_had(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = r"could not write .*/out/weights \(No space"
    with pytest.raises(InputError, match=words) as caught, atomic.writing_folder(tmp_path / "out") as folder:
        atomic.write_bytes(folder / "weights", b"many")
    assert ".tmp" not in str(caught.value) and names(tmp_path) == []
