"""Optimizers by name, and what becomes of updates that are too small for weights in 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import close, rounding, stated

from lora_jax.errors import InputError
from lora_jax.tuning import optimizers

KEY = jax.random.key(5)
MANY = 20_000  # of a mean over so many numbers a standard error is known, and five are allowed


def follow(optimizer, params, gradients):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def drawn(*shape, dtype=jnp.bfloat16, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


# Small updates.

SMALL = [{"w": jnp.full(MANY, 2.0**-10, jnp.bfloat16)}] * 72  # each an eighth of a step of bfloat16 below 2
ONE = {"w": jnp.full(MANY, 1.5, jnp.bfloat16)}
EXACT = 1.5 - 72 * 2.0**-10  # 9 steps of bfloat16


@pytest.mark.parametrize("way", ["master", "stochastic"])
@pytest.mark.parametrize(("name", "options"), [("sgd", {}), ("momentum", {"moments": jnp.float32})])
def test_steps_below_the_resolution_of_bfloat16_add_up(way, name, options):
    """By hand. Of SGD's 72 steps bfloat16 alone makes none. With momentum the sum of 72 geometric series is theirs."""
    optimizer = optimizers.make(name, 1.0, **options)
    found, _ = follow(optimizers.rounded(optimizer, ONE, way, KEY), ONE, SMALL)
    exact = EXACT if name == "sgd" else 1.5 - 2.0**-10 * sum((1 - 0.9**n) / 0.1 for n in range(1, 73))
    assert found["w"].dtype == jnp.bfloat16
    # Stochastic: the variance of 72 draws, each at most a quarter of a step of 2**-7 squared.
    error = 2.0**-7 * np.sqrt(72 / 4) / np.sqrt(MANY)
    mean = np.asarray(found["w"], np.float64).mean()
    close(mean, np.float64(exact), stated(5 * error / exact, f"5 standard errors of {MANY:,} weights"))
    plain, _ = follow(optimizers.rounded(optimizer, ONE, "nearest"), ONE, SMALL)
    assert name == "momentum" or plain["w"].tolist() == ONE["w"].tolist()


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd", "momentum"])
def test_the_master_is_the_run_in_float32_and_what_is_used_is_the_master_rounded(name):
    """Bit for bit, from where the copy begins; also where a weight changes by a multiple of itself, or its sign."""
    start, steps = {"w": drawn(7, 5)}, [{"w": drawn(7, 5, seed=seed)} for seed in range(1, 10)]
    inner = optimizers.make(name, 0.3)
    optimizer = optimizers.rounded(inner, start, "master", KEY)
    copy = optimizer.init(start).weights
    found, state = follow(optimizer, start, steps)
    np.testing.assert_array_equal(found["w"], state.weights["w"].astype(jnp.bfloat16))
    expected, _ = follow(inner, copy, [jax.tree.map(lambda x: x.astype(jnp.float32), step) for step in steps])
    close(state.weights["w"], expected["w"], rounding(9 * 8))  # the same program but for how it is fused
    assert {x.dtype.name for x in jax.tree.leaves(state)} <= {"float32", "int32"}
    assert np.abs(np.float64(found["w"] / start["w"]) - 1).max() > 0.5


def test_a_second_moment_shrinks_in_float32_alone():
    """By hand: of a gradient of 1 and then 300 of 0, AdamW's nu is 0.001 * 0.999**300. bfloat16 takes 0.999 for 1."""
    start = {"w": jnp.ones(3, jnp.bfloat16)}
    steps = [start, *[jax.tree.map(jnp.zeros_like, start)] * 300]
    nu = {}
    for way in optimizers.ROUNDING:
        _, state = follow(optimizers.rounded(optimizers.make("adamw"), start, way, KEY), start, steps)
        nu[way] = (state if way == "nearest" else state.inner)[0].nu["w"]
    for way in ("master", "stochastic"):
        close(nu[way], jnp.full(3, 0.001 * 0.999**300), rounding(300))
    assert nu["nearest"].tolist() == [float(jnp.bfloat16(0.001))] * 3


# Where the copy begins.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_copy_begins_at_numbers_that_are_rounded_to_the_weights(dtype):
    largest = float(jnp.finfo(dtype).max)
    odd = [1.0, 2.0, -0.5, 0.0, -0.0, 1e-7, 6e-8, -3e-6, largest, -largest, np.inf, np.nan]
    weights = jnp.concatenate([drawn(10_000, dtype=dtype), jnp.asarray(odd, dtype)])
    copy = optimizers.spread(KEY, weights)
    assert copy.dtype == jnp.float32
    np.testing.assert_array_equal(*(np.float32(x) for x in (copy.astype(dtype), weights)))
    assert np.mean(np.asarray(copy[:10_000] != weights[:10_000])) > 0.99
    assert copy[10_003:10_005].tolist() == [0.0, 0.0]  # not a smallest number of float32


def test_what_is_used_moves_as_far_as_the_copy_from_the_first_step_on():
    """One step of a tenth of bfloat16's: from the middle no weight would move. On average each moves by that tenth."""
    start, step = {"w": jnp.full(MANY, 1.5, jnp.bfloat16)}, [{"w": jnp.full(MANY, 0.1 * 2.0**-7, jnp.float32)}]
    found, _ = follow(optimizers.rounded(optax.sgd(1.0), start, None, KEY), start, step)
    moved = float(jnp.mean(found["w"] != start["w"]))
    assert set(np.unique(np.float64(found["w"]))) == {1.5, 1.5 - 2.0**-7}
    close(np.float64(moved), np.float64(0.1), stated(5 * np.sqrt(0.9 / 0.1 / MANY), "5 standard errors"))


# Rounding by chance.


def test_a_number_becomes_one_of_its_two_neighbours_and_is_right_on_average():
    """1 + 2**-9 is a quarter of the way from 1 to 1 + 2**-7; the others by their places between their neighbours."""
    cases = {  # number: its two neighbours
        1 + 2.0**-9: (1.0, 1 + 2.0**-7),
        -(1 + 2.0**-9): (-(1 + 2.0**-7), -1.0),
        3.0: (3.0, 3.0),
        0.0: (0.0, 0.0),
        2 - 2.0**-10: (2 - 2.0**-7, 2.0),  # across a power of two
        2.0**-130: (2.0**-130, 2.0**-130),  # below the normal numbers, and a bfloat16
        2.0**-132 * 1.375: (2 * 2.0**-133, 3 * 2.0**-133),  # and between two of those
    }
    x = jnp.asarray(list(cases), jnp.float32)
    keys = jax.random.split(KEY, MANY)
    found = np.float64(jax.vmap(lambda key: optimizers.round_stochastically(key, x))(keys))  # (MANY, cases)
    for column, (number, (low, high)) in zip(found.T, cases.items(), strict=True):
        assert set(column) == {low, high}, number
        error = (high - low) / 2 / np.sqrt(MANY)
        assert abs(column.mean() - np.float64(np.float32(number))) <= 5 * error, number


def test_what_is_no_number_stays_so_and_the_largest_may_become_infinite():
    x = jnp.asarray([np.nan, np.inf, -np.inf], jnp.float32)
    # A NaN whose every bit is set: a carry would make it -0.
    x = jnp.append(x, jax.lax.bitcast_convert_type(jnp.uint32(0x7FFFFFFF), jnp.float32))
    for key in jax.random.split(KEY, 20):
        found = optimizers.round_stochastically(key, x)
        np.testing.assert_array_equal(np.float32(found), np.float32([np.nan, np.inf, -np.inf, np.nan]))
    large = jnp.full(1000, np.finfo(np.float32).max)
    found = np.unique(np.float32(optimizers.round_stochastically(KEY, large)))
    assert set(found) <= {np.float32(jnp.finfo(jnp.bfloat16).max), np.inf}


def test_the_same_key_rounds_the_same_and_another_another():
    start, steps = {"w": drawn(40, 5)}, [{"w": drawn(40, 5, seed=seed)} for seed in range(1, 6)]

    def run(key):
        optimizer = optimizers.rounded(optax.adamw(1e-3), start, "stochastic", key)
        return np.float32(follow(optimizer, start, steps)[0]["w"])

    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.PRNGKey(1)))  # JAX's older kind
    assert (run(jax.random.key(1)) != run(jax.random.key(2))).any()
    assert np.isfinite(run(jax.random.key(1, impl="rbg"))).all()


def test_each_step_and_each_leaf_draws_anew():
    start = {"a": jnp.full(MANY, 1.5, jnp.bfloat16), "b": jnp.full(MANY, 1.5, jnp.bfloat16)}
    step = jax.tree.map(lambda x: jnp.full(MANY, 2.0**-8, jnp.bfloat16), start)  # half a step
    one, _ = follow(optimizers.rounded(optax.sgd(1.0), start, "stochastic", KEY), start, [step])
    both, _ = follow(optimizers.rounded(optax.sgd(1.0), start, "stochastic", KEY), start, [step, step])
    first, second = (np.asarray(x != 1.5) for x in (one["a"], one["b"]))
    again = np.asarray(both["a"] != one["a"])
    for other in (second, again):
        assert abs(np.mean(first == other) - 0.5) < 5 * 0.5 / np.sqrt(MANY)


# Trees of several dtypes, and what is refused.


@pytest.mark.parametrize("way", ["master", "stochastic"])
def test_what_is_in_float32_beside_it_is_neither_copied_nor_rounded(way):
    start = {"scale": jnp.ones(3), "w": jnp.ones(4, jnp.bfloat16)}
    step = [jax.tree.map(lambda x: jnp.full_like(x, 2.0**-12), start)]
    found, state = follow(optimizers.rounded(optax.sgd(1.0), start, way, KEY), start, step)
    assert found["scale"].tolist() == [1 - 2.0**-12] * 3
    assert [x.shape for x in jax.tree.leaves(state)] == ([(4,)] if way == "master" else [(2,)])
    assert {name: x.dtype.name for name, x in found.items()} == {"scale": "float32", "w": "bfloat16"}


def test_nothing_is_wrapped_where_nothing_is_in_16_bits():
    plain = optax.adamw(1e-3)
    assert optimizers.rounded(plain, {"w": jnp.ones(3)}) is plain
    assert optimizers.rounded(plain, {"w": jnp.ones(3, jnp.bfloat16)}, "nearest") is plain
    assert optimizers.rounded(plain, {"w": jnp.ones(3, jnp.bfloat16)}) is not plain


def test_a_master_of_a_master_copies_nothing_more():
    start = {"w": jnp.ones(6, jnp.bfloat16)}
    once = optimizers.rounded(optax.sgd(0.1), start)
    assert sum(x.nbytes for x in jax.tree.leaves(optimizers.rounded(once, start).init(start))) == 4 * 6


@pytest.mark.parametrize(
    ("dtype", "way", "key", "words"),
    [
        (jnp.bfloat16, "up", KEY, "there is no rounding 'up': choose master, stochastic, nearest"),
        (jnp.float32, "up", KEY, "there is no rounding 'up': choose master, stochastic, nearest"),
        (
            jnp.float32,
            "master",
            KEY,
            "nothing that trains is in 16 bits, so nothing is rounded: leave out",
        ),
        (jnp.bfloat16, "stochastic", None, "stochastic rounding draws random numbers: give a key"),
        (jnp.float16, "stochastic", KEY, "stochastic rounding is of bfloat16, and what trains is in float16: take rou"),
    ],
)
def test_what_cannot_be_rounded_is_refused(dtype, way, key, words):
    with pytest.raises(InputError, match=words):
        optimizers.rounded(optax.sgd(0.1), {"w": jnp.ones(3, dtype)}, way, key)


# Clipping.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("size", [1e-5, 1e-2, 300.0])
def test_the_norm_that_clips_is_that_of_float64(dtype, size):
    """In float16 the square of 1e-5 is 0 and that of 300 is infinite; in bfloat16 a sum of leaves has 8 bits."""
    gradients = {n: size * drawn(50, dtype=dtype, seed=n) for n in range(30)}
    flat = np.concatenate([np.float64(x) for x in gradients.values()])
    most = np.linalg.norm(flat) / 2
    clipped, _ = optimizers.clip_by_norm(most).update(gradients, optax.EmptyState())
    assert {x.dtype for x in clipped.values()} == {jnp.dtype(dtype)}
    found = np.concatenate([np.float64(x) for x in clipped.values()])
    room = (
        rounding(1, dtype) if size > 1e-4 or dtype != jnp.float16 else stated(0.01, "float16 has steps of 6e-8 there")
    )
    close(found, flat / 2, room)
    kept, _ = optimizers.clip_by_norm(1.01 * np.linalg.norm(flat)).update(gradients, optax.EmptyState())
    assert all((kept[name] == gradients[name]).all() for name in gradients)


# By name.


@pytest.mark.parametrize(("name", "moments"), [("adamw", 2), ("momentum", 1), ("sgd", 0)])
def test_moments_have_the_dtype_asked_for(name, moments):
    state = optimizers.make(name, moments=jnp.float32).init({"w": jnp.ones((4, 3), jnp.bfloat16)})
    kinds = sorted(str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.shape == (4, 3))
    # AdamW's second moment has the dtype of what it works on, whatever is asked: optax's rule.
    assert kinds == {0: [], 1: ["float32"], 2: ["bfloat16", "float32"]}[moments]


def test_adafactor_holds_rows_and_columns():
    state = optimizers.make("adafactor").init({"w": jnp.ones((200, 300))})
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 600


def test_another_optimizer_is_refused():
    with pytest.raises(InputError, match="there is no optimizer 'lion': choose adamw, adafactor, sgd, momentum"):
        optimizers.make("lion")
