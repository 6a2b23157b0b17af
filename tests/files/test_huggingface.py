"""Model directories: read as `transformers` wrote them, written as `transformers` reads them."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from close import close, forward_pass, rounding
from safetensors.numpy import load_file, save_file

from lora_jax.errors import InputError
from lora_jax.files.huggingface import load, load_tokenizer, save
from lora_jax.files.huggingface_config import ATTENTION_BIASES, MLP_BIASES, QKV
from lora_jax.files.tokenizer import Tokenizer, byte_level
from lora_jax.rope import RopeScaling
from lora_jax.transformer import Config, forward, init
from lora_jax.weights import Biased

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = Config(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=44,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    rope_theta=30_000.0,
    rms_norm_eps=3e-5,
    max_position_embeddings=320,
)
CONFIGS = {
    "plain": TINY,
    "llama3": dataclasses.replace(TINY, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 40)),
    "untied": dataclasses.replace(TINY, tie_word_embeddings=False, biases=(*QKV, "o_proj")),
    "mlp": dataclasses.replace(TINY, biases=("gate_proj", "up_proj", "down_proj")),
    "qwen2": dataclasses.replace(TINY, biases=QKV),
}


def noisy(config, dtype=jnp.float32):
    """Parameters far enough from their start that norms, biases and rotations all matter."""
    keys = iter(jax.random.split(jax.random.key(1), 99))
    params = init(jax.random.key(0), config)
    return jax.tree.map(lambda x: (x + 0.3 * jax.random.normal(next(keys), x.shape)).astype(dtype), params)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])  # sharded with biases; tied; bfloat16
def test_what_transformers_wrote_gives_its_logits(name):
    golden = np.load(GOLDEN / f"hf_{name}" / "logits.npz")
    config, params = load(GOLDEN / f"hf_{name}")
    logits = forward(config, params, jnp.asarray(golden["tokens"]))
    assert np.abs(golden["logits"]).max() > 1
    close(logits, golden["logits"], rounding(forward_pass(config, golden["tokens"].shape[1])))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_saved_and_loaded_it_is_the_same(tmp_path, name, dtype):
    config, params = CONFIGS[name], noisy(CONFIGS[name], dtype)
    save(tmp_path / "m", config, params)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    found_config, found = load(tmp_path / "m", dtype)
    assert found_config == config
    assert_same(found, params)
    q_proj = load_file(tmp_path / "m" / "model.safetensors")["model.layers.2.self_attn.q_proj.weight"]
    assert q_proj.shape == (60, 24) and q_proj.dtype == dtype  # (out, in), as Hugging Face has it


def test_an_untied_head_is_saved_as_it_is(tmp_path):
    params = noisy(TINY)
    head = params["embed_tokens"].T + 1
    save(tmp_path / "m", TINY, params | {"lm_head": head})
    config, found = load(tmp_path / "m")
    assert config == dataclasses.replace(TINY, tie_word_embeddings=False)
    assert_same(found, params | {"lm_head": head})


@pytest.mark.parametrize(
    ("name", "biases"), [("v_proj", QKV), ("o_proj", ATTENTION_BIASES), ("up_proj", MLP_BIASES), (None, ())]
)
def test_biases_are_read_off_the_tree_and_those_around_them_are_zero(name, biases, tmp_path):
    params = noisy(TINY)
    part = "mlp" if name == "up_proj" else "self_attn"
    if name:
        w = params["layers"][part][name]
        params["layers"][part][name] = Biased(w, jnp.cos(jnp.arange(3 * w.shape[2], dtype=w.dtype)).reshape(3, -1))
    save(tmp_path / "m", TINY, params)
    config, found = load(tmp_path / "m")
    assert config == dataclasses.replace(TINY, biases=biases)
    for other in biases:
        part = "mlp" if other in MLP_BIASES else "self_attn"
        b, ours = found["layers"][part][other].b, params["layers"][part][other]
        np.testing.assert_array_equal(b, ours.b if other == name else np.zeros_like(b))


def test_what_a_model_directory_has_no_place_for_is_refused(tmp_path):
    params = noisy(TINY)
    bad = {**params["layers"]["mlp"], "up_proj": Biased(Biased(params["layers"]["mlp"]["up_proj"], 0), None)}
    with pytest.raises(InputError, match=r"layers.mlp.up_proj is Biased, not a plain array: merge or dequantize"):
        save(tmp_path / "m", TINY, params | {"layers": params["layers"] | {"mlp": bad}})
    with pytest.raises(InputError, match="a model directory has no place for prompt: keep the adapter beside its base"):
        save(tmp_path / "m", TINY, params | {"prompt": jnp.ones((4, TINY.hidden_size))})
    assert not (tmp_path / "m").exists()


@pytest.fixture
def folder(tmp_path):
    """A saved model to damage."""
    save(tmp_path / "m", TINY, noisy(TINY))
    return tmp_path / "m"


def rewrite(folder, function):
    tensors = load_file(folder / "model.safetensors")
    save_file(function(tensors) or tensors, folder / "model.safetensors")


def test_a_shape_that_does_not_fit_is_named(folder):
    rewrite(folder, lambda t: t | {"model.layers.1.mlp.up_proj.weight": np.ones((24, 44), np.float32)})
    with pytest.raises(InputError, match=r"layers.1.mlp.up_proj.weight has shape \(24, 44\), but .* for \(44, 24\)"):
        load(folder)


def test_missing_and_unexpected_tensors_are_named(folder):
    rewrite(folder, lambda t: t | {"model.layers.0.mlp.up_proj.bias": np.ones(44, np.float32)})
    with pytest.raises(InputError, match=r"holds model.layers.0.mlp.up_proj.bias of shape \(44,\), which this model"):
        load(folder)
    rewrite(folder, lambda t: {key: w for key, w in t.items() if "layers.2" not in key})
    with pytest.raises(InputError, match=r"model.layers.2.input_layernorm.weight of shape \(24,\) \(and 8 more\)"):
        load(folder)


def test_values_and_kinds_that_are_no_weights_are_refused(folder):
    rewrite(folder, lambda t: t["model.norm.weight"].__setitem__(3, np.inf))
    with pytest.raises(InputError, match=r"model.norm.weight holds values that are not finite numbers in float32"):
        load(folder)
    rewrite(folder, lambda t: t | {"model.norm.weight": np.full(24, 1e6, np.float32)})
    with pytest.raises(InputError, match=r"model.norm.weight holds values that are not finite numbers in float16"):
        load(folder, jnp.float16)
    rewrite(folder, lambda t: t | {"model.norm.weight": np.ones(24, np.int8)})
    with pytest.raises(InputError, match=r"model.norm.weight is stored as I8; supported are F32, F16, BF16"):
        load(folder)


def test_a_tied_model_may_repeat_its_embedding_but_not_contradict_it(folder):
    rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].copy()})
    rewrite(folder, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32)})
    assert_same(load(folder)[1], noisy(TINY))
    rewrite(folder, lambda t: t["lm_head.weight"].__setitem__((2, 3), 9))
    with pytest.raises(InputError, match=r"lm_head.weight differs from model.embed_tokens.weight: set tie_word"):
        load(folder)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-10], lambda b: b[:100], lambda b: b"", lambda b: b"\xff" * 50 + b[50:]]
)
def test_a_damaged_file_of_weights_is_named(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"model.safetensors is not a readable safetensors file"):
        load(folder)


def test_damaged_and_missing_files_are_named(folder, tmp_path):
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match=r"config.json is not readable JSON"):
        load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json holds a list, but a configuration is a JSON object"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"could not read .*config.json"):
        load(folder)
    with pytest.raises(InputError, match=r"has no tokenizer.json"):
        load_tokenizer(folder)

    sharded = tmp_path / "sharded"
    shutil.copytree(GOLDEN / "hf_llama", sharded)
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"index.json names the shard model-00002-of-00003.safetensors, which is"):
        load(sharded)
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(InputError, match=r"names the shard \.\./\.\./etc/passwd, which is not in"):
        load(sharded)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not a readable index of shards"):
        load(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
        load(sharded)


def hub_of(files, tmp_path, monkeypatch):
    """A hub with one repository, `some/model`, that gives what is asked for by pattern; the list of what it gave."""
    import huggingface_hub

    given = []

    def snapshot_download(name, allow_patterns):
        if name != "some/model":
            raise OSError("Name or service not known\nand much more")
        for file in huggingface_hub.utils.filter_repo_objects(sorted(files), allow_patterns=allow_patterns):
            given.append(file)
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(files[file])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return given


def repository(tmp_path, config=TINY, shards=0, **more):
    """The files of a model directory that we wrote, the weights in one file or in shards, and others beside them."""
    save(tmp_path / "written", config, noisy(config), small_tokenizer())
    files = {path.name: path.read_bytes() for path in (tmp_path / "written").iterdir()}
    if shards:
        from safetensors.numpy import load as parse
        from safetensors.numpy import save as serialize

        tensors = parse(files.pop("model.safetensors"))
        names = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
        for file in set(names.values()):
            files[file] = serialize({name: tensors[name] for name in tensors if names[name] == file})
        files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": names}).encode()
    return files | {name.replace("__", "/"): b"x" * 10 for name in more.pop("beside", ())}


BESIDE = (
    "consolidated.safetensors", "original__consolidated.00.safetensors", "original__tokenizer.model",
    "original__config.json", "onnx__model.safetensors", "model.fp16.safetensors", "adapter_model.safetensors",
    "pytorch_model.bin", "README.md", "tf_model.h5", "model-00001-of-00009.safetensors", "subfolder__tokenizer.json",
    "model.safetensors.index.fp16.json", "gguf__model.gguf", "training_args.bin",
)  # fmt: skip
SETTINGS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_of_a_hub_only_what_the_index_names_is_fetched(tmp_path, monkeypatch, shards):
    files = repository(tmp_path, shards=shards, beside=BESIDE)
    given = hub_of(files, tmp_path / "cache", monkeypatch)
    config, params = load("some/model")
    assert config == TINY
    jax.tree.map(np.testing.assert_array_equal, params, noisy(TINY))
    weights = {f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)} or {"model.safetensors"}
    index = {"model.safetensors.index.json"} if shards else set()
    assert set(given) == SETTINGS | weights | index and len(given) == len(set(given))


def test_of_a_tokenizer_no_weights_are_fetched(tmp_path, monkeypatch):
    given = hub_of(repository(tmp_path, shards=2, beside=BESIDE), tmp_path / "cache", monkeypatch)
    assert load_tokenizer("some/model").encode("ab") == [3]
    assert set(given) == SETTINGS | {"model.safetensors.index.json"}


def test_a_hub_that_does_not_answer_or_has_no_weights_is_one_sentence(tmp_path, monkeypatch):
    files = repository(tmp_path)
    del files["model.safetensors"]
    hub_of(files, tmp_path / "cache", monkeypatch)
    with pytest.raises(InputError, match=r"no/model is not a folder here, .*\(Name or service not known\): give a"):
        load("no/model")
    with pytest.raises(InputError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
        load("some/model")


@pytest.mark.parametrize("name", ["../outside.safetensors", "original/consolidated.safetensors", "/etc/passwd"])
def test_an_index_that_leads_out_of_its_folder_is_refused_before_anything_is_fetched(tmp_path, monkeypatch, name):
    files = repository(tmp_path, shards=1)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"x": name}}).encode()
    given = hub_of(files, tmp_path / "cache", monkeypatch)
    with pytest.raises(InputError, match=r"names the shard"):
        load("some/model")
    assert set(given) == SETTINGS | {"model.safetensors.index.json"}


def small_tokenizer():
    tokens = ["<e>", "a", "b", "ab", "Ġ"]
    return Tokenizer(byte_level(tokens, [("a", "b")], split="smollm", special=["<e>"]), eos_token="<e>")


def test_the_tokenizer_goes_along(tmp_path):
    save(tmp_path / "m", TINY, noisy(TINY), small_tokenizer())
    assert load_tokenizer(tmp_path / "m").encode("ab a<e>") == [3, 4, 1, 0]
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"], written["torch_dtype"]) == (0, None, "float32")


def test_a_token_that_the_embedding_has_no_row_for_is_not_named_by_its_id(tmp_path):
    tokenizer = dataclasses.replace(small_tokenizer(), pad_token="[PAD]", ends=(0, 99, 3))
    tokenizer.backend.add_special_tokens(["[PAD]"])
    config = dataclasses.replace(TINY, vocab_size=5)
    save(tmp_path / "m", config, noisy(config), tokenizer)
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "m" / name).read_text())
        assert written["eos_token_id"] == [0, 3] and written.get("pad_token_id") is None
    assert load_tokenizer(tmp_path / "m").pad_token == "[PAD]"


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_opens_what_we_save(tmp_path, name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, params = CONFIGS[name], noisy(CONFIGS[name])
    save(tmp_path / "m", config, params, small_tokenizer())
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = np.random.default_rng(0).integers(0, 53, (2, 17))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    close(forward(config, params, jnp.asarray(tokens)), theirs, rounding(forward_pass(config, 17)))
    assert model.dtype == torch.float32 and model.config.eos_token_id == 0
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "m").encode("ab a<e>") == [3, 4, 1, 0]

    model.to(torch.bfloat16).save_pretrained(tmp_path / "again", max_shard_size="9KB")
    found_config, found = load(tmp_path / "again", jnp.bfloat16)
    assert found_config == config
    assert_same(found, jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params))


@pytest.mark.parametrize("where", ["norm", "embed_tokens", "q_proj"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_not_written(tmp_path, where, value):
    """What is overwritten stays as it was."""
    params = noisy(TINY)
    save(tmp_path / "m", TINY, params)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    owner = params["layers"]["self_attn"] if where == "q_proj" else params
    owner[where] = owner[where].at[..., 3].set(value)
    with pytest.raises(InputError, match=rf"{where}\.weight holds numbers that are not finite"):
        save(tmp_path / "m", TINY, params)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before and [*tmp_path.iterdir()] == [tmp_path / "m"]


def test_a_saved_model_carries_its_checksum_and_a_flipped_bit_is_told(tmp_path):
    save(tmp_path / "m", TINY, noisy(TINY))
    path = tmp_path / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors is not what was written \(its checksum is"):
        load(tmp_path / "m")


def test_the_model_that_came_with_the_package_is_held_against_its_checksums(tmp_path, monkeypatch):
    from lora_jax.files import models

    folder = shutil.copytree(models.BESIDE["stories-2.8m"], tmp_path / "s")
    sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    monkeypatch.setitem(models.BESIDE, "stories-2.8m", folder)
    models.load_model("stories-2.8m"), models.load_tokenizer("stories-2.8m")
    for name in sums:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
        for read in (models.load_model, models.load_tokenizer):
            with pytest.raises(
                InputError, match=rf"{name} is not what came with the package: install the package again"
            ):
                read("stories-2.8m")
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("field", ["factor", "low_freq_factor", "high_freq_factor"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scaling_of_rotations_that_would_make_no_numbers_is_refused_of_any_format(field, value):
    from lora_jax.files.assemble import check_config

    scaling = dataclasses.replace(RopeScaling(8.0, 1.0, 4.0, 40), **{field: value})
    with pytest.raises(InputError, match=f"m: {field} is .*, but must be positive and finite"):
        check_config(dataclasses.replace(TINY, rope_scaling=scaling), "m")
    with pytest.raises(InputError, match="m: low_freq_factor is 4, but must be smaller than high_freq_factor, 4"):
        check_config(dataclasses.replace(TINY, rope_scaling=RopeScaling(8.0, 4.0, 4.0, 40)), "m")
