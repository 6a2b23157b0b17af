"""The gate for JSON: what it refuses, each in one sentence that names the file, and that it changes nothing else."""

import json
import math
import sys

import pytest

from lora_jax.errors import InputError
from lora_jax.untrusted import json_text

GOOD = [
    {"a": [1, -2, 3.5, 1e-300, True, False, None, "x"], "b": {}, "c": [[]]},
    'a text with { and [ and \\ and " in it, 😀 and \ud7ff',
    [{"{": "[" * 500}],
    10**300,
    [[0] * 3] * 1000,
]


@pytest.mark.parametrize("value", GOOD)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_is_json_reads_as_the_standard_library_reads_it(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1)
    assert json_text.loads(text, "it") == json_text.loads(text.encode(), "it") == json.loads(text)
    assert json_text.loads(b"\xef\xbb\xbf" + text.encode(), "it") == value


REFUSED = {
    # Depth: in lists, in objects, in both, closed and not, behind a string with brackets in it.
    "[" * 100_000: "nested more than 64 deep",
    "[" * 65 + "]" * 65: "nested more than 64 deep",
    '{"a":' * 70 + "1" + "}" * 70: "nested more than 64 deep",
    '[{"a":' * 40 + "1" + "}]" * 40: "nested more than 64 deep",
    '["]]]]]]]]]]", ' + "[" * 65 + "]" * 66: "nested more than 64 deep",
    '{"a": "\\"", "b":' + "[" * 65 + "]" * 65 + "}": "nested more than 64 deep",
    # How many values.
    "[" + "0," * 4_000_000 + "0]": "more than 4,000,000 values",
    "[" + "[]," * 2_000_001 + "0]": "more than 4,000,000 values",
    "[" + "{}," * 2_000_001 + "0]": "more than 4,000,000 values",
    # Numbers.
    "NaN": "NaN is not a finite number",
    '{"a": [Infinity]}': "Infinity is not a finite number",
    "[-Infinity]": "-Infinity is not a finite number",
    "1e400": "the number '1e400' is larger than a float can be",
    "[-1.5E+999]": "the number '-1.5E+999' is larger than a float can be",
    "1" * 400 + ".0": "is larger than a float can be",
    "9" * 5000: "thousands of digits",
    '{"a": -' + "1" * 4400 + "}": "thousands of digits",
    # Letters that are none, in values and in names.
    '"\\ud800"': "surrogate",
    '{"a\\udfff": 1}': "surrogate",
    '["\\ude00\\ud83d"]': "surrogate",
    '"\ud800"': "surrogate",
    b'{"a": "\xff"}': "line 1: not UTF-8",
    b'{\n"a":\n"\xc3"}': "line 3: not UTF-8",
    '{"a": 1}'.encode("utf-16"): "not UTF-8",
    '{"a": 1}'.encode("utf-32"): "not UTF-8",
    # A name twice.
    '{"a": 1, "a": 1}': "the field 'a' stands there twice",
    '[{"b": {"x": 1, "y": 2, "x": 3}}]': "the field 'x' stands there twice",
    # What is no JSON.
    "": "not readable JSON (line 1,",
    "{": "not readable JSON (line 1,",
    "[1,\n2,\n]": "not readable JSON (line ",  # Python 3.13 names the comma, and those before it the bracket
    '{"a": 1}\n{"a": 2}': "not readable JSON (line 2,",
    "{'a': 1}": "not readable JSON",
    '"a\nb"': "not readable JSON",
    '"\\u12"': "not readable JSON",
    '"' + '\\"' * 200_000: "not readable JSON",
    "]" * 100: "not readable JSON",
    "\0": "not readable JSON",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:20]))
def test_what_is_refused_is_one_sentence_with_the_name_of_the_file(text):
    with pytest.raises(InputError) as refusal:
        json_text.loads(text, "the.json")
    said = str(refusal.value)
    assert said.startswith("the.json") and REFUSED[text] in said
    assert len(said) < 200 and said.isprintable()


def test_a_deep_text_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(json.JSONDecoder, "decode", lambda *_: pytest.fail("it was parsed"))
    for text in ("[" * 100_000, "[" + "0," * 4_000_000 + "0]"):
        with pytest.raises(InputError):
            json_text.loads(text, "it")


def test_numbers_of_thousands_of_digits_are_refused_where_python_is_told_to_read_them():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert json_text.loads("9" * 400, "it") == 10**400 - 1
        with pytest.raises(InputError, match="digits"):
            json_text.loads("9" * 5000, "it")
    finally:
        sys.set_int_max_str_digits(before)


def test_what_is_no_finite_number_is_read_where_it_is_asked_for():
    found = json_text.loads("[NaN, Infinity, -Infinity, 1e400]", "it", non_finite=True)
    assert math.isnan(found[0]) and found[1:] == [math.inf, -math.inf, math.inf]


@pytest.mark.parametrize("text", ["[]", "1", "null", '"a"', "true"])
def test_what_is_no_object_where_one_must_be(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json holds a \w+, where a JSON object should be"):
        json_text.load_object(tmp_path / "a.json")


def test_memory_and_the_stack_running_out_are_sentences(monkeypatch):
    for error in (MemoryError(), RecursionError()):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(json.JSONDecoder, "decode", fail)
        with pytest.raises(InputError, match=r"^it: "):
            json_text.loads("[]", "it")


@pytest.mark.parametrize("value", ["x" * 10_000, [[[[[[1]]]]]] * 50, 10**4000, {"a" * 900: {"b" * 900: {}}}, "a\n\x1b"])
def test_a_value_in_a_sentence_is_short_and_printable(value):
    assert len(json_text.shown(value)) < 400 and json_text.shown(value).isprintable()
