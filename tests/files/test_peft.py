"""Adapters in PEFT's format: what PEFT wrote is read, what is written PEFT reads, and what is broken is refused.

The base: D 24, F 28, H 8, K 2, C 6, V 43, L 3, with biases and a head of its own; ranks 7 and others; no factor is 0.
"""

import functools
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small as tiny
from close import backward_pass, close, difference, forward_pass, rounding
from rows import CASES, describe
from safetensors.numpy import load_file, save_file

from lora_jax.adapters import METHODS, lora
from lora_jax.adapters.base import attach, combine
from lora_jax.adapters.placement import unstack
from lora_jax.errors import InputError
from lora_jax.files import huggingface
from lora_jax.files.peft import load_adapter, save_adapter
from lora_jax.transformer import forward
from lora_jax.weights import pytree

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("peft_*/reference.npz"))
OWN = {  # what the files of LoRA can say beside the examples of its options
    "uniform": {"rank": 5, "alpha": 16.5},
    "ranks": {"rank": 5, "rank_pattern": {r"layers\.[02]\.mlp\..*": 3, "q_proj": 9}, "alpha_pattern": {"v_proj": 7.3}},
    "targets": {"rank": 4, "targets": r"layers\.0\..*\.q_proj|layers\.[12]\..*\.down_proj|embed_tokens|lm_head"},
    "rslora": {"rank": 7, "alpha": 10, "rank_stabilized": True},
    "almost_whole_alpha": {"rank": 3, "alpha": 16.00004},
}
TRIED = [*CASES, *(("lora", options) for options in OWN.values())]
Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
logits_of = jax.jit(forward, static_argnums=0)


@functools.cache
def base(name="peft_base"):
    return huggingface.load(GOLDEN / name)


GRADIENT = rounding(backward_pass(base()[0], 17, 5))


@pytest.fixture(scope="module")
def model():
    return base()


def trained(params, method="lora", **options):
    """Adapters with every number that trains away from its start."""
    adapters, constants = METHODS[method].init(jax.random.key(3), params, **options)
    return tiny.shaken(adapters, 4, 0.15), constants


def whole(adapters, constants):
    """Every adapter's fields by its path, what trains and what does not alike."""
    return jax.tree.leaves_with_path(combine(adapters, constants))


def text_loss(adapters, frozen, config, tokens):
    """The mean cross-entropy of each token after the first: what the golden files' gradients are of."""
    params, constants = frozen
    logits = forward(config, attach(params, adapters, constants), tokens)[:, :-1]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return -jnp.mean(picked)


gradient_of = jax.jit(jax.grad(text_loss), static_argnums=2)


def gradient_by_key(params, adapters, constants, config, tokens):
    """The gradient as tensors by the keys of PEFT's file; what is frozen has none."""
    gradient = gradient_of(adapters, (params, constants), config, tokens)
    found = {}
    for name, one in unstack(params, gradient, jax.tree.map(jnp.zeros_like, constants)).items():
        (row,) = (row for row in METHODS.values() if row.adapter is type(one))
        path = name if name == "lm_head" else f"model.{name}"
        tensors = row.peft.tensors(path, one)
        found |= {part if one.adds else f"base_model.model.{path}.{part}": array for part, array in tensors.items()}
    return {key: np.asarray(array) for key, array in found.items() if np.any(array)}


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_that_peft_wrote_gives_its_logits_and_gradients(name):
    golden = dict(np.load(GOLDEN / name / "reference.npz"))
    config, params = base(str(golden["base"]))
    adapters, constants = load_adapter(GOLDEN / name, base=params)
    found = logits_of(config, attach(params, adapters, constants), golden["tokens"])
    close(found, golden["logits"], rounding(forward_pass(config, 17, rank=7)))
    assert difference(logits_of(config, params, golden["tokens"]), golden["logits"]) > 0.02
    gradient = gradient_by_key(params, adapters, constants, config, golden["tokens"])
    expected = {key.removeprefix("gradient/"): array for key, array in golden.items() if key.startswith("gradient/")}
    assert gradient.keys() == {peft_key(key) for key in expected}
    close(gradient, {peft_key(key): array for key, array in expected.items()}, GRADIENT)


def peft_key(key):
    """A parameter's name in PEFT's model as a key of its file, which drops the last part where it names no matrix."""
    return key.removesuffix(".weight") if "magnitude_vector" in key else key


@pytest.mark.parametrize(("method", "options"), TRIED, ids=map(describe, TRIED))
def test_saving_and_loading_keeps_every_bit(method, options, model, tmp_path):
    _, params = model
    adapters, constants = trained(params, method, **options)
    save_adapter(tmp_path / "a", adapters, constants, base=params)
    again = load_adapter(tmp_path / "a", base=params)
    before, after = whole(adapters, constants), whole(*again)
    assert [path for path, _ in before] == [path for path, _ in after]
    for (path, ours), (_, read) in zip(before, after, strict=True):
        assert ours.dtype == read.dtype
        np.testing.assert_array_equal(ours, read, err_msg=jax.tree_util.keystr(path))
    freezes = "freeze_a" in options  # which a file does not say: it trains both factors again
    assert freezes or jax.tree.structure(again) == jax.tree.structure((adapters, constants))


def test_what_is_loaded_trains_its_factors_and_nothing_else(model):
    adapters, constants = load_adapter(GOLDEN / "peft_plain", base=model[1])
    q_proj, fixed = (tree["layers"]["self_attn"]["q_proj"] for tree in (adapters, constants))
    assert q_proj.a.shape == (3, 24, 7) and q_proj.b.shape == (3, 7, 48)
    assert q_proj.scaling is None and q_proj.dropout is None
    assert fixed.a is None and fixed.b is None
    np.testing.assert_array_equal(fixed.scaling, np.full(3, 11 / 7, np.float32))
    np.testing.assert_array_equal(fixed.dropout, np.full(3, 0.1, np.float32))


def test_factors_stay_as_exact_as_bfloat16_in_a_file_of_bfloat16(model, tmp_path):
    adapters, constants = trained(model[1], rank=5, dtype=jnp.bfloat16)
    save_adapter(tmp_path / "a", adapters, constants, base=model[1])
    assert load_file(tmp_path / "a" / "adapter_model.safetensors")[Q_PROJ.format("A")].dtype == jnp.bfloat16
    before, after = whole(adapters, constants), whole(*load_adapter(tmp_path / "a", base=model[1]))
    for (_, ours), (_, read) in zip(before, after, strict=True):
        assert read.dtype == jnp.float32
        np.testing.assert_array_equal(ours.astype(jnp.float32), read)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own
@pytest.mark.parametrize("base_name", ["peft_base", "peft_base_plain"])
@pytest.mark.parametrize(("method", "options"), TRIED, ids=map(describe, TRIED))
def test_peft_reads_what_is_saved_here_key_by_key_and_gives_the_same_logits(method, options, base_name, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    config, params = base(base_name)
    adapters, constants = trained(params, method, **options)
    save_adapter(tmp_path / "a", adapters, constants, base=params)
    theirs_base = LlamaForCausalLM.from_pretrained(GOLDEN / base_name)
    tokens = np.random.default_rng(2).integers(0, 43, (5, 17))
    with torch.no_grad():
        plain = theirs_base(torch.tensor(tokens)).logits.numpy()
    settings = peft.PeftConfig.from_pretrained(tmp_path / "a")
    settings.inference_mode = False  # so that it has gradients
    theirs = peft.get_peft_model(theirs_base, settings).eval()
    result = theirs.load_adapter(tmp_path / "a", "default", is_trainable=True)
    logits = theirs(input_ids=torch.tensor(tokens)).logits[:, -17:]
    targets = torch.tensor(tokens)[:, 1:].reshape(-1)
    torch.nn.functional.cross_entropy(logits[:, :-1].reshape(len(targets), -1), targets).backward()
    assert [key for key in result.missing_keys if "base_layer" not in key] == []
    assert [key for key in result.unexpected_keys if "." in key] == []  # what is at no module PEFT loads apart
    held = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    file = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert held.keys() == file.keys()
    assert all(np.array_equal(held[key].detach().numpy(), file[key]) for key in file)
    found = logits_of(config, attach(params, adapters, constants), tokens)
    close(found, logits.detach().numpy(), rounding(forward_pass(config, 17, rank=5)))
    assert difference(plain, logits.detach().numpy()) > 0.02
    gradient = gradient_by_key(params, adapters, constants, config, tokens)
    expected = {
        peft_key(key.replace(".default", "")) if "prompt_encoder" not in key else "prompt_embeddings": tensor.grad
        for key, tensor in theirs.named_parameters()
        if tensor.grad is not None
    }
    assert set(gradient) <= set(expected)  # a frozen factor has none here
    close(gradient, {key: expected[key].numpy() for key in gradient}, GRADIENT)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "peft_plain", tmp_path / "adapter"))


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    arrays = load_file(folder / "adapter_model.safetensors")
    change(arrays)
    save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "POLY"}, "this adapter's peft_type is 'POLY', and those that can be read are LORA"),
        ({"use_qalora": True}, "use_qalora is set, which is not understood here"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"bias": "all"}, "bias='all' is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' is set"),
        ({"r": 6}, r"q_proj has factors \(24, 7\) and \(7, 48\), and its configuration says rank 6"),
        ({"rank_pattern": {"v_proj": 3}}, r"layers.0.self_attn.v_proj has factors .* configuration says rank 3"),
        ({"r": "7"}, "r is '7', which is not of the type that it has in PEFT"),
        ({"lora_alpha": True}, "lora_alpha is True, which is not of the type that it has in PEFT"),
        ({"alpha_pattern": {"q_proj": "5"}}, "alpha_pattern is {'q_proj': '5'}, but its values must be numbers"),
        ({"rank_pattern": {"q_(proj": 3}}, r"'q_\(proj' is not a regular expression"),
        ({"target_modules": ".*(q_proj"}, r"'\.\*\(q_proj' is not a regular expression"),
        (
            {"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]},
            r"layers\.0\.self_attn\.o_proj\.lora_A\.weight is missing; model\.layers\.0\..*o_proj needs both factors",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes, message, folder, model):
    change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        load_adapter(folder, base=model[1])


def misshape(arrays):
    arrays[Q_PROJ.format("B")] = arrays[Q_PROJ.format("B")][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop(Q_PROJ.format("B")), r"layers\.1\.self_attn\.q_proj\.lora_B\.weight is missing"),
        (
            lambda arrays: [arrays.pop(Q_PROJ.format(x)) for x in "AB"],
            r"layers\.1\.self_attn\.q_proj\.lora_A\.weight is missing; model\.layers\.1\..*q_proj needs both factors",
        ),
        (
            lambda arrays: arrays.update({"base_model.model.model.layers.3.x": np.zeros(1, np.float32)}),
            r"the tensor base_model\.model\.model\.layers\.3\.x \(1 in all\) belongs to nothing in this base",
        ),
        (misshape, r"layers\.1\..*q_proj: the adapter is for a \(24, 47\) matrix and the base's is \(24, 48\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, folder, model):
    change_tensors(folder, change)
    with pytest.raises(InputError, match=message):
        load_adapter(folder, base=model[1])


def test_a_missing_or_broken_file_is_named(folder, model):
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is not a whole safetensors file"):
        load_adapter(folder, base=model[1])
    weights.unlink()
    with pytest.raises(InputError, match=r"there is no file .*adapter_model\.safetensors"):
        load_adapter(folder, base=model[1])
    settings.write_text('{"peft_type": "LORA",')
    with pytest.raises(InputError, match=r"adapter_config\.json is not readable JSON \(line 1, column 22: Expecting"):
        load_adapter(folder, base=model[1])
    settings.unlink()
    with pytest.raises(InputError, match=r"there is no adapter_config\.json in .*adapter: it is not an adapter"):
        load_adapter(folder, base=model[1])


def test_an_adapter_of_another_base_is_refused(model):
    _, params = model
    shallow = params | {"layers": jax.tree.map(lambda x: x[:2], params["layers"])}
    with pytest.raises(InputError, match=r"layers\.2\.mlp.* \(6 in all\) belongs to nothing in this base"):
        load_adapter(GOLDEN / "peft_plain", base=shallow)
    doubled = params | {"lm_head": 2 * params["lm_head"]}
    with pytest.raises(InputError, match=r"lm_head\.base_layer\.weight differs from lm_head of this base"):
        load_adapter(GOLDEN / "peft_embedding", base=doubled)


def test_the_copies_that_peft_keeps_of_the_base_may_be_of_a_finer_dtype(model):
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model[1])
    adapters, _ = load_adapter(GOLDEN / "peft_embedding", base=halved)
    assert set(adapters) == {"embed_tokens", "lm_head", "layers"}


def test_an_adapter_on_a_tied_embedding_is_neither_saved_nor_loaded(model, tmp_path):
    tied = {name: value for name, value in model[1].items() if name != "lm_head"}
    with pytest.raises(InputError, match=r"embed_tokens is tied to the head in this base.* `untie\(params\)`"):
        save_adapter(tmp_path / "a", *trained(tied, targets=["embed_tokens"]), base=tied)
    assert not (tmp_path / "a").exists()
    folder = Path(shutil.copytree(GOLDEN / "peft_embedding", tmp_path / "b"))
    change_tensors(folder, lambda arrays: [arrays.pop(key) for key in list(arrays) if "lm_head" in key])
    with pytest.raises(InputError, match="embed_tokens is tied to the head in this base"):
        load_adapter(folder, base=tied)


EMBEDDING, HEAD = (f"base_model.model.{path}.weight" for path in ("model.embed_tokens", "lm_head"))


@pytest.mark.parametrize("name", ["peft_plain", "peft_dora", "peft_ia3", "peft_prompt"])
@pytest.mark.parametrize("tied", [True, False])
def test_copies_of_the_bases_embedding_and_head_are_taken_for_what_they_are(model, tmp_path, name, tied):
    """`save_embedding_layers` writes both; of a tied base they are the same numbers twice."""
    params = {name: value for name, value in model[1].items() if not tied or name != "lm_head"}
    embedding = np.asarray(params["embed_tokens"])
    copies = {EMBEDDING: embedding, HEAD: embedding if tied else np.ascontiguousarray(np.asarray(params["lm_head"]).T)}
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / "a"))
    change_tensors(folder, lambda arrays: arrays.update(copies))
    found, expected = load_adapter(folder, base=params), load_adapter(GOLDEN / name, base=params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    for key, copy in copies.items():
        module = "embed_tokens" if key == EMBEDDING else "lm_head"
        change_tensors(folder, lambda arrays, key=key, copy=copy: arrays.update({key: copy + 1}))
        with pytest.raises(
            InputError, match=f"{re.escape(key)} differs from {module} of this base: it was trained too"
        ):
            load_adapter(folder, base=params)
        grown = np.pad(copy, ((0, 2), (0, 0)))
        change_tensors(folder, lambda arrays, key=key, grown=grown: arrays.update({key: grown}))
        with pytest.raises(InputError, match=rf"is \(45, 24\), and {module} of this base is \(43, 24\): .*vocabulary"):
            load_adapter(folder, base=params)
        change_tensors(folder, lambda arrays, key=key, copy=copy: arrays.update({key: copy}))


def test_an_adapter_on_the_head_of_a_tied_base_is_told_so(model, tmp_path):
    tied = {name: value for name, value in model[1].items() if name != "lm_head"}
    folder = Path(shutil.copytree(GOLDEN / "peft_embedding", tmp_path / "b"))
    change_tensors(folder, lambda arrays: [arrays.pop(k) for k in list(arrays) if "embed" in k or "base_layer" in k])
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["lm_head", "k_proj"]}))
    with pytest.raises(InputError, match=r"it stands on lm_head, which is tied to embed_tokens .*`untie\(params\)`"):
        load_adapter(folder, base=tied)


@pytree
class Changed(lora.LoRA):
    """A method made out of another one, without a row of its own: it must not be saved as that other."""


def test_a_method_without_a_row_is_not_saved_as_another(model, tmp_path):
    words = "holds the adapters of one method"
    with pytest.raises(InputError, match=f"{words}: there is none here"):
        save_adapter(tmp_path, {}, {}, base=model[1])
    adapters, constants = trained(model[1], rank=2, targets=["lm_head"])
    changed = combine(adapters, constants)["lm_head"]
    other = {"lm_head": Changed(changed.a, changed.b, changed.scaling)}
    with pytest.raises(InputError, match=f"{words}: lm_head is a Changed"):
        save_adapter(tmp_path, other, {"lm_head": Changed(None, None, None)}, base=model[1])


def altered(folder, tmp_path, change):
    """A copy of an adapter's folder, its tensors changed, written as another program writes them."""
    copy = shutil.copytree(folder, tmp_path / "altered")
    arrays = load_file(copy / "adapter_model.safetensors")
    save_file(change(arrays), copy / "adapter_model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("name", ["peft_plain", "peft_dora", "peft_ia3", "peft_prompt", "peft_rslora"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_the_name_of_their_tensor(tmp_path, model, name, value):
    """Every tensor in turn would be many: the last one, which a check of the first alone would miss."""
    key = max(load_file(GOLDEN / name / "adapter_model.safetensors"))

    def spoil(arrays):
        array = arrays[key].copy()
        array.flat[-1] = value
        return arrays | {key: array}

    folder = altered(GOLDEN / name, tmp_path, spoil)
    with pytest.raises(InputError, match=f"{re.escape(key)} holds numbers that are not finite"):
        load_adapter(folder, base=model[1])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool"])
def test_tensors_of_whole_numbers_are_refused_by_name(tmp_path, model, dtype):
    folder = altered(GOLDEN / "peft_plain", tmp_path, lambda arrays: {k: a.astype(dtype) for k, a in arrays.items()})
    with pytest.raises(
        InputError, match=r"lora_A\.weight is stored as (I8|U8|I32|I64|BOOL); supported are F64, F32, F16"
    ):
        load_adapter(folder, base=model[1])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_tensors_in_eight_bits_are_refused_by_name(tmp_path, model, dtype):
    import ml_dtypes

    small = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}[dtype]
    folder = altered(GOLDEN / "peft_plain", tmp_path, lambda arrays: {k: a.astype(small) for k, a in arrays.items()})
    with pytest.raises(InputError, match=rf"lora_A\.weight is stored as {dtype}; supported are F64, F32, F16, BF16"):
        load_adapter(folder, base=model[1])


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_floating_dtypes_are_read(tmp_path, model, dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    folder = altered(GOLDEN / "peft_plain", tmp_path, lambda arrays: {k: a.astype(kind) for k, a in arrays.items()})
    found, expected = (load_adapter(one, base=model[1])[0] for one in (folder, GOLDEN / "peft_plain"))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, np.asarray(b).astype(kind).astype(np.float32))


def test_a_saved_adapter_carries_its_checksum_and_a_flipped_bit_is_told(tmp_path, model):
    adapters, constants = trained(model[1], rank=3)
    save_adapter(tmp_path / "a", adapters, constants, base=model[1])
    path = tmp_path / "a" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    assert b"lora_jax_sha256" in data
    data[-1] ^= 1  # the sign or the largest bit of an exponent stays as it is: the number is one as good as before
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is not what was written \(its checksum is"):
        load_adapter(tmp_path / "a", base=model[1])


def test_an_adapter_of_numbers_that_are_not_finite_is_not_written(tmp_path, model):
    adapters, constants = trained(model[1], rank=3)
    spoiled = jax.tree.map(lambda leaf: leaf.at[..., -1].set(jnp.nan), adapters)
    with pytest.raises(InputError, match="holds numbers that are not finite"):
        save_adapter(tmp_path / "a", spoiled, constants, base=model[1])
    assert not (tmp_path / "a").exists() and not [*tmp_path.iterdir()]
