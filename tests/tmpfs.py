"""A small disk of a test's own: a tmpfs in a mount namespace of its own, seen by nobody else and gone with it.

`python tmpfs.py FOLDER BYTES SCRIPT ARGUMENTS...` is run by `unshare`: it mounts the tmpfs, sees that it is the one it
asked for, and only then runs SCRIPT there. Whatever is filled is this tmpfs and nothing else.
"""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"]


def mount(folder: Path, size: int, options: str = "") -> None:
    """Mount it, in a namespace that is not the first process's."""
    assert os.readlink("/proc/self/ns/mnt") != os.environ["OUTSIDE"], "this is not a namespace of our own"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "guarded", str(folder)], check=True)
    check(folder, size)


def check(folder: Path, size: int) -> None:
    """Assert that the folder is the tmpfs that was made here: its kind, its name, its size."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert ["guarded", str(folder), "tmpfs"] in [line[:3] for line in mounts]
    assert os.path.ismount(folder) and shutil.disk_usage(folder).total <= size + 4096


def fill(folder: Path, size: int) -> Path:
    """A file that takes all the room that is left."""
    check(folder, size)
    path = folder / "filling"
    with open(path, "wb", buffering=0) as file:
        for block in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(block)):
                    assert file.tell() <= size
            except OSError:
                continue
    assert shutil.disk_usage(folder).free == 0
    return path


def available() -> bool:
    """Whether this machine lets us have one."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0


def run(folder: Path, size: int, script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Run a script in a namespace of its own, with the tmpfs mounted on `folder`."""
    environment = options.pop("env", dict(os.environ)) | {"OUTSIDE": os.readlink("/proc/self/ns/mnt")}
    command = [*UNSHARE, sys.executable, __file__, str(folder), str(size), script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)


if __name__ == "__main__":
    place, size = Path(sys.argv[1]), int(sys.argv[2])
    mount(place, size)
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], init_globals={"PLACE": place, "SIZE": size}, run_name="__main__")
