"""Make the learner's and the solved notebooks from their masters, executed, with outputs.

python tools/build_notebooks.py                # all of them
python tools/build_notebooks.py 03             # those whose name begins so
python tools/build_notebooks.py --check        # fail where one is stale; runs nothing
python tools/build_notebooks.py --zip PATH     # the learner's notebooks without outputs, for a class
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from pathlib import Path

import nbclient
import nbformat
from masters import ROOT, built, masters, stale

from lora_jax.files import atomic


def execute(notebook: nbformat.NotebookNode, folder: Path) -> float:
    """Run the notebook in place, in `folder`, in a kernel of its own; the seconds it took."""
    began = time.perf_counter()
    client = nbclient.NotebookClient(
        notebook,
        timeout=1200,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of Python that was there
    return time.perf_counter() - began


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.validate(notebook)
    atomic.write_bytes(path, (nbformat.writes(notebook) + "\n").encode())


def write_zip(path: Path) -> None:
    """The learner's notebooks without outputs: the same bytes each time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for master in masters():
            target, made = next(iter(built(master).items()))
            entry = zipfile.ZipInfo(f"notebooks/{target.name}")
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, nbformat.writes(made) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 03; all where none is given")
    parser.add_argument("--check", action="store_true", help="fail where a notebook is not what its master makes")
    parser.add_argument("--zip", type=Path, metavar="PATH", help="write the learner's notebooks, without outputs")
    arguments = parser.parse_args()
    if arguments.zip:
        write_zip(arguments.zip)
        return 0
    chosen = [m for m in masters() if not arguments.names or m.name.startswith(tuple(arguments.names))]
    if not chosen:
        parser.error(f"no master is called {' or '.join(arguments.names)}")
    failures = 0
    for master in chosen:
        for path, made in built(master).items():
            name = path.relative_to(ROOT)
            if arguments.check:
                if reason := stale(path, made):
                    print(f"{name} {reason}: python tools/build_notebooks.py {master.stem}")
                    failures += 1
                continue
            seconds = execute(made, path.parent)
            save(made, path)
            print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
