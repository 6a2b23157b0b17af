"""One step for everything: it learns, accumulates, clips, evaluates, goes on where it stopped, and stops clearly."""

import functools
import os
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small as tiny
from close import backward_pass, close, forward_pass, rounding
from small import quick_compilation  # noqa: F401

from lora_jax import transformer
from lora_jax.adapters import lora
from lora_jax.adapters.base import attach
from lora_jax.errors import InputError
from lora_jax.files import atomic, checkpoint
from lora_jax.training import evaluate, make_step
from lora_jax.tuning.jobs import schedule
from lora_jax.tuning.loop import NonFiniteLoss, fit

CONFIG, PARAMS = tiny.model()
quiet = functools.partial(fit, progress=False)


# The same step.

FULL_STEP = make_step(tiny.full_loss(CONFIG), optax.adam(3e-2))
LORA_STEP = make_step(tiny.adapter_loss(CONFIG), optax.adam(3e-2))


@pytest.mark.parametrize("kind", ["pre-training", "full fine-tuning", "lora"])
def test_one_step_trains_a_fresh_model_a_whole_model_and_adapters(kind):
    """A tiny task: sequences that count up by one, modulo 10. Only what is passed as `trainable` differs."""
    starts = np.random.default_rng(0).integers(0, 10, (8, 1))
    batch = {"tokens": jnp.asarray((starts + np.arange(7)) % 10, jnp.int32)}
    trainable, frozen = PARAMS, None
    if kind == "pre-training":
        trainable = transformer.init(jax.random.key(1), CONFIG)
    if kind == "lora":
        trainable, constants = lora.init(jax.random.key(1), PARAMS, rank=6, targets=["q_proj", "down_proj", "lm_head"])
        frozen = PARAMS, constants
    optimizer, step = optax.adam(3e-2), LORA_STEP if kind == "lora" else FULL_STEP
    trainable = jax.tree.map(jnp.copy, trainable)
    opt_state, losses = optimizer.init(trainable), []
    for _ in range(25):
        trainable, opt_state, value, norm = step(trainable, opt_state, frozen, batch)
        losses.append(float(value))
        assert value.dtype == norm.dtype == jnp.float32
    assert losses[0] > 2.5
    assert losses[-1] < 0.5


# Accumulation, in hand numbers: the loss is t times the mean of x over the tokens to be learned, so the gradient is
# that mean.


def mean_loss(trainable, frozen, batch):
    learned = transformer.target_mask(batch)
    return trainable["t"] * jnp.sum(batch["x"] * learned) / jnp.maximum(jnp.sum(learned), 1.0)


UNEQUAL = {
    "tokens": np.zeros((4, 4), np.int32),
    "x": np.asarray([[1, 2, 3, 99], [4, 5, 6, 99], [7, 8, 9, 99], [10, 20, 30, 99]], np.float32),
    # Position t is learned where the mask of t + 1 is set: 1, 2, 3 | 4 | none | 20.
    "mask": np.asarray([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], np.int32),
}
MEAN = (1 + 2 + 3 + 4 + 20) / 5
SUMS = rounding(4 * 4 + 4)  # over a batch of this size


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulation_weighs_each_part_by_its_tokens(parts):
    """The mean of the parts' own means would be 11.25 in two parts, (6 / 3 + 4 + 0 + 20) / 4 = 6.5 in four; it is 6."""
    optimizer = optax.sgd(1.0)
    step = make_step(mean_loss, optimizer, accumulate=parts)
    trainable = {"t": jnp.asarray(2.0)}
    moved, _, value, norm = step(trainable, optimizer.init(trainable), None, UNEQUAL)
    assert MEAN == 6.0
    close(value, 2 * MEAN, SUMS)
    close(norm, MEAN, SUMS)
    close(moved["t"], 2 - MEAN, SUMS)


def test_accumulation_gives_the_models_gradient_of_one_go():
    rng = np.random.default_rng(3)
    batch = {"tokens": tiny.tokens(6), "mask": jnp.asarray(rng.integers(0, 2, (6, 9)) * (np.arange(6) > 1)[:, None])}
    adapters, constants = lora.init(jax.random.key(1), PARAMS, rank=2, targets=["q_proj"])
    adapters, optimizer = tiny.shaken(adapters), tiny.gradient_as_state()
    results = []
    for parts in (1, 3):
        step = make_step(tiny.adapter_loss(CONFIG), optimizer, accumulate=parts)
        start = jax.tree.map(jnp.copy, adapters)
        results.append(step(start, optimizer.init(start), (PARAMS, constants), batch)[1:])  # gradient, loss and norm
    close(results[1], results[0], rounding(backward_pass(CONFIG, 9, 6)))


def test_each_part_of_an_accumulated_batch_draws_its_own_dropout():
    def noise(trainable, frozen, batch):
        return trainable["t"] * jax.random.uniform(batch["key"])

    optimizer, key = optax.sgd(1.0), jax.random.key(8)
    trainable = {"t": jnp.asarray(1.0)}
    batch = {"tokens": np.zeros((2, 3), np.int32), "key": key}
    *_, value, _ = make_step(noise, optimizer, accumulate=2)(trainable, optimizer.init(trainable), None, batch)
    drawn = [float(jax.random.uniform(part)) for part in jax.random.split(key, 2)]
    assert drawn[0] != drawn[1]
    close(value, sum(drawn) / 2, rounding(3))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="a batch of 4 sequences cannot be accumulated in 3 equal parts"):
        quiet(
            mean_loss,
            trainable={"t": jnp.asarray(1.0)},
            frozen=None,
            batches=[UNEQUAL],
            optimizer=optax.sgd(1.0),
            steps=1,
            accumulate=3,
        )


# Clipping and evaluation.


@pytest.mark.parametrize("clip, length", [(None, 5.0), (2.0, 2.0), (5.5, 5.0)])
def test_clipping_bounds_the_gradients_length_and_keeps_its_direction(clip, length):
    """The gradient is (3, -4), of length 5, over two leaves."""

    def loss(trainable, frozen, batch):
        return 3 * trainable["a"] - 4 * trainable["b"]

    state = quiet(
        loss,
        trainable={"a": jnp.asarray(0.0), "b": jnp.asarray(0.0)},
        frozen=None,
        batches=[UNEQUAL],
        optimizer=optax.sgd(1.0),
        steps=1,
        clip_norm=clip,
    )
    found = [float(state.trainable["a"]), float(state.trainable["b"])]
    close(np.asarray(found), np.asarray([-3 / 5 * length, 4 / 5 * length]), rounding(6))


def test_evaluation_is_the_mean_over_tokens_not_over_batches():
    """Batches of 5, 0 and 2 tokens whose losses are 6, 0 and 13: by hand (5 * 6 + 2 * 13) / 7 = 8."""
    other = {**UNEQUAL, "mask": np.asarray([[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.int32)}
    other["segments"] = np.asarray([[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], np.int32)
    other["x"] = np.asarray([[0] * 4, [0, 5, 0, 0], [0] * 4, [0] * 4], np.float32)
    both = {**other, "mask": np.asarray([[1] * 4, [0, 0, 1, 0], [0, 1, 0, 0], [1] * 4], np.int32)}
    both["x"] = np.asarray([[99] * 4, [99, 6, 99, 99], [20, 99, 99, 99], [99] * 4], np.float32)  # padded rows are 99
    none = {**UNEQUAL, "mask": np.zeros((4, 4), np.int32)}
    trainable = {"t": jnp.asarray(1.0)}
    close(evaluate(mean_loss, trainable, None, [UNEQUAL]), float(6), SUMS)
    close(evaluate(mean_loss, trainable, None, [other]), float(5), SUMS)
    close(evaluate(mean_loss, trainable, None, [UNEQUAL, none, both]), float(8), SUMS)
    for nothing in ([none], []):
        with pytest.raises(InputError, match="no token to evaluate on: the held-out batches are empty or wholly"):
            evaluate(mean_loss, trainable, None, nothing)


def test_evaluation_in_parts_equals_the_models_loss_on_all_of_it_in_one_batch():
    tokens, mask = tiny.tokens(6), np.random.default_rng(0).integers(0, 2, (6, 9))
    segments = np.ones((6, 9), np.int32)
    segments[4:] = 0  # padded rows
    whole = {"tokens": tokens, "mask": jnp.asarray(mask), "segments": jnp.asarray(segments)}
    parts = [jax.tree.map(lambda x, at=at: x[at : at + 2], whole) for at in (0, 2, 4)]
    loss = tiny.full_loss(CONFIG)
    close(
        evaluate(loss, PARAMS, None, parts),
        float(jax.jit(loss)(PARAMS, None, whole)),
        rounding(forward_pass(CONFIG, 9) + 6 * 9),
    )


def test_evaluations_are_before_the_first_step_after_the_last_and_every_so_many_between():
    options = {"trainable": {"t": jnp.asarray(1.0)}, "frozen": None, "batches": [UNEQUAL] * 7}
    state = quiet(mean_loss, **options, optimizer=optax.sgd(0.01), steps=7, held_out=[UNEQUAL], evaluate_every=3)
    assert [step for step, _ in state.evaluations] == [0, 3, 6, 7]
    # The slope is 6, so each step of 0.01 lowers t by 0.06 and the loss by 0.36.
    evaluated = np.asarray([value for _, value in state.evaluations])
    close(evaluated, np.asarray([6, 6 - 3 * 0.36, 6 - 6 * 0.36, 6 - 7 * 0.36]), rounding(7 * 20))
    close(np.asarray(state.losses), np.asarray([6 - i * 0.36 for i in range(7)]), rounding(7 * 20))


def test_evaluating_again_does_not_trace_again():
    traces = []

    def loss(trainable, frozen, batch):
        traces.append(1)
        return mean_loss(trainable, frozen, batch)

    for t in (1.0, 2.0):
        evaluate(loss, {"t": jnp.asarray(t)}, None, [UNEQUAL, UNEQUAL])
    assert len(traces) == 1


# Going on.


def layers_loss(adapters, frozen, batch):
    """Three stacked layers, 5 x 7, each on the same input: small, with all that a run of LoRA has."""
    params, constants = frozen
    layers = attach(params, adapters, constants, batch.get("key"))["layers"]
    outputs = jax.vmap(lambda w: batch["x"] @ w)(layers["mlp"]["up_proj"])  # (3, B, 7)
    return jnp.mean((outputs.astype(jnp.float32) - 1) ** 2)


def lora_run(path, steps, dtype=jnp.float32, **changes):
    """LoRA with dropout, ranks that differ by layer, a schedule with warm-up and decay, and evaluations."""
    rng = np.random.default_rng(0)
    params = {"layers": {"mlp": {"up_proj": jnp.asarray(rng.standard_normal((3, 5, 7)), dtype)}}}
    ranks = {"layers.1.mlp.up_proj": 3}
    adapters, constants = lora.init(jax.random.key(1), params, rank=2, rank_pattern=ranks, dropout=0.2, dtype=dtype)
    batches = [
        {"x": jnp.asarray(rng.standard_normal((4, 5)), dtype), "tokens": np.zeros((4, 5), np.int32)} for _ in range(7)
    ]
    options = {
        "trainable": adapters,
        "frozen": (params, constants),
        "batches": batches[:6],
        "optimizer": optax.adamw(schedule(1e-1, 6, warmup=2, decay=True)),
        "key": jax.random.key(2),
        "held_out": batches[6:],
        "evaluate_every": 2,
        "checkpoint_every": 100,
        "about": {"seed": 1, "targets": ("q_proj", "up_proj")},
    }
    return quiet(layers_loss, checkpoint=path, steps=steps, **(options | changes))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_run_that_was_cut_goes_on_bit_for_bit(tmp_path, dtype):
    whole = lora_run(tmp_path / "whole", 6, dtype)
    cut = lora_run(tmp_path / "cut", 3, dtype)
    # Three steps end with an evaluation of their own, which the run in one go does not make.
    assert (cut.step, [step for step, _ in cut.evaluations]) == (3, [0, 2, 3])
    resumed = lora_run(tmp_path / "cut", 6, dtype)
    assert (resumed.step, resumed.losses) == (6, whole.losses)
    assert resumed.losses[:3] == cut.losses
    assert [pair for pair in resumed.evaluations if pair[0] != 3] == whole.evaluations
    one, other = (whole.trainable, whole.opt_state), (resumed.trainable, resumed.opt_state)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [leaf.dtype for leaf in jax.tree.leaves(one)] == [leaf.dtype for leaf in jax.tree.leaves(other)]
    assert tiny.raw(one) == tiny.raw(other) != tiny.raw((cut.trainable, cut.opt_state))
    assert jnp.dtype(dtype) in {leaf.dtype for leaf in jax.tree.leaves(one)}
    done = lora_run(tmp_path / "cut", 6, dtype, batches=None)  # nothing left to do: no batch is asked for
    assert tiny.raw((done.trainable, done.opt_state)) == tiny.raw(one)
    assert done.losses == whole.losses


def test_the_step_key_and_the_schedule_matter_to_the_comparison(tmp_path):
    """The test before would see them lost: another key, or another schedule, gives other losses."""
    whole = lora_run(None, 6)
    assert lora_run(None, 6, key=jax.random.key(3)).losses != whole.losses
    assert lora_run(None, 6, key=None).losses != whole.losses
    assert lora_run(None, 6, optimizer=optax.adamw(1e-2)).losses[2:] != whole.losses[2:]


def toy(path=None, **changes):
    options = {
        "trainable": {"t": jnp.asarray([1.0, 2.0])},
        "frozen": None,
        "batches": [UNEQUAL] * 4,
        "optimizer": optax.adam(0.1),
        "steps": 2,
        "about": {"rank": 8, "data": "poems"},
    }
    return quiet(toy_loss, checkpoint=path, **(options | changes))


def toy_loss(trainable, frozen, batch):
    return jnp.sum(trainable["t"] ** 2)


def test_checkpoints_are_written_every_so_many_steps_and_at_the_end(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda path, tree, about: saved.append(about["step"]))
    toy(tmp_path / "c", steps=4, checkpoint_every=3)
    assert saved == [3, 4]


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"about": {"rank": 4, "data": "poems"}},
            "is a checkpoint of another run: rank is 8 there and 4 here; "
            "give the same settings to go on, or another place to start anew",
        ),
        ({"about": {"rank": 8}}, "is a checkpoint of another run: data is 'poems' there and None here; give"),
        (
            {"about": {"rank": 8, "data": "poems", "seed": 1}},
            "is a checkpoint of another run: seed is None there and 1 here; give",
        ),
        (
            {"trainable": {"t": jnp.ones(3)}},
            r"is a checkpoint of another configuration: 0\.t is float32\[2\] there and float32\[3\] here",
        ),
        (
            {"trainable": {"t": jnp.ones(2, jnp.bfloat16)}},
            r"is a checkpoint of another configuration: 1\.0\.count is only there",  # its state is a master's here
        ),
        (
            {"trainable": {"t": jnp.ones(2), "u": jnp.ones(2)}},
            r"is a checkpoint of another configuration: 0\.u is only here",
        ),
        ({"optimizer": optax.sgd(0.1)}, r"is a checkpoint of another configuration: 1\.0\.count is only there"),
        ({"clip_norm": 1.0}, r"is a checkpoint of another configuration: 1\.0\.count is only there"),
    ],
)
def test_a_checkpoint_of_another_run_or_configuration_is_refused(tmp_path, changes, words):
    path = tmp_path / "c.safetensors"
    toy(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"{re.escape(str(path))} {words}"):
        toy(path, steps=4, **changes)
    assert path.read_bytes() == before


def test_a_checkpoint_of_adapters_on_other_layers_is_refused(tmp_path):
    """The same shapes, on other layers: the leaf's path says which."""

    def run(layers):
        adapters, _ = lora.init(jax.random.key(1), PARAMS, targets=rf"layers\.[{layers}]\..*q_proj")
        return adapters

    one, other = run("01"), run("12")
    assert jax.tree.map(jnp.shape, jax.tree.leaves(one)) == jax.tree.map(jnp.shape, jax.tree.leaves(other))
    checkpoint.save(tmp_path / "c", one, {})
    checkpoint.load(tmp_path / "c", one)
    words = r"another configuration: layers\.self_attn\.q_proj\.layers_0_1\.a is only there"
    with pytest.raises(InputError, match=words):
        checkpoint.load(tmp_path / "c", other)


def test_a_truncated_checkpoint_is_refused_at_any_length(tmp_path):
    path = tmp_path / "c"
    toy(path)
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"c is not a whole safetensors file \(.+\): fetch or write it again"):
            toy(path, steps=4)
    path.write_bytes(whole)
    assert toy(path, steps=4).step == 4


def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"0.t": np.ones(2, np.float32)}, tmp_path / "c")
    with pytest.raises(InputError, match="c is a safetensors file, but not a checkpoint of this package"):
        toy(tmp_path / "c")


# Stops.


def root_loss(trainable, frozen, batch):
    """Its value is finite at nought and its slope is not."""
    return jnp.sum(jnp.sqrt(trainable["t"]) * batch["x"][0, 0]) + 1.0


def with_x(value):
    return {**UNEQUAL, "x": np.full((4, 4), value, np.float32)}


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "c"

    def loss(trainable, frozen, batch):
        return jnp.sum(trainable["t"]) * batch["x"][0, 0]

    options = {"batches": [with_x(1), with_x(1), with_x(np.nan)], "checkpoint_every": 1, "optimizer": optax.sgd(0.5)}
    words = (
        r"at step 3 \(2\.000 before it\) the loss is nan and its gradient's norm nan: "
        "try a lower learning rate, or clip the gradient's norm to 1.0"
    )
    arguments = {"trainable": {"t": jnp.asarray([1.0, 2.0])}, "frozen": None, "steps": 3, "checkpoint": path} | options
    quiet(loss, **(arguments | {"steps": 2}))
    before = path.read_bytes()
    with pytest.raises(NonFiniteLoss, match=words):
        quiet(loss, **arguments)
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(NonFiniteLoss, match=words):
        quiet(loss, **arguments)
    assert path.read_bytes() == before  # the one of step 2
    with pytest.raises(NonFiniteLoss, match=r"at step 1 \(the first\) the loss is inf and"):
        quiet(loss, **(arguments | {"batches": [with_x(np.inf)], "checkpoint": None}))


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_not_checkpointed(tmp_path):
    path = tmp_path / "c"
    options = {"frozen": None, "checkpoint": path, "checkpoint_every": 1, "optimizer": optax.sgd(1.0)}
    with pytest.raises(NonFiniteLoss, match=r"at step 1 \(the first\) the loss is 1\.000 and its gradient's norm inf"):
        quiet(root_loss, trainable={"t": jnp.zeros(2)}, batches=[with_x(1)], steps=1, **options)
    assert not path.exists()


def test_fewer_batches_than_steps_is_said_and_what_was_reached_is_kept(tmp_path):
    with pytest.raises(InputError, match="there are only 4 batches for 9 steps"):
        toy(tmp_path / "c", steps=9, checkpoint_every=2)
    assert toy(tmp_path / "c", steps=4, batches=None).step == 4


def test_a_disk_that_fills_up_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "c"
    toy(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = r"could not write .*c \(No space left on device\): free some space or choose a place that may be written to"
    with pytest.raises(InputError, match=words):
        toy(path, steps=4)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c"]
    monkeypatch.undo()
    assert toy(path, steps=4).step == 4


def test_a_file_that_may_grow_no_further_leaves_the_old_checkpoint_and_no_litter(tmp_path):
    """For real, in a process whose files may hold 2,000 bytes: the library writes the file itself, and fails there."""
    pytest.importorskip("resource")
    path = tmp_path / "c"
    script = f"""
        import resource, jax.numpy as jnp, numpy as np, optax
        from lora_jax.errors import InputError
        from lora_jax.tuning.loop import fit

        def run(steps):
            return fit(
                lambda trainable, frozen, batch: jnp.sum(trainable["t"] ** 2),
                trainable={{"t": jnp.ones(1000)}}, frozen=None, batches=[{{"tokens": np.zeros((2, 3), np.int32)}}] * 9,
                optimizer=optax.adam(0.1), steps=steps, checkpoint={str(path)!r}, progress=False,
            )

        run(2)
        before = open({str(path)!r}, "rb").read()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            run(4)
        except InputError as error:
            print(error)
        assert open({str(path)!r}, "rb").read() == before
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    words = rf"could not write {re.escape(str(path))} \(.*[Ff]ile too large.*\): free some space.*\n"
    assert re.fullmatch(words, done.stdout)
    assert os.listdir(tmp_path) == ["c"]


def test_a_temporary_left_by_a_killed_run_harms_nothing(tmp_path):
    path = tmp_path / "c"
    litter = atomic._beside(path, "tmp")
    litter.write_bytes(b"half a checkpoint")
    assert toy(path).step == 2
    assert toy(path, steps=4).step == 4
    assert litter.read_bytes() == b"half a checkpoint"


# Progress.


def test_the_bar_says_the_loss_the_rate_and_the_held_out_loss(capsys):
    toy(steps=3, progress=True, batches=[UNEQUAL] * 3)
    said = capsys.readouterr().err
    assert "3/3" in said
    assert re.search(r"loss=\d+\.\d{3}", said)
    assert re.search(r"tokens_per_s=[\d,]+", said)
    toy(steps=3, progress=True, batches=[UNEQUAL] * 3, held_out=[UNEQUAL])
    assert re.search(r"held_out=\d+\.\d{3}", capsys.readouterr().err)
    toy(steps=3, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["steps", "checkpoint_every", "evaluate_every"])
def test_counts_below_one_are_refused(name):
    options = {"trainable": {"t": jnp.zeros(2)}, "frozen": None, "batches": [with_x(1)], "optimizer": optax.sgd(1.0)}
    with pytest.raises(InputError, match="must each be 1 or more"):
        quiet(root_loss, **(options | {"steps": 1, name: 0}))
