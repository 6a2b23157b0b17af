"""What a file is, by its name and by how it begins; and for one that is not marked, what would be right."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from lora_jax.exercises.grading.printed import shown

SUFFIXES = (".ipynb", ".py")
# What systems, editors and clouds put there by themselves, in lower case; and how the names of such files begin.
SYSTEM = frozenset({
    ".ds_store", ".localized", ".fseventsd", ".spotlight-v100", ".trashes", ".trash", "__macosx", "icon\r", "thumbs.db",
    "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found", ".directory",
    ".ipynb_checkpoints", ".virtual_documents", "__pycache__", ".pytest_cache", ".git", ".gitignore", ".gitkeep",
    ".gitattributes", ".github", ".idea", ".vscode", ".venv", ".dropbox", ".dropbox.attr", ".dropbox.cache",
    ".tmp.drivedownload", ".tmp.driveupload", ".stfolder", ".stversions", "@eadir", ".mypy_cache", ".ruff_cache",
})  # fmt: skip
SYSTEM_STARTS = ("._", "~$", ".~", ".#", ".nfs", ".fuse_hidden", ".trash-", ".sync_", ".owncloudsync", ".nextcloudsync")

UNPACK = "unpack it and hand in the notebook"
MADE_FROM = "hand in the notebook that it was made from"
WHOLE = "hand in the whole file"
INSTEAD = "hand in a notebook (.ipynb) or a .py file"
LEADS_TO = "hand in the notebook that it leads to"
AGAIN = "save it again and hand it in"
EMPTY = f"an empty file: {AGAIN}"
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
    **dict.fromkeys((".r", ".rmd", ".jl", ".m", ".js", ".c", ".cpp"), ("a program in another language", INSTEAD)),
    ".json": ("a JSON file", INSTEAD),
    ".pyc": ("a compiled file", "hand in the .py file that it was made from"),
    **dict.fromkeys((".url", ".webloc", ".lnk", ".desktop", ".gdoc", ".gsheet", ".gslides"), ("a shortcut", LEADS_TO)),
    **dict.fromkeys((".crdownload", ".part", ".partial", ".download"), ("an unfinished download", WHOLE)),
    ".icloud": ("a file that is still in iCloud", WHOLE),
}
# How files of a kind begin, whatever their name says.
STARTS = (
    (b"PK\x03\x04", ".zip"), (b"PK\x05\x06", ".zip"), (b"PK\x07\x08", ".zip"), (b"%PDF-", ".pdf"),
    (b"\x1f\x8b", ".gz"), (b"BZh", ".bz2"), (b"\xfd7zXZ", ".xz"), (b"\x28\xb5\x2f\xfd", ".zst"), (b"7z\xbc\xaf", ".7z"),
    (b"Rar!", ".rar"), (b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"{\\rtf", ".rtf"), (b"<!", ".html"),
    (b"<html", ".html"), (b"<head", ".html"), (b"<?xml", ".html"),
)  # fmt: skip
RIGHT = {
    errno.ENOENT: "it went away while the folder was read, so mark it again",
    errno.ENAMETOOLONG: "put it into fewer folders, or give them shorter names",
    errno.EACCES: "give whoever marks the right to read it",
    errno.EPERM: "give whoever marks the right to read it",
}


def is_systems(name: str) -> bool:
    """Whether a system, an editor or a cloud has put a file of this name there by itself."""
    return name.lower() in SYSTEM or name.lower().startswith(SYSTEM_STARTS)


def is_read(file: Path) -> bool:
    """Whether a file is one to mark by its name."""
    return file.suffix.lower() in SUFFIXES


def open_file(path: Path) -> BinaryIO:
    """A file to read, which must be one: no link is followed, and no pipe waited for. Raises OSError."""
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither

    def opened(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | safe)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", name)

    return open(path, "rb", opener=opened)


def cannot_be_read(path: Path, error: OSError) -> str:
    """A sentence for what the system refuses."""
    right = RIGHT.get(error.errno or 0, "copy it once more, and mark it again")
    return f"{shown(path.name)} cannot be read ({error.strerror or error}): {right}"


def why_not(path: Path, most: int) -> str:
    """Why a file is not marked, and what would be right, as a sentence; "" where it is, or has more than `most` bytes.

    Nothing but a regular file is opened.
    """
    name, suffix = shown(path.name), path.suffix.lower()
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return f"{name} is a link, not followed: hand in the file itself"
        if not stat.S_ISREG(mode):
            return f"{name} is no file and no folder: {INSTEAD}"
        with open_file(path) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(4096)
    except OSError as error:
        return cannot_be_read(path, error)
    if name.startswith(".") and suffix != ".icloud":
        return f"{name} is a hidden file: rename it to begin with another letter"
    if is_read(path) and size > most:
        return ""
    letters = re.sub(rb"\A(\xef\xbb\xbf|\xff\xfe|\xfe\xff)|\0", b"", start).strip()  # of UTF-8, -16 and -32
    if not letters and (size <= len(start) or b"\0" in start):
        return f"{name} is {f'a file of zeros: {AGAIN}' if 0 in start else EMPTY}"
    return _other_kind(path, name, suffix, start, letters)


def _other_kind(path: Path, name: str, suffix: str, start: bytes, letters: bytes) -> str:
    begins = letters.lower()
    by_content = next((kind for begin, kind in STARTS if begins.startswith(begin.lower())), "")
    notebook = letters.startswith(b"{") and any(f'"{key}'.encode() in letters for key in ("cell", "nbformat", "worksh"))
    if is_read(path) and not by_content and not (notebook and suffix == ".py"):
        return ""
    renamed = any(is_read(Path(f"x{one}")) for one in path.suffixes[:-1])
    if not by_content and suffix != ".icloud" and (notebook or renamed):
        kind = ".ipynb" if notebook or ".ipynb" in name.lower() else ".py"
        what = "a notebook" if kind == ".ipynb" else "a program"
        return f"{name} is {what} whose name ends in {shown(suffix) or 'nothing'}: rename it to end in {kind}"
    kind = suffix if suffix in KINDS else by_content
    if kind in KINDS:
        what, right = KINDS[kind]
        locked = start.startswith(b"PK\x03\x04") and len(start) > 6 and start[6] & 1
        return f"{name} is {what}{' with a password' if locked else ''}: {right}"
    return f"{name} is a file of another kind: {INSTEAD}"
