"""Programs compiled by one run of the command line are there for the next."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import jax, jax.numpy as jnp
from lora_jax.files import compilation
compilation.SECONDS = 0.0
compilation.keep_compiled_programs()
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((7, 7)))
print(sum(hits))
"""


def run(folder: Path, **more: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"LORA_JAX_CACHE": str(folder)} | more
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_the_second_run_finds_what_the_first_compiled(tmp_path):
    assert run(tmp_path) == 0
    assert run(tmp_path) > 0


def test_a_cache_that_the_user_named_is_used_instead(tmp_path):
    run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists()
