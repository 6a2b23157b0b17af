"""Optimizers by name, and what becomes of updates that are too small for weights in 16 bits.

A bfloat16 has 8 significant bits: the next number after 1 is 1 + 2**-7, and 1 + 2**-9 is rounded to 1. An update of
AdamW is about as large as the learning rate, so that most of them are lost where they are added to such a weight, and
a second moment, which should shrink by a thousandth, stays where it is. Three ways, by name (`ROUNDING`):

- "master": the optimizer works on a float32 copy of the weights, its own moments in float32; the weights that are used
  are that copy, rounded. It holds 4 bytes a weight more (arXiv 1710.03740). See `spread` for where the copy begins.
- "stochastic": no copy. The sum is formed in float32 and rounded up or down by chance, so that it is right on average:
  an update that is a tenth of a step of bfloat16 makes the step once in ten times (arXiv 2010.06192).
- "nearest": everything in 16 bits, as optax does it when it is given such weights: to show what goes wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_jax.errors import InputError

ROUNDING = {  # the first is what is done where nothing is said
    "master": "a float32 copy of the weights takes the updates",
    "stochastic": "the weights take the updates, rounded up or down by chance",
    "nearest": "the weights take the updates, rounded to the nearest: small ones are lost",
}


def make(name: str, rate: Any = 1e-3, *, moments: Any = None) -> optax.GradientTransformation:
    """AdamW, Adafactor, SGD, or SGD with momentum. `moments` is the dtype of AdamW's mu and of momentum's trace.

    What it does not name has the dtype of what the optimizer works on (optax's rule; AdamW's nu always does). Raises
    InputError where there is no such optimizer.
    """
    known = {
        "adamw": lambda: optax.adamw(rate, mu_dtype=moments),
        "adafactor": lambda: optax.adafactor(rate),
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=0.9, accumulator_dtype=moments),
    }
    if name not in known:
        raise InputError(f"there is no optimizer {name!r}: choose {', '.join(known)}")
    return known[name]()


def is_16_bits(x: Any) -> bool:
    """Whether an array (or a shape) is of bfloat16 or float16."""
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2


def check_rounding(rounding: str | None) -> str:
    """The way that is meant. Raises InputError where there is none of that name."""
    if rounding is not None and rounding not in ROUNDING:
        raise InputError(f"there is no rounding {rounding!r}: choose {', '.join(ROUNDING)}")
    return rounding or next(iter(ROUNDING))


def rounded(
    inner: optax.GradientTransformation, params: Any, rounding: str | None = None, key: Any = None
) -> optax.GradientTransformation:
    """`inner` for `params` (arrays or shapes), of which those in 16 bits take its updates by `rounding`.

    Where nothing of them is in 16 bits it is `inner` itself. "stochastic" draws from `key` at every step, "master" once
    and from any key. Raises InputError where there is no such rounding, where it is given and there is nothing to
    round, and where "stochastic" has no key or is of float16.
    """
    way, dtypes = check_rounding(rounding), {x.dtype.name for x in jax.tree.leaves(params) if is_16_bits(x)}
    if not dtypes and rounding is not None:
        raise InputError(f"nothing that trains is in 16 bits, so nothing is rounded: leave out rounding {rounding!r}")
    if not dtypes or way == "nearest":
        return inner
    if way == "master":
        return float32_master(inner, jax.random.key(0) if key is None else key)
    if key is None:
        raise InputError("stochastic rounding draws random numbers: give a key")
    if "float16" in dtypes:
        raise InputError("stochastic rounding is of bfloat16, and what trains is in float16: take rounding 'master'")
    return stochastic(inner, key)


class Master(NamedTuple):
    """In float32 what is held in 16 bits elsewhere (None for the rest), and the state of the optimizer on it."""

    weights: Any
    inner: Any


def float32_master(inner: optax.GradientTransformation, key: Any) -> optax.GradientTransformation:
    """`inner` on a float32 copy of the weights in 16 bits, which `key` spreads: small updates add up in the copy."""

    def init(params: Any) -> Master:
        copy = jax.tree.map(lambda one, x: spread(one, x) if is_16_bits(x) else None, _keys(key, params), params)
        return Master(copy, inner.init(_whole(copy, params)))

    def update(gradients: Any, state: Master, params: Any = None) -> tuple[Any, Master]:
        weights = _whole(state.weights, params)
        updates, inner_state = inner.update(_to_float32(gradients), state.inner, weights)
        new = optax.apply_updates(weights, updates)
        copy = jax.tree.map(lambda old, x: None if old is None else x, state.weights, new, is_leaf=_is_none)
        used = jax.tree.map(_nearest, new, params)
        return _difference(used, params, updates), Master(copy, inner_state)

    return optax.GradientTransformation(init, update)


def spread(key: Any, x: Any) -> Any:
    """For each number in 16 bits one, drawn by chance, of the float32 numbers that are rounded to it. 0 stays 0.

    A float32 copy that began as the number itself, in the middle of these, would have to move by half a step of 16 bits
    before the rounded copy moved at all: as long as updates have come to less, what is used lags behind the copy. From
    a random place a tenth of a step takes one number in ten across, and what is used moves as far, on average, as the
    copy does.
    """
    half = 2 ** (22 - jnp.finfo(x.dtype).nmant)  # of the numbers between two neighbours in 16 bits
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    moved = bits + jax.random.randint(key, x.shape, 1 - half, half).astype(jnp.uint32)
    found = jax.lax.bitcast_convert_type(moved, jnp.float32)
    return jnp.where((x == 0) | ~jnp.isfinite(x), x.astype(jnp.float32), found)


class Stochastic(NamedTuple):
    """The key that the next update draws with (its numbers, as a checkpoint holds them), and the optimizer's state."""

    key: Any
    inner: Any


def stochastic(inner: optax.GradientTransformation, key: Any) -> optax.GradientTransformation:
    """`inner` with its moments in float32, and new weights that `round_stochastically` makes bfloat16 again."""

    def init(params: Any) -> Stochastic:
        return Stochastic(jax.random.key_data(key), inner.init(_to_float32(params)))

    def update(gradients: Any, state: Stochastic, params: Any = None) -> tuple[Any, Stochastic]:
        weights = _to_float32(params)
        updates, inner_state = inner.update(_to_float32(gradients), state.inner, weights)
        new = optax.apply_updates(weights, updates)
        after, now = jax.random.split(jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key)))

        def by_chance(one: Any, x: Any, old: Any) -> Any:
            return round_stochastically(one, x).astype(jnp.float32) if is_16_bits(old) else x

        used = jax.tree.map(by_chance, _keys(now, params), new, params)
        return _difference(used, params, updates), Stochastic(jax.random.key_data(after), inner_state)

    return optax.GradientTransformation(init, update)


def round_stochastically(key: Any, x: Any) -> Any:
    """Float32 `x` as one of its two neighbours in bfloat16, the nearer one the likelier: the mean is exactly `x`.

    A bfloat16 is the upper 16 bits of a float32. The lower 16 bits say how far `x` lies from the neighbour that they
    are cut off to towards the next one, in 65,536ths. A random number of 16 bits is added: it carries into the upper
    half with just that probability, and then the lower half is cut off.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    chance = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + chance) >> 16).astype(jnp.uint16)
    found = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), found, x.astype(jnp.bfloat16))  # a carry would make another number of a NaN


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, worked out in float32: the squares of small numbers in float16 are 0."""
    clip = optax.clip_by_global_norm(most)

    def update(gradients: Any, params: Any) -> Any:
        clipped, _ = clip.update(_to_float32(gradients), optax.EmptyState())
        return optax.tree.cast_like(clipped, gradients)

    return optax.stateless(update)


def _to_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_16_bits(x) else x, tree)


def _keys(key: Any, tree: Any) -> Any:
    """A key for each leaf."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))


def _is_none(x: Any) -> bool:
    return x is None


def _whole(copy: Any, params: Any) -> Any:
    """The tree that the optimizer works on: the copy where there is one, else the weight itself."""
    return jax.tree.map(lambda ours, x: x if ours is None else ours, copy, params, is_leaf=_is_none)


def _nearest(new: Any, old: Any) -> Any:
    """`new` rounded to the dtype of `old`, and left in float32."""
    if old.dtype == jnp.bfloat16:  # two conversions, there and back, the compiler would leave out
        return jax.lax.reduce_precision(new, exponent_bits=8, mantissa_bits=7)
    return new.astype(old.dtype).astype(jnp.float32) if is_16_bits(old) else new


def _difference(used: Any, params: Any, updates: Any) -> Any:
    """What `optax.apply_updates` has to add to `params` to make them `used`. In float32, where it is exact."""
    return jax.tree.map(
        lambda new, old, update: new - old.astype(jnp.float32) if is_16_bits(old) else update, used, params, updates
    )
