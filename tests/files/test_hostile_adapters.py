"""`adapter_config.json` with wrong types, numbers that are none, and patterns that never end: a sentence each."""

import json
import math
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from lora_jax.adapters import METHODS, lora
from lora_jax.errors import InputError
from lora_jax.files import checkpoint
from lora_jax.files.huggingface import load
from lora_jax.files.peft import load_adapter

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def params():
    return load(GOLDEN / "peft_base")[1]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "peft_plain", tmp_path / "adapter"))


def refused(folder, params, text, said):
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=said) as refusal:
        load_adapter(folder, base=params)
    assert "adapter_config.json" in str(refusal.value)
    assert len(str(refusal.value)) < 500 and str(refusal.value).isprintable()


def changed(folder, **changes):
    return json.dumps(json.loads((folder / "adapter_config.json").read_text()) | changes)


TYPE, NONE = "which is not of the type that it has in PEFT", "is not a finite number"
WHOLE, ALPHA = (
    "must be a number, and a whole one of 1",
    "must be a number, finite and of -1e.09 or more and below 1e.09",
)
DROPOUT = "must be a number, finite and of 0 or more and below 1"
FIELDS = [
    *(({"r": value}, WHOLE) for value in (0, -1, -(10**30), 2**31, 10**18)),
    *(({"r": value}, TYPE) for value in (True, "8", 8.0, [8], {"a": 8}, 1e300)),
    *(({"lora_alpha": value}, ALPHA) for value in (1e9, -2e9, 10**30, 10**400, 1e300)),
    *(({"lora_alpha": value}, NONE) for value in (math.nan, math.inf, -math.inf)),
    *(({"lora_alpha": value}, TYPE) for value in (True, "16", [16], {"a": 16})),
    *(({"lora_dropout": value}, DROPOUT) for value in (1, 1.0, 1.5, -0.1, -1, 10**400)),
    *(({"lora_dropout": value}, NONE) for value in (math.nan, math.inf)),
    *(({"lora_dropout": value}, TYPE) for value in (True, "0.1", [0.1])),
    *(({"use_rslora": value}, TYPE) for value in (1, 0, "true", "false", [True])),
    *(({"rank_pattern": {"q_proj": value}}, "must be numbers") for value in (True, "3", 3.5, [3], None, {})),
    *(({"rank_pattern": {"q_proj": value}}, WHOLE) for value in (0, -1, 10**18)),
    *(({"rank_pattern": value}, TYPE) for value in ([3], "q_proj", 3, True)),
    *(({"alpha_pattern": {"q_proj": value}}, ALPHA) for value in (1e10, 10**400)),
    *(({"alpha_pattern": {"q_proj": value}}, NONE) for value in (math.nan, -math.inf)),
    *(({"alpha_pattern": {"q_proj": value}}, "must be numbers") for value in (False, "3", [3], None)),
    *(({"target_modules": value}, TYPE) for value in (3, {"a": 1}, [3], [["q_proj"]], [None], ["q_proj", 1.5], True)),
    *(({"exclude_modules": value}, TYPE) for value in (3, {"a": 1}, [True])),
    *(({"layers_to_transform": value}, TYPE) for value in ("1", 1.5, {"a": 1}, ["1"], [1.0], [True], True)),
    ({"layers_to_transform": -1}, "must be a number, and a whole one of 0"),
    *(({"peft_type": value}, "this adapter's peft_type is") for value in (["LORA"], {}, None, 7, "x" * 9999, "a\x1b")),
    *(({"bias": value}, "is set, which is not understood") for value in (["none"], {}, 0, "x" * 9999, "a\nb")),
    ({"use_dora": "yes"}, "is set, which is not understood"),
]


@pytest.mark.parametrize(("changes", "said"), FIELDS, ids=lambda value: ascii(value)[:40])
def test_a_field_of_the_wrong_type_or_outside_of_its_range(changes, said, folder, params):
    refused(folder, params, changed(folder, **changes), said)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "9" * 5000, "1" * 1001])
@pytest.mark.parametrize("name", ["lora_alpha", "r", "lora_dropout"])
def test_numbers_that_json_has_not_or_no_float_holds(number, name, folder, params):
    text = json.loads((folder / "adapter_config.json").read_text()) | {name: "here"}
    refused(folder, params, json.dumps(text).replace('"here"', number), "adapter_config.json: ")


def test_numbers_at_the_ends_of_the_ranges_load_and_stay_finite(folder, params):
    for changes in ({"lora_alpha": 0}, {"lora_alpha": -16}, {"lora_alpha": 1e-30}, {"lora_alpha": -0.0},
                    {"lora_alpha": 999_999_999}, {"lora_dropout": 0.99}, {"alpha_pattern": {"zzz": 5}}):  # fmt: skip
        (folder / "adapter_config.json").write_text(changed(folder, **changes))
        for leaf in jax.tree.leaves(load_adapter(folder, base=params)):
            assert np.isfinite(leaf).all(), changes


PATTERNS = ["(.+)+#", r"(\w+\.?)+!"]


@pytest.mark.parametrize("where", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_never_ends(where, folder, params):
    value = {PATTERNS[1]: 3} if where.endswith("pattern") else PATTERNS[0]
    refused(folder, params, changed(folder, **{where: value}), r"cannot be matched .* more than 1 s of the processor")


def test_patterns_of_ia3_and_of_the_library_itself(tmp_path, params):
    folder = Path(shutil.copytree(GOLDEN / "peft_ia3", tmp_path / "a"))
    refused(folder, params, changed(folder, target_modules="((a|.)*)*#"), "cannot be matched")
    refused(folder, params, changed(folder, feedforward_modules=[3]), TYPE)
    with pytest.raises(InputError, match=r"targets='\(\.\+\)\+#' cannot be matched"):
        lora.init(jax.random.key(0), params, targets="(.+)+#")


TEXTS = [
    "",
    "[]",
    "1",
    "null",
    '"LORA"',
    "{" * 9999,
    '{"r": 1, "r": 2}',
    '{"peft_type": "LO',
    "\xff\xfe",
    "\0",
    '{"a": "\\ud800"}',
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:20])
def test_a_configuration_that_is_none(text, folder, params):
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        load_adapter(folder, base=params)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_in_its_place(kind, folder, params):
    path = folder / "adapter_config.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir() if kind == "folder" else path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"adapter_config.json is a {kind}, and a file is needed there"):
        load_adapter(folder, base=params)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\0b", "\ud800", "a\nb"], ids=lambda name: ascii(name)[:8])
def test_a_folder_whose_name_is_none(name, params):
    with pytest.raises(InputError, match="it is not an adapter in PEFT's format"):
        load_adapter(name, base=params)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf, 1e10, 10**400, -(10**400)])
def test_alphas_that_are_none_are_refused_where_an_adapter_is_made(alpha, params):
    for how in ({"alpha": alpha}, {"alpha_pattern": {"q_proj": alpha}}):
        with pytest.raises(InputError, match=r"alpha must be a number of -1e\+09 to 1e\+09, not "):
            lora.init(jax.random.key(0), params, **how)


ODD = ["(", "{", "[4]", "4", '{"q_proj": "4"}', '{"q_proj": NaN}', '{"q_proj": 1e400}', "{" * 9999, '{"a": ' * 99,
       '{"q_proj": ' + "9" * 5000 + "}", '{"q_proj": true}', '{"q": 1, "q": 2}']  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_json_of_the_command_line_that_is_none(text):
    for name in ("rank_pattern", "alpha_pattern"):
        with pytest.raises(InputError, match=r"^it"):
            METHODS["lora"].options[name].read(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 9999, '{"a": 1, "a": 2}', "9" * 5000, '{"run": "\\ud800"}'])
def test_what_a_checkpoint_says_of_its_run(text, tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "c.safetensors", {"about": text})
    for read in (checkpoint.about, lambda path: checkpoint.load(path, {"a": np.zeros(2, np.float32)})):
        with pytest.raises(InputError, match=r"c\.safetensors: what it says of its run"):
            read(tmp_path / "c.safetensors")
