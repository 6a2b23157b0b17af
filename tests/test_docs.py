"""The README and the docs: their code runs, their commands exist, and what they quote is what was recorded."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from lora_jax.adapters import METHODS
from lora_jax.commands import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "tests" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page.name, code) for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]


def test_what_is_quoted_is_what_was_recorded():
    done = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_code_blocks_run(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(code)
    with mock.patch.dict(METHODS):  # a page may add a method
        runpy.run_path("block.py")


@pytest.mark.parametrize("method", METHODS)
def test_the_first_block_reads_the_same_for_every_method(method, tmp_path, monkeypatch):
    (code,) = (code for page, code in BLOCKS if page == "README.md")
    code, changed = re.subn(r"lj\.lora\.init\((.*), params, .*\)", rf"lj.{method}.init(\1, params)", code)
    assert changed == 1
    test_code_blocks_run("README.md", code, tmp_path, monkeypatch)


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_tests_that_are_named_exist():
    defined = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    for page in PAGES:
        missing = set(re.findall(r"`(test_\w+)`", page.read_text())) - defined
        assert not missing, f"{page.name} names tests that are not there: {missing}"


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"make ([a-z]+)`|^make ([a-z]+)", text, re.M):
            assert re.search(rf"^{''.join(target)}:", makefile, re.M), target
        for command in re.findall(r"^python -m lora_jax ([^\n#]+)", text, re.M):
            cli._parser().parse_args(shlex.split(command))
