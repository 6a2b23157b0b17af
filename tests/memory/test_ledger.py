"""Ledgers: sums, order, what is exact, the tables to the letter, and there and back through JSON."""

import json

import pytest

from lora_jax.errors import InputError
from lora_jax.memory.ledger import Ledger, ledger
from lora_jax.memory.setup import Setup
from lora_jax.pretraining import SMALL


def test_rows_stand_in_one_order_and_add_up():
    found = ledger("a step", {"gradients": 3, "weights": 2_000_000_000, "batch": 0}, {"workspace": 5, "odd": 7})
    assert [row.name for row in found] == ["weights", "gradients", "workspace", "odd"]
    assert [row.exact for row in found] == [True, True, False, False]
    assert (found.total, found.static, found["gradients"], found["batch"]) == (2_000_000_015, 2_000_000_003, 3, 0)
    assert Ledger.from_json(json.dumps(found.as_json())) == found
    assert found.as_json()["total"] == found.total


def test_the_table_says_gb_and_gib_and_what_is_an_estimate():
    found = ledger("100B in bfloat16", {"weights": 200_000_000_000}, {"workspace": 2**30})
    assert found.table().splitlines() == [
        "100B in bfloat16",
        "                                    GB           GiB",
        "weights                        200.000       186.265",
        "workspace               ~        1.074         1.000",
        "total                   ~      201.074       187.265",
    ]


def test_two_ledgers_are_compared_row_by_row():
    mine, other = ledger("formula", {"weights": 110, "batch": 4}), ledger("device", {"weights": 100, "gradients": 10})
    lines = mine.compare(other).splitlines()
    assert lines[0] == "formula against device"
    errors = {line[:24].strip(): line.split()[-1] for line in lines[2:]}
    assert errors == {"weights": "+10.00%", "batch": "here", "gradients": "-100.00%", "total": "+3.64%"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": "prayer"}, "method is 'prayer': choose one of full, lora, qlora"),
        ({"dtype": "float16"}, "dtype is 'float16': choose one of float32, bfloat16"),
        ({"batch": 0}, "batch is 0, and must be a whole number of 1 or more"),
        ({"length": -5}, "length is -5, and must be a whole number of 1 or more"),
        ({"rank": True}, "rank is True, and must be a whole number of 1 or more"),
        ({"method": "lora", "master": True}, "a float32 master copy is for full fine-tuning in bfloat16"),
    ],
)
def test_a_setup_that_is_none_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        Setup(SMALL, **change)
