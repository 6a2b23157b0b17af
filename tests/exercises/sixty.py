"""A class of sixty entries: thirty that hold the right answers, whatever else they hold, and thirty that are broken.

Each is broken in a way in which real classes break things; what would be right is in the words that its row must have.
"""

import io
import json
import os
import socket
import struct
import tarfile
import zipfile
from contextlib import contextmanager

from lora_jax.exercises.low_rank import EXERCISES

HEAD = "import jax\nimport jax.numpy as jnp\nimport numpy as np\n"
SOLUTIONS = [exercise.solution for exercise in EXERCISES]
IDS = [exercise.id for exercise in EXERCISES]
SOURCE = "\n\n".join([HEAD, *SOLUTIONS])
WRONG = "\n".join(f"def {exercise.name}(*_):\n    return 'older'" for exercise in EXERCISES)


def code(source, **more):
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": source} | more


def notebook(*cells, **more):
    cells = [one if isinstance(one, dict) else code(one) for one in cells]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | more).encode()


GOOD = notebook(HEAD, *SOLUTIONS)
OLD = notebook(HEAD, WRONG)
COLAB = {"colab": {"provenance": [], "gpuType": "T4"}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}
RUNNING = code("train()", execution_count="*", outputs=[{"output_type": "stream", "name": "stdout", "text": ["1/9"]}])
PICTURE = code("draw()", outputs=[{"output_type": "display_data", "data": {"image/png": "A" * 2_000_000}}])
SHEETS = {"nbformat": 3, "worksheets": [{"cells": [
    {"cell_type": "heading", "level": 1, "source": "Answers"},
    *({"cell_type": "code", "language": "python", "input": one.splitlines(True)} for one in (HEAD, *SOLUTIONS)),
]}]}  # fmt: skip
DIRECTORY = os.fsencode("Anna Müller_12345_assignsubmission_file_")
SHIFT_JIS = b"\x8eR\x93c \x91\xbe\x98Y"

# Right in all: by the path in bytes, since names are bytes, what is in each file.
HEALTHY = {
    b"anna": {b"hw.ipynb": GOOD},
    b"M\xfcller": {b"hw.ipynb": GOOD},  # Latin-1, as from old Linux and Windows
    "Müller".encode(): {b"hw.ipynb": GOOD},
    "Mu\u0308ller".encode(): {b"hw.ipynb": GOOD},  # as a Mac writes it
    b"Gar\x8don": {b"hw.ipynb": GOOD},  # as an old Mac did
    SHIFT_JIS: {SHIFT_JIS + b".ipynb": GOOD},
    b"x" * 255: {b"y" * 249 + b".ipynb": GOOD},
    b"\x1b]0;owned\x07\x1b[2J": {b"\x1b[31mhw.py": SOURCE.encode()},
    b"two\nlines\r": {b"h\nw.ipynb": GOOD},
    "\u202egnp.trid".encode(): {"hw\u202e.ipynb".encode(): GOOD},
    b" ": {b" hw .ipynb": GOOD},
    b"-rf": {b"--help.ipynb": GOOD},
    b"a;=1+1": {b"=1+1;@x.ipynb": GOOD},
    DIRECTORY: {b"onlinetext.html": b"<!DOCTYPE html><p>Here is my work", b"hw.ipynb": GOOD},
    b"mullerbert_123_456_notebook (1).ipynb": GOOD,  # Canvas
    b"carl": {b"HW.IPYNB": GOOD},
    b"dora.PY": SOURCE.replace("\n", "\r\n").encode("utf-8-sig"),
    b"emil": {b"hw.ipynb": json.dumps(SHEETS).encode()},
    b"fay": {b"hw.ipynb": GOOD.decode().encode("utf-16")},
    b"gil": {b"hw.ipynb": b"\xef\xbb\xbf" + GOOD},
    b"hana": {b"hw.ipynb": GOOD, b"._hw.ipynb": b"\0\5\x16\7", b"__MACOSX/._hw.ipynb": b"\0", b".DS_Store": b"\0"},
    b"ian": {b"hw.ipynb": GOOD, b"Thumbs.db": b"\xd0\xcf", b"desktop.ini": b"[.ShellClassInfo]", b"~$notes.docx": b"x"},
    b"jo": {b".ipynb_checkpoints/hw-checkpoint.ipynb": OLD, b"hw.ipynb": GOOD},
    b"kim": {b"hw (Kim's conflicted copy 2026-01-01).ipynb": GOOD, b"hw.ipynb": GOOD},
    b"lea": {b"hw.ipynb": notebook(HEAD, *(f"x{n} = {n}" for n in range(10_000)), *SOLUTIONS)},
    b"max": {b"hw.ipynb": notebook("!pip install x\n%load_ext y", HEAD, RUNNING, PICTURE, *SOLUTIONS, metadata=COLAB)},
    b"nora": {
        b"repo/.git/config": b"[core]", b"repo/notebooks/03.ipynb": GOOD, b"repo/.venv/x.py": b"x",
        b"repo/env/pyvenv.cfg": b"", b"repo/env/lib/site-packages/y.py": WRONG.encode(), b"repo/__init__.py": b"",
    },
    b"otto": {b"hw.ipynb": GOOD, b"old.zip": b"PK\x03\x04", b"data/one.png": b"\x89PNG"},
    b"pia": {b"hw.ipynb": notebook("%%time\nimport jax", "b = (", HEAD, *SOLUTIONS, "x = 1" + "+1" * 100_000, "\0")},
    b"quin": {b"3/hw.ipynb": GOOD, b"1/hw.ipynb": notebook("x = 1"), b"2/hw.ipynb": b""},
}  # fmt: skip
# What their rows must say all the same.
MENTIONED = {
    b"kim": "answered in 2 files: the first by name counts",
    b"otto": "not read: old.zip is a zip file: unpack it",
    b"quin": "not read: hw.ipynb is an empty file: save it again",
}


def packed(name, data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
    return file.getvalue()


def locked(data):
    """A zip file whose header says that it is encrypted."""
    return data[:6] + struct.pack("<H", 1) + data[8:]


def tar(name, data):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


CONFLICT = b"<<<<<<< HEAD\n" + GOOD + b"\n=======\n" + OLD + b"\n>>>>>>> theirs\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
R = notebook("double <- function(x) 2 * x", metadata={"kernelspec": {"name": "ir", "language": "R"}})
JULIA = notebook("f(x) = 2x", metadata={"language_info": {"name": "julia"}})
UNPACK = "unpack it and hand in the notebook"
# By the path in bytes: what is in the file, or in the files of the folder, and what its row must say.
BROKEN = {
    b"r1.zip": (packed("hw.ipynb", GOOD), f"a zip file: {UNPACK}"),
    b"r2": ({b"all.zip": packed("inner.zip", packed("hw.ipynb", GOOD))}, f"a zip file: {UNPACK}"),
    b"r3": ({b"hw.zip": locked(packed("hw.ipynb", GOOD))}, f"a zip file with a password: {UNPACK}"),
    b"r4": ({b"hw.ipynb": packed("hw.ipynb", GOOD)}, f"a zip file: {UNPACK}"),
    b"r5.tar.gz": (tar("hw.ipynb", GOOD), f"a packed file: {UNPACK}"),
    b"r6": ({b"hw.html": b"<!DOCTYPE html>"}, "a web page: hand in the notebook that it was made from"),
    b"r7": ({b"hw.ipynb": b"\xef\xbb\xbf\n<!-- saved from url -->\n<html>"}, "a web page: hand in the notebook"),
    b"r8.pdf": (b"%PDF-1.7", "a PDF: hand in the notebook that it was made from"),
    b"r9": ({b"hw.docx": packed("word/document.xml", b"")}, "hand in a notebook (.ipynb) or a .py file"),
    b"s1": ({b"hw.ipynb": b""}, "an empty file: save it again and hand it in"),
    b"s2": ({}, "there is no .ipynb or .py file in it: it is empty"),
    b"s3": ({b"hw.ipynb": bytes(5000)}, "a file of zeros: save it again and hand it in"),
    b"s4": ({b"hw.ipynb": GOOD[: len(GOOD) // 2]}, "save it again and hand it in"),
    b"s5": ({b"hw.ipynb": CONFLICT}, "both sides of a conflict in it: keep one"),
    b"s6": ({b"hw.ipynb": LFS}, "Git LFS keeps the notebook: hand in the notebook itself"),
    b"s7": ({b"hw.ipynb": R}, "it is a notebook in R: hand in one in Python"),
    b"s8": ({b"hw.ipynb": JULIA}, "it is a notebook in julia: hand in one in Python"),
    b"s9": ({b"hw.ipynb.txt": GOOD}, "rename it to end in .ipynb"),
    b"t1": ({b"hw.json": GOOD}, "rename it to end in .ipynb"),
    b"t2": ({b"hw.py": GOOD}, "rename it to end in .ipynb"),
    b"t3": ({b"hw.ipynb": SOURCE.encode()}, "rename it to end in .py"),
    b"t4": ({b"hw.ipynb": b"[" * 100_000 + b"]" * 100_000}, "it is not a notebook: save it again"),
    b"t5": ({b".hw.ipynb": GOOD}, ".hw.ipynb is a hidden file: rename it"),
    b"t6": ({b".ipynb_checkpoints/hw-checkpoint.ipynb": GOOD, b".DS_Store": b"x"}, "it is empty"),
    b"t7": ({b"hw.gdoc": b'{"url": "https://docs.google.com"}'}, "a shortcut: hand in the notebook that it leads to"),
    # What takes more than a file's bytes is made by `made`.
    b"u1": (None, "larger than 30 MB"),
    b"u2": (None, "hw.ipynb is a link, not followed: hand in the file itself"),
    b"u3.ipynb": (None, "is no file and no folder: hand in a notebook"),
    b"u4": (None, "cannot be read (Permission denied): give whoever marks the right to read it"),
    b"u5": (None, "folders more than 20 deep: put the answers into the first"),
}
DEEP = 1200


@contextmanager
def a_class(folder):
    """The sixty in an empty folder, until the block ends. A test makes `u4` unreadable, since root reads all."""
    place = os.fsencode(folder)
    for path, content in {**HEALTHY, **{path: content for path, (content, _) in BROKEN.items()}}.items():
        write(os.path.join(place, path), content)
    os.mkdir(place + b"/u1")
    with open(place + b"/u1/hw.ipynb", "wb") as file:
        file.truncate(10**12)  # sparse
    os.mkdir(place + b"/u2")
    os.symlink(b"hw.ipynb", place + b"/u2/hw.ipynb")
    here = os.open(place, os.O_RDONLY)
    pipe = socket.socket(socket.AF_UNIX)
    try:
        pipe.bind(f"/proc/self/fd/{here}/u3.ipynb" if os.path.isdir("/proc/self/fd") else f"{folder}/u3.ipynb")
        os.mkdir(place + b"/u4")
        write(place + b"/u4/hw.ipynb", GOOD)
        nest(place + b"/u5", DEEP)
        try:
            yield folder
        finally:
            unnest(place + b"/u5", DEEP)
    finally:
        pipe.close()
        os.close(here)


def write(path, content):
    if isinstance(content, bytes):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    elif content is not None:
        os.makedirs(path, exist_ok=True)
        for name, data in content.items():
            write(os.path.join(path, name), data)


def nest(path, depth):
    """So many folders in one another, which no path reaches to the end."""
    os.mkdir(path)
    here = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def unnest(path, depth):
    """Take them away again, from the outside: what deletes a tree is not made for such a one."""
    first, second = os.path.join(path, b"deep"), os.path.join(path, b"next")
    for _ in range(depth - 1):
        os.rename(os.path.join(first, b"deep"), second)
        os.rmdir(first)
        first, second = second, first
    os.rmdir(first)
    os.rmdir(path)
