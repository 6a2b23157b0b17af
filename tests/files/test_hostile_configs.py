"""`config.json` and the index of shards with wrong types, absurd sizes and numbers that are none: a sentence each."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lora_jax.errors import InputError
from lora_jax.files import huggingface, models
from lora_jax.files.huggingface_config import read_config
from lora_jax.rope import rope_frequencies

GOLDEN = Path(__file__).parents[1] / "golden"
BASE = json.loads((GOLDEN / "hf_llama" / "config.json").read_text())
ROPE = BASE["rope_parameters"]
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip


def refused(changes, said, base=BASE):
    with pytest.raises(InputError, match=said) as refusal:
        read_config({key: value for key, value in (base | changes).items() if value != "absent"})
    assert len(str(refusal.value)) < 400 and str(refusal.value).isprintable()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    "value", [True, "3", 3.0, [3], {}, 10**18, 10**400, 2**31, math.nan, math.inf, 1e400, "x" * 9999]
)
def test_sizes_of_the_wrong_type_and_absurd_ones(name, value):
    refused({name: value}, rf"{name} is .*, but must be a number, and a whole one of 1 to ")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, -(10**30)])
def test_sizes_below_one(name, value):
    refused({name: value}, rf"{name} is -?\d.*, and must be 1 or more")


NO_NUMBERS = [True, "1", [], [1.0], {"a": 1}, math.nan, math.inf, -math.inf, 10**400, -1, -0.5]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -0.0, 1, 2.5, "1e-5"])
def test_a_norms_epsilon_outside_of_its_range(value):
    refused({"rms_norm_eps": value}, "rms_norm_eps is .* but must be a number, finite and above 0 and below 1")


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -0.0, 1e31, 10**40])
@pytest.mark.parametrize("where", ["old", "new"])
def test_a_base_of_rope_outside_of_its_range(value, where):
    changes = {"rope_parameters": {**ROPE, "rope_theta": value}}
    if where == "old":
        changes = {"rope_parameters": "absent", "rope_theta": value}
    refused(changes, "rope_theta is .* but must be a number, finite and above 0 and of at most 1e")


@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor"])
@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -0.0, 1e12, 10**40])
def test_factors_of_rope_outside_of_their_range(name, value):
    refused({"rope_parameters": {**ROPE, name: value}}, rf"{name} is .* but must be a number, finite")


@pytest.mark.parametrize(("low", "high"), [(4.0, 4.0), (4.0, 1.0), (1, 1), (2.0, 1.9999)])
def test_frequencies_that_would_divide_by_nothing(low, high):
    changes = {"rope_parameters": {**ROPE, "low_freq_factor": low, "high_freq_factor": high}}
    refused(changes, f"high_freq_factor is {high}, but must be a number, finite and above {low:g}")


def test_what_is_at_the_ends_of_the_ranges_gives_finite_frequencies():
    for changes in ({"factor": 1}, {"factor": 1e6}, {"rope_theta": 1e30}, {"rope_theta": 1e-30},
                    {"low_freq_factor": 1e-30}, {"low_freq_factor": 4, "high_freq_factor": 4.000001}):  # fmt: skip
        config = read_config(BASE | {"rope_parameters": {**ROPE, **changes}})
        found = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        assert np.isfinite(found).all(), changes


@pytest.mark.parametrize("value", [1, 0, "true", [], {}, 1.0])
@pytest.mark.parametrize("name", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
def test_flags_that_are_none(name, value):
    refused({name: value}, f"{name} is .*, but must be true or false")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]; supported are"),
        ({"model_type": {}}, "model_type is {}; supported are"),
        ({"model_type": "x" * 10_000}, "supported are"),
        ({"hidden_act": ["silu"]}, "hidden_act is .* only silu"),
        ({"rope_parameters": [1]}, "rope_parameters is .*, but must be an object"),
        ({"rope_parameters": "llama3"}, "rope_parameters is 'llama3', but must be an object"),
        ({"rope_parameters": {**ROPE, "rope_type": ["llama3"]}}, "rope_type is .*llama3"),
        ({"rope_parameters": {**ROPE, "partial_rotary_factor": "1.0"}}, "partial_rotary_factor '1.0'"),
        ({"rope_parameters": {**ROPE, "original_max_position_embeddings": 8.5}}, "original_max_position_embeddings is"),
        ({"rope_parameters": {**ROPE, "original_max_position_embeddings": -1}}, "original_max_position_embeddings is"),
        ({"model_type": "mistral", "sliding_window": "32"}, "sliding_window is '32', but must be a number"),
        ({"model_type": "mistral", "sliding_window": [32]}, "sliding_window is .*, but must be a number"),
        ({"model_type": "qwen2", "use_sliding_window": "no"}, "use_sliding_window is 'no', but must be true or false"),
        ({"num_attention_heads": 48, "head_dim": "absent"}, "head_dim is 0, and must be 1 or more"),
        ({"num_attention_heads": 5}, "which num_key_value_heads, 2, does not divide"),
    ],
)
def test_other_fields_of_the_wrong_type(changes, said):
    refused(changes, said)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "hf_llama", tmp_path / "m"))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_not_those_of_the_tensors_are_refused_before_anything_is_allocated(name, folder):
    for value in (9_999, 100_000_000):
        if name == "max_position_embeddings" or (name == "num_hidden_layers" and value > 10_000):
            continue  # nothing is allocated for the first
        (folder / "config.json").write_text(json.dumps(BASE | {name: value * BASE["num_key_value_heads"]}))
        with pytest.raises(InputError):
            huggingface.load(folder)


NAMES = [
    "../x.safetensors",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a" * 300,
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\ud800",
]


@pytest.mark.parametrize("value", [*NAMES, 7, None, True, ["a"], {"a": "b"}, 1.5], ids=lambda value: ascii(value)[:20])
def test_names_of_shards_that_are_none(value, folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": value}}))
    with pytest.raises(InputError, match=r"index\.json(: the shard| names the shard|: half)") as refusal:
        huggingface.load(folder)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("text", ["", "[]", "1", '{"weight_map": []}', '{"weight_map": "a"}', '{"weight_map": {}}',
                                  "{}", "[" * 9999, '{"weight_map": {"a": "b", "a": "c"}}', "\xff"])  # fmt: skip
def test_an_index_that_is_none(text, folder):
    (folder / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        huggingface.load(folder)


FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "generation_config.json", "chat_template.jinja"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "large"])
def test_what_is_no_file_where_one_should_be(name, kind, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "hf_llama", tmp_path / "m"))
    shutil.copy(models.BESIDE["stories-2.8m"] / "tokenizer.json", folder)
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        with open(folder / name, "wb") as file:
            file.truncate(10**13)  # it takes no room on the disk
    with pytest.raises(InputError, match=name):
        models.load_model(folder)
        models.load_tokenizer(folder)


MODELS = ["x" * 300, "a/" + "x" * 300, "a/b\0c", "a\nb", "x/" * 3000, "\ud800", "a/\ud800", ".", "/dev/null"]


@pytest.mark.parametrize("name", [*MODELS, "x" * 300 + ".gguf"], ids=lambda name: ascii(name)[:12])
def test_a_name_of_a_model_that_is_none(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load in (models.load_model, models.load_tokenizer):
        with pytest.raises(InputError):
            load(name)
