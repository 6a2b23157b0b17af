"""Large files in pieces: within the file, within memory, and of a file alone."""

import os
import re

import pytest

from lora_jax.errors import InputError
from lora_jax.untrusted import binary

TEXT = bytes(range(256)) * 5


def test_pieces_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(binary, "PIECE", 100)
    path = tmp_path / "a"
    path.write_bytes(TEXT)
    with binary.opened(path) as file:
        assert (file.path, file.size) == (str(path), 1280)
        assert file.read(3, 11) == TEXT[3:14] and file.read(1280, 0) == b"" and file.read(0, 1280) == TEXT
        pieces = [*file.pieces(7, 950)]
        assert [len(piece) for piece in pieces] == [100] * 9 + [50] and b"".join(pieces) == TEXT[7:957]


@pytest.mark.parametrize(("start", "count"), [(0, 1281), (1280, 1), (5, 2**63), (-1, 3), (2**40, 0), (7, -1)])
def test_what_lies_outside_the_file_is_not_read(tmp_path, start, count):
    (tmp_path / "a").write_bytes(TEXT)
    with (
        binary.opened(tmp_path / "a") as file,
        pytest.raises(
            InputError, match=r"a ends too early, with 1,280 bytes: it was cut short, fetch or write it again$"
        ),
    ):
        file.read(start, count)


def test_a_file_that_is_cut_short_while_it_is_open_is_a_sentence(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(TEXT)
    with binary.opened(path) as file:
        os.truncate(path, 700)
        assert file.read(0, 700) == TEXT[:700]
        with pytest.raises(InputError, match="a ends too early"):
            file.read(600, 200)


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "away").symlink_to("nowhere")
    for name, words in (
        ("pipe", "is a pipe, and a file is needed there"),
        ("link", "is a pipe, and a file is needed there"),
        ("folder", "is a folder, and a file is needed there"),
        ("/dev/zero", "is a device, and a file is needed there"),
        ("nowhere", None),
        ("away", None),
        ("round", r"could not read .*round \("),
        ("a\0b", "is no name of a file"),
        ("n" * 300, r"could not read .* \(File name too long\)"),
    ):
        expected = words or f"^there is no file {re.escape(str(tmp_path / name))}$"
        with pytest.raises(InputError, match=expected), binary.opened(tmp_path / name):
            raise AssertionError


def test_more_than_memory_holds_is_refused_before_it_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 2**41)  # a hole, which takes no room on the disk
    with (
        binary.opened(path) as file,
        pytest.raises(InputError, match=r"would take 2,199,023,255,552 bytes, and this mac"),
    ):
        file.read(0, 2**41)
    monkeypatch.setattr(binary, "_memory", lambda: 1000)
    binary.fits_memory("x", 1000)
    with pytest.raises(
        InputError, match=r"^x would take 1,001 bytes, and this machine has 1,000: give a smaller file$"
    ):
        binary.fits_memory("x", 1001)
