"""Plain data as a text that anybody may have written: what `dumps` never writes is refused, in bounded memory."""

import math

import numpy as np
import pytest

from lora_jax.exercises import plain

GOOD = [None, True, 1, -1.5, math.inf, -math.inf, "é", [1, (2, "a")], {"a": {1: [None]}}, 10**299,
        np.arange(6, dtype=np.float32).reshape(2, 3)]  # fmt: skip


@pytest.mark.parametrize("value", GOOD, ids=repr)
def test_what_is_written_is_read(value):
    found = plain.loads(plain.dumps(value))
    assert (
        type(found) is type(value) and np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value
    )


def test_the_deepest_and_the_largest_that_a_learner_may_return_are_read():
    deep, wide = 0, list(range(plain.MAX_ITEMS - 1))
    for i in range(plain.MAX_DEPTH):
        deep = {"a": deep} if i % 2 else (deep,)
    for value in (deep, wide, {str(i): i for i in range(plain.MAX_ITEMS // 2 - 1)}):
        assert plain.loads(plain.dumps(plain.to_plain(value))) == value


TEXTS = [
    "", "{", "[" * 100_000, '{"tuple":[' * 500 + "]}" * 500, "NaN", "1e400", "Infinity", "9" * 5000, '{"a": 1}', "{}",
    '{"tuple": 1}', '{"dict": [1]}', '{"dict": [[1]]}', '{"dict": [[null, 1]]}', '{"float": "1"}', '{"float": []}',
    '{"array": 1}', '{"array": ["object", [1], ""]}', '{"array": ["float32", [1], "%%"]}', '"\\ud800"', "\ud800",
    '{"array": ["O", [1], ""]}', '{"array": ["float32", [1000000000000], "AAAA"]}', '{"tuple": [], "tuple": []}',
    '{"array": ["float32", [-1, -1], "AAAAAA=="]}', '{"array": ["float32", "1", "AAAAAA=="]}x',
    '{"array": ["float32", [' + "9" * 900 + '], ""]}', "[" + "0," * 999_999 + "0]",
    '{"array": [["float32"], [1], ""]}', '{"array": ["float32", {}, "A"]}',
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:30])
def test_what_is_never_written_is_refused(text):
    with pytest.raises(plain.NotPlain):
        plain.loads(text)
    with pytest.raises(plain.NotPlain):
        plain.loads(text.encode(errors="surrogatepass"))


@pytest.mark.parametrize("data", [b"\xff", b"\xff\xfe1\0", b"\xc3", b"1\0"])
def test_bytes_that_are_no_text_are_refused(data):
    with pytest.raises(plain.NotPlain):
        plain.loads(data)
