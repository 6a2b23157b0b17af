"""The transformer against Hugging Face's, number by number, and against itself by other ways to the same result.

B 5 rows, T 17 or 41 tokens, D 24, F 28, H 8, K 2, C 6, V 43, L 3 in the first case; no two alike, so that no transposed
matrix fits. Errors are relative to a tensor's largest value.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from safetensors import safe_open
from safetensors.numpy import save_file

from lora_jax.files import huggingface
from lora_jax.files.assemble import disassemble
from lora_jax.transformer import (
    Cache,
    Config,
    RopeScaling,
    attention,
    forward,
    init,
    init_cache,
    loss,
    rms_norm,
    rope_frequencies,
    untie,
)
from lora_jax.weights import Biased

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("grouped", "ungrouped", "one_kv_head", "llama3", "biases", "qwen2")
TOLERANCE = {"logits": 1e-5, "loss": 1e-6, "gradient": 3e-5}
BATCH = ("tokens", "segments", "mask", "positions")
TINY = Config(
    vocab_size=43,
    hidden_size=20,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=6,
    rope_theta=300.0,
    rope_scaling=RopeScaling(4.0, 1.0, 3.0, 16),
    biases=("k_proj", "down_proj"),
)


def noisy(config, dtype=jnp.float32):
    """Parameters with sharp attention, norms away from 1 and biases away from 0."""
    keys = iter(jax.random.split(jax.random.key(1), 99))
    params = init(jax.random.key(0), config)
    return jax.tree.map(lambda x: (x + 0.3 * jax.random.normal(next(keys), x.shape)).astype(dtype), params)


def random_tokens(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, TINY.vocab_size)


def error(found, expected):
    """The largest difference, relative to the largest value expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def assert_close(found, expected, tolerance):
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert error(a, b) < tolerance, jax.tree_util.keystr(path)


def read_golden(name):
    with safe_open(GOLDEN / f"transformers_{name}.safetensors", framework="np") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def part(arrays, kind):
    return {key.removeprefix(f"{kind}/"): array for key, array in arrays.items() if key.startswith(f"{kind}/")}


def errors(config_json, arrays, folder):
    """Our relative errors on what `transformers` recorded, its weights read from a model directory."""
    (folder / "config.json").write_text(json.dumps(config_json))
    save_file(part(arrays, "weight"), folder / "model.safetensors", {"format": "pt"})
    config, params = huggingface.load(folder)
    batch = {key: jnp.asarray(arrays[key]) for key in BATCH}
    where = {key: batch[key] for key in ("segments", "positions")}
    real = arrays["segments"] == 1  # what stands on padding is nobody's
    logits = forward(config, params, batch["tokens"], **where)
    value, gradients = jax.value_and_grad(loss, argnums=1)(config, params, batch)
    found, expected = disassemble(config, gradients), part(arrays, "gradient")
    assert found.keys() == expected.keys()
    assert all(np.abs(gradient).max() > 1e-6 for gradient in expected.values()) or config.biases
    scale = max(np.abs(gradient).max() for gradient in expected.values())
    return {
        "logits": error(logits[real], arrays["logits"][real]),
        "loss": error(value, arrays["loss"]),
        # A bias on keys moves all scores of a row alike where positions do not matter: its gradient may be tiny.
        "gradient": max(
            np.abs(found[key] - expected[key]).max() / max(np.abs(expected[key]).max(), 1e-4 * scale)
            for key in expected
        ),
    }


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_every_gradient_equal_those_of_transformers(name, tmp_path):
    found = errors(*read_golden(name), tmp_path)
    print(name, found)
    assert all(found[kind] < TOLERANCE[kind] for kind in found), found
