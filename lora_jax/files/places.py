"""Where a run writes: tried before anything is loaded, and the run's own until it ends.

The lock is `flock`'s, from the standard library: it belongs to the open file, so it ends with the process that holds
it, however that ends. A killed run leaves the file at most, which locks nothing and which the next run takes over. The
`filelock` package would keep the same lock, but writes into it neither who holds it nor where.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from lora_jax.errors import InputError
from lora_jax.files import atomic

Kind = Literal["run", "folder", "file"]  # several things in a folder; one folder, written whole; one file
LOCK = ".lora_jax.lock"  # in the folder of a run; beside what is written whole it is .NAME.lock
NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
PROBE = 4000  # bytes that are written at the start: as much as a full disk has no room for


def reserved(kind: Kind) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the function has its keyword argument `out` reserved (see `reserve`) for as long as it runs."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def alone(*, out: str | Path, **options: Any) -> Any:
            with reserve(out, kind):
                return function(out=out, **options)

        return alone

    return decorate


@contextmanager
def reserve(out: str | Path, kind: Kind) -> Iterator[None]:
    """Hold the place `out` for this process alone while the block runs.

    It is written to at once, so that a place that cannot be is found before an hour is spent; what killed runs left
    there is cleared away (`atomic.tidy`); and folders made for it in which nothing was begun are gone afterwards. Where
    the file system has no locks, that is said on standard error and the run goes on without one. Raises InputError
    where another process holds the place, naming it, and where it cannot be written to.
    """
    target = Path(os.path.realpath(out))
    home = target if kind == "run" else target.parent
    lock = home / (LOCK if kind == "run" else f".{atomic.short(target.name)}.lock")
    made: list[Path] = []
    try:
        _check_kind(out, target, kind)
        descriptor = _take(out, home, lock, made)
        try:
            _sign(descriptor)
            atomic.tidy(home, None if kind == "run" else target.name)
            begun = home.stat().st_mtime_ns
        except BaseException:
            _give_back(descriptor, lock)
            raise
    except BaseException as error:
        _remove(made)
        if isinstance(error, OSError):
            raise atomic.refusal(out, error) from error
        raise
    try:
        yield
    finally:
        with suppress(OSError):
            untouched = home.stat().st_mtime_ns == begun
            _give_back(descriptor, lock)
            if untouched:
                _remove(made)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file or folder that is there while the block runs: `is_held` says so to other processes."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether some process holds this file or folder. Raises OSError where it is gone."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _check_kind(out: str | Path, target: Path, kind: Kind) -> None:
    """Raise InputError where something of another kind stands under the name."""
    if kind == "file" and target.is_dir():
        raise InputError(f"{out} is a folder: give --out the name of a file")
    if kind == "file" and target.exists() and not target.is_file():
        raise InputError(f"{out} is neither a file nor a folder, and is not written to: give --out another name")
    if kind != "file" and target.exists() and not target.is_dir():
        raise InputError(f"{out} is a file, and what is to be written is a folder: give --out another name")


def _take(out: str | Path, home: Path, lock: Path, made: list[Path]) -> int:
    """The open file that holds the lock, in a folder that is made where there is none. Raises OSError, InputError."""
    import fcntl

    for _ in range(100):
        missing = [folder for folder in (home, *home.parents) if not folder.exists()]
        for folder in reversed(missing):
            with suppress(FileExistsError):
                folder.mkdir()
                made.append(folder)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if home.is_dir() or os.path.lexists(home):
                raise
            continue  # a run that ended took its folder away again
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(_taken(out, descriptor)) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                print(f"{home} is on a file system without locks: let no other run write there", file=sys.stderr)
                return descriptor
            # The run that held it may have removed the file between its opening here and its lock.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _sign(descriptor: int) -> None:
    """Write down who holds the lock, and see that the disk takes it."""
    signed = f"process {os.getpid()} on {socket.gethostname()}\n".ljust(PROBE)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, signed.encode(errors="replace"), 0)
    os.fsync(descriptor)


def _taken(out: str | Path, descriptor: int) -> str:
    who = os.pread(descriptor, PROBE, 0).decode(errors="replace").strip() or "another process"
    return f"{out} is being written to by {who}: wait until it has ended, or give --out another place"


def _give_back(descriptor: int, lock: Path) -> None:
    """Remove the file first and let the lock go then: who opened the file in between sees that it is gone."""
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
            os.unlink(lock)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _remove(made: list[Path]) -> None:
    for folder in reversed(made):
        with suppress(OSError):
            folder.rmdir()
