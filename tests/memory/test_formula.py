"""The estimate: its exact rows against sums by hand and published figures, its total against what the peak says."""

import dataclasses
import itertools

import closed_forms
import jax
import pytest

from lora_jax import lora
from lora_jax.adapters import METHODS
from lora_jax.errors import InputError
from lora_jax.memory import activations, peak, steps, zoo
from lora_jax.memory.estimate import estimate
from lora_jax.memory.setup import Setup, ways
from lora_jax.transformer import Config

SMALL = Config(31, 12, 20, 3, 6, 2, 8, biases=("q_proj", "k_proj", "v_proj"))
# Wide enough that Adafactor factors, with NF4 blocks and groups that do not come out even.
WIDE = Config(301, 136, 200, 2, 3, 1, 66, tie_word_embeddings=False)
LLAMA_8B = Config(128_256, 4096, 14_336, 32, 32, 8, 128, tie_word_embeddings=False)
# 175 billion in the paper's count; its block has four square matrices and two of four times the width.
GPT3_WIDTH, GPT3_LAYERS, GPT3_VOCABULARY = 12_288, 96, 50_257
OPTIMIZERS = [
    {"optimizer": "adamw"},
    {"optimizer": "adamw", "moments": "bfloat16"},
    {"optimizer": "adamw", "moments": "float32"},
    {"optimizer": "momentum", "moments": "bfloat16"},
    {"optimizer": "sgd"},
    {"optimizer": "adafactor"},
]
STEPS = [
    {"method": "full"},
    {"method": "full", "dtype": "bfloat16"},
    {"method": "full", "dtype": "bfloat16", "rounding": "master", "accumulate": 3},
    {"method": "full", "dtype": "bfloat16", "rounding": "stochastic"},
    {"method": "full", "dtype": "bfloat16", "rounding": "nearest", "accumulate": 3},
    {"method": "full", "accumulate": 3},
    {"options": {"rank": 5, "targets": ["q_proj", "mlp.down_proj"]}, "accumulate": 3},
    {"options": {"rank": 3, "targets": "attention", "freeze_a": True}, "dtype": "bfloat16"},
    {"options": {"rank": 3}, "quantize": "nf4", "double_quantization": True},
    {
        "options": {"rank": 3, "targets": "mlp"},
        "quantize": "nf4",
        "double_quantization": False,
        "dtype": "bfloat16",
    },
    {"options": {"rank": 3}, "quantize": "int8", "dtype": "bfloat16"},
]


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("step", STEPS, ids=lambda words: " ".join(map(str, words.values())))
def test_static_rows_are_those_worked_out_by_hand(config, step):
    for optimizer in OPTIMIZERS if config is WIDE else OPTIMIZERS[:1]:
        setup = Setup(config, batch=3, length=11, **({"dtype": "float32"} | step | optimizer))
        found, expected = estimate(setup), closed_forms.static_rows(setup)
        assert {name: found[name] for name in expected} == expected
        assert found["batch"] == 4 * 3 * 11


def test_a_setup_with_dropout_is_given_a_key_and_its_rates():
    plain, dropped = (estimate(Setup(SMALL, options={"rank": 3} | more)) for more in ({}, {"dropout": 0.1}))
    assert dropped["batch"] - plain["batch"] == 8
    assert dropped["adapter constants"] - plain["adapter constants"] == 4 * 3 * 7  # layers, matrices


def test_ranks_and_targets_may_differ_by_layer():
    """What no closed form above knows: 2 layers of q of rank 4, and the third of rank 2; one layer's up_proj."""
    pattern = {r"layers\.2\..*q_proj": 2}
    targets = ["q_proj", "layers.1.mlp.up_proj"]
    found = estimate(Setup(SMALL, options={"rank": 4, "targets": targets, "rank_pattern": pattern}))
    assert found["adapters"] == 4 * ((4 + 4 + 2) * (12 + 48) + 4 * (12 + 20))


def test_counts_of_parameters():
    """Llama's is the published one, and PEFT's of trainable numbers at rank 16 on seven modules."""
    for config in (SMALL, WIDE, LLAMA_8B):
        assert steps.parameters(config) == closed_forms.parameters(config)
    assert steps.parameters(LLAMA_8B) == 8_030_261_248
    assert estimate(Setup(LLAMA_8B, options={"rank": 16}))["adapters"] == 4 * 41_943_040


def test_a_hundred_billion_by_hand():
    """100e9 x 2 bytes: 200 GB; ten checkpoints, 2 TB."""
    assert estimate(Setup(zoo.config("100b"), "full"))["weights"] == 200_000_000_000


def test_gpt3_as_in_the_lora_paper():
    """Rank 4 on q and v of 175B: 18.9M parameters, 37.7 MB or 36.0 MiB in 16 bits, where the paper says 35 MB."""
    D, L = GPT3_WIDTH, GPT3_LAYERS
    assert round((L * 12 * D * D + GPT3_VOCABULARY * D) / 1e9) == 175
    square = Config(GPT3_VOCABULARY, D, 4 * D, L, 96, 96, 128)
    adapter = estimate(Setup(square, options={"rank": 4, "targets": ["q_proj", "v_proj"]}))["adapters"] // 2
    assert adapter == 2 * 2 * L * 4 * (D + D)
    assert (round(adapter / 1e6, 1), round(adapter / 2**20, 1)) == (37.7, 36.0)


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.127)])
def test_nf4s_bits(double, bits):
    """QLoRA (arXiv 2305.14314): 0.5 bits of constants a weight, 0.127 where they are quantized themselves."""
    config = Config(64, 4096, 4096, 1, 32, 32, 128)
    plain, packed = (
        estimate(Setup(config, quantize=quantize, double_quantization=double)) for quantize in (None, "nf4")
    )
    matrices = 7 * 4096 * 4096
    held = packed["weights"] + packed["quantization constants"] - (plain["weights"] - 2 * matrices)
    assert round(8 * held / matrices, 3) == bits


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"options": {"rank": 13}}, r"layers.0.self_attn.q_proj: rank must be 1 to 12 for a 12 x 48 matrix, not 13"),
        (
            {"options": {"rank": True}},
            r"layers.0.self_attn.q_proj: rank must be 1 to 12 for a 12 x 48 matrix, not True",
        ),
        (
            {"options": {"targets": []}},
            r"no weight matches the target \[\]; there are: embed_tokens, layers.N.self_attn",
        ),
        ({"options": {"targets": "q_proj"}}, r"no weight matches the target 'q_proj'; there are: embed_tokens, layers"),
        (
            {"options": {"targets": ["embed_tokens"]}},
            r"the estimate counts adapters in the layers alone, and not on emb",
        ),
    ],
)
def test_what_the_shapes_refuse_is_said_in_a_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence):
        estimate(Setup(SMALL, **change))


EACH = [
    Setup(config, method, {}, quantize, dtype=dtype, batch=2, length=100, remat=remat)
    for config in (WIDE, LLAMA_8B)
    for method, quantize in [("full", None), *itertools.product(METHODS, (None, "nf4", "int8"))]
    for dtype, remat in (("float32", False), ("bfloat16", True))
]


@pytest.mark.parametrize("setup", EACH, ids=lambda s: f"{s.name} {s.dtype} {s.config.num_hidden_layers}")
def test_the_total_is_the_arguments_and_the_fullest_moment(setup):
    step, found = steps.build(setup), estimate(setup)
    moment, temporary = peak.temporary(setup, step.trainable)
    assert moment in ("layers", "loss", "update")
    assert found.total == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(step.arguments)) + temporary
    assert found["saved activations"] == activations.saved_bytes(setup, step.trainable)
    estimated = {row.name for row in found if not row.exact}
    assert len(estimated) <= 1 and estimated <= {"workspace", "logits and loss", "not at once"}


def test_where_not_all_is_there_at_once_a_row_says_so(monkeypatch):
    """An untied model in float32: at the update the saved activations are gone."""
    setup = Setup(WIDE, "full", dtype="float32")
    gradients, saved = (estimate(setup)[row] for row in ("gradients", "saved activations"))
    monkeypatch.setattr(peak, "temporary", lambda setup, trainable: ("update", gradients + 7))
    assert estimate(setup)["not at once"] == 7 - saved
    assert estimate(setup).total == closed_forms.optimizer(setup) + 2 * gradients + 4 * 1024 + 7


@pytest.mark.parametrize("setup", EACH, ids=lambda s: f"{s.name} {s.dtype} {s.config.num_hidden_layers}")
@pytest.mark.parametrize("name", ["batch", "length"])
def test_more_batch_or_more_length_never_needs_less(setup, name):
    for attention in ("blockwise", "dense"):
        grown = [
            dataclasses.replace(setup, attention=attention, **{name: n}) for n in [*range(1, 40), *range(250, 260), 999]
        ]
        totals = [estimate(one).total for one in grown]
        assert totals == sorted(totals)


def test_the_ways_are_the_words_of_the_command():
    adapted = Setup(SMALL, options={"rank": 3, "targets": "mlp"}, quantize="int8")
    assert list(ways(adapted)) == ["full", "lora", "lora int8"]
    assert ways(adapted)["lora int8"] == adapted
    full = Setup(SMALL, "full", rounding="stochastic")
    assert list(ways(full)) == ["full", "lora", "lora nf4"]
    assert ways(full)["full"] == full
    assert ways(full)["lora"] == Setup(SMALL, options={"rank": 16})


def test_what_is_held_does_not_depend_on_what_the_batch_brings():
    """The shapes are kept by `held`: what they do not depend on is not part of it, and all else is."""
    setup = Setup(SMALL, options={"rank": 3})
    moved = dataclasses.replace(setup, batch=3, length=7, remat=True, attention="dense")
    assert moved.held == setup.held and estimate(moved).static == estimate(setup).static
    for change in ({"options": {"rank": 4}}, {"quantize": "nf4"}, {"dtype": "float32"}, {"moments": "bfloat16"}):
        other = dataclasses.replace(setup, **change)
        assert other.held != setup.held and estimate(other).static != estimate(setup).static


def test_the_caller_s_options_are_copied():
    options = {"rank": 3}
    setup = Setup(SMALL, options=options)
    options["rank"] = 5
    assert setup.options == {"rank": 3}
    assert estimate(setup)["adapters"] == 4 * closed_forms.lora_parameters(SMALL, 3)
    adapters, _ = jax.eval_shape(lambda key: lora.init(key, steps.build(setup).params, rank=3), jax.random.key(0))
    assert estimate(setup)["adapters"] == sum(leaf.size * 4 for leaf in jax.tree.leaves(adapters))
