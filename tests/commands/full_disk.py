"""What `test_full_disk.py` has run on a small disk of its own: see `tmpfs.py`, which gives PLACE and SIZE.

Each case: what is there before; the disk filled; the command refused in a sentence with all of that as it was; the disk
freed; the command gone on to its end, in the bytes of the run that met no full disk.
"""

import os
import sys
from pathlib import Path

import runs
import tmpfs

PLACE, SIZE = globals()["PLACE"], globals()["SIZE"]
GIVEN = dict(os.environ)


def command(*words, folder, status=0):
    if status == 0:
        return runs.finish(*words, cwd=folder, environment=GIVEN)
    return runs.sentence(*words, cwd=folder, environment=GIVEN)


def at_the_start(words, outside, before=()):
    """The disk is full when the command begins: nothing is loaded, nothing is left."""
    for folder in (PLACE, outside):
        for one in before:
            command(*one, folder=folder)
    there = runs.contents(PLACE)
    filling = tmpfs.fill(PLACE, SIZE)
    said = command(*words, folder=PLACE, status=2)
    assert "could not write" in said and "No space left on device" in said, said
    filling.unlink()
    assert runs.contents(PLACE) == there
    command(*words, folder=PLACE)
    command(*words, folder=outside)
    assert runs.contents(PLACE) == runs.contents(outside)


def on_the_way(words, outside, room, named, before=()):
    """There is room for `room` bytes: it begins, and `named`, which it writes, does not fit."""
    for folder in (PLACE, outside):
        for one in before:
            command(*one, folder=folder)
    there = runs.contents(PLACE)
    filling = tmpfs.fill(PLACE, SIZE)
    os.truncate(filling, filling.stat().st_size - room)
    said = command(*words, folder=PLACE, status=2)
    assert "could not write" in said and named in said and "No space left on device" in said, said
    filling.unlink()
    found = runs.contents(PLACE)
    assert {name: found[name] for name in there} == there
    assert not [name for name in found if runs.is_known(Path(name).name)], found.keys()
    command(*words, folder=PLACE)
    command(*words, folder=outside)
    assert runs.contents(PLACE) == runs.contents(outside)


def main(case, outside):
    folder = Path(outside)
    folder.mkdir()
    data = ["--model", GIVEN["TINY"], "--data", str(Path(GIVEN["TINY"]).parent / "mine.txt"), *runs.QUICK]
    full = ["train", *data, "--checkpoint-every", "1", "--out", "run", "--method", "full"]
    low = ["train", *data, "--out", "run", "--rank", "2"]
    merge = ["merge", "--model", GIVEN["TINY"], "--adapter", "run/adapter", "--out", "merged"]
    if case == "train":
        at_the_start(low, folder)
    elif case == "checkpoint":
        on_the_way(full, folder, room=32_768, named="checkpoint.safetensors")
    elif case == "save":  # the checkpoint fits, and the model beside it does not
        full[full.index("--checkpoint-every") + 1] = "50"
        command(*full, folder=folder)
        room = (folder / "run" / "checkpoint.safetensors").stat().st_size + 40_960
        on_the_way(full, folder, room=room, named="run/model")
    elif case == "merge":
        on_the_way(merge, folder, room=32_768, named="merged", before=[low])
    print("as it should be")


if __name__ == "__main__":
    main(*sys.argv[1:])
