"""Training in 16 bits is training in float32, wherever small numbers are added to large ones.

Tried: what a library's user writes (`fit` with optax's own AdamW), what the command does, and what `plan` counts of it.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small as tiny
from close import close, rounding, stated
from small import quick_compilation  # noqa: F401

from lora_jax import transformer
from lora_jax.adapters import METHODS, base
from lora_jax.commands import cli
from lora_jax.errors import InputError
from lora_jax.files import huggingface
from lora_jax.memory import steps
from lora_jax.memory.estimate import estimate
from lora_jax.memory.setup import Setup
from lora_jax.training import evaluate, make_step
from lora_jax.tuning import jobs, optimizers
from lora_jax.tuning.loop import fit

CONFIG, PARAMS = tiny.model()
HALVES = tiny.model(jnp.bfloat16)[1]
LOSS = tiny.full_loss(CONFIG)
BATCHES = [{"tokens": tiny.tokens(seed=seed)} for seed in range(4)]
quiet = functools.partial(fit, frozen=None, batches=BATCHES * 30, progress=False)


def fall(trainable, optimizer, **options):
    """How far the loss falls on what is trained on, as it is trained."""
    state = quiet(LOSS, trainable=trainable, optimizer=optimizer, steps=60, held_out=BATCHES, **options)
    return state.evaluations[0][1] - state.evaluations[-1][1], state


def share_moved(state, start):
    pairs = list(zip(jax.tree.leaves(state.trainable), jax.tree.leaves(start), strict=True))
    return sum(int((new != old).sum()) for new, old in pairs) / sum(old.size for _, old in pairs)


# What a library's user writes.


@functools.cache
def in_float32(name, rate):
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), HALVES)
    return fall(exact, optimizers.make(name, rate))[0]


@pytest.mark.parametrize(("name", "rate"), [("adamw", 3e-5), ("adafactor", 3e-4), ("momentum", 1e-4), ("sgd", 1e-3)])
@pytest.mark.parametrize("way", [None, "stochastic"])
def test_optaxs_own_optimizer_in_bfloat16_trains_as_in_float32(name, rate, way):
    """At rates so small that of the nearest numbers of bfloat16 not a third of the fall would be left."""
    found, state = fall(HALVES, optimizers.make(name, rate), rounding=way, key=jax.random.key(1))
    assert {x.dtype.name for x in jax.tree.leaves(state.trainable)} == {"bfloat16"}
    close(np.float64(found), np.float64(in_float32(name, rate)), stated(0.1, "some 15,000 weights, each rounded once"))
    lost, _ = fall(HALVES, optimizers.make(name, rate), rounding="nearest")
    assert lost < in_float32(name, rate) / 3


def test_without_a_word_and_without_a_key_fit_keeps_a_master():
    found, state = fall(HALVES, optax.adamw(3e-5))
    assert isinstance(state.opt_state, optimizers.Master)
    close(np.float64(found), np.float64(in_float32("adamw", 3e-5)), stated(0.1, "some 15,000 weights, rounded once"))
    _, same = fall(HALVES, optax.adamw(3e-5), rounding="nearest")
    assert not isinstance(same.opt_state, optimizers.Master)
    assert share_moved(same, HALVES) < share_moved(state, HALVES) / 2


def test_float16_has_a_master_too():
    halves = jax.tree.map(lambda x: x.astype(jnp.float16), HALVES)
    found, state = fall(halves, optax.adamw(3e-5))
    close(np.float64(found), np.float64(in_float32("adamw", 3e-5)), stated(0.1, "some 15,000 weights, rounded once"))
    assert {x.dtype.name for x in jax.tree.leaves(state.trainable)} == {"float16"}


@pytest.mark.parametrize("method", METHODS)
def test_adapters_over_a_base_in_bfloat16_are_float32_and_stay_so(tmp_path, method):
    """Also after a stop: and nothing is wrapped, so that the state is optax's own."""
    job = jobs.make_job(method, CONFIG, HALVES, key=jax.random.key(0))
    run = functools.partial(jobs.tune, job, BATCHES, rate=1e-3, checkpoint=tmp_path / "c", progress=False)
    run(steps=2)
    state = run(steps=4)
    for tree in (state.trainable, state.opt_state):
        assert {x.dtype.name for x in jax.tree.leaves(tree)} <= {"float32", "int32"}
    assert not isinstance(state.opt_state, optimizers.Master)
    with pytest.raises(InputError, match="nothing that trains is in 16 bits"):
        run(steps=5, rounding="master")


@pytest.mark.parametrize("way", optimizers.ROUNDING)
def test_a_run_that_was_cut_goes_on_bit_for_bit(tmp_path, way):
    options = {"trainable": HALVES, "rounding": way, "key": jax.random.key(3), "clip_norm": 1.0, "accumulate": 5}
    options |= {"optimizer": optax.adamw(jobs.schedule(1e-3, 6, warmup=2, decay=True)), "about": {"rounding": way}}
    whole = quiet(LOSS, steps=6, checkpoint=tmp_path / "whole", **options)
    quiet(LOSS, steps=3, checkpoint=tmp_path / "cut", **options)
    resumed = quiet(LOSS, steps=6, checkpoint=tmp_path / "cut", **options)
    assert resumed.losses == whole.losses
    assert tiny.raw((resumed.trainable, resumed.opt_state)) == tiny.raw((whole.trainable, whole.opt_state))
    again = quiet(LOSS, steps=6, **options)  # the same seed
    assert tiny.raw((again.trainable, again.opt_state)) == tiny.raw((whole.trainable, whole.opt_state))


def test_a_checkpoint_of_another_rounding_is_refused_by_its_name(tmp_path):
    options = {"trainable": HALVES, "key": jax.random.key(3), "optimizer": optax.sgd(0.1), "checkpoint": tmp_path / "c"}
    quiet(LOSS, steps=1, rounding="stochastic", about={"rounding": "stochastic"}, **options)
    with pytest.raises(InputError, match="rounding is 'stochastic' there and 'master' here; give the same settings"):
        quiet(LOSS, steps=2, rounding="master", about={"rounding": "master"}, **options)


# What was measured.


def test_the_record_shows_bfloat16_within_two_per_cent_of_float32():
    """For each model, rate and seed; and how far below it is where updates are rounded to the nearest."""
    from pathlib import Path

    record = Path(__file__).parents[2] / "figures" / "data" / "sixteen_bits.json"
    rows = json.loads(record.read_text())["rows"]
    falls = {(r["model"], r["rate"], r["seed"], r["way"]): r["before"] - r["after"] for r in rows}
    asked = {key[:3] for key in falls}
    assert asked >= {("trained", rate, seed) for rate in (jobs.FULL_RATE, 1e-5) for seed in (0, 1, 2)}
    for one in asked:
        exact = falls[*one, "float32"]
        for way in ("master", "stochastic"):
            assert abs(falls[*one, way] / exact - 1) < 0.02, (one, way)
        assert falls[*one, "nearest"] < 0.95 * exact


# Sums.


def constant_slope(trainable, frozen, batch):
    return jnp.sum(trainable["t"]) * 1.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_parts_of_a_batch_are_summed_in_float32(dtype):
    """By hand: 4,096 parts, each with a gradient of 1 and as many tokens. In bfloat16 the sum would stop at 1 / 16."""
    batch = {"tokens": np.zeros((4096, 2), np.int32)}
    trainable = {"t": jnp.zeros(3, dtype)}
    optimizer = tiny.gradient_as_state()
    _, gradient, value, norm = make_step(constant_slope, optimizer, accumulate=4096)(
        trainable, optimizer.init(trainable), None, batch
    )
    assert gradient["t"].dtype == dtype and gradient["t"].tolist() == [1.0] * 3
    close(norm, np.sqrt(3), rounding(4096))
    assert value.dtype == norm.dtype == jnp.float32


@pytest.mark.parametrize(("dtype", "size"), [(jnp.bfloat16, 1.003), (jnp.float16, 1e-5), (jnp.float16, 300.0)])
def test_the_norm_that_is_said_is_taken_in_float32(dtype, size):
    slope = jnp.asarray(size, dtype)

    def loss(trainable, frozen, batch):
        return jnp.sum(trainable["t"] * slope) * jnp.asarray(1.0, dtype)

    trainable, optimizer = {"t": jnp.zeros(999, dtype)}, optax.sgd(0.0)
    *_, norm = make_step(loss, optimizer)(trainable, optimizer.init(trainable), None, BATCHES[0])
    close(norm, np.sqrt(999) * float(slope), rounding(999))


@pytest.mark.parametrize("tied", [True, False])
def test_an_embeddings_gradient_is_that_of_float64_however_often_a_token_stands(tied):
    """16,384 tokens, half of them one: summed in bfloat16 less than a third of its row's gradient was left."""
    config, params = tiny.model(jnp.bfloat16, tie_word_embeddings=tied)
    draw = np.random.default_rng(0)
    p = np.r_[0.5, np.full(config.vocab_size - 1, 0.5 / (config.vocab_size - 1))]
    batch = {"tokens": jnp.asarray(draw.choice(config.vocab_size, size=(256, 64), p=p), jnp.int32)}
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    grad = jax.jit(jax.grad(tiny.full_loss(config)))
    found, expected = (np.float64(grad(tree, None, batch)["embed_tokens"][0]) for tree in (params, exact))
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_rows_that_are_read_are_counted_by_hand():
    """Row 0 is read 5,000 times with a gradient of 1, row 3 twice, row 1 never. bfloat16 alone would stop at 256."""
    from lora_jax.weights import rows

    ids = jnp.asarray([[0] * 2500 + [3], [0] * 2500 + [3]])
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        w = jnp.asarray(np.arange(8).reshape(4, 2), dtype)
        np.testing.assert_array_equal(rows(w, ids), w[ids])
        found = jax.jit(jax.grad(lambda w: jnp.sum(rows(w, ids).astype(jnp.float32))))(w)
        assert found.dtype == dtype
        close(np.float64(found), np.float64([[5000] * 2, [0] * 2, [0] * 2, [2] * 2]), rounding(1, dtype))


def test_evaluation_in_bfloat16_adds_up_in_float64():
    """Ten batches of one loss have its mean, to the last bit; a sum in bfloat16 would not."""
    one = float(jax.jit(LOSS)(HALVES, None, BATCHES[0]))
    assert evaluate(LOSS, HALVES, None, [BATCHES[0]] * 10) == pytest.approx(one, rel=1e-14)
    assert jax.eval_shape(LOSS, HALVES, None, BATCHES[0]).dtype == jnp.float32


# What `plan` counts.

OPTIMIZERS = ("adamw", "adafactor", "sgd", "momentum")
RUNS = [("full", "bfloat16", way, name, 1) for way in (None, *optimizers.ROUNDING) for name in OPTIMIZERS]
RUNS += [("full", "bfloat16", way, "adamw", 5) for way in optimizers.ROUNDING]
RUNS += [("full", "float32", None, "adamw", 1), ("full", "float32", None, "momentum", 5)]
RUNS += [(method, "bfloat16", None, "adamw", 1) for method in METHODS] + [("lora", "bfloat16", None, "adamw", 5)]


@pytest.mark.parametrize(("method", "dtype", "way", "name", "accumulate"), RUNS)
def test_the_static_bytes_of_a_plan_are_those_of_a_real_runs_arrays(method, dtype, way, name, accumulate):
    """After a step: weights or adapters, and the optimizer's state with its master or key."""
    params = HALVES if dtype == "bfloat16" else PARAMS
    job = jobs.make_job(method, CONFIG, params, key=jax.random.key(0))
    state = fit(
        job.loss,
        trainable=job.trainable,
        frozen=job.frozen,
        batches=BATCHES,
        optimizer=optimizers.make(name),
        steps=1,
        accumulate=accumulate,
        rounding=way,
        key=jax.random.key(0),
        progress=False,
    )
    B, T = BATCHES[0]["tokens"].shape
    setup = Setup(CONFIG, method, batch=B, length=T, dtype=dtype, optimizer=name, rounding=way, accumulate=accumulate)
    planned = estimate(setup)
    assert planned["weights"] == base.num_bytes(state.trainable if method == "full" else params)
    assert planned["adapters"] == (0 if method == "full" else base.num_bytes(state.trainable))
    assert planned["optimizer state"] == base.num_bytes(state.opt_state)
    if name == "adamw" and way in (None, "master"):
        told = jobs.static_bytes(job)
        assert told["optimizer state"] == planned["optimizer state"] and told["weights"] == planned["weights"]


@pytest.mark.parametrize(("dtype", "way"), [("bfloat16", "master"), ("bfloat16", "nearest"), ("float32", None)])
def test_the_gradients_of_a_plan_are_what_the_program_adds_to(dtype, way):
    """Of an accumulated batch: what the scan over its parts carries, the loss and the float32 sums."""
    setup = Setup(CONFIG, "full", batch=6, length=9, dtype=dtype, rounding=way, accumulate=3)
    step = steps.build(setup)
    program = jax.make_jaxpr(step.step)(*step.arguments)
    (inner,) = (eqn.params["jaxpr"].jaxpr for eqn in program.jaxpr.eqns)  # what is compiled
    (scan,) = (eqn for eqn in inner.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == 3)
    loss, *sums = scan.outvars  # what it carries, since it collects nothing
    assert (loss.aval.shape, str(loss.aval.dtype)) == ((), "float32")
    held = sum(one.aval.size * one.aval.dtype.itemsize for one in sums)
    assert estimate(setup)["gradients"] == held == 4 * steps.parameters(CONFIG)
    assert estimate(setup.part)["gradients"] == steps.parameters(CONFIG) * {"bfloat16": 2, "float32": 4}[dtype]


def test_a_batch_in_parts_moves_what_one_part_does():
    setup = Setup(CONFIG, "full", batch=8, length=64, accumulate=4)
    whole, part = estimate(setup), estimate(setup.part)
    assert whole["saved activations"] == part["saved activations"]
    assert whole["batch"] == 4 * part["batch"]
    # The sum lies beside the step of one part, whose gradient is still there.
    assert whole.total - part.total == 4 * steps.parameters(CONFIG) + whole["batch"] - part["batch"]
    assert dataclasses.replace(setup, accumulate=8).part.batch == 1


# The command.


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """`--model` and `--data` of the smallest run."""
    from lora_jax.files import models

    folder = tmp_path_factory.mktemp("given")
    tokenizer = models.load_tokenizer("stories-2.8m")
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    huggingface.save(folder / "model", config, transformer.init(jax.random.key(0), config), tokenizer)
    (folder / "data.txt").write_text("the old man looked out at the sea and said nothing at all.\n" * 60)
    return ["--model", str(folder / "model"), "--data", str(folder / "data.txt"), "--steps", "2", "--length", "16"]


def trained(given, out, *words):
    assert cli.main(["train", *given, "--out", str(out), *words]) == 0
    return json.loads((out / "run.json").read_text())["about"], (out / "checkpoint.safetensors").stat().st_size


def test_train_keeps_a_master_unless_told_otherwise_and_plan_counts_the_same(capsys, tmp_path, given):
    sizes = {}
    for way in (None, *optimizers.ROUNDING):
        words = ["--method", "full", "--dtype", "bfloat16", *(["--rounding", way] if way else [])]
        about, size = trained(given, tmp_path / str(way), *words)
        said = capsys.readouterr().out
        assert about["rounding"] == (way or "master")
        assert f"rounding {way or 'master'}: {optimizers.ROUNDING[way or 'master']}" in said
        planned = ["plan", given[1], "--length", "16", "--batch-size", "4", "--json", *words]
        assert cli.main(planned) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["setup"]["rounding"] == (way or "master")
        stored = found["checkpoint"]["resumable"]
        assert stored < size < stored + 8192  # the file's header
        sizes[way] = stored
    assert sizes[None] == sizes["master"] > sizes["stochastic"] > sizes["nearest"]
    for words in ([], ["--method", "full"]):
        about, _ = trained(given, tmp_path / "_".join(words), *words)
        assert "rounding" not in about
        assert "rounding" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--rounding", "master"],
            "rounding is for weights that train in 16 bits, and adapters train in float32",
        ),
        (
            ["--dtype", "bfloat16", "--rounding", "stochastic"],
            "adapters train in float32: leave out --rounding sto",
        ),
        (["--method", "full", "--rounding", "nearest"], "and the weights are in float32: leave out --rounding nearest"),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_rounding_with_nothing_to_round_is_refused(capsys, tmp_path, given, command, words, sentence):
    start = ["train", *given, "--out", str(tmp_path / "o")] if command == "train" else ["plan", given[1]]
    if command == "plan" and "--dtype" not in words:
        words = [*words, "--dtype", "float32"]
    assert cli.main([*start, *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
