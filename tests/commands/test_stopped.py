"""Commands that are stopped at any moment, by Ctrl-C, SIGTERM or a kill: nothing lost, half-written or left running."""

import os
import random
import signal
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import runs

from lora_jax import load_model, load_tokenizer
from lora_jax.files import checkpoint, places, tensors
from lora_jax.text import stories

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
LONG = ["--steps", "6", "--batch-size", "2", "--length", "16", "--checkpoint-every", "1", "--evaluate-every", "3"]


@dataclass(frozen=True)
class Command:
    """What is run in a folder of its own; which files may differ from one run to the next; what writes the folder."""

    words: list[str]
    differ: frozenset[str] = frozenset()
    before: list["Command"] = field(default_factory=list)  # what is run there first, to the end
    dawdle: float = 0.01  # seconds before and after each flush and rename
    tidies: bool = True  # a function of the library does not: it holds no lock, and others may write there


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return runs.given(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def commands(given):
    folder = Path(given["TINY"]).parent
    wheel = folder / "my_verse-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("my_verse/__init__.py", "raise SystemExit('imported!')")
        archive.writestr("my_verse/data.bin", b"verse\n" * 50_000)
        archive.writestr("my_verse-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: my-verse\nVersion: 1.2\n")
        archive.writestr(
            "my_verse-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("my_verse-1.2.dist-info/RECORD", "")
    data = ["--model", given["TINY"], "--data", str(folder / "mine.txt"), *LONG, "--out", "run"]
    train = Command(["train", *data, "--rank", "2", "--watch", str(folder / "other.txt")])
    merge = ["merge", "--model", given["TINY"], "--adapter", "run/adapter", "--out", "merged"]
    return {
        "train": train,
        "train full": Command(["train", *data, "--method", "full"]),
        "merge": Command(merge, before=[train]),
        "save": Command(["save", "."], dawdle=0.005, tidies=False),
        "stories": Command(["stories", "--batches", "4", "--out", "told.jsonl.gz"]),
        "demo": Command(["demo", "--steps", "2", "--out", "run"], frozenset({"run/demo.json"})),
        "download": Command(["download", str(wheel)], dawdle=0.1),
    }


def begin(command, folder, given, *, slowly=True):
    environment = given | {"LORA_JAX_CACHE": str(folder / "cache"), "PIP_NO_INDEX": "1"}
    environment |= {"PIP_FIND_LINKS": str(Path(given["TINY"]).parent)}
    seconds = command.dawdle if slowly else 0
    return runs.start(*command.words, cwd=folder, environment=environment, seconds=seconds)


def end(process):
    out, error = process.communicate(timeout=300)
    return out, error


def prepare(command, folder, given):
    folder.mkdir()
    for one in command.before:
        whole(one, folder, given)


def whole(command, folder, given):
    """The command to its end, undisturbed."""
    process = begin(command, folder, given, slowly=False)
    _, error = end(process)
    assert process.returncode == 0, error


def check_what_stands(folder, was_killed):
    """Everything under a final name is whole, and what else is there has a name that the docs give."""
    for home in (folder, folder / "run", folder / "cache"):
        for name in os.listdir(home) if home.is_dir() else ():
            path = home / name
            if name == "checkpoint.safetensors":
                assert checkpoint.about(path)["step"] >= 1
                tensors.read(path)
            elif name == "adapter":
                assert sorted(os.listdir(path)) == ["adapter_config.json", "adapter_model.safetensors"]
                tensors.read(path / "adapter_model.safetensors")
            elif name in ("model", "merged"):
                load_model(path)
                load_tokenizer(path)
            elif name == "told.jsonl.gz":
                stories.read(path)
            elif name == "verse-1.2-data.bin":
                assert path.read_bytes() == b"verse\n" * 50_000
            elif name not in ("run", "cache", "run.json", "demo.json", "demo.png"):
                assert was_killed and (runs.is_known(name) or name.startswith(".download-")), name


def stop(process, how, after):
    """Send the signal so long after the beginning; whether it was still running."""
    time.sleep(after)
    process.send_signal(how)
    out, error = end(process)
    assert runs.alone(process.pid), "something of it still runs"
    if process.returncode == 0:
        return False
    if "begun" in out and process.returncode > 0 and how != signal.SIGKILL:  # else it was still starting
        assert process.returncode == STATUS[how], error
        assert "Traceback" not in error, error
    return True


def same(found, expected, command):
    left = {name for name in found if name.startswith("cache/.")}  # for a day
    left |= set() if command.tidies else {name for name in found if runs.is_known(name.partition("/")[0])}
    kept = {name: data for name, data in found.items() if name not in command.differ | left}
    assert kept == {name: data for name, data in expected.items() if name not in command.differ}


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_asked_to_stop_says_one_sentence_and_goes_on_to_the_same_bytes(tmp_path, given, commands, how):
    command = commands["train"]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    process = begin(Command(command.words, dawdle=0.1), tmp_path / "cut", given)
    whole(command, tmp_path / "whole", given)
    saved, patience = tmp_path / "cut" / "run" / "checkpoint.safetensors", time.monotonic() + 100
    while not saved.exists() and time.monotonic() < patience:
        time.sleep(0.02)
    process.send_signal(how)
    _, error = end(process)
    assert process.returncode == STATUS[how], error
    assert error.strip().splitlines()[-1].endswith("lora_jax: stopped; the last checkpoint, if there is one, is whole")
    assert "Traceback" not in error and runs.litter(saved.parent) == []
    assert not (saved.parent / "adapter").exists()
    whole(command, tmp_path / "cut", given)
    same(runs.contents(tmp_path / "cut"), runs.contents(tmp_path / "whole"), command)


def test_a_second_run_in_the_same_folder_is_refused_at_once_and_the_first_is_not_disturbed(tmp_path, given, commands):
    command = commands["train"]
    first = begin(Command(command.words, dawdle=0.1), tmp_path, given)
    lock, patience = tmp_path / "run" / places.LOCK, time.monotonic() + 100
    while not lock.exists() and time.monotonic() < patience:
        time.sleep(0.02)
    began = time.monotonic()
    said = runs.sentence(*command.words, cwd=tmp_path, environment=given)
    assert said.startswith(f"run is being written to by process {first.pid} on ")
    print(f"refused after {time.monotonic() - began:.1f} s, nearly all of it Python's start")
    _, error = end(first)
    assert first.returncode == 0, error
    assert runs.litter(tmp_path / "run") == []


def test_a_download_that_is_killed_takes_pip_along_and_leaves_what_the_next_clears_away(tmp_path, given):
    """`pip` is played by a program that never ends; the wheel is one of our own, and no network is asked."""
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__main__.py").write_text("import os, time; open(os.environ['BEGUN'], 'w').close(); time.sleep(600)")
    (fake / "__init__.py").write_text("")
    (tmp_path / "my_verse-1.2-py3-none-any.whl").write_bytes(b"none")
    begun = tmp_path / "begun"
    environment = given | {"PYTHONPATH": f"{fake.parent}:{given['PYTHONPATH']}"}
    environment |= {"LORA_JAX_CACHE": str(tmp_path / "cache"), "BEGUN": str(begun)}
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        command = ["download", str(tmp_path / "my_verse-1.2-py3-none-any.whl")]
        process = runs.start(*command, cwd=tmp_path, environment=environment, seconds=0)
        patience = time.monotonic() + 100
        while time.monotonic() < patience and not begun.exists():
            time.sleep(0.02)
        begun.unlink()
        process.send_signal(how)
        _, error = end(process)
        assert runs.alone(process.pid), f"pip outlived it: {error}"
        left = sorted(os.listdir(tmp_path / "cache"))
        assert all(name.startswith(".download-") for name in left)
        assert len(left) == 1  # of the one that was killed, where it stays for a day


MOMENTS = {"train": 32, "train full": 12, "merge": 12, "save": 10, "stories": 12, "demo": 8, "download": 14}


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_stopped_at_random_moments_it_ends_in_the_same_bytes(tmp_path, given, commands, name):
    """A hundred in all, seeded, over the whole life of each: start-up, loading, steps, writing, the end.

    Up to four are sent to one run after the other, which then goes on to its end.
    """
    command, draw = commands[name], random.Random(f"stopped {name}")
    prepare(command, tmp_path / "whole", given)
    whole(command, tmp_path / "whole", given)  # so that programs are compiled
    prepare(command, tmp_path / "timed", given)
    began = time.monotonic()
    process = begin(command, tmp_path / "timed", given)
    end(process)
    lasts = time.monotonic() - began
    expected = runs.contents(tmp_path / "whole")
    same(runs.contents(tmp_path / "timed"), expected, command)
    sent, landed = 0, 0
    while sent < MOMENTS[name]:
        folder = tmp_path / str(sent)
        prepare(command, folder, given)
        killed = False
        for _ in range(min(4, MOMENTS[name] - sent)):
            how = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            landed += stop(begin(command, folder, given), how, draw.uniform(0, 1.05 * lasts))
            killed |= how == signal.SIGKILL
            sent += 1
            check_what_stands(folder, was_killed=killed)
        whole(command, folder, given)
        same(runs.contents(folder), expected, command)
        assert runs.litter(folder / "run") == [] if (folder / "run").exists() else True
    assert sent == MOMENTS[name] and landed > sent / 3
    print(f"{name}: {sent} signals over {lasts:.1f} s each, {landed} of them before the end")


def test_a_hundred_moments_are_a_hundred():
    assert sum(MOMENTS.values()) == 100


def test_a_program_that_handles_sigterm_itself_keeps_its_way():
    from lora_jax.commands import ends

    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with ends.terminating():
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    with ends.terminating():
        assert signal.getsignal(signal.SIGTERM) not in (own, before)
        with pytest.raises(ends.Terminated):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one ends the process at once
    assert signal.getsignal(signal.SIGTERM) is before
    assert not issubclass(ends.Terminated, Exception)
