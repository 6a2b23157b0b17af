"""The comparison that the tests share: it can fail, its tolerance is that of rounding, and what it used is listed."""

import jax.numpy as jnp
import numpy as np
import pytest
from close import backward_pass, close, difference, forward_pass, rounding, stated, worst
from small import CONFIG

DRAW = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def off_the_record(monkeypatch):
    """What fails here on purpose is no comparison of the suite."""
    monkeypatch.delenv("SHARES", raising=False)


@pytest.mark.parametrize("terms", [5, 24, 700])
def test_sums_in_another_order_use_a_tenth_and_a_wrong_factor_is_seen(terms):
    """Random sums one after another in float32, against float64: as far off as any order of them may be."""
    a, b = (DRAW.standard_normal((200, terms)).astype("float32") for _ in range(2))
    found = np.cumsum(a * b, axis=1, dtype=np.float32)[:, -1]
    expected = (a.astype(np.float64) * b).sum(axis=1)
    assert 0 < difference(found, expected) < rounding(terms).share / 10
    close(found, expected, rounding(terms))
    with pytest.raises(AssertionError, match=f"it differs by .* is allowed for {terms} roundings to float32"):
        close(found * np.float32(1.001), expected, rounding(terms))


def test_a_tolerance_grows_with_the_roundings_and_their_size():
    assert rounding(1).share == 10 * 2.0**-24
    assert rounding(1, jnp.bfloat16).share == 10 * 2.0**-8
    assert rounding(400).share / rounding(100).share == 2
    assert rounding(forward_pass(CONFIG, 9)).share < rounding(backward_pass(CONFIG, 9, 5)).share < 2e-4


def test_trees_are_compared_leaf_by_leaf_and_by_name():
    tree = {"large": np.asarray([1e6, 1.0]), "small": np.asarray([1e-6])}
    close(tree, {"large": np.asarray([1e6, 1.0 + 1e-3]), "small": np.asarray([1e-6])}, rounding(1))
    with pytest.raises(AssertionError, match="small differs by"):
        close(tree, tree | {"small": np.asarray([2e-6])}, rounding(1))
    with pytest.raises(AssertionError):
        close(tree, {"large": tree["large"]}, rounding(1))
    with pytest.raises(AssertionError, match=r"shape \(2,\), not \(1,\)"):
        close(tree["large"], tree["small"], rounding(1))


@pytest.mark.parametrize("found", [np.nan, np.inf])
def test_what_is_not_finite_is_never_close(found):
    with pytest.raises(AssertionError, match="differs by inf"):
        close(np.asarray([1.0, found]), np.ones(2), stated(1e9, "anything"))


def test_nothing_but_zero_is_close_to_zero():
    close(np.zeros(3), np.zeros(3), rounding(1))
    with pytest.raises(AssertionError, match="differs by inf"):
        close(np.full(3, 1e-30), np.zeros(3), rounding(1))


def test_what_was_used_of_each_tolerance_is_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARES", str(tmp_path / "shares"))
    for size in (1.01, 1.02):
        close(size, 1.0, stated(0.1, "a reason"))
    close(1.05, 1.0, stated(0.1, "another"))
    first, second = worst(tmp_path / "shares")
    assert [round(float(row[0]), 6) for row in (first, second)] == [0.5, 0.2]
    assert "test_close.py:" in first[1] and first[4:] == ["another", "test_what_was_used_of_each_tolerance_is_listed"]
