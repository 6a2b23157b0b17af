"""Look at notebook 04 in a real browser: JupyterLab, headless Chromium, every cell run, the explorer's sliders moved.

python tools/see_explorer.py --chromium /usr/bin/chromium --out figures/explorer.png

Fails where a cell fails or the picture does not change. Not part of CI. It needs Chromium, and beside the package's
requirements nothing: `websocket-client` comes with Jupyter. The notebook is a copy, so that the lab saves into none.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "04_memory_full_vs_lora.ipynb"
WINDOW = (1280, 1000)
BROWSER = ("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
           "--disable-component-update", "--disable-quic", f"--window-size={WINDOW[0]},{WINDOW[1]}")  # fmt: skip
PANEL = "[...window.jupyterapp.shell.widgets('main')][0]"
CELLS = f"{PANEL}.content.widgets.map(w => w.model.toJSON()).filter(c => c.cell_type == 'code')"
BOX = "document.querySelector('.widget-image').closest('.widget-vbox')"


class Page:
    """A page of the browser, spoken to by its debugging protocol."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.numbers = itertools.count(1)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def value(self, expression: str) -> Any:
        """What the expression is in the page; a promise is waited for."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']['exception'].get('description')}")
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):
                if found := self.value(expression):
                    return found
            time.sleep(0.5)
        raise TimeoutError(f"not in {seconds} seconds: {expression}")

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def started(command: list[str], log: Path) -> Iterator[None]:
    """The command running, and ended afterwards."""
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield
        finally:
            process.terminate()


def answer(url: str, seconds: float) -> Any:
    """The JSON that a server answers once it is up."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url) as found:
                return json.load(found)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def drag(page: Page, description: str, share: float) -> None:
    """Take the handle of the slider of that description, and let it go at a share of its length."""
    found = page.value(
        f"(() => {{const one = [...{BOX}.querySelectorAll('.widget-hslider')]"
        f".find(w => w.querySelector('.widget-label').textContent == {json.dumps(description)});"
        "const at = q => {const r = one.querySelector(q).getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height]};"
        "return [at('.noUi-handle'), at('.noUi-base')]})()"
    )
    (x, y, width, height), (left, _, length, _) = found
    start, middle, end = x + width / 2, y + height / 2, left + share * length
    page.mouse("mousePressed", start, middle)
    for part in (0.25, 0.5, 0.75, 1.0):
        page.mouse("mouseMoved", start + part * (end - start), middle)
    page.mouse("mouseReleased", end, middle)


def state(page: Page) -> tuple[str, str, str]:
    """A digest of the explorer's picture, its verdict, and what the sliders show."""
    digest = page.value(
        f"fetch({BOX}.querySelector('img').src).then(r => r.arrayBuffer())"
        ".then(b => crypto.subtle.digest('SHA-256', b))"
        ".then(d => [...new Uint8Array(d)].map(n => n.toString(16).padStart(2, '0')).join(''))"
    )
    texts = [page.value(f"[...{BOX}.querySelectorAll('{css}')].map(e => e.textContent).join(' ')")
             for css in (".widget-html-content", ".widget-readout")]  # fmt: skip
    return digest, texts[0], texts[1]


def moved(page: Page, description: str, share: float) -> tuple[str, str, str]:
    before = state(page)
    drag(page, description, share)
    for _ in range(60):
        time.sleep(0.5)
        now = state(page)
        if now[0] != before[0]:
            print(f"moved {description}: picture {before[0][:12]} -> {now[0][:12]}; sliders at {now[2]}\n  {now[1]}")
            return now
    raise SystemExit(f"the slider {description} was moved, and the picture is as before: {now}")


def look(page: Page, out: Path) -> None:
    page.wait(f"{PANEL}.sessionContext.session.kernel.status == 'idle'", 120)
    page.value(f"window.jupyterapp.shell.activateById({PANEL}.id)")
    page.value("[...document.querySelectorAll('button')].filter(b => b.textContent == 'No').forEach(b => b.click())")
    page.value("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs').then(() => 0)")
    page.wait(f"{CELLS}.every(c => c.execution_count === null)", 20)
    began = time.monotonic()
    page.value("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    time.sleep(2)
    page.wait(f"{CELLS}.every(c => c.execution_count) && {PANEL}.sessionContext.session.kernel.status == 'idle'", 400)
    failed = page.value(f"{CELLS}.filter(c => c.outputs.some(o => o.output_type == 'error')).length")
    if failed:
        raise SystemExit(f"{failed} cells failed")
    print(f"{page.value(CELLS + '.length')} cells run in {time.monotonic() - began:.0f} s, none failed")
    cell = page.value(f"{PANEL}.content.widgets.findIndex(w => w.model.toJSON().source == 'explorer.explorer(view)')")
    page.value(f"{PANEL}.content.scrollToItem({cell}, 'start')")
    page.wait(f"{BOX} !== null", 60)
    time.sleep(2)
    page.value(f"{BOX}.scrollIntoView({{block: 'center'}})")
    time.sleep(1)
    print("before:", *state(page)[1:], sep="\n  ")
    moved(page, "batch", 0.05)
    moved(page, "length", 0.4)
    moved(page, "rank", 1.0)
    x, y, width, height = page.value(
        f"(() => {{const r = {BOX}.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]}})()"
    )
    clip = {"x": x, "y": y, "width": min(width, 930), "height": height, "scale": 1}
    shot = page.send("Page.captureScreenshot", format="png", clip=clip)
    out.write_bytes(base64.b64decode(shot["data"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", required=True, help="the browser's program")
    parser.add_argument("--out", type=Path, required=True, help="the screenshot of the explorer after the moves")
    arguments = parser.parse_args()
    token, lab_port, port = secrets.token_hex(16), free_port(), free_port()
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "notebooks").mkdir()
        shutil.copy(ROOT / "notebooks" / NOTEBOOK, folder / "notebooks")
        lab = [sys.executable, "-m", "jupyter", "lab", f"--notebook-dir={folder}/notebooks", "--no-browser",
               "--ip=127.0.0.1",
               f"--port={lab_port}", f"--IdentityProvider.token={token}", "--expose-app-in-browser"]  # fmt: skip
        lab += ["--allow-root"] if root else []
        url = f"http://127.0.0.1:{lab_port}"
        browser = [arguments.chromium, *BROWSER, *root, f"--remote-debugging-port={port}",
                   f"--user-data-dir={folder}/profile", "about:blank"]  # fmt: skip
        with started(lab, folder / "lab.log"), started(browser, folder / "browser.log"):
            try:
                answer(f"{url}/api/status?token={token}", 60)
                pages = [one for one in answer(f"http://127.0.0.1:{port}/json", 60) if one["type"] == "page"]
                page = Page(pages[0]["webSocketDebuggerUrl"])
                page.send("Page.navigate", url=f"{url}/lab/tree/{NOTEBOOK}?token={token}")
                look(page, arguments.out)
            except Exception:
                print((folder / "lab.log").read_text()[-2000:], (folder / "browser.log").read_text()[-500:])
                raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
