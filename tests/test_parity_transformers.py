"""The transformer against Hugging Face's, number by number, and against itself by other ways to the same result.

B 5 rows, T 17 or 41 tokens, D 24, F 28, H 8, K 2, C 6, V 43, L 3 in the first case; no two alike, so that no transposed
matrix fits.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import backward_pass, bfloat16_pass, close, difference, forward_pass, rounding, stated
from jaxtyping import TypeCheckError
from safetensors import safe_open
from safetensors.numpy import save_file

from lora_jax import attention, generation, transformer
from lora_jax.files import huggingface
from lora_jax.files.assemble import disassemble
from lora_jax.generation import Cache, init_cache
from lora_jax.rope import RopeScaling, rope_frequencies
from lora_jax.transformer import Config, init

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("grouped", "ungrouped", "one_kv_head", "llama3", "biases", "qwen2")
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
FORWARD, BACKWARD = rounding(forward_pass(TINY, 14)), rounding(backward_pass(TINY, 14, 3))  # 14 tokens at most


forward = jax.jit(transformer.forward, static_argnums=0)
decode = jax.jit(generation.decode, static_argnums=0)
loss_and_gradients = jax.jit(
    jax.value_and_grad(transformer.loss, argnums=1),
    static_argnames=("config", "remat"),
    compiler_options={"xla_backend_optimization_level": 0},  # compiling is what takes the time here: this halves it
)


def noisy(config, dtype=np.float32):
    """Parameters with sharp attention, norms away from 1 and biases away from 0."""
    rng, shapes = np.random.default_rng(1), jax.eval_shape(lambda: init(jax.random.key(0), config))

    def leaf(path, x):
        return jnp.asarray(rng.normal("norm" in jax.tree_util.keystr(path), 0.3, x.shape).astype(dtype))

    return jax.tree.map_with_path(leaf, shapes)


def random_tokens(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, TINY.vocab_size)


def read_golden(name):
    with safe_open(GOLDEN / f"transformers_{name}.safetensors", framework="np") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def part(arrays, kind):
    return {key.removeprefix(f"{kind}/"): array for key, array in arrays.items() if key.startswith(f"{kind}/")}


def agrees(config_json, arrays, folder):
    """Assert that ours are what `transformers` recorded, its weights read from a model directory."""
    (folder / "config.json").write_text(json.dumps(config_json))
    save_file(part(arrays, "weight"), folder / "model.safetensors", {"format": "pt"})
    config, params = huggingface.load(folder)
    batch = {key: jnp.asarray(arrays[key]) for key in BATCH}
    where = {key: batch[key] for key in ("segments", "positions")}
    rows, length = arrays["tokens"].shape
    real = arrays["segments"] == 1  # what stands on padding is nobody's
    logits = forward(config, params, batch["tokens"], **where)
    close(logits[real], arrays["logits"][real], rounding(forward_pass(config, length)))
    value, gradients = loss_and_gradients(config, params, batch)
    close(value, arrays["loss"], rounding(forward_pass(config, length)))
    found = disassemble(config, gradients)
    close(
        {key: found[key] for key in sorted(found)},
        part(arrays, "gradient"),
        rounding(backward_pass(config, length, rows)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_every_gradient_equal_those_of_transformers(name, tmp_path):
    agrees(*read_golden(name), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_fresh_models_of_transformers_agree_too(name, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from golden.make_transformers import make_batch, make_model, reference

    model = make_model(name, seed=100, hidden_size=72, intermediate_size=33, vocab_size=61, num_hidden_layers=4)
    batch = make_batch(name, 61, seed=101)
    agrees(json.loads(model.config.to_json_string()), reference(model, batch) | batch, tmp_path)


def test_the_golden_models_have_what_they_are_there_for():
    """Every band of the scaled rotations, biases that are not zero, padding on both sides, a mask."""
    config = huggingface.read_config(read_golden("llama3")[0])
    plain = rope_frequencies(config.head_dim, config.rope_theta)
    turns = config.rope_scaling.original_max_position_embeddings * plain / (2 * np.pi)
    ratio = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling) / plain
    fast, slow = turns > config.rope_scaling.high_freq_factor, turns < config.rope_scaling.low_freq_factor
    assert fast.sum() >= 1 and slow.sum() >= 1 and (~fast & ~slow).sum() >= 1
    close(ratio[fast], np.ones(fast.sum()), rounding(4))
    close(ratio[slow], np.full(slow.sum(), 1 / config.rope_scaling.factor), rounding(4))
    assert ((ratio > 1 / config.rope_scaling.factor) & (ratio < 1))[~fast & ~slow].all()
    for name in ("biases", "qwen2"):
        biases = [x for key, x in part(read_golden(name)[1], "weight").items() if key.endswith("bias")]
        assert biases and all(np.abs(x).max() > 0.1 for x in biases)
    assert read_golden("ungrouped")[1]["segments"][:, -1].min() == 0
    assert read_golden("one_kv_head")[1]["segments"][:, 0].min() == 0
    assert read_golden("qwen2")[1]["mask"].min() == 0


def test_documents_packed_side_by_side_get_the_logits_and_the_loss_that_each_has_alone():
    params, tokens = noisy(TINY), random_tokens(2, 2, 7)
    alone = forward(TINY, params, tokens)  # the second document's last two tokens are not used
    packed = jnp.concatenate([tokens[:1], tokens[1:, :5], jnp.zeros((1, 2), jnp.int32)], axis=1)
    where = {"segments": jnp.asarray([[1] * 7 + [2] * 5 + [0] * 2]), "positions": jnp.asarray([[*range(7), *range(7)]])}
    logits = forward(TINY, params, packed, **where)
    close(logits[:, :7], alone[:1], FORWARD)
    close(logits[:, 7:12], alone[1:, :5], FORWARD)

    chances = np.asarray(jax.nn.log_softmax(alone))
    learned = [(0, t) for t in range(6)] + [(1, t) for t in range(4)]
    expected = -np.mean([chances[row, t, tokens[row, t + 1]] for row, t in learned])
    value = jax.jit(transformer.loss, static_argnums=0)(TINY, params, {"tokens": packed} | where)
    close(value, expected, FORWARD)


def test_the_loss_of_a_batch_with_nothing_to_learn_is_zero():
    tokens = random_tokens(2, 3, 11)
    batch = {"tokens": tokens, "mask": jnp.zeros_like(tokens)}
    value, gradients = loss_and_gradients(TINY, noisy(TINY), batch)
    assert value == 0 and not any(x.any() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("cuts", [(4,), (1, 2, 9)])
def test_forward_in_parts_with_a_cache_equals_forward_in_one(cuts):
    """Rows of different lengths, padded on the left, in a cache with room to spare that holds rubbish where empty."""
    params, tokens, padding = noisy(TINY), random_tokens(2, 3, 11), jnp.asarray([0, 5, 2])
    segments = (jnp.arange(11) >= padding[:, None]).astype(jnp.int32)
    positions = jnp.maximum(jnp.arange(11) - padding[:, None], 0)
    whole = forward(TINY, params, tokens, segments=segments, positions=positions)

    cache = init_cache(TINY, 3, 14)
    cache = dataclasses.replace(cache, k=cache.k + 9.0, v=cache.v - 9.0)
    parts = []
    for at in map(slice, (0, *cuts), (*cuts, 11)):
        where = {"segments": segments[:, at], "positions": positions[:, at]}
        logits, cache = decode(TINY, params, tokens[:, at], cache, **where)
        parts.append(logits)
    real = segments == 1
    close(jnp.concatenate(parts, axis=1)[real], whole[real], FORWARD)
    assert cache.length == 11


def test_positions_count_on_from_what_the_cache_holds():
    params, tokens = noisy(TINY), random_tokens(2, 3, 11)
    _, cache = decode(TINY, params, tokens[:, :6], init_cache(TINY, 3, 11))
    logits, _ = decode(TINY, params, tokens[:, 6:], cache)
    close(logits, forward(TINY, params, tokens)[:, 6:], FORWARD)


def test_embeddings_as_input_equal_their_tokens():
    params, tokens = noisy(TINY), random_tokens(2, 3, 11)
    embeddings = params["embed_tokens"][tokens]
    close(forward(TINY, params, embeddings), forward(TINY, params, tokens), FORWARD)


def test_rematerialization_changes_neither_the_loss_nor_any_gradient():
    params, batch = noisy(TINY), {"tokens": random_tokens(2, 3, 11)}
    plain, again = (loss_and_gradients(TINY, params, batch, remat=remat) for remat in (False, True))
    close(again, plain, BACKWARD)


def test_a_head_of_its_own_decides_and_the_gradients_of_both_sides_add_up_to_the_tied_one():
    params, batch = noisy(TINY), {"tokens": random_tokens(2, 3, 11)}
    tied, parted = (loss_and_gradients(TINY, p, batch) for p in (params, transformer.untie(params)))
    close(parted[0], tied[0], FORWARD)
    close(parted[1]["embed_tokens"] + parted[1]["lm_head"].T, tied[1]["embed_tokens"], BACKWARD)
    other = transformer.untie(params) | {"lm_head": -params["embed_tokens"].T}
    close(forward(TINY, other, batch["tokens"]), -forward(TINY, params, batch["tokens"]), FORWARD)


def test_bfloat16_stays_bfloat16_and_near_float32():
    tokens = random_tokens(2, 3, 11)
    halved = noisy(TINY, jnp.bfloat16)
    logits, cache = decode(TINY, halved, tokens, init_cache(TINY, 3, 11, jnp.bfloat16))
    assert {logits.dtype, cache.k.dtype, cache.v.dtype} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), halved)
    expected = forward(TINY, rounded, tokens)
    assert difference(logits, expected) > 1e-4
    close(logits, expected, rounding(bfloat16_pass(TINY), jnp.bfloat16))
    value, gradients = loss_and_gradients(TINY, halved, {"tokens": tokens})
    assert value.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.bfloat16)}


def test_keys_and_values_that_a_cache_already_holds_get_a_gradient():
    """The gradient equals the slope measured along a random direction."""
    params, tokens, slots = noisy(TINY), random_tokens(2, 3, 11), 4
    shape, wide = (3, 3, slots, 2, 6), [(0, 0), (0, 0), (0, 11), (0, 0), (0, 0)]
    learned = tuple(jax.random.normal(jax.random.key(i), shape) for i in (5, 6))
    direction = tuple(jax.random.normal(jax.random.key(i), shape) for i in (7, 8))
    held = jnp.pad(jnp.ones((3, slots), jnp.int32), ((0, 0), (0, 11)))

    cotangent = jax.random.normal(jax.random.key(9), (3, 11, 43))

    def along(learned):
        cache = Cache(*(jnp.pad(x, wide) for x in learned), held, jnp.asarray(slots, jnp.int32))
        return jnp.vdot(decode(TINY, params, tokens, cache)[0], cotangent)

    gradient = jax.jit(jax.grad(along))(learned)
    up, down = (along(jax.tree.map(lambda x, d, s=s: x + s * d, learned, direction)) for s in (3e-3, -3e-3))
    slope = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    close(slope, (up - down) / 6e-3, stated(0.05, "a finite difference: its step squared, rounding over the step"))


def test_a_wrong_shape_in_a_signature_is_refused():
    with pytest.raises(TypeCheckError):
        transformer.rms_norm(jnp.ones((2, 5, 20)), jnp.ones(21), 1e-5)
    queries, keys, segments = jnp.ones((2, 5, 8, 6)), jnp.ones((2, 7, 2, 6)), jnp.ones((2, 7), jnp.int32)
    with pytest.raises(TypeCheckError):
        attention.dense(queries, keys, keys[:, :6], segments[:, :5], segments)
    with pytest.raises(TypeCheckError):
        transformer.forward(TINY, noisy(TINY), jnp.zeros((2, 5), jnp.int32), positions=jnp.arange(5))
