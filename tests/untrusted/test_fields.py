"""The types of fields: what stands there instead is one sentence that names the field, what it is and what is right."""

import math

import pytest

from lora_jax.errors import InputError
from lora_jax.untrusted.fields import Fields

ODD = [True, False, "8", "", [], [8], {}, {"a": 8}, 8.5, math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e300]


@pytest.mark.parametrize("value", [*ODD, 0, -1, 8.0, 10**18, 2**31, -0.0], ids=lambda value: repr(value)[:20])
def test_what_is_no_whole_number(value):
    with pytest.raises(
        InputError, match=r"^it: r is .{1,90}, but must be a number, and a whole one of 1 to 2,147,483,647"
    ):
        Fields({"r": value}, "it").integer("r")


@pytest.mark.parametrize("value", [v for v in ODD if not isinstance(v, float) or v != 8.5], ids=lambda v: repr(v)[:9])
def test_what_is_no_number_of_a_range(value):
    with pytest.raises(InputError, match=r"^it: alpha is .*, but must be a number, finite and above 0 and of at"):
        Fields({"alpha": value}, "it").number("alpha", above=0, high=10)


def test_the_ends_of_a_range():
    fields = Fields({"zero": 0, "one": 1, "minus": -0.0}, "it")
    assert fields.number("zero", low=0) == 0 and fields.number("one", high=1) == 1
    outside = (
        ("zero", {"above": 0}, "above 0"),
        ("one", {"below": 1}, "below 1"),
        ("minus", {"above": 0}, "above 0"),
        ("zero", {"low": 1, "below": 3}, "of 1 or more and below 3"),
    )
    for name, limits, said in outside:
        with pytest.raises(InputError, match=said):
            fields.number(name, **limits)
    assert fields.integer("zero", low=0) == 0


@pytest.mark.parametrize("value", [0, 1, "true", "", [], {}, 1.0, 10**300])
def test_what_is_neither_true_nor_false(value):
    with pytest.raises(InputError, match="but must be true or false"):
        Fields({"tied": value}, "it").flag("tied")


@pytest.mark.parametrize("value", [0, 1.5, True, [], {}, ["a"]])
def test_what_is_no_text_and_no_object(value):
    with pytest.raises(InputError, match="but must be a text"):
        Fields({"name": value}, "it").text("name")
    if not isinstance(value, dict):
        with pytest.raises(InputError, match="but must be an object"):
            Fields({"name": value}, "it").object("name")


def test_null_and_absent_have_the_default_or_are_refused():
    fields = Fields({"a": None, "o": {"x": None}}, "it")
    assert fields.integer("a", 3) == fields.integer("b", 3) == 3 and fields.flag("b", False) is False
    assert not fields.has("a") and not fields.has("b") and fields.has("o")
    with pytest.raises(InputError, match=r"^it: a is None, but must be a number, and a whole one"):
        fields.integer("a")
    with pytest.raises(InputError, match=r"^it: o: y is None, but must be a number, finite$"):
        fields.object("o").number("y")


def test_a_value_of_any_size_makes_a_short_sentence():
    for value in ("x" * 10**6, [[[[0] * 1000] * 1000]], "a\nb\x1b[2J"):
        with pytest.raises(InputError) as refusal:
            Fields({"r": value}, "it").integer("r")
        assert len(str(refusal.value)) < 300 and str(refusal.value).isprintable()
