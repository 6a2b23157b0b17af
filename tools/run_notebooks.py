"""Run every notebook under notebooks/, in order, each in a kernel of its own; stop at the first error."""

import sys
import time
from pathlib import Path

import nbclient
import nbformat

for path in sorted(Path("notebooks").glob("[0-9]*.ipynb")):
    began = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}).execute()
    print(f"{path}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
