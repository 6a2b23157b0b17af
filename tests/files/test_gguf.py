"""GGUF files, written by the `gguf` library's own writer."""

import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.errors import InputError
from lora_jax.files.assemble import disassemble
from lora_jax.files.gguf import load, load_tokenizer
from lora_jax.rope import RopeScaling, rope_frequencies
from lora_jax.transformer import Config, init
from lora_jax.weights import Biased

TINY = Config(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    rope_theta=50_000.0,
    rms_norm_eps=1e-6,
    max_position_embeddings=77,
)
QKV = ("q_proj", "k_proj", "v_proj")


def noisy(config):
    """Parameters whose norms and biases are not the neutral values that they start with."""
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), init(jax.random.key(0), config))


def permute(w, heads):
    """As llama.cpp's converter reorders rows for rotating neighbours."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write(path, config, params, *, arch="llama", change=None, fields=(), quantize=None, extra=None):
    """A GGUF file under the names that the library's own table gives for Hugging Face's."""
    table = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), 99)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for method, value in fields:
        getattr(writer, method)(value)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, array in disassemble(config, params).items():
        module = name.split(".")[-2]
        if arch == "llama" and module in heads:
            array = permute(array, heads[module])
        tensors[table.get_name(name, try_suffixes=(".weight", ".bias"))] = np.ascontiguousarray(array)
    for name, array in {**(change(tensors) if change else tensors), **(extra or {})}.items():
        kind = quantize if quantize is not None and array.ndim == 2 and array.shape[1] % 32 == 0 else None
        writer.add_tensor(name, array if kind is None else gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("arch", "config"),
    [
        ("llama", TINY),
        ("llama", dataclasses.replace(TINY, tie_word_embeddings=False, biases=(*QKV, "o_proj"))),
        ("qwen2", dataclasses.replace(TINY, biases=QKV)),
    ],
)
def test_what_was_written_is_read(tmp_path, arch, config):
    params = noisy(config)
    found_config, found = load(write(tmp_path / "m.gguf", config, params, arch=arch))
    assert found_config == config
    assert_same(found, params)
    assert isinstance(found["layers"]["self_attn"]["q_proj"], Biased) == bool(config.biases)


def test_quantized_weights_are_dequantized_as_the_library_does(tmp_path):
    params = noisy(TINY)
    kind = gguf.GGMLQuantizationType.Q8_0
    _, found = load(write(tmp_path / "m.gguf", TINY, params, quantize=kind))
    for part, name in (("mlp", "down_proj"), ("self_attn", "q_proj")):
        for w, ours in zip(params["layers"][part][name], found["layers"][part][name], strict=True):
            stored = gguf.dequantize(gguf.quantize(np.asarray(w.T), kind), kind)  # row by row, so in any order of rows
            np.testing.assert_array_equal(ours, stored.T)
    np.testing.assert_array_equal(found["layers"]["self_attn"]["o_proj"], params["layers"]["self_attn"]["o_proj"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_another_dtype_is_that_of_every_leaf(tmp_path, dtype):
    params = noisy(TINY)
    _, found = load(write(tmp_path / "m.gguf", TINY, params), dtype=dtype)
    assert_same(found, jax.tree.map(lambda x: np.asarray(x).astype(dtype), params))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


SCALED = dataclasses.replace(TINY, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))


def factors(config):
    shape = config.head_dim, config.rope_theta
    return np.asarray(rope_frequencies(*shape) / rope_frequencies(*shape, config.rope_scaling))


def test_llama_3s_table_of_divisors_is_recognised(tmp_path):
    params = noisy(TINY)
    path = write(tmp_path / "m.gguf", TINY, params, extra={"rope_freqs.weight": factors(SCALED)})
    assert load(path)[0] == SCALED
    path = write(tmp_path / "n.gguf", TINY, params, extra={"rope_freqs.weight": np.ones(5, np.float32)})
    assert load(path)[0] == TINY


@pytest.mark.parametrize("table", [factors(SCALED)[::-1].copy(), np.ones(4, np.float32), np.full(5, 2, np.float32)])
def test_another_table_of_divisors_is_refused(tmp_path, table):
    path = write(tmp_path / "m.gguf", TINY, noisy(TINY), extra={"rope_freqs.weight": table})
    with pytest.raises(InputError, match=r"rope_freqs.weight is not Llama 3's table of 5 divisors"):
        load(path)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def replaced(name, function):
    return lambda tensors: tensors | {name: function(tensors[name])}


def spoiled(array):
    array = array.copy()
    array[3, 5] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blk.1.ffn_up.weight"), r"m.gguf lacks blk.1.ffn_up.weight of shape \(160, 64\): 29 tensors"),
        (without("token_embd.weight"), r"lacks token_embd.weight of shape \(97, 64\)"),
        (lambda t: t | {"blk.3.ffn_up.weight": np.ones((2, 3), np.float32)}, r"holds blk.3.ffn_up.weight of shape"),
        (replaced("blk.2.attn_k.weight", lambda w: w.T.copy()), r"attn_k.weight has shape \(64, 20\), .* \(20, 64\)"),
        (replaced("blk.0.ffn_down.weight", spoiled), "blk.0.ffn_down.weight holds values that are not finite numbers"),
        (replaced("output_norm.weight", lambda w: w.astype(np.int8)), "output_norm.weight is stored as I8"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_the_models_are_named(tmp_path, change, message):
    path = write(tmp_path / "m.gguf", TINY, noisy(TINY), change=change)
    with pytest.raises(InputError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("add_expert_count", 8)], "llama.expert_count is 8, but only 0 is supported"),
        ([("add_rope_scaling_type", gguf.RopeScalingType.YARN)], "llama.rope.scaling.type is yarn"),
        ([("add_block_count", 2**31)], "m.gguf says that it has 2147483648 layers, but holds only 29 tensors"),
        ([("add_head_count_kv", 4)], "6 query heads cannot share 4 key/value heads evenly"),
    ],
)
def test_options_that_the_transformer_lacks_are_refused(tmp_path, fields, message, monkeypatch):
    monkeypatch.setattr(gguf.GGUFWriter, "add_key_value", _replacing)
    path = write(tmp_path / "m.gguf", TINY, noisy(TINY), fields=fields)
    with pytest.raises(InputError, match=message):
        load(path)


def _replacing(self, key, val, vtype, sub_type=None):
    """The writer's method, which refuses to set a key twice, without the refusal."""
    self.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value=val, type=vtype, sub_type=sub_type)


def test_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"architecture 'mamba'; supported are llama, qwen2"):
        load(tmp_path / "m.gguf")


def test_damage_is_one_sentence_wherever_it_is(tmp_path):
    whole = write(tmp_path / "m.gguf", TINY, noisy(TINY)).read_bytes()
    damaged = tmp_path / "damaged.gguf"
    with pytest.raises(InputError, match=r"could not open .*damaged.gguf .No such file"):
        load(damaged)
    damaged.write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(InputError, match=r"damaged.gguf is not a readable GGUF file"):
        load(damaged)
    header = whole.index(b"token_embd")
    for size in [0, 3, 10, 24, 30, *range(40, header, 97), header + 5, len(whole) - 40_000, len(whole) - 32]:
        damaged.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"damaged.gguf is not a readable GGUF file"):
            load(damaged)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, header + 1500, 60):
        altered = bytearray(whole)
        altered[place] ^= 0xFF
        damaged.write_bytes(altered)
        try:
            load(damaged)
        except InputError as error:
            assert "damaged.gguf" in str(error) and "\n" not in str(error)


TOKENS = ["<e>", "a", "b", "Ġ", "ab", "<think>"]


def with_tokenizer(pre="smollm", model="gpt2", eos=0):
    return [
        ("add_tokenizer_model", model),
        ("add_tokenizer_pre", pre),
        ("add_token_list", TOKENS),
        ("add_token_types", [3, 1, 1, 1, 1, 4]),
        ("add_token_merges", ["a b"]),
        ("add_eos_token_id", eos),
        ("add_chat_template", "{{ messages[0]['content'] }}"),
    ]


def test_the_tokenizer_is_rebuilt(tmp_path):
    config = dataclasses.replace(TINY, vocab_size=len(TOKENS))
    path = write(tmp_path / "m.gguf", config, noisy(config), fields=with_tokenizer())
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("ab<think> a<e>") == [4, 5, 3, 1, 0]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, None, 6)
    assert tokenizer.decode([4, 5, 0]) == "ab<think>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pre": "tekken"}, "pre-tokenizer 'tekken', but only byte-level BPE"),
        ({"model": "llama"}, "tokenizer of kind 'llama'"),
        ({"eos": 6}, "eos_token_id is 6, but the file has 6 tokens"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused(tmp_path, options, message):
    path = write(tmp_path / "m.gguf", TINY, noisy(TINY), fields=with_tokenizer(**options))
    with pytest.raises(InputError, match=message):
        load_tokenizer(path)


def test_a_file_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer of kind None"):
        load_tokenizer(write(tmp_path / "m.gguf", TINY, noisy(TINY)))
