"""The formula: its static rows against the real step's shapes, its sums against figures worked by hand or published."""

import ast
import dataclasses
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lora_jax import lora, quantize
from lora_jax.adapters import placement
from lora_jax.adapters.base import num_bytes
from lora_jax.errors import InputError
from lora_jax.memory import activations, backward, formula, ledger, letters, phases, setup, sizes
from lora_jax.memory.setup import Setup
from lora_jax.memory.steps import build, trees
from lora_jax.transformer import Config, projection_shapes

SMALL = Config(31, 12, 20, 3, 6, 2, 8, biases=("q_proj", "k_proj", "v_proj"))
# Wide enough that Adafactor factors, with NF4 blocks and groups that do not come out even.
WIDE = Config(301, 136, 200, 2, 3, 1, 66, tie_word_embeddings=False)
LLAMA_8B = Config(128_256, 4096, 14_336, 32, 32, 8, 128, tie_word_embeddings=False)
# 175 billion in the paper's count; its block has four square matrices and two of four times the width.
GPT3_WIDTH, GPT3_LAYERS, GPT3_VOCABULARY = 12_288, 96, 50_257
HUNDRED_BILLION = Config(32_000, 8192, 22_528, 142, 64, 8, 128, tie_word_embeddings=False)


def static_rows(made):
    """The bytes of a real step's trees, row by row."""
    step = build(made)
    full = made.method == "full"
    params = step.trainable if full else step.frozen[0]
    return {
        "base": num_bytes(params),
        "adapters": 0 if full else num_bytes(step.trainable),
        "adapter constants": 0 if full else num_bytes(step.frozen[1]),
        "optimizer state": num_bytes(step.opt_state),
        "gradients": num_bytes(step.trainable),
        "batch": num_bytes(step.batch),
    }


OPTIMIZERS = [
    {"optimizer": "adamw"},
    {"optimizer": "adamw", "moments": "bfloat16"},
    {"optimizer": "adamw", "moments": "float32"},
    {"optimizer": "momentum", "moments": "bfloat16"},
    {"optimizer": "sgd"},
    {"optimizer": "adafactor"},
]
METHODS = [
    {"method": "full"},
    {"method": "full", "dtype": "bfloat16"},
    {"method": "full", "dtype": "bfloat16", "master": True},
    {"method": "lora", "targets": ["q_proj", "mlp.down_proj"], "rank": 5},
    {"method": "lora", "targets": "attention", "freeze_a": True, "dtype": "bfloat16"},
    {"method": "qlora", "double_quantization": True},
    {"method": "qlora", "double_quantization": False, "dtype": "bfloat16", "targets": "mlp"},
]


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("method", METHODS, ids=lambda options: " ".join(map(str, options.values())))
def test_static_rows_are_the_real_steps(config, method):
    for optimizer in OPTIMIZERS if config is WIDE else OPTIMIZERS[:1]:
        made = Setup(config, batch=3, length=11, **({"rank": 3, "dtype": "float32"} | method | optimizer))
        found, expected = formula.predict(made), static_rows(made)
        assert found["weights"] + found["quantization constants"] == expected.pop("base")
        assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("double", [True, False])
def test_nf4s_codes_and_constants_apart(double):
    made = Setup(WIDE, method="qlora", double_quantization=double, dtype="float32", rank=3)
    down = build(made).frozen[0]["layers"]["mlp"]["down_proj"]
    codes, constants = sizes.nf4_bytes(200, 136, double)
    layers = WIDE.num_hidden_layers
    assert (num_bytes(down.codes), num_bytes(down.constants)) == (layers * codes, layers * constants)


def test_what_is_written_twice_is_the_same():
    assert (sizes.NF4_BLOCK, sizes.NF4_GROUP) == (quantize.BLOCK, quantize.GROUP)
    assert {name: jnp.dtype(name).itemsize for name in sizes.ITEMSIZE} == sizes.ITEMSIZE
    named = {
        f"{part}.{name}": shape for part, shapes in projection_shapes(WIDE).items() for name, shape in shapes.items()
    }
    assert sizes.matrices(WIDE) == named


@pytest.mark.parametrize("targets", [*sizes.SHORTHANDS, ["q_proj", "v_proj"], ["self_attn.o_proj"], ["mlp.up_proj"]])
def test_targets_are_the_packages(targets):
    params = jax.eval_shape(lambda key: trees(Setup(WIDE, method="full"), key)[0], jax.random.key(0))
    names = {name.split(".", 2)[2] for name in placement.select(params, targets)}
    assert names == set(sizes.targeted(WIDE, targets))
    adapters, _ = jax.eval_shape(lambda params: lora.init(jax.random.key(1), params, rank=7, targets=targets), params)
    assert sizes.lora_parameters(WIDE, 7, targets) == sum(leaf.size for leaf in jax.tree.leaves(adapters))


@pytest.mark.parametrize("targets", ["q_proj", r".*q_proj", ["lm_head"], ["layers.1.mlp.up_proj"], ["proj"]])
def test_targets_it_cannot_count_are_refused_in_a_sentence(targets):
    with pytest.raises(
        InputError, match=r"the formula cannot count the target .*: give it all-linear, attention, mlp, or"
    ):
        formula.predict(Setup(SMALL, targets=targets))


def test_no_target_and_too_high_a_rank_are_refused():
    with pytest.raises(InputError, match="there is no target: name at least one of a block's matrices"):
        formula.predict(Setup(SMALL, targets=[]))
    with pytest.raises(
        InputError, match=r"layers.N.self_attn.q_proj: rank must be 1 to 12 for a 12 x 48 matrix, not 13"
    ):
        formula.predict(Setup(SMALL, rank=13))


def test_a_hundred_billion_by_hand():
    """About 100e9 x 2 bytes: 200 GB; ten checkpoints, 2 TB."""
    D, F, L, V, KV = 8192, 22_528, 142, 32_000, 1024
    count = L * (2 * D * D + 2 * D * KV + 3 * D * F + 2 * D) + 2 * V * D + D
    assert sizes.parameters(HUNDRED_BILLION) == count
    assert abs(count / 100e9 - 1) < 0.01
    assert sizes.weight_bytes(HUNDRED_BILLION, "bfloat16") == 2 * count
    assert round(2 * count / 1e9, -1) == 200
    assert round(10 * 2 * count / 1e12, 1) == 2.0


def test_gpt3_as_in_the_lora_paper():
    """Rank 4 on q and v of 175B: 18.9M parameters, 37.7 MB or 36.0 MiB in 16 bits, where the paper says 35 MB."""
    D, L = GPT3_WIDTH, GPT3_LAYERS
    assert round((L * 12 * D * D + GPT3_VOCABULARY * D) / 1e9) == 175
    assert 175e9 * sizes.ITEMSIZE["bfloat16"] == 350e9
    square = Config(GPT3_VOCABULARY, D, 4 * D, L, 96, 96, 128)
    adapter = 2 * sizes.lora_parameters(square, 4, ["q_proj", "v_proj"])
    assert adapter == 2 * 2 * L * 4 * (D + D)
    assert (round(adapter / 1e6, 1), round(adapter / 2**20, 1)) == (37.7, 36.0)


def test_llama_8b():
    """The published count of parameters, and PEFT's of trainable ones at rank 16 on seven modules."""
    assert sizes.parameters(LLAMA_8B) == 8_030_261_248
    assert sizes.lora_parameters(LLAMA_8B, 16) == 41_943_040


def test_nf4s_bits():
    """QLoRA (arXiv 2305.14314): 0.5 bits of constants a weight, 0.127 where they are quantized themselves."""
    rows = columns = 4096
    bits = [8 * sum(sizes.nf4_bytes(rows, columns, double)) / rows / columns for double in (False, True)]
    assert bits[0] == 4.5
    assert bits[1] == 4 + 8 / 64 + 32 / (64 * 256) + 32 / rows / columns
    assert round(bits[1], 3) == 4.127


def test_the_peak_is_one_moments_and_never_the_sum():
    for method, remat in itertools.product(({"method": "full"}, {"method": "qlora"}), (False, True)):
        made = Setup(LLAMA_8B, batch=2, length=1000, remat=remat, **method)
        found = phases.moments(made)
        assert phases.peak(made) == max(found.items(), key=lambda pair: pair[1])
        table = formula.predict(made)
        arguments = table.static - table["gradients"] + table["batch"]
        assert table.total == arguments + max(found.values()) < arguments + sum(found.values())


def test_a_step_whose_fullest_moment_is_the_loss():
    made = Setup(dataclasses.replace(SMALL, vocab_size=50_000), batch=2, length=200, rank=3)
    table = formula.predict(made)
    assert phases.peak(made)[0] == "loss"
    # Two chunks of 200 tokens: logits and their gradient in bfloat16.
    assert table["workspace"] == 0 and table["logits and loss"] > 2 * 200 * 50_000 * 2
    assert table["saved activations"] == activations.saved_bytes(made)


def test_only_the_last_two_rows_are_estimates():
    table = formula.predict(Setup(LLAMA_8B))
    assert [row.name for row in table if not row.exact] == ["workspace"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["blocks", "scores"])
def test_scores_grow_with_the_square_of_the_length_and_blocks_do_not(dtype, attention):
    def temporary(length):
        return phases.peak(Setup(LLAMA_8B, length=length, remat=True, dtype=dtype, attention=attention))[1]

    growth = math.log2((temporary(65_536) - temporary(32_768)) / (temporary(32_768) - temporary(16_384)))
    assert round(growth, 1) == {"blocks": 1.0, "scores": 2.0}[attention]


@pytest.mark.parametrize(
    "module", [formula, sizes, activations, phases, backward, letters, ledger, setup], ids=lambda m: m.__name__
)
def test_no_jax_and_no_trace(module):
    """What runs at import, or later, is the standard library and the formula's own files."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in hints for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.Import | ast.ImportFrom):
            own = [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
            found |= {node.module, *own} if own else {alias.name for alias in node.names}
    ours = {name for name in found if name.startswith("lora_jax")}
    own_files = ("sizes", "activations", "phases", "backward", "letters", "ledger", "setup", "formula")
    allowed = {f"lora_jax.memory.{name}" for name in own_files}
    assert all(name == "lora_jax.memory" or name.startswith((*allowed, "lora_jax.errors")) for name in ours)
    assert not {name.split(".")[0] for name in found - ours} & {"jax", "jaxlib", "numpy", "optax"}
