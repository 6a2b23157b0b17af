"""What lies in the folder of submissions: those that can be marked, and for every other entry what would be right."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from lora_jax.errors import InputError
from lora_jax.exercises.grading.kinds import (
    EMPTY,
    KINDS,
    UNPACK,
    cannot_be_read,
    is_read,
    is_systems,
    open_file,
    why_not,
)
from lora_jax.exercises.grading.printed import distinct, shown

MAX_FILE = 30_000_000  # bytes of one file
MAX_ALL = 60_000_000  # bytes of all files of a submission
MAX_FILES = 100  # files of a submission that are read
MAX_NAMES = 100_000  # files and folders of a submission that are looked at
MAX_DEPTH = 20  # folders in folders
SAID = 5  # files that a remark names
# Folders of packages that others wrote, in which nobody's answers are.
PACKAGES = frozenset({"site-packages", "node_modules", "conda-meta"})


@dataclass(frozen=True)
class Submission:
    """One entry: the files in it that are marked, and a sentence for each that is not and looks as if it should be.

    `name` is the system's own; `title` is what is printed, and no two entries share it.
    """

    name: str
    files: tuple[Path, ...]
    remarks: tuple[str, ...] = ()
    title: str = ""


def find(folder: Path) -> list[Submission]:
    """A submission for every entry of `folder`: a folder with the notebooks and files inside, or a file beside them.

    What systems put there by themselves is none. Whatever an entry is, it is one of these; InputError is raised where
    there is none at all, and where `folder` cannot be read.
    """
    if not os.path.isdir(folder):
        what = f"{folder} is not a folder" if os.path.lexists(folder) else f"there is no folder {folder}"
        raise InputError(f"{what}: give one with a folder or a file for each submission")
    try:
        names = sorted(name for name in os.listdir(folder) if not is_systems(name))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): give a folder that you may read") from error
    if not names:
        raise InputError(f"{folder} holds no submission: a folder or a file (.ipynb, .py) for each")
    titles = distinct(map(shown, names))
    return [_submission(folder / name, title) for name, title in zip(names, titles, strict=True)]


def read_files(submission: Submission) -> tuple[list[tuple[str, bytes]], list[str]]:
    """`(name, contents)` of each file of a submission, and a remark for each that is not read.

    A name is the path from the folder in which all of them are, and no two are alike. Nothing is raised for a file that
    is too large, has gone, may not be read, or has become a link or a pipe.
    """
    # Notebooks first, so that no folder full of other things is in their way.
    files = sorted(submission.files, key=lambda file: file.suffix.lower() != ".ipynb")
    remarks = []
    if len(files) > MAX_FILES:
        kept = set(files[:MAX_FILES])
        left = [file for file in submission.files if file not in kept]
        remarks.append(f"not read, since more than {MAX_FILES} files, and notebooks come first: {_some(left)}")
    found: dict[Path, bytes] = {}
    large, late, read = [], [], 0
    for path in files[:MAX_FILES]:
        try:
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
                data = b"" if size > MAX_FILE else file.read(min(MAX_FILE, MAX_ALL - read) + 1)
                size = max(size, len(data))  # it may be growing
        except OSError as error:
            remarks.append(f"not read: {cannot_be_read(path, error)}")
            continue
        if size > MAX_FILE:
            large.append(path)
        elif read + size > MAX_ALL:
            late.append(path)
        else:
            read += size
            found[path] = data
    if large:
        right = "clear the outputs, save, and hand it in again"
        remarks.append(f"not read, since larger than {MAX_FILE / 1e6:.0f} MB: {_some(large)} ({right})")
    if late:
        remarks.append(f"not read, since the others are {MAX_ALL / 1e6:.0f} MB together: {_some(late)}")
    paths = [path for path in submission.files if path in found]
    return [(name, found[path]) for name, path in zip(distinct(_names(paths)), paths, strict=True)], remarks


def _names(files: list[Path]) -> list[str]:
    """Each file's path from the folder in which all of them are."""
    if not files:
        return []
    above = len(Path(os.path.commonpath([file.parent for file in files])).parts)
    return ["/".join(map(shown, file.parts[above:])) for file in files]


def _some(files: list[Path]) -> str:
    more = f" and {len(files) - SAID:,} more" if len(files) > SAID else ""
    return ", ".join(shown(file.name) for file in files[:SAID]) + more


def _submission(path: Path, title: str) -> Submission:
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError as error:
        return Submission(path.name, (), (cannot_be_read(path, error),), title)
    if not is_folder:
        reason = why_not(path, MAX_FILE)
        return Submission(path.name, () if reason else (path,), (reason,) if reason else (), title)
    if path.name.startswith("."):
        reason = f"{title} is a hidden folder: rename it to begin with another letter"
        return Submission(path.name, (), (reason,), title)
    inside, remarks, hidden = _inside(path)
    named = {file: why_not(file, MAX_FILE) for file in inside if is_read(file)}
    files = tuple(file for file, reason in named.items() if not reason)
    if not files:
        others = sorted((file for file in inside if file not in named), key=lambda file: not _may_be_meant(file))
        reasons = [*named.values(), *(why_not(file, MAX_FILE) for file in others[:SAID])]
        more = [f"and {len(others) - SAID:,} files of other kinds"] if len(others) > SAID else []
        more += [f"hidden folders are not looked into: {_some(hidden)}"] if hidden else []
        what = "; ".join([*remarks, *filter(None, reasons), *more]) or "it is empty"
        return Submission(path.name, (), (f"there is no .ipynb or .py file in it: {what}",), title)
    meant = (named.get(file) or why_not(file, MAX_FILE) for file in inside if file in named or _may_be_meant(file))
    said = [f"not read: {reason}" for reason in [*remarks, *filter(None, meant)]]
    # A .py file without a letter in it is nobody's answer: packages have them.
    said = [one for one in said if not one.endswith(f".py is {EMPTY}")]
    return Submission(path.name, files, tuple(said[:MAX_FILES]), title)


def _inside(folder: Path) -> tuple[list[Path], list[str], list[Path]]:
    """The files of a submission, folders in it included; a sentence for what is not looked into; and hidden folders.

    Without a word go hidden files of the system's, and packages that others wrote.
    """
    found: list[Path] = []
    remarks: list[str] = []
    hidden: list[Path] = []
    waiting, left, deep = [(folder, 0)], MAX_NAMES, False
    while waiting:
        here, depth = waiting.pop()
        try:
            with os.scandir(here) as inside:
                entries = sorted(itertools.islice(inside, left + 1), key=lambda entry: entry.name)
        except OSError as error:
            remarks.append(cannot_be_read(here, error))
            continue
        if len(entries) > left:
            remarks.append(f"more than {MAX_NAMES:,} files and folders: leave out those that are not your answers")
            entries, waiting = entries[:left], []
        left -= len(entries)
        if any(entry.name == "pyvenv.cfg" for entry in entries):
            continue  # an environment of Python's
        below: list[Path] = []
        for entry in entries:
            if not is_systems(entry.name):
                (below if _is_folder(entry) else found).append(Path(entry.path))
        hidden += [path for path in below if path.name.startswith(".")]
        below = [path for path in below if not path.name.startswith(".") and path.name.lower() not in PACKAGES]
        deep = deep or (depth == MAX_DEPTH and bool(below))
        if depth < MAX_DEPTH and left > 0:
            waiting += [(path, depth + 1) for path in reversed(below)]
    if deep:
        remarks.append(f"folders more than {MAX_DEPTH} deep: put the answers into the first")
    return found, remarks, hidden


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False  # whoever reads it as a file is told what is wrong


def _may_be_meant(file: Path) -> bool:
    """Whether a file of another kind, beside one that is read, may hold answers all the same: not a picture."""
    packed = KINDS.get(file.suffix.lower(), ("", ""))[1] == UNPACK
    return packed or os.path.islink(file) or any(part.lower() == ".ipynb" for part in file.suffixes)
