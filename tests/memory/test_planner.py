"""What a plan says, against published counts, cases worked by hand, files on a disk and a search by brute force."""

import dataclasses
import json
import math

import closed_forms
import jax
import pytest
from small import CONFIG, model, quick_compilation  # noqa: F401

from lora_jax.adapters import lora
from lora_jax.commands import plan as command
from lora_jax.errors import InputError
from lora_jax.files import huggingface_config, peft
from lora_jax.memory import hardware, peak, planner, steps, zoo
from lora_jax.memory.checkpoints import checkpoint
from lora_jax.memory.compiled import compiler
from lora_jax.memory.estimate import estimate
from lora_jax.memory.ledger import ledger
from lora_jax.memory.setup import Setup, ways

# Parameters as the models' own safetensors files count them (the totals on their Hugging Face pages).
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
}
OURS = {"100b": 100_000_000_000, "stories-2.8m": 2_755_008, "gpt3-175b": 174_566_105_088}
GIVEN = {"method": "lora", "options": {}, "quantize": None, "batch_size": 1}
GIVEN |= {"length": 1024, "remat": False, "attention": "blockwise", "dtype": "bfloat16", "optimizer": "adamw"}
GIVEN |= {"card": None, "compile": False, "seconds_per_step": None, "steps": 1000, "model": "llama3.1-8b"}
LLAMA = Setup(zoo.config("llama3.1-8b"), options={"rank": 16})


def said(**changes):
    """`(what was printed, what was returned)` of the command `plan`."""
    lines = []
    found = command.plan(say=lines.append, **GIVEN | changes)
    return "\n".join(lines), found


def test_counts_are_the_published_ones():
    assert {name: steps.parameters(config) for name, config in zoo.MODELS.items()} == PUBLISHED | OURS


def test_a_hundred_billion_parameters_are_200_gb_and_ten_checkpoints_2_tb():
    setup = Setup(zoo.config("100b"), method="full", length=128)
    found = planner.budget(setup, card="h100")
    assert found.ledger["weights"] == found.checkpoint.bytes == 200 * 10**9
    times = {one.hop.name: (one.one, one.ten) for one in found.transfers}
    assert times["PCIe 5 x16"] == (pytest.approx(200 / 55.06), pytest.approx(2000 / 55.06))  # 3.6 and 36 s
    assert times["Samsung 980 PRO, sustained"] == (pytest.approx(200 / 2.04), pytest.approx(2000 / 2.04))  # 98 and 980
    # The weights, their float32 copy, AdamW's two moments in float32 and a count: 2 + 4 + 4 + 4 bytes a parameter.
    assert found.checkpoint.resumable == 1400 * 10**9 + 4
    gradients = found.ledger["gradients"]
    assert (gradients, found.ledger.static) == (200 * 10**9, 1600 * 10**9 + 4)
    # With no copy: 2 + 4 + 4, and a key of 8 bytes. All in bfloat16: 2 + 2 + 2.
    for rounding, each in (("stochastic", 10), ("nearest", 6)):
        other = planner.budget(dataclasses.replace(setup, rounding=rounding), card="h100")
        assert other.checkpoint.resumable == each * 100 * 10**9 + 4 + (8 if rounding == "stochastic" else 0)
        assert other.checkpoint.bytes == 200 * 10**9


def test_gpt3_is_the_lora_papers():
    config = zoo.config("gpt3-175b")
    matrices = sum(i * o for i, o in closed_forms.matrices(config).values())
    assert matrices == 12 * 12_288**2  # attention's 4 D^2 and the feed-forward's 8 D^2
    stored = checkpoint(steps.build(Setup(config, options={"rank": 4, "targets": ["q_proj", "v_proj"]})))
    assert stored.in_16_bits == 37_748_736  # 37.7 MB, 36.0 MiB: the paper's "35 MB"
    assert stored.bytes == 2 * stored.in_16_bits
    assert 2 * steps.parameters(config) / 1e9 == pytest.approx(350, rel=0.005)


@pytest.mark.parametrize("freeze_a", [False, True])
def test_a_checkpoint_is_what_the_file_of_the_adapter_holds(tmp_path, freeze_a):
    _, params = model()
    options = {"rank": 5, "targets": ["q_proj", "down_proj"], "freeze_a": freeze_a}
    adapters, constants = lora.init(jax.random.key(0), params, **options)
    peft.save_adapter(tmp_path / "adapter", adapters, constants, base=params)
    raw = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    header = int.from_bytes(raw[:8], "little")
    stored = checkpoint(steps.build(Setup(CONFIG, options=options)))
    assert stored.what == "adapter"
    assert stored.bytes == len(raw) - 8 - header
    assert stored.resumable == stored.bytes + 4 + sum(2 * x.nbytes for x in jax.tree.leaves(adapters))


def test_a_config_json_and_its_folder_are_models_too(tmp_path):
    written = huggingface_config.write_config(zoo.config("llama3.1-8b"))
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert zoo.config(tmp_path) == zoo.config(tmp_path / "config.json") == zoo.config("llama3.1-8b")
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config.write_config(zoo.config("qwen2.5-7b"))))
    assert zoo.config(str(tmp_path)) == zoo.config("qwen2.5-7b")


def test_every_fact_has_a_source_and_a_date():
    facts = [*hardware.CARDS.values(), *hardware.LINKS.values(), *hardware.DISKS.values()]
    facts += [*hardware.NETWORKS.values(), *hardware.PRICES.values()]
    for fact in facts:
        found = dataclasses.asdict(fact)
        assert found["source"]["what"] and "20" in found["source"]["date"]
    for card in hardware.CARDS.values():
        assert card.link is None or card.link in hardware.LINKS
        assert (card.measured is None) == (card.measured_by is None)
        assert abs(card.usable / card.memory - 1) < 0.1  # GB and GiB are 7 % apart
    assert set(hardware.PRICES) <= set(hardware.CARDS)


def test_cards_needed_by_hand():
    step = ledger("a step", {"weights": 60, "optimizer state": 30, "gradients": 10}, {"workspace": 10})
    assert planner.cards_needed(step, 110) == 1
    assert planner.cards_needed(step, 109) == 2
    assert planner.cards_needed(step, 60) == 2  # 50 of 100 and 10 whole
    assert planner.cards_needed(step, 59) == 3
    assert planner.cards_needed(step, 10) is None  # what is whole takes all there is


@pytest.mark.parametrize("most", [0, 1, 2, 3, 63, 64, 65, 1000])
def test_the_largest_batch_is_found(most):
    assert planner.largest(lambda batch: batch <= most) == most


def test_the_largest_batch_fits_and_the_next_does_not():
    setup = Setup(zoo.config("smollm2-135m"), options={"rank": 16}, quantize="nf4", length=512)
    (fit,) = planner.budget(setup, card="t4").cards

    def total(batch):
        return estimate(dataclasses.replace(setup, batch=batch)).total

    assert fit.largest_batch > 1
    assert 1.05 * total(fit.largest_batch) <= fit.usable < 1.05 * total(fit.largest_batch + 1)
    assert fit.room == fit.usable - total(1)
    assert fit.usable == round(14.56 * 2**30)


def test_the_verdicts_by_hand():
    """The margin is 5 %: 100 bytes are sure to fit into 105 and not into 104, and never fit into 99."""
    assert peak.MARGIN == 0.05
    assert [planner.verdict(100, usable) for usable in (99, 100, 104, 105)] == [
        planner.DOES_NOT_FIT,
        planner.TOO_CLOSE,
        planner.TOO_CLOSE,
        planner.FITS,
    ]


MANY = [
    dataclasses.replace(one, length=length, remat=remat)
    for model, length, remat in (
        ("llama3.1-8b", 1024, False),
        ("smollm2-135m", 4096, True),
        ("stories-2.8m", 10**5, False),
    )
    for one in ways(Setup(zoo.config(model), options={"rank": 8})).values()
]


@pytest.mark.parametrize("setup", MANY, ids=lambda setup: f"{setup.name} {setup.length}")
def test_the_largest_batch_agrees_with_the_verdict_at_every_batch(setup):
    order = [planner.FITS, planner.TOO_CLOSE, planner.DOES_NOT_FIT]
    for card in ("t4", "a100-40", "h200"):
        (first,) = planner.card_fits(setup, [card])
        most, said = first.largest_batch, []
        for batch in sorted({*range(1, 9), *range(max(1, most - 2), most + 9), 2 * most + 9}):
            (fit,) = planner.card_fits(dataclasses.replace(setup, batch=batch), [card])
            assert (fit.verdict == planner.FITS) == (batch <= most) == (fit.cards == 1)
            assert fit.largest_batch == most
            said.append(order.index(fit.verdict))
        assert said == sorted(said) and said[-1] == 2


def test_a_method_fits_from_the_card_on_which_it_is_sure_to():
    """The smallest card of the comparison is one whose verdict is "fits", and no smaller card's is."""
    found = planner.budget(dataclasses.replace(LLAMA, length=2048))
    order = sorted(hardware.NVIDIA, key=lambda name: hardware.NVIDIA[name].usable)
    for one in found.methods:
        verdicts = [planner.verdict(one.peak, hardware.NVIDIA[name].usable) for name in order]
        at = order.index(one.smallest)
        assert verdicts[at:] == [planner.FITS] * len(verdicts[at:]) and planner.FITS not in verdicts[:at]


def test_small_steps_are_sent_to_the_compiler():
    text, found = said(model="stories-2.8m")
    assert "A step below 1.0 GB is to be compiled (--compile) to be known" in text
    assert found["ledger"]["total"] < peak.SMALL
    assert "is to be compiled" not in said()[0]


def test_what_is_too_close_is_said_with_what_to_do(monkeypatch):
    total = estimate(LLAMA).total
    card = dataclasses.replace(hardware.CARDS["l4"], memory=total + total // 50)
    monkeypatch.setitem(hardware.CARDS, "l4", card)
    text, found = said(card="l4")
    (fit,) = found["cards"]
    assert (fit["verdict"], fit["room"], fit["largest_batch"]) == ("too close: --compile", total // 50, 0)
    assert fit["cards"] == 2  # which is sure
    assert "too close: --compile" in text and "--compile asks the compiler" in text


def test_the_least_time_a_step_takes_by_hand():
    """What trains has as many bytes as its gradients: read once and written once, like the optimizer's state."""
    step = ledger("a step", {"weights": 500, "adapters": 20, "gradients": 20, "optimizer state": 44}, {"workspace": 9})
    card = hardware.Accelerator("slow", 10**9, 100, None, hardware.Source("nobody", "2026"))
    assert planner.least_seconds(step, card, 1) == pytest.approx((500 + 20 + 44 + 20 + 44) / 100)
    assert planner.least_seconds(step, card, 4) == pytest.approx((500 + 20 + 44 + 20 + 44) / 400)


def test_the_methods_are_compared_on_the_same_step():
    setup = Setup(zoo.config("llama3.1-8b"), method="full", dtype="bfloat16")
    full, low, quantized = planner.budget(setup).methods
    assert (full.method, low.method, quantized.method) == ("full", "lora", "lora nf4")
    assert full.peak > low.peak > quantized.peak
    assert full.checkpoint.bytes == 2 * 8_030_261_248
    assert low.checkpoint.bytes == quantized.checkpoint.bytes == 4 * 41_943_040  # rank 16, seven matrices
    # bfloat16 weights, their float32 copy and its two float32 moments: 14 bytes a parameter.
    assert full.checkpoint.resumable == 14 * 8_030_261_248 + 4
    assert full.peak == planner.budget(setup).ledger.total


def test_what_a_run_costs_by_hand():
    text, found = said(card="b200", seconds_per_step=3.6, steps=500)
    # 3.6 s x 500 is half an hour, at 5.98 $ an hour.
    assert found["run"] == {
        "steps": 500,
        "hours": pytest.approx(0.5),
        "dollars": pytest.approx(2.99),
        "dollars_1000_steps": pytest.approx(5.98),
    }
    assert "at 3.6 seconds a step: 1,000 steps 5.98 $; 500 steps 30.0 min and 2.99 $ (2026-03-21)" in text


def test_the_text_names_what_was_planned():
    text, found = said()
    assert "41,943,040 train" in text and "blockwise attention, nothing rematerialized" in text
    assert "a third party's listing of rental prices, 2026-03-21" in text
    assert all(card.name in text for card in hardware.NVIDIA.values())
    assert "lora nf4 " in text and "A T4 has no bfloat16" in text
    assert json.loads(json.dumps(found))["setup"]["attention"] == "blockwise"
    assert len(found["cards"]) == len(hardware.NVIDIA)
    more = {"attention": "dense", "remat": True, "quantize": "int8"}
    more |= {"options": {"freeze_a": True, "targets": ["q_proj", "v_proj"]}}
    text, found = said(card="l4", length=200_000, **more)
    assert "dense attention, blocks rematerialized" in text
    assert "lora int8, rank 16, freeze_a, targets q_proj v_proj: " in text
    assert [fit["card"] for fit in found["cards"]] == ["l4"]
    assert "200,000 tokens are more than the 131,072 positions" in text


def test_where_nothing_helps_it_says_so():
    _, found = said(card="t4", length=131_072, batch_size=64)
    (fit,) = found["cards"]
    assert (fit["cards"], fit["largest_batch"], fit["least_seconds"], fit["dollars_an_hour"]) == (None, 0, None, None)


def test_the_compilers_plan_stands_beside_the_estimate_and_has_the_last_word(monkeypatch):
    total = estimate(LLAMA).total
    asked = []

    def compiled(setup, target):
        asked.append((setup, target))
        rows = ledger("compiled for h100", {"weights": 2 * total})
        return compiler.Plan(target, rows, 2 * total, 0, 0, 0, (), 1.0)

    monkeypatch.setattr(compiler, "plan", compiled)
    text, found = said(compile=True)
    assert asked == [(LLAMA, "h100")]
    assert found["compiled"]["error"] == -0.5 and found["compiled"]["needed"] == 2 * total
    assert "the estimate is -50.00% off what XLA plans for h100" in text
    assert "by XLA's plan the step fits on one H100 SXM: " in text and found["compiled"]["fits"]
    text, found = said(compile=True, card="l4")
    assert "by XLA's plan the step does not fit on one L4: " in text and not found["compiled"]["fits"]

    def too_small(setup, target):
        raise compiler.DoesNotFit(target, 40 * 2**30, 16 * 2**30)

    monkeypatch.setattr(compiler, "plan", too_small)
    text, found = said(compile=True, card="tpu-v5e")
    assert "the step does not fit on tpu-v5e: it needs at least 40.00 GiB and there are 16.00 GiB" in text
    assert found["compiled"]["needed"] == 40 * 2**30


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_a_users_mistakes_are_answered_in_a_sentence(tmp_path, monkeypatch):
    assert refusal(lambda: said(model="llama9")) == (
        "there is no model 'llama9' to plan for: give a config.json, a folder with one, or " + ", ".join(zoo.MODELS)
    )
    assert refusal(lambda: said(card="h900")) == (
        "there is no card 'h900': choose t4, l4, rtx3090, rtx4090, a100-40, a100-80, h100, h200, b200, tpu-v5e, "
        "tpu-v5p, tpu-v6e"
    )
    assert refusal(lambda: said(batch_size=-1)) == "batch is -1, and must be a whole number of 1 or more"
    assert refusal(lambda: said(method="qlora")) == (
        "there is no method 'qlora': choose full or lora, dora, ia3, prompt_tuning"
    )
    assert refusal(lambda: said(method="full", options={"rank": 4})) == (
        "full fine-tuning has no rank: leave it out, or choose an adapter method"
    )
    assert refusal(lambda: said(options={"rank": 5000})) == (
        "layers.0.self_attn.q_proj: rank must be 1 to 4096 for a 4096 x 4096 matrix, not 5000"
    )
    assert refusal(lambda: said(steps=0)) == (
        "a run of 0 steps cannot be planned: give --steps a whole number of 1 or more"
    )
    assert refusal(lambda: said(card="h100", seconds_per_step=-2.0)) == (
        "-2.0 seconds a step is no rate: give --seconds-per-step a number above 0"
    )
    assert refusal(lambda: said(seconds_per_step=2.0)) == (
        "seconds a step are a card's own: say with --for on which card they were measured"
    )
    assert refusal(lambda: said(options={"targets": ["q_proj", "k_projection"]})).startswith(
        "no weight matches the target 'k_projection'; there are: embed_tokens, lm_head, layers.N.self_attn.q_proj, "
    )
    monkeypatch.setattr(compiler, "_version", lambda package: None)
    assert refusal(lambda: said(compile=True)) == (
        "planning for h100 takes XLA's compiler for NVIDIA GPUs (no GPU): "
        "`make plan` sets up .venv-plan with it (requirements-plan.txt)"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt_neox"}, "model_type is 'gpt_neox'; supported are llama, mistral, qwen2."),
        ({"hidden_size": -4096}, "hidden_size is -4096, and must be 1 or more"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, and must be 1 or more"),
        ({"num_key_value_heads": 5}, "num_attention_heads is 32, which num_key_value_heads, 5, does not divide"),
    ],
)
def test_a_config_json_that_is_none(tmp_path, change, words):
    written = huggingface_config.write_config(zoo.config("llama3.1-8b")) | change
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert refusal(lambda: said(model=str(tmp_path))) == f"{tmp_path / 'config.json'}: {words}"


def test_what_a_run_costs():
    assert math.isclose(planner.run_dollars(2.0, 3600, 3), 6.0)
