"""What is not a finite number is never kept: not in a checkpoint, an adapter, a model, an evaluation or a text."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import small

from lora_jax.adapters import lora
from lora_jax.adapters.base import attach
from lora_jax.commands import cli
from lora_jax.errors import InputError
from lora_jax.files import checkpoint, tensors
from lora_jax.generation import NO_TOKEN, choose, generate
from lora_jax.training import make_step
from lora_jax.tuning import finite, jobs
from lora_jax.tuning.loop import NonFiniteLoss, fit

BATCH = {"tokens": np.zeros((2, 3), np.int32)}


def flat(trainable, frozen, batch):
    """A loss that is 1 whatever is learned, with a slope of 1: only an update can be at fault."""
    return 1.0 + sum(jnp.sum(leaf - jax.lax.stop_gradient(leaf)) for leaf in jax.tree.leaves(trainable))


def scaled(factor, at=0):
    """SGD whose update is multiplied by `factor` from step `at` on."""
    return optax.chain(optax.sgd(1.0), optax.scale_by_schedule(lambda step: jnp.where(step < at, 1.0, factor)))


def run(path=None, loss=flat, **changes):
    options = {"trainable": {"t": jnp.ones(3)}, "frozen": None, "batches": [BATCH] * 9, "steps": 3, "progress": False}
    return fit(loss, checkpoint=path, **options | changes)


@pytest.mark.parametrize("factor", [math.inf, math.nan, 1e39])
def test_an_update_that_overflows_in_the_last_step_is_not_kept(tmp_path, factor):
    """The loss and the gradient's norm of that step are finite: the loop of before wrote the weights down."""
    path = tmp_path / "c"
    with pytest.raises(NonFiniteLoss, match=r"^after step 3 weights t holds numbers that are not finite: try a lower"):
        run(path, optimizer=scaled(factor, at=2), checkpoint_every=2)
    assert checkpoint.about(path)["step"] == 2
    assert run(path, optimizer=scaled(1.0), checkpoint_every=2).step == 3
    for without in ({}, {"held_out": [BATCH]}):  # and without a checkpoint nothing is handed back
        with pytest.raises(NonFiniteLoss, match="after step 3"):
            run(optimizer=scaled(factor, at=2), **without)


def test_an_optimizers_state_that_overflows_is_not_kept(tmp_path):
    """The trace of momentum grows past float32 while the weights, which take none of it, stay."""
    hoard = optax.GradientTransformation(
        lambda params: {"trace": jnp.full(2, 1e30)},
        lambda updates, state, params=None: (optax.tree.zeros_like(updates), {"trace": state["trace"] * 1e5}),
    )
    with pytest.raises(NonFiniteLoss, match=r"^after step 2 optimizer trace holds numbers that are not finite"):
        run(tmp_path / "c", optimizer=hoard, checkpoint_every=1, steps=2)
    assert checkpoint.about(tmp_path / "c")["step"] == 1


def test_each_leaf_that_is_not_finite_is_counted_and_integers_are_left_alone():
    tree = {"a": jnp.ones(2), "b": jnp.asarray([1, jnp.inf]), "c": jnp.asarray([jnp.nan]), "n": jnp.arange(3)}
    with pytest.raises(NonFiniteLoss, match=r"weights b \(and 1 more\) holds"):
        finite.check(5, weights=tree)
    finite.check(5, weights={"a": tree["a"], "n": tree["n"], "h": jnp.ones(2, jnp.bfloat16)})
    with pytest.raises(NonFiniteLoss, match="weights h"):
        finite.check(5, weights={"h": jnp.full(2, jnp.inf, jnp.bfloat16)})


def test_an_evaluation_that_is_not_finite_ends_the_run(tmp_path):
    def loss(trainable, frozen, batch):
        return jnp.sum(trainable["t"]) * batch["x"]

    batches, bad = [BATCH | {"x": np.float32(1)}] * 4, [BATCH | {"x": np.float32(np.inf)}]
    with pytest.raises(NonFiniteLoss, match=r"^after step 0 the loss on held-out text is inf: nothing was trained yet"):
        run(tmp_path / "c", loss, batches=batches, optimizer=optax.sgd(0.1), held_out=bad)
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_that_holds_a_nan_is_neither_written_nor_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "c"
    run(path, optimizer=optax.sgd(0.1))
    progress = {"run": {}, "step": 3, "losses": [1.0] * 3, "evaluations": []}
    bad = {"t": jnp.asarray([1, jnp.nan, 1])}, optax.sgd(0.1).init({"t": jnp.ones(3)})
    with pytest.raises(InputError, match="t holds numbers that are not finite"):
        checkpoint.save(path, bad, progress)
    monkeypatch.setattr(tensors, "check_finite", lambda *_: None)
    checkpoint.save(path, bad, progress)
    monkeypatch.undo()
    with pytest.raises(InputError, match="t holds numbers that are not finite"):
        run(path, optimizer=optax.sgd(0.1))


def test_the_check_is_no_part_of_the_step():
    """The step's own program is the one that the planner compiles: four results, and no reduction of a predicate."""
    text = jax.jit(make_step(flat, optax.sgd(1.0))).lower({"t": jnp.ones(3)}, optax.sgd(1.0).init({}), None, BATCH)
    assert "is_finite" not in text.as_text()


@pytest.mark.parametrize("rate", [math.inf, math.nan, 0.0, -1.0])
def test_a_rate_that_is_none_is_refused_by_the_library_too(rate):
    with pytest.raises(InputError, match=f"the learning rate is {rate}: give a finite number above 0"):
        jobs.schedule(rate, 10)


@pytest.mark.parametrize("clip", [math.inf, math.nan, 0.0, -1.0])
def test_a_bound_that_is_none_is_refused_by_the_library_too(clip):
    with pytest.raises(InputError, match=f"the bound on the gradient's norm is {clip}"):
        run(optimizer=optax.sgd(0.1), clip_norm=clip)


@pytest.mark.parametrize("warmup", [-1, 11])
def test_a_warm_up_that_is_none_is_refused_by_the_library_too(warmup):
    with pytest.raises(InputError, match=f"a warm-up of {warmup} steps is not 0 to 10"):
        jobs.schedule(1e-3, 10, warmup=warmup)


# From the command line: rates that are numbers, and too high.


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return runs.given(tmp_path_factory.mktemp("given"))


@pytest.mark.parametrize("words", [["--rank", "2"], ["--method", "full"], ["--method", "full", "--dtype", "bfloat16"]])
@pytest.mark.parametrize("settings", [["--lr", "1e30"], ["--lr", "3e38"]])
def test_a_rate_far_too_high_ends_in_a_sentence_or_in_finite_numbers(capsys, tmp_path, given, words, settings):
    """One step to 1e30 may leave finite numbers that know nothing; three never do."""
    data = given["TINY"].replace("tiny", "mine.txt")
    train = ["train", "--model", given["TINY"], "--data", data, "--batch-size", "2", "--length", "16", *words]
    for steps in ("1", "3"):
        out = tmp_path / steps
        status = cli.main([*train, *settings, "--steps", steps, "--out", str(out)])
        said = capsys.readouterr().err.strip().splitlines()[-1]
        if status == 0:
            assert steps == "1" and np.isfinite(json.loads((out / "run.json").read_text())["losses"]).all()
            for path in out.rglob("*.safetensors"):
                arrays, _ = tensors.read(path)
                assert all(np.isfinite(np.asarray(array, np.float32)).all() for array in arrays.values())
        else:
            assert status == 2 and ("finite" in said or "nan" in said or "inf" in said), said
            assert not out.exists()


# Text.


def damaged(value, where):
    config, params = small.model()
    return config, params | {where: params[where].at[0].set(value)}


class Letters:
    """A tokenizer of one token a letter."""

    end_ids = ()

    def encode(self, text):
        return [ord(letter) % 50 for letter in text]

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["norm", "lm_head"])
def test_logits_that_are_not_finite_are_a_sentence(temperature, value, where):
    config, params = damaged(value, where)
    with pytest.raises(InputError, match="the model's logits are not finite numbers, so there is no token to choose"):
        generate(config, params, Letters(), ["fox", "a river"], new_tokens=3, temperature=temperature)


def test_an_adapter_that_is_not_finite_is_a_sentence():
    config, params = small.model()
    adapters, constants = lora.init(jax.random.key(0), params, rank=2, targets=["lm_head"])
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), adapters)
    generate(config, attach(params, adapters, constants), Letters(), "fox", new_tokens=2)
    with pytest.raises(InputError, match="the model or its adapter is damaged"):
        generate(config, attach(params, broken, constants), Letters(), "fox", new_tokens=2)


def test_only_the_row_whose_logits_are_not_finite_has_no_token():
    logits = jnp.asarray([[0.0, 3.0, 1.0], [0.0, jnp.nan, 1.0], [jnp.inf, 0.0, 1.0], [-jnp.inf, 0.0, 1.0]])
    for top_k in (None, 1, 2):
        found = choose(jax.random.key(0), logits, 0.0, top_k, None).tolist()
        assert found == [1, NO_TOKEN, NO_TOKEN, 2]  # a token that is never to be written has -inf, and that is no fault
