"""The compiler's plan: its static rows against arithmetic, what it names, and every way in which it is refused."""

import dataclasses
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from lora_jax.adapters import METHODS
from lora_jax.errors import InputError
from lora_jax.memory import steps, zoo
from lora_jax.memory.compiled import compiler, targets
from lora_jax.memory.compiled.compile_step import setup_from_json
from lora_jax.memory.ledger import given
from lora_jax.memory.setup import Setup
from lora_jax.rope import RopeScaling
from lora_jax.transformer import Config
from lora_jax.tuning.optimizers import ROUNDING

V, D, F, L, H, K, C, R = 112, 56, 80, 3, 4, 2, 16, 5
TINY = Config(V, D, F, L, H, K, C, tie_word_embeddings=False)
MATRICES = {"q": (D, H * C), "k": (D, K * C), "v": (D, K * C), "o": (H * C, D), "g": (D, F), "u": (D, F), "d": (F, D)}
STEP = {"batch": 2, "length": 48, "dtype": "float32"}
LORA = {"rank": R}
# Every method of the registry, over every base: a new one is held to the fold by itself.
REGISTRY = [Setup(TINY, "full", **STEP)]
REGISTRY += [Setup(TINY, "full", **STEP | {"dtype": "bfloat16"}, rounding=way, accumulate=2) for way in ROUNDING]
REGISTRY += [Setup(TINY, method, {}, base, **STEP) for method in METHODS for base in (None, "nf4", "int8")]
# Those whose rows are worked out by hand below.
SETUPS = {
    "full": Setup(TINY, "full", **STEP | {"dtype": "bfloat16"}),
    "lora": Setup(TINY, "lora", LORA, **STEP),
    "lora, A frozen": Setup(
        TINY,
        "lora",
        LORA | {"targets": ["q_proj", "v_proj"], "freeze_a": True},
        **STEP,
        remat=True,
        moments="bfloat16",
    ),
    "lora nf4": Setup(TINY, "lora", LORA, "nf4", **STEP, attention="dense"),
    "lora nf4, single": Setup(TINY, "lora", LORA, "nf4", double_quantization=False, **STEP, optimizer="sgd"),
}


def static(name):
    """The rows of the arguments, worked out from the shapes by hand."""
    beta = 2 if name == "full" else 4
    outside, inside = 2 * V * D + D + L * 2 * D, sum(i * o for i, o in MATRICES.values())
    tokens = {"batch": 4 * 2 * 48}
    if name == "full":
        n = outside + L * inside
        return tokens | {"weights": beta * n, "optimizer state": 4 * n + 2 * 4 * n + 4}
    adapters = L * sum(R * (i + o) for i, o in MATRICES.values())
    rows = tokens | {"weights": beta * (outside + L * inside), "adapters": 4 * adapters, "adapter constants": 7 * L * 4}
    if name == "lora, A frozen":
        b = L * R * (H * C + K * C)
        frozen = 4 * L * (2 * R * D + 2)  # A and the scaling, of q and of v
        return rows | {"adapters": 4 * b, "adapter constants": frozen, "optimizer state": (2 + 4) * b + 4}
    rows |= {"optimizer state": 2 * 4 * adapters + 4}
    if name.startswith("lora nf4"):
        blocks = [(math.ceil(i / 64), o) for i, o in MATRICES.values()]
        rows["weights"] = beta * outside + L * inside // 2
        rows["quantization constants"] = L * sum(k * o + 4 * math.ceil(k * o / 256) + 4 for k, o in blocks)
    if name == "lora nf4, single":
        rows["quantization constants"] = L * sum(4 * k * o for k, o in blocks)
        del rows["optimizer state"]
    return rows


@pytest.fixture(scope="module")
def planned():
    """The plans of all setups on the CPU; each is a process, and two run at once."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SETUPS, pool.map(compiler.plan, SETUPS.values()), strict=True))


@pytest.mark.parametrize("name", SETUPS)
def test_the_static_rows_are_the_shapes_to_the_byte(planned, name):
    check_static(planned[name], name)


def check_static(plan, name):
    expected = static(name)
    assert {row: plan.ledger[row] for row in expected} == expected
    assert plan.argument == sum(expected.values())
    trains = expected["weights" if name == "full" else "adapters"]
    assert plan.alias == trains + expected.get("optimizer state", 0)


def check_given(plan, setup):
    """The compiled program takes what the fold over the step's trees counts: row by row, 0 bytes off."""
    rows = given(*steps.build(setup).arguments)
    assert {row: plan.ledger[row] for row in rows} == dict(rows)
    assert plan.argument == rows.total()


@pytest.mark.parametrize("setup", REGISTRY, ids=lambda setup: setup.name)
def test_the_fold_is_what_the_compiled_step_of_every_method_takes(setup):
    check_given(compiler.plan(setup), setup)


@pytest.mark.parametrize("name", SETUPS)
def test_the_ledger_adds_up_and_the_peak_is_named(planned, name):
    check_named(planned[name])


def check_named(plan):
    assert plan.ledger.total == plan.needed == plan.argument + plan.output - plan.alias + plan.temp
    assert plan.named > 0.95, plan.roles
    assert sum(part.bytes for part in plan.parts) <= plan.temp
    assert plan.ledger["saved activations"] > 0


@pytest.mark.parametrize("scope", ["attention", "mlp"])
def test_a_part_has_its_scope_as_its_role_and_jaxs_path_as_its_source(planned, scope):
    sources = [part.source for part in planned["lora nf4"].parts if part.role == scope]
    assert any(re.match(rf"(transpose\()?jvp\(loss\)+/layers/.*\b{scope}/\w+$", source) for source in sources), sources


def test_a_process_of_its_own_plans_what_this_one_does(planned):
    step = steps.build(SETUPS["lora, A frozen"])
    found = step.step.lower(*step.arguments).compile().memory_analysis()
    plan = planned["lora, A frozen"]
    assert plan.temp == found.temp_size_in_bytes
    assert (plan.argument, plan.output) == (found.argument_size_in_bytes, found.output_size_in_bytes)


def test_kept_activations_are_those_that_the_block_names(planned):
    # q, mixed: N x HC; k, v: N x KC; the stream and the input: N x D; gate, up: N x F; the log-sum-exp: N x H float32.
    N = 2 * 48
    assert planned["lora"].ledger["saved activations"] == 4 * L * N * (2 * H * C + 2 * K * C + 2 * D + 2 * F + H)
    assert planned["lora, A frozen"].ledger["saved activations"] == 4 * L * N * D  # rematerialized: the input alone


def test_a_setup_survives_the_way_to_the_process():
    config = dataclasses.replace(TINY, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), biases=("q_proj",))
    setup = dataclasses.replace(SETUPS["lora"], config=config)
    assert setup_from_json(json.loads(json.dumps(dataclasses.asdict(setup)))) == setup


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match=r"there is no target 'h101' to compile for: choose cpu, t4, .*b200, tpu-v5e$"):
        compiler.plan(SETUPS["lora"], "h101")


def test_a_missing_plugin_is_one_sentence(monkeypatch):
    monkeypatch.setattr(compiler, "_version", lambda package: None)
    for target in ("h100", "tpu-v5e"):
        with pytest.raises(InputError, match=rf"^planning for {target} takes .*: `make plan` sets up .venv-plan"):
            compiler.plan(SETUPS["lora"], target)


def test_a_plugin_of_another_version_is_one_sentence(monkeypatch):
    monkeypatch.setattr(compiler, "_version", lambda package: "0.1" if "cuda12" in package else None)
    with pytest.raises(InputError, match=r"^jax-cuda12-plugin is 0\.1 and jaxlib is .*: `make plan` sets up"):
        compiler.plan(SETUPS["lora"], "h100")


def test_what_the_step_refuses_is_said_in_its_words():
    setup = Setup(TINY, options={"rank": 33})
    with pytest.raises(InputError, match=r"rank must be 1 to 32 for a 56 x 32 matrix, not 33$"):
        compiler.plan(setup)


def test_a_process_that_dies_is_one_sentence(monkeypatch):
    monkeypatch.setattr(compiler.sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="the compiler for cpu ended with code 1: nothing was said"):
        compiler.plan(SETUPS["lora"])


def test_what_the_compiler_refuses_is_an_answer():
    said = (  # libtpu's words, for a step of 256 x 2,048 tokens
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (110.53G) exceeds "
        "available HBM (15.75G)."
    )
    answer = compiler._refusal("tpu-v5e", said)
    assert isinstance(answer, compiler.DoesNotFit)
    assert (answer.needed, answer.available) == (round(110.53 * 2**30), round(15.75 * 2**30))
    assert str(answer) == "the step does not fit on tpu-v5e: it needs at least 110.53 GiB and there are 15.75 GiB"
    other = compiler._refusal("h100", "UNIMPLEMENTED: no such instruction\nand more")
    assert str(other) == "XLA did not compile the step for h100: UNIMPLEMENTED: no such instruction"
    assert not isinstance(other, compiler.DoesNotFit)


def test_the_cards_are_told_apart():
    texts = {name: card.text() for name, card in targets.CARDS.items()}
    assert len(set(texts.values())) == len(texts) == 9
    assert "shared_memory_per_block_optin: 166912" in texts["a100-40"]  # as in openxla/xla's a100_sxm_40.txtpb
    assert "shared_memory_per_block_optin: 232448" in texts["h100"]  # as in its h100_sxm.txtpb


def plugin_or_skip(target="h100"):
    try:
        compiler._check_plugin(target)
    except InputError as error:
        pytest.skip(str(error))  # the plug-ins are an extra install: `make plan` has them


@pytest.fixture(scope="module")
def planned_for_h100():
    plugin_or_skip()
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda setup: compiler.plan(setup, "h100"), SETUPS.values())
        return dict(zip(SETUPS, found, strict=True))


@pytest.mark.parametrize("name", SETUPS)
def test_the_static_rows_for_an_absent_gpu_are_the_shapes_to_the_byte(planned_for_h100, name):
    check_static(planned_for_h100[name], name)


@pytest.mark.parametrize("setup", REGISTRY, ids=lambda setup: setup.name)
def test_the_fold_is_what_an_absent_gpu_would_be_given_by_every_method(setup):
    plugin_or_skip()
    check_given(compiler.plan(setup, "h100"), setup)


def test_the_peak_of_an_absent_gpu_is_named():
    plugin_or_skip()
    config = Config(1024, 384, 1088, 4, 6, 3, 64)
    plan = compiler.plan(Setup(config, options={"rank": 8}, batch=2, length=300), "h100")
    check_named(plan)
    assert plan.target == "h100"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_hundred_billion_parameters_compile_in_half_a_minute(method):
    plugin_or_skip()
    setup = Setup(zoo.config("100b"), method=method, batch=1, length=2048, remat=True, moments="bfloat16")
    plan = compiler.plan(setup, "h100")
    assert plan.ledger["weights"] == 200_000_000_000
    assert plan.named > 0.95
    assert plan.seconds < 30


@pytest.mark.slow
@pytest.mark.parametrize("target", targets.CARDS)
def test_every_card_has_a_plan(target):
    plugin_or_skip(target)
    check_static(compiler.plan(SETUPS["lora"], target), "lora")


def test_the_environment_is_left_alone(planned):
    assert "xla_dump_to" not in os.environ.get("XLA_FLAGS", "")
    assert jax.default_backend() == "cpu"
    assert not list(Path.cwd().glob("module_*"))
