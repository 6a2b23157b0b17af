"""Altered files of every format end in a sentence or a result, and the fuzzer that says so sees what it should see.

It runs as a program of its own: it forks, limits memory, and ends what it started.
"""

import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from fuzzing.alter import BYTES, alter  # noqa: E402

JSON = json.dumps({"a": [1, 2.5, {"b": None}], "c": "text", "d": '{"e": [1, 2]}'}).encode()


def fuzz(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)


def test_a_few_hundred_altered_files():
    done = fuzz("--files", 240, "--seed", 11)
    assert done.returncode == 0, done.stdout
    assert "240 files in" in done.stdout and ", 0 ended badly" in done.stdout


@pytest.mark.slow
def test_some_thousand_altered_files():
    done = fuzz("--files", 4800, "--seed", 12)
    assert done.returncode == 0, done.stdout
    assert ", 0 ended badly" in done.stdout


PLANTED = """
    import os, sys, time
    sys.path.insert(0, "tools")
    from pathlib import Path
    import fuzz
    from fuzzing import formats, worker
    from lora_jax.errors import InputError

    def loop(folder):
        while True: pass

    def say(text):
        def read(folder): raise InputError(text)
        return read

    def stumble(folder): raise KeyError("x")
    def none(folder): raise formats.NotFinite("NaN")
    def swallow(folder):
        try: bytearray(2 << 30)
        except MemoryError as error: raise InputError("hidden") from error

    ends = {
        "a sentence": say("it is wrong"), "no sentence": say("two\\nlines"), "endless sentence": say("x" * 5000),
        "terminal": say("\\x1b[2J"), "traceback": stumble, "too long": loop, "asleep": lambda folder: time.sleep(99),
        "too much memory": lambda folder: bytearray(2 << 30), "swallowed": swallow, "abort": lambda folder: os.abort(),
        "not finite": none, "the right result": lambda folder: 1, "another result": lambda folder: 2,
        "unseen": lambda folder: 2, "exit": lambda folder: os._exit(0),
    }

    def after_the_first(read):
        calls = []
        def after(folder):
            calls.append(1)
            return 1 if len(calls) == 1 else read(folder)
        return after

    def write(folder):
        (folder / "f").mkdir(parents=True)
        (folder / "f" / "x").write_bytes(b"x")

    header = b'{"__metadata__":{"lora_jax_sha256":"0"}}'
    worker.alter = lambda data, kind, rng: len(header).to_bytes(8, "little") + header
    fuzz.write_all, fuzz.WALL = write, 4
    formats.FORMATS.clear()
    for name, read in ends.items():
        formats.FORMATS[name] = formats.Format(name, "f", "x", "python", after_the_first(read), name == "unseen")
    folder = Path(sys.argv[1])
    found = fuzz.fuzz(1, [*range(len(ends))], 2, folder, print, 1e12)
    print({name: found[i][0] for i, name in enumerate(ends)})
    assert [entry.name for entry in folder.iterdir()] == ["originals"]
"""


def test_each_way_to_end_is_seen(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PLANTED), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout.splitlines()[-1])
    others = {"endless sentence": "no sentence", "terminal": "no sentence", "asleep": "too long", "exit": "abort",
              "swallowed": "too much memory"}  # fmt: skip
    assert found == {name: others.get(name, name) for name in found} and len(found) == 15


@pytest.mark.parametrize(
    "kind", ["json", "jsonl", "csv", "text", "template", "python", "safetensors", "gguf", "pickle"]
)
def test_the_same_numbers_make_the_same_alterations_of_any_bytes(kind):
    """Whatever an alteration is given, of another kind too, it gives bytes; of text mostly others."""
    for data in (JSON, b"", b"x", bytes(range(256)) * 9, b"GGUF" + bytes(60), b"\n" * 50, b"[" * 5000):
        changed = 0
        for seed in range(60):
            one, other = (alter(data, kind, random.Random(seed)) for _ in range(2))
            assert isinstance(one, bytes) and one == other
            changed += one != data
        assert changed > 40 or data != JSON


@pytest.mark.parametrize("change", BYTES, ids=lambda change: change.__name__)
def test_alterations_without_knowledge_keep_the_size_within_bounds(change):
    for seed in range(200):
        assert len(change(JSON, random.Random(seed))) <= len(JSON) + 2_000_000
