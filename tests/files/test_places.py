"""A run has its place to itself: a lock that ends with its process, tried before anything loads, leaving nothing."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading

import pytest

from lora_jax.errors import InputError
from lora_jax.files import atomic, places
from lora_jax.files.places import reserve

HOLDS = """
import sys
from lora_jax.files.places import reserve
with reserve(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Another process that holds a place until it is told to end, or is killed."""
    begun = []

    def start(out, kind):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", HOLDS, str(out), kind], **pipes)
        begun.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_a_second_process_is_refused_and_told_who_was_first(tmp_path, hold, kind):
    out = tmp_path / "out"
    process = hold(out, kind)
    who = f"process {process.pid} on {socket.gethostname()}"
    words = rf"out is being written to by {who}: wait until it has ended, or give --out another place$"
    for name in (out, tmp_path / "." / "out", tmp_path / "new" / ".." / "out"):  # by whatever name
        with pytest.raises(InputError, match=words), reserve(name, kind):
            pass
    with reserve(tmp_path / "other", kind):  # another place is free
        pass
    process.communicate("")
    with reserve(out, kind):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_a_killed_process_leaves_no_lock(tmp_path, hold, kind):
    process = hold(tmp_path / "out", kind)
    process.kill()
    process.wait()
    left = list(tmp_path.rglob(".*lock"))
    assert len(left) == 1  # a file that locks nothing
    with reserve(tmp_path / "out", kind):
        assert str(os.getpid()) in left[0].read_text()
    assert not left[0].exists()


def test_two_names_of_one_folder_are_one_place(tmp_path, hold):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    hold(tmp_path / "link", "run")
    with pytest.raises(InputError, match="real is being written to by process"), reserve(tmp_path / "real", "run"):
        pass


def test_two_threads_of_one_process_are_two_runs(tmp_path):
    with reserve(tmp_path / "out", "run"):
        found = []

        def second():
            try:
                with reserve(tmp_path / "out", "run"):
                    found.append("taken twice")
            except InputError as error:
                found.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert f"by process {os.getpid()}" in found[0]


def test_a_lock_whose_file_is_gone_is_taken_anew(tmp_path, monkeypatch):
    """Between our opening of it and our lock the run that held it has ended, and removed it."""
    flock, folder = fcntl.flock, tmp_path / "out"
    opened = []

    def late(descriptor, how):
        if not opened:
            (folder / places.LOCK).unlink()
        opened.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with reserve(folder, "run"):
        assert len(opened) == 2 and names(folder) == [places.LOCK]
        with pytest.raises(InputError, match="is being written to"), reserve(folder, "run"):
            pass


@pytest.mark.parametrize("error", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_and_written_to(tmp_path, monkeypatch, capsys, error):
    def none(descriptor, how):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", none)
    with reserve(tmp_path / "out", "run"):
        assert "is on a file system without locks: let no other run write there" in capsys.readouterr().err
    assert names(tmp_path) == []


# Where nothing can be written.


def refused(out, kind):
    with pytest.raises(InputError) as caught, reserve(out, kind):
        raise AssertionError("it was taken")
    return str(caught.value)


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_a_file_is_no_folder(tmp_path, kind):
    (tmp_path / "out").write_bytes(b"mine")
    assert "out is a file, and what is to be written is a folder" in refused(tmp_path / "out", kind)
    assert (tmp_path / "out").read_bytes() == b"mine" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_nothing_can_stand_inside_a_file(tmp_path, kind):
    (tmp_path / "file").write_bytes(b"mine")
    assert "could not write" in refused(tmp_path / "file" / "a" / "out", kind)
    assert (tmp_path / "file").read_bytes() == b"mine" and names(tmp_path) == ["file"]


def test_a_folder_and_a_pipe_are_no_file(tmp_path):
    (tmp_path / "out").mkdir()
    assert "out is a folder: give --out the name of a file" in refused(tmp_path / "out", "file")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is neither a file nor a folder" in refused(tmp_path / "pipe", "file")
    assert "pipe is a file, and what is to be written is a folder" in refused(tmp_path / "pipe", "run")
    with pytest.raises(InputError, match="pipe is neither a file nor a folder, and is not written to"):
        atomic.write_bytes(tmp_path / "pipe", b"")  # once a file took its place
    assert (tmp_path / "pipe").is_fifo() and names(tmp_path) == ["out", "pipe"]


@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_a_link_that_leads_nowhere_makes_what_it_names_or_is_refused(tmp_path, kind):
    (tmp_path / "link").symlink_to("there")
    with reserve(tmp_path / "link", kind):
        pass
    assert names(tmp_path) == ["link"]
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "bad").symlink_to("file/there")
    assert "could not write" in refused(tmp_path / "bad", kind)
    (tmp_path / "round").symlink_to("round")
    assert "round" in refused(tmp_path / "round" / "out", kind)


@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_a_name_that_is_too_long_is_refused_and_one_that_just_fits_is_taken(tmp_path, kind):
    assert "File name too long" in refused(tmp_path / ("a" * 256), kind)
    assert "File name too long" in refused(tmp_path / ("é" * 128) / "out", kind)
    assert names(tmp_path) == []
    for name in ("a" * 255, "é" * 127):
        with reserve(tmp_path / name, kind):
            pass
        atomic.write_bytes(tmp_path / name, b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"
        (tmp_path / name).unlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_a_folder_without_permission_is_refused(tmp_path, kind):
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0o500)
    try:
        assert "Permission denied" in refused(tmp_path / "shut" / "out", kind)
    finally:
        (tmp_path / "shut").chmod(0o700)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "pwrite", "fsync"])
def test_what_the_system_refuses_at_the_start_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, error, call):
    """By a stand-in, since these tests may run as root; `test_full_disk.py` has the real ones."""

    def no(*arguments, **options):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(places.os, call, no)
        said = refused(tmp_path / "a" / "b" / "out", "run")
    assert os.strerror(error) in said and "choose a place that may be written to" in said
    assert names(tmp_path) == []


# What is left.


def test_a_folder_in_which_nothing_was_begun_is_taken_away_and_any_other_stays(tmp_path):
    with reserve(tmp_path / "a" / "b", "run"):
        pass
    assert names(tmp_path) == []
    with reserve(tmp_path / "a" / "b", "run"):
        (tmp_path / "a" / "b" / "kept").write_bytes(b"")
    with reserve(tmp_path / "a" / "b", "run"):
        pass
    assert names(tmp_path / "a" / "b") == ["kept"]
    (tmp_path / "mine").mkdir()
    with reserve(tmp_path / "mine", "run"):
        pass
    assert names(tmp_path) == ["a", "mine"]


def leave(folder, name, ending, pid, text="half"):
    path = folder / f".{name}.{pid}-0123abcd.{ending}"
    path.mkdir(parents=True)
    (path / "weights").write_text(text)
    return path


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_writes_left_is_cleared_away_and_an_old_folder_is_put_back(tmp_path, hold):
    run, pid = tmp_path / "run", dead()
    run.mkdir()
    (run / f".checkpoint.safetensors.{pid}-0123abcd.tmp").write_bytes(b"half")
    leave(run, "adapter", "tmp", pid)
    leave(run, "adapter", "old", pid, "whole")
    leave(run, "model", "old", pid, "older")
    (run / "model").mkdir()
    (run / "model" / "weights").write_text("newer")
    alive = hold(tmp_path / "elsewhere", "run").pid
    theirs = [
        leave(run, "other", "tmp", alive).name,  # somebody's who still writes
        leave(run, "x", "tmp", "pid").name,  # no name of ours
    ]
    (run / "..tmp").write_bytes(b"mine")
    with reserve(run, "run"):
        pass
    assert names(run) == sorted([*theirs, "..tmp", "adapter", "model"])
    assert (run / "adapter" / "weights").read_text() == "whole"
    assert (run / "model" / "weights").read_text() == "newer"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_beside_a_name_only_what_is_its_own_is_cleared_away(tmp_path, kind):
    pid = dead()
    leave(tmp_path, "out", "tmp", pid)
    other = leave(tmp_path, "another", "tmp", pid).name
    old = leave(tmp_path, "another", "old", pid, "whole").name
    with reserve(tmp_path / "out", kind):
        pass
    assert names(tmp_path) == sorted([other, old])


def test_a_link_among_what_was_left_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / f".adapter.{dead()}-0123abcd.tmp").symlink_to(tmp_path / "mine")
    with reserve(run, "run"):
        pass
    assert names(run) == [] and (tmp_path / "mine" / "diary").read_text() == "mine"
