"""The gate for files: what is none is refused before it is opened, and a file that is too large before it is read."""

import os
import socket

import pytest

from lora_jax.errors import InputError
from lora_jax.untrusted import files


def test_a_file_reads_as_it_is(tmp_path):
    for data in (b"", b"abc", bytes(range(256)) * 1000):
        (tmp_path / "a").write_bytes(data)
        assert files.read_bytes(tmp_path / "a") == data
    (tmp_path / "b").symlink_to("a")
    assert files.read_bytes(str(tmp_path / "b"), limit=len(data)) == data
    assert files.read_bytes("/proc/self/status").startswith(b"Name:")  # its size is said to be 0


def test_what_is_no_file_is_told_and_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to_fifo").symlink_to("fifo")
    monkeypatch.chdir(tmp_path)  # the name of a socket is at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
        for name, kind in (("fifo", "a pipe"), ("folder", "a folder"), ("to_fifo", "a pipe"), ("socket", "a socket"),
                           ("/dev/null", "a device"), ("/dev/zero", "a device")):  # fmt: skip
            with pytest.raises(InputError, match=rf"^{name} is {kind}, and a file is needed there$"):
                files.read_bytes(name)


def test_a_pipe_that_took_the_files_place_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "it")
    (tmp_path / "file").write_bytes(b"a")
    monkeypatch.setattr(os, "stat", lambda *_: os.lstat(tmp_path / "file"))
    with pytest.raises(InputError, match="it is a pipe"):
        files.read_bytes(tmp_path / "it")


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\0b", "\ud800", "none", "file/below", "loop"])
def test_a_name_that_leads_to_no_file_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError):
        files.read_bytes(name)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(10**13)  # it takes no room on the disk
    with pytest.raises(InputError, match=r"has 10,000,000,000,000 bytes, more than the 64,000,000 that are read"):
        files.read_bytes(tmp_path / "large")
    (tmp_path / "small").write_bytes(b"12345")
    with pytest.raises(InputError, match="more than the 4 that are read"):
        files.read_bytes(tmp_path / "small", limit=4)


def test_text_is_utf_8_and_a_mark_before_it_is_left_out(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa\r\n\xc3\xa9")
    assert files.read_text(tmp_path / "a") == "a\r\né"
    for data in (b"a\n\xff", b"\n\xc3", "é\n".encode("latin-1"), "\na".encode("utf-16")):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(InputError, match=r"a, line \d: not UTF-8 text: save it as UTF-8"):
            files.read_text(tmp_path / "a")
