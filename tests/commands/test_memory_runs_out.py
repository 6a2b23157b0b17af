"""Memory that runs out, for real, in a process that may take little more of it: one sentence with advice."""

import errno
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs

from lora_jax import transformer
from lora_jax.commands import ends
from lora_jax.files import huggingface, models

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")

# The command in a process that has started JAX, and may from there take as many more bytes as are given, below 2 GB.
LIMITED = """
import resource, sys
import jax
import jax.numpy as jnp
from lora_jax.commands import cli
jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((64, 64))))  # its threads are begun, which take memory too
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), now + int(sys.argv[1])))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return runs.given(tmp_path_factory.mktemp("given"))


def limited(more, *words, cwd, environment):
    assert more <= 2_000_000_000
    command = [sys.executable, "-c", LIMITED, str(more), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "lora_jax: there is not enough memory for this: " in last, done.stderr
    return last.rpartition("for this: ")[2]


def test_a_step_that_takes_too_much_says_what_takes_less(tmp_path, given):
    """256 sequences of 512 tokens: the small model keeps some gigabytes for their backward pass."""
    row = json.dumps({"text": "The fox sat by the river and sang. " * 60}) + "\n"
    (tmp_path / "long.jsonl").write_text("".join(row.replace("fox", f"fox {i}") for i in range(400)))
    settings = ["--steps", "1", "--batch-size", "256", "--length", "512", "--out", "run"]
    words = ["train", "--model", "stories-2.8m", "--data", "long.jsonl", *settings]
    said = limited(700_000_000, *words, cwd=tmp_path, environment=given)
    for advice in ("--batch-size", "--length", "--remat", "--accumulate", "--quantize nf4", "`plan`"):
        assert advice in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_too_many_prompts_at_once_say_what_takes_less(tmp_path, given):
    words = ["generate", *["the fox"] * 4000, "--model", "stories-2.8m", "--new-tokens", "450"]
    assert "fewer prompts at once" in limited(500_000_000, *words, cwd=tmp_path, environment=given)


@pytest.mark.slow
def test_a_model_that_does_not_fit_when_it_is_to_be_merged_is_a_sentence(tmp_path, given):
    """Its embedding alone has 80 MB."""
    config = transformer.Config(vocab_size=80_000, hidden_size=256, intermediate_size=64, num_hidden_layers=1,
                                num_attention_heads=4, num_key_value_heads=2, head_dim=16)  # fmt: skip
    params = transformer.init(jax.random.key(0), config)
    huggingface.save(tmp_path / "model", config, params, models.load_tokenizer(given["TINY"]))
    train = ["train", "--model", tmp_path / "model", "--data", f"{given['TINY']}/../mine.txt", *runs.QUICK]
    runs.finish(*train, "--targets", "attention", "--rank", "2", "--out", "run", cwd=tmp_path, environment=given)
    words = ["merge", "--model", "model", "--adapter", "run/adapter", "--out", "merged"]
    assert "more memory" in limited(60_000_000, *words, cwd=tmp_path, environment=given)
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_step_that_is_measured_and_does_not_fit_is_a_row_that_says_so(tmp_path, given):
    """`measure` runs its steps in processes of their own, which have the same limit: what happens to one is its row."""
    words = ["measure", "--device", "cpu", "--model", "stories-2.8m", "--method", "full", "--batch-size", "4096"]
    command = [
        "prlimit",
        "--as=2000000000",
        sys.executable,
        "-m",
        "lora_jax",
        *words,
        "--length",
        "512",
        "--out",
        "r.json",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["used"] is None and row["failed"]
    assert "failed (" in done.stdout


MEMORY = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("float32")),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."),
    jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=[type(error).__name__ for error in MEMORY])
@pytest.mark.parametrize("command", ["train", "generate", "merge", "plan", "measure", "stories"])
def test_every_way_of_saying_it_is_understood(error, command):
    said = ends.out_of_memory(error, command)
    assert said.startswith("there is not enough memory for this: ") and len(said) > 60


@pytest.mark.parametrize(
    "error",
    [ValueError("rank must be 1 to 8"), KeyError("out of memory"), jax.errors.JaxRuntimeError("INTERNAL: other")],
)
def test_no_other_error_is_taken_for_it(error):
    assert ends.out_of_memory(error, "train") is None
