"""Nothing half-written: a file or a folder appears under its name complete, or what was there stays as it was.

The bytes go to a temporary name beside the target, are flushed to the disk, and only then renamed; a rename within one
folder is one step for every reader. A process killed on the way leaves a `.NAME.*.tmp` behind and nothing else.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lora_jax.errors import InputError


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically. Raises InputError where the disk refuses; the old file then stays."""
    with writing(path) as file:
        file.write(data)


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name when the block ends well.

    Whatever the block raises, the temporary file is removed and `path` is as it was; an OSError becomes an InputError.
    Folders above `path` are made. A symbolic link is followed: the file that it points to is the one replaced.
    """
    target = _target(path)
    temporary = _beside(target, "tmp")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                mode = os.fstat(file.fileno()).st_mode
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)  # a library that writes under this name itself may make it private
            os.replace(temporary, target)
            sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _refusal(path, error) from error


@contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name `path` when the block ends well.

    An empty or absent `path` is replaced in one rename. A folder that holds something cannot be: it is renamed aside,
    the new one renamed into place, and the old one then deleted, so that nothing stands under the name for an instant;
    a process killed in that instant leaves the old folder whole as `.NAME.*.old`. Files in the old folder that the new
    one does not replace are the user's own, so the write is refused (InputError) before anything is touched.
    """
    target = _target(path)
    temporary, aside = _beside(target, "tmp"), _beside(target, "old")
    try:
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                sync(entry)
            sync(temporary)
            _refuse_to_lose(target, temporary)
            if target.is_dir() and any(target.iterdir()):
                os.rename(target, aside)
            try:
                os.rename(temporary, target)
            except OSError:
                if aside.exists():
                    os.rename(aside, target)
                raise
            sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise _refusal(path, error) from error


def _refuse_to_lose(target: Path, replacement: Path) -> None:
    """Raise InputError where `target` holds a file that `replacement` does not."""
    if not target.is_dir():
        return
    kept = {entry.relative_to(replacement) for entry in replacement.rglob("*")}
    lost = sorted(str(p) for entry in target.rglob("*") if (p := entry.relative_to(target)) not in kept)
    if lost:
        raise InputError(
            f"{target} also holds {', '.join(lost[:3])}{' and others' if len(lost) > 3 else ''}, which writing it anew "
            "would remove: choose another folder, or move those files away first."
        )


def _target(path: str | Path) -> Path:
    """Where the path leads, links followed. Raises InputError for what can be no path."""
    try:
        os.fsencode(path)
        return Path(os.path.realpath(path))
    except ValueError as error:  # a NUL, or letters that the system has no bytes for
        raise InputError(f"could not write {str(path)!r} ({error}): give another name") from error


def _beside(target: Path, ending: str) -> Path:
    """A name nobody else uses, in the same folder and hence on the same disk; a long name is cut, to stay one."""
    name = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}.{ending}")


def sync(path: Path) -> None:
    """Have the disk hold what was written to `path`, which may be a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(path: str | Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(
        f"could not write {path} ({reason}): free some space or choose a place that may be written to; "
        "what was there before is untouched."
    )
