"""What lies in the folder of submissions: those that can be marked, and for every other entry what would be right."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_jax.errors import InputError

SUFFIXES = (".ipynb", ".py")
# What systems and editors put there by themselves, in lower case; and how the names of such files begin.
SYSTEM = frozenset({
    ".ds_store", ".localized", ".fseventsd", ".spotlight-v100", ".trashes", ".trash", "__macosx", "icon\r", "thumbs.db",
    "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found", ".directory",
    ".ipynb_checkpoints", ".virtual_documents", "__pycache__", ".pytest_cache", ".git", ".gitignore", ".gitkeep",
    ".gitattributes", ".github", ".idea", ".vscode", ".venv",
})  # fmt: skip
SYSTEM_STARTS = ("._", "~$", ".~", ".#", ".nfs", ".fuse_hidden", ".trash-")

UNPACK = "unpack it and hand in the notebook"
MADE_FROM = "hand in the notebook that it was made from"
WHOLE = "hand in the whole file"
INSTEAD = "hand in a notebook (.ipynb) or a .py file"
KINDS = {
    ".zip": ("a zip file", UNPACK),
    **dict.fromkeys((".tar", ".tgz", ".tbz", ".txz"), ("a tar file", UNPACK)),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".z"), ("a packed file", UNPACK)),
    **dict.fromkeys((".html", ".htm", ".xhtml", ".mhtml"), ("a web page", MADE_FROM)),
    ".pdf": ("a PDF", MADE_FROM),
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf", ".pages"), ("a document of a word processor", INSTEAD)),
    **dict.fromkeys((".ppt", ".pptx", ".odp", ".key"), ("a presentation", INSTEAD)),
    **dict.fromkeys((".xls", ".xlsx", ".ods", ".csv", ".tsv"), ("a table", INSTEAD)),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".heic", ".webp", ".bmp", ".tiff"), ("a picture", INSTEAD)),
    **dict.fromkeys((".txt", ".md", ".rst", ".tex"), ("a text file", INSTEAD)),
    ".json": ("a JSON file", INSTEAD),
    ".pyc": ("a compiled file", "hand in the .py file that it was made from"),
    **dict.fromkeys((".url", ".webloc", ".lnk", ".desktop"), ("a shortcut", "hand in the notebook that it leads to")),
    **dict.fromkeys((".crdownload", ".part", ".partial", ".download"), ("an unfinished download", WHOLE)),
}
# How files of a kind begin, whatever their name says.
STARTS = (
    (b"PK\x03\x04", ".zip"), (b"%PDF-", ".pdf"), (b"\x1f\x8b", ".gz"), (b"7z\xbc\xaf", ".7z"), (b"Rar!", ".rar"),
    (b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"{\\rtf", ".rtf"), (b"<!doctype html", ".html"),
    (b"<html", ".html"),
)  # fmt: skip


@dataclass(frozen=True)
class Submission:
    """One entry: the files in it that are marked, and a sentence for each that is not and looks as if it should be."""

    name: str
    files: tuple[Path, ...]
    remarks: tuple[str, ...] = ()


def find(folder: Path) -> list[Submission]:
    """A submission for every entry of `folder`: a folder with the notebooks and files inside, or a file beside them.

    What systems put there by themselves is none. Raises InputError where there is nothing else.
    """
    if not folder.is_dir():
        what = f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}"
        raise InputError(f"{what}: give one with a folder or a file for each submission")
    found = [_submission(path) for path in sorted(folder.iterdir()) if not _is_systems(path.name)]
    if not found:
        raise InputError(f"{folder} holds no submission: a folder or a file (.ipynb, .py) for each")
    return found


def _submission(path: Path) -> Submission:
    if path.is_symlink() or not path.is_dir():
        reason = why_not(path)
        return Submission(path.name, () if reason else (path,), (reason,) if reason else ())
    if path.name.startswith("."):
        return Submission(path.name, (), (f"{path.name} is a hidden folder: rename it to begin with another letter",))
    inside = list(_inside(path))
    reasons = {file: why_not(file) for file in inside}
    files = tuple(file for file, reason in reasons.items() if not reason)
    if not files:
        what = "; ".join(reason for reason in reasons.values() if reason) or "it is empty"
        return Submission(path.name, (), (f"there is no .ipynb or .py file in it: {what}",))
    meant = [reason for file, reason in reasons.items() if reason and _may_be_meant(file)]
    return Submission(path.name, files, tuple(f"not read: {reason}" for reason in meant))


def _inside(folder: Path) -> Iterator[Path]:
    """The files of a submission, folders in it included; but no hidden ones, and none of an environment of Python's."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_systems(name))
        here = Path(where)
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        yield from (here / name for name in folders if (here / name).is_symlink())
        yield from (here / name for name in sorted(files) if not _is_systems(name))


def _is_systems(name: str) -> bool:
    return name.lower() in SYSTEM or name.lower().startswith(SYSTEM_STARTS)


def _may_be_meant(file: Path) -> bool:
    """Whether a file that is not read, beside one that is, may hold answers all the same: not a picture or a table."""
    packed = KINDS.get(file.suffix.lower(), ("", ""))[1] == UNPACK
    return packed or file.is_symlink() or any(part.lower() == ".ipynb" for part in file.suffixes)


def why_not(path: Path) -> str:
    """Why a file is not marked, and what would be right, as a sentence; "" where it is."""
    name, suffix = path.name, path.suffix.lower()
    if path.is_symlink():
        return f"{name} is a link, not followed: hand in the file itself"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{name} is no file and no folder: {INSTEAD}"
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror}): give it to whoever marks, to read"
    if name.startswith("."):
        return f"{name} is a hidden file: rename it to begin with another letter"
    if not start:
        return f"{name} is an empty file: save it again and hand it in"
    by_content = next((kind for begin, kind in STARTS if start.lstrip().lower().startswith(begin.lower())), "")
    if suffix in SUFFIXES and by_content not in KINDS:
        return ""
    looks = _looks_like_a_notebook(start)
    if suffix not in SUFFIXES and not by_content and (looks or any(s.lower() in SUFFIXES for s in path.suffixes[:-1])):
        kind = ".ipynb" if looks or ".ipynb" in name.lower() else ".py"
        what = "a notebook" if kind == ".ipynb" else "a program"
        return f"{name} is {what} whose name ends in {suffix or 'nothing'}: rename it to end in {kind}"
    kind = suffix if suffix in KINDS else by_content
    if kind in KINDS:
        what, right = KINDS[kind]
        return f"{name} is {what}: {right}"
    return f"{name} is a file of another kind: {INSTEAD}"


def _looks_like_a_notebook(start: bytes) -> bool:
    return start.lstrip().startswith(b"{") and (b'"cell' in start or b'"nbformat' in start or b'"worksheets' in start)
