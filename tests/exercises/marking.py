"""A class marked in a test's own folder, and the canaries beside it that no submission may reach."""

import csv
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from lora_jax.exercises.grading import conversation
from lora_jax.exercises.grading.grader import grade
from lora_jax.exercises.low_rank import EXERCISES

IDS = [exercise.id for exercise in EXERCISES]


def hand_in(folder, answers):
    """A folder with a submission for each of these programs, by name."""
    folder.mkdir()
    for name, code in answers.items():
        (folder / name).mkdir()
        (folder / name / "answers.py").write_text(code)
    return folder


def marked(folder, tmp_path, monkeypatch, say=lambda _: None, **options):
    """The rows of the submissions by name, and of the csv. Nothing is left of them: no file, and no process."""
    place = tmp_path / "temporary"
    place.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    mark = f"mark-{secrets.token_hex(8)}"  # which tells these processes from those of other tests
    monkeypatch.setattr(conversation, "RUNNER", [*conversation.RUNNER, mark])
    found = grade(say=say, folder=folder, csv=tmp_path / "marks.csv", notebooks=[3], as_root=True, **options)
    assert not list(place.iterdir())
    assert not [process for process in os.listdir("/proc") if mark in _command(process)]
    with open(tmp_path / "marks.csv", newline="", encoding="utf-8-sig") as file:
        return {row["name"]: row for row in found["submissions"]}, list(csv.DictReader(file))


def _command(process):
    try:
        return Path("/proc", process, "cmdline").read_text(errors="replace") if process.isdecimal() else ""
    except OSError:
        return ""


@contextmanager
def canaries(tmp_path):
    """What stands outside, by name; at the end all of it must be as it was, and nobody have come in."""
    place = tmp_path / "canaries"
    place.mkdir()
    treasure, disk, pipe = (place / name for name in ("treasure", "disk", "pipe"))
    treasure.write_text("mine")
    treasure.chmod(0o600)
    disk.write_bytes(bytes(4096))
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    inherited = os.open(treasure, os.O_RDWR)
    os.set_inheritable(inherited, True)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100_000)"])
    abstract = f"canary-{secrets.token_hex(8)}"
    path = str(Path(tempfile.mkdtemp(prefix="sock-", dir=tmp_path), "s"))
    servers = [socket.create_server(("127.0.0.1", 0))]
    for name in (path, f"\0{abstract}"):
        servers.append(socket.socket(socket.AF_UNIX))
        servers[-1].bind(name)
        servers[-1].listen()
    try:
        yield {
            "treasure": str(treasure), "disk": str(disk), "pipe": str(pipe), "socket": path, "abstract": abstract,
            "port": servers[0].getsockname()[1], "process": sleeper.pid, "home": str(Path.home()),
            "folder": str(tmp_path / "in"),
        }  # fmt: skip
        assert (treasure.read_text(), disk.read_bytes()) == ("mine", bytes(4096))
        assert treasure.stat().st_mode & 0o7777 == 0o600
        assert sorted(path.name for path in place.iterdir()) == ["disk", "pipe", "treasure"]
        assert os.read(reader, 10) == b""  # nothing came through the pipe
        assert sleeper.poll() is None
        for server in servers:
            server.setblocking(False)
            try:
                server.accept()
                raise AssertionError("somebody has connected from inside")
            except BlockingIOError:
                pass
    finally:
        sleeper.kill()
        sleeper.wait()
        for server in servers:
            server.close()
        os.close(reader)
        os.close(inherited)
