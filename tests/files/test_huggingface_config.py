"""`config.json`: what is understood, what is assumed, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from lora_jax.errors import InputError
from lora_jax.files.huggingface import read_config, write_config
from lora_jax.rope import RopeScaling
from lora_jax.transformer import Config

GOLDEN = Path(__file__).parents[1] / "golden"
QKV = ("q_proj", "k_proj", "v_proj")
LLAMA = Config(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=44,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    rope_theta=30_000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 40),
    rms_norm_eps=3e-5,
    max_position_embeddings=320,
    tie_word_embeddings=False,
    biases=(*QKV, "o_proj", "gate_proj", "up_proj", "down_proj"),
)
BASE = json.loads((GOLDEN / "hf_llama" / "config.json").read_text())


def test_what_the_golden_configurations_say():
    llama, qwen2, mistral = (
        read_config(GOLDEN / f"hf_{name}" / "config.json") for name in ("llama", "qwen2", "mistral")
    )
    assert llama == LLAMA
    assert (qwen2.head_dim, qwen2.biases, qwen2.tie_word_embeddings) == (4, QKV, True)
    assert (mistral.head_dim, mistral.biases, mistral.rms_norm_eps) == (8, (), 1e-6)


def changed(**entries):
    return {key: value for key, value in (BASE | entries).items() if value != "absent"}


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_parameters": "absent", "rope_theta": 30_000.0, "rope_scaling": {**BASE["rope_parameters"]}},
        {
            "rope_parameters": "absent",
            "rope_theta": 30_000.0,
            "rope_scaling": {"type" if k == "rope_type" else k: v for k, v in BASE["rope_parameters"].items()},
        },
    ],
)  # fmt: skip
def test_the_older_way_to_write_rope_says_the_same(entries):
    assert read_config(changed(**entries)) == read_config(BASE)


def test_what_is_not_said_is_as_transformers_assumes():
    bare = ("num_key_value_heads", "head_dim", "rope_parameters", "rms_norm_eps", "tie_word_embeddings", "mlp_bias")
    config = read_config(changed(**dict.fromkeys((*bare, "attention_bias", "max_position_embeddings"), "absent")))
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta, config.rms_norm_eps) == (6, 4, 1e4, 1e-6)
    assert (config.tie_word_embeddings, config.biases, config.max_position_embeddings) == (False, (), 2048)
    assert read_config(changed(rope_parameters="absent", rope_theta=7e4, rope_scaling=None)).rope_theta == 7e4


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; supported are llama, mistral, qwen2"),
        ({"model_type": "absent"}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', but only silu"),
        ({"model_type": "mistral", "sliding_window": 32}, "sliding_window is 32 with a context of 320"),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True}, "sliding_window is 32"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama3 needs low_freq_factor"),
        ({"hidden_size": "absent"}, "hidden_size is None, but must be a number"),
        ({"num_hidden_layers": "three"}, "num_hidden_layers is 'three', but must be a number"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is not supported"),
    ],
)
def test_what_the_transformer_does_not_do_is_refused(entries, message):
    with pytest.raises(InputError, match=message):
        read_config(changed(**entries))


def test_a_window_that_is_not_in_use_is_fine():
    assert read_config(changed(model_type="mistral", sliding_window=None))
    assert read_config(changed(model_type="mistral", sliding_window=320))
    assert read_config(changed(model_type="qwen2", sliding_window=32, use_sliding_window=False))


def test_biases_that_no_type_has_are_refused():
    with pytest.raises(InputError, match=r"no Hugging Face model type has biases on exactly q_proj, up_proj"):
        write_config(dataclasses.replace(LLAMA, biases=("q_proj", "up_proj")))
