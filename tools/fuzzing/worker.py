"""A process that alters files and reads them, one after the other, and says how each ended.

It is forked from one that has imported everything. The one that it was forked from watches the time, and ends it where
a file takes too long; memory beyond the limit the system refuses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import traceback
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing.alter import alter
from fuzzing.formats import FORMATS, Format, NotFinite

MEMORY = 2**30  # bytes beyond what the process had before the file
LONGEST = 1500  # characters in a sentence
HANDED_IN = (
    "python",
    "notebook",
    "reply",
)  # the grader copies a class's entries, whatever they are, and reads the copies
PLACES = ("fifo", "folder", "zeros", "nothing", "link to itself", "link to nowhere", "a terabyte")


MADE = "made"  # what a worker says when the altered file is there


def plan(seed: int, number: int) -> tuple[Format, Random]:
    """The format and the random numbers of one file."""
    formats = [*FORMATS.values()]
    return formats[number % len(formats)], Random(f"{seed}:{number}")


def make(seed: int, number: int, originals: Path, path: Path) -> Format:
    """Put altered file `number` at `path`, instead of whatever stood there."""
    form, rng = plan(seed, number)
    data = (originals / form.folder / form.file).read_bytes()
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    if rng.random() < 0.01 and form.kind not in HANDED_IN:
        _no_file(rng.choice(PLACES), path, data)
    else:
        path.write_bytes(alter(data, form.kind, rng))
    return form


def _no_file(what: str, path: Path, data: bytes) -> None:
    match what:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "zeros":
            path.symlink_to("/dev/zero")
        case "nothing":
            path.write_bytes(b"")
        case "link to itself":
            path.symlink_to(path.name)
        case "link to nowhere":
            path.symlink_to("nowhere")
        case _:  # a hole behind the data, which takes no room on the disk
            path.write_bytes(data)
            os.truncate(path, 2**40)


def run(connection: Any, seed: int, originals: Path, scratch: Path, quiet: bool) -> None:
    """Answer each number that arrives with `(number, outcome, what was said)`."""
    os.setpgid(0, 0)
    shutil.copytree(originals, scratch)
    right = {name: digest(form.read(scratch / form.folder)) for name, form in FORMATS.items()}
    if quiet:  # the libraries' own words about a crash
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    connection.send(None)
    while (number := connection.recv()) is not None:
        form, _ = plan(seed, number)
        path = scratch / form.folder / form.file
        try:
            make(seed, number, originals, path)
        except Exception:
            connection.send((number, "fuzzer", traceback.format_exc()))
            continue
        connection.send(MADE)
        outcome, said = judged(form, scratch / form.folder, right[form.name])
        restore(path, originals / form.folder / form.file)
        connection.send((number, outcome, said.replace(str(scratch), "")[:4000]))


def restore(path: Path, original: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    shutil.copyfile(original, path)


def judged(form: Format, folder: Path, right: str) -> tuple[str, str]:
    """How reading ended, and what was said."""
    from lora_jax.errors import InputError

    before = memory("VmSize")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident = memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY, resource.RLIM_INFINITY))
    try:
        found = digest(form.read(folder))
        outcome, said = ("the right result" if found == right else "another result"), ""
    except InputError as error:
        said = str(error)
        whole = len(said) <= LONGEST and not set(said) & {"\n", "\r", "\0", "\x1b", "\u2028"}
        outcome = "a sentence" if whole else "no sentence"
        causes, cause = [], error.__cause__ or error.__context__
        while cause is not None and len(causes) < 20:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        if any(isinstance(one, MemoryError) for one in causes):
            outcome = "too much memory"
    except MemoryError:
        outcome, said = "too much memory", traceback.format_exc()
    except NotFinite as error:
        outcome, said = "not finite", str(error)
    except BaseException:
        outcome, said = "traceback", traceback.format_exc()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if memory("VmHWM") - resident > MEMORY:
        outcome = "too much memory"
    if outcome == "another result" and form.own and sealed(folder / form.file):
        outcome = "unseen"
    return outcome, said


def sealed(path: Path) -> bool:
    """Whether a safetensors file says a checksum."""
    with contextlib.suppress(Exception):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return "lora_jax_sha256" in header.get("__metadata__", {})
    return False


def memory(name: str) -> int:
    """A size of this process, in bytes, as Linux tells it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def digest(value: Any) -> str:
    """The same for values that say the same: nested lists, tuples, dicts, dataclasses, arrays and plain values."""
    summed = hashlib.sha256()

    def add(one: Any) -> None:
        if isinstance(one, dict):
            for key, item in one.items():
                summed.update(repr(key).encode("utf-8", "surrogatepass"))
                add(item)
        elif isinstance(one, list | tuple):
            summed.update(b"(%d" % len(one))
            for item in one:
                add(item)
        elif dataclasses.is_dataclass(one):
            for field in dataclasses.fields(one):
                add(getattr(one, field.name))
        elif hasattr(one, "dtype"):
            array = np.asarray(one)
            summed.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            summed.update(repr(one).encode("utf-8", "surrogatepass") + b";")

    add(value)
    return summed.hexdigest()
