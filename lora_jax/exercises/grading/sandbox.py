"""A root made of nothing, and a process in it: `python -E -s -S sandbox.py SPEC`, started by `isolation.py`.

The process gets namespaces of its own (users, mounts, processes, network, messages, names, cgroups), and a
root file system that holds what SPEC names, read-only, five devices, its own /proc, and one folder in memory to write
in. It enters that root by pivot_root, becomes a user who is nobody outside, gives up every right and the way to gain
one, and starts the command with limits. Its death, or the grader's, is the end of all that the command started.

Where SPEC has no root, since the machine gives none, the command has its limits alone. With the standard library alone,
which is there before anything else is. The kernel's own pages describe the steps: namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from typing import Any

import system_calls

# sched.h, sys/mount.h, linux/mount.h, sys/prctl.h
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE, DETACH = 2, 4, 8, 0x1000, 0x4000, 0x40000, 2
SET_READ_ONLY, SET_NOSUID, SET_NODEV, SET_NOEXEC, RECURSIVE = 1, 2, 4, 8, 0x8000
PDEATHSIG, SET_DUMPABLE, CAPBSET_DROP, NO_NEW_PRIVS = 1, 4, 24, 38
MOUNT_SETATTR = 442  # the same number on every kind of machine
PIVOT_ROOT = {"x86_64": 155}.get(os.uname().machine, 41)
FAILED = 125  # the status where the sandbox itself could not be made
USER = 1000  # inside; outside it is the user that runs this, or for root a number that no account has
BASE = "/proc"  # where the new root is put together: of this folder's old content nothing goes into it
DEVICES = ("null", "zero", "full", "random", "urandom")

libc = ctypes.CDLL(None, use_errno=True)


def main(spec: dict[str, Any]) -> int:
    """Start the command of `spec` (see `isolation.py`) in its root; the status that it ends with, or FAILED."""
    if spec["root"] is None:
        return without_a_root(spec)
    libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    own_namespaces(spec["outside"])
    init = os.fork()  # the first process of its namespace, whose end is the end of every other in there
    if init == 0:
        os._exit(first_process(spec))
    return os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]) & 0xFF


def without_a_root(spec: dict[str, Any]) -> int:
    """The command as a child, never this process: one that kills its parent kills only what is its own."""
    for name, most in spec["limits"].items():
        with contextlib.suppress(OSError, ValueError):  # macOS has not all of them
            limit(getattr(resource, name), most)
    return subprocess.run(spec["command"], env=spec["environment"], cwd=spec["work"], check=False).returncode & 0xFF


def own_namespaces(outside: int) -> None:
    """New namespaces, whose user is `outside` outside. A helper that stays behind says so, since only there it may.

    Root is known in there too until `give_up_rights`, so that the new root's files belong to it.
    """
    me = os.getpid()
    wait, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        os.read(wait, 1)
        if os.geteuid() != 0:
            _write(f"/proc/{me}/setgroups", "deny")
        for kind, own in (("gid", os.getegid()), ("uid", os.geteuid())):
            text = f"0 0 1\n{USER} {outside} 1" if os.geteuid() == 0 else f"{USER} {own} 1"
            _write(f"/proc/{me}/{kind}_map", text)
        os._exit(0)
    _call("unshare", NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP)
    os.write(go, b"x")
    if os.waitpid(helper, 0)[1]:
        raise OSError(0, "no user could be given to the new namespace")


def first_process(spec: dict[str, Any]) -> int:
    libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        seccomp = system_calls.library() if spec["filter"] else None
        # Nobody in here may make namespaces again: there every right could be had anew. The filter refuses it too.
        _write("/proc/sys/user/max_user_namespaces", "0", required=False)
        new_root(spec["root"], spec["work"])
        give_up_rights()
        os.chdir(spec["work"])
        for name, most in spec["limits"].items():
            limit(getattr(resource, name), most)
        if seccomp is not None:
            system_calls.refuse(seccomp)
        command = os.fork()
        if command == 0:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execve(spec["command"][0], spec["command"], spec["environment"])
    except OSError as error:
        return failed(error)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:  # whoever loses its parent is this process's child
        ended, status = os.wait()
        if ended == command:
            return os.waitstatus_to_exitcode(status) & 0xFF


def new_root(root: dict[str, Any], work: str) -> None:
    """Put the root together and enter it: what is shown of this machine, less what is hidden; a folder to work in."""
    _mount("none", "/", None, REC | PRIVATE)  # nothing that is mounted here reaches the outside
    _mount("tmpfs", BASE, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for target, path in root["links"]:
        os.makedirs(os.path.dirname(BASE + path), exist_ok=True)
        os.symlink(target, BASE + path)
    for source, path in root["shown"]:
        show(source, BASE + path)
    for path in root["hidden"]:
        _mount("tmpfs", BASE + path, "tmpfs", NOSUID | NODEV, "mode=755,size=4k")
        _attributes(BASE + path, SET_READ_ONLY)
    for device in DEVICES:
        show(f"/dev/{device}", f"{BASE}/dev/{device}", SET_NOSUID | SET_NOEXEC)
    os.makedirs(BASE + work)
    _mount("tmpfs", BASE + work, "tmpfs", NOSUID | NODEV | NOEXEC, f"mode=700,uid={USER},gid={USER},{root['size']}")
    os.mkdir(BASE + "/proc")
    # In some containers a /proc of one's own is refused: then there is none.
    libc.mount(b"proc", f"{BASE}/proc".encode(), b"proc", NOSUID | NODEV | NOEXEC, b"subset=pid")
    _attributes(BASE, SET_READ_ONLY)
    os.chdir(BASE)
    if libc.syscall(PIVOT_ROOT, b".", b".") != 0:
        raise _error("pivot_root")
    _call("umount2", b".", DETACH)  # the old root, which lies over the new one
    os.chdir("/")


def show(source: str, path: str, attributes: int = SET_READ_ONLY | SET_NOSUID | SET_NODEV) -> None:
    """What stands at `source`, at `path` too, with all that is mounted in it."""
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "x").close()
    _mount(source, path, None, BIND | REC)
    _attributes(path, attributes, RECURSIVE)


def give_up_rights() -> None:
    """Become the one user of the namespace, with no capability, none to be gained, and closed to others' eyes."""
    if os.getgroups():
        libc.setgroups(0, None)  # refused to a user who was not root, whose groups name nothing in here
    for capability in range(64):
        libc.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, none)
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # another user has none at first
    _call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)


def limit(which: int, most: int) -> None:
    """Lower a limit for good; where it is lower already, it stays."""
    hard = resource.getrlimit(which)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def failed(error: OSError) -> int:
    where = f"{error.filename}: " if error.filename else ""
    print(f"{where}{error.strerror}", file=sys.stderr, flush=True)
    return FAILED


def _mount(source: str, path: str, kind: str | None, flags: int, data: str | None = None) -> None:
    given = [None if text is None else os.fsencode(text) for text in (source, path, kind, data)]
    if libc.mount(*given[:3], ctypes.c_ulong(flags), given[3]) != 0:
        raise _error(f"mount {path.removeprefix(BASE) or '/'}")


def _attributes(path: str, attributes: int, flags: int = 0) -> None:
    given = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    if libc.syscall(MOUNT_SETATTR, -100, os.fsencode(path), flags, given, ctypes.sizeof(given)) != 0:
        raise _error(f"mount_setattr {path.removeprefix(BASE) or '/'}")


def _call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments) != 0:
        raise _error(name)


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _write(path: str, text: str, required: bool = True) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        if required:
            raise OSError(error.errno, f"{path}: {error.strerror}") from error


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except OSError as error:
        sys.exit(failed(error))
