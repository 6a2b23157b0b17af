"""Ledgers: sums, order, what is exact, the tables to the letter, and there and back through JSON."""

import json

import pytest

from lora_jax.errors import InputError
from lora_jax.memory.ledger import Ledger, ledger, row_of
from lora_jax.memory.setup import Setup
from lora_jax.tuning.pretraining import SMALL


def test_rows_stand_in_one_order_and_add_up():
    found = ledger("a step", {"gradients": 3, "weights": 2_000_000_000, "batch": 0}, {"workspace": 5, "odd": 7})
    assert [row.name for row in found] == ["weights", "gradients", "workspace", "odd"]
    assert [row.exact for row in found] == [True, True, False, False]
    assert (found.total, found.static, found["gradients"], found["batch"]) == (2_000_000_015, 2_000_000_003, 3, 0)
    assert Ledger.from_json(json.dumps(found.as_json())) == found
    assert found.as_json()["total"] == found.total


@pytest.mark.parametrize(
    ("name", "full", "row"),
    [
        ("trainable['layers']['mlp']['up_proj']", True, "weights"),
        ("trainable['layers']['mlp']['up_proj'].a", False, "adapters"),
        ("opt_state[0].mu['layers']['mlp']['up_proj'].scale", False, "optimizer state"),
        ("frozen[0]['layers']['mlp']['up_proj'].codes", False, "weights"),
        ("frozen[0]['layers']['mlp']['up_proj'].w.codes", False, "weights"),
        ("frozen[0]['layers']['mlp']['up_proj'].scale", False, "quantization constants"),
        ("frozen[0]['layers']['mlp']['up_proj'].constants.codes", False, "quantization constants"),
        ("frozen[0]['norm']", False, "weights"),
        ("frozen[1]['layers']['mlp']['up_proj'].scaling", False, "adapter constants"),
        ("batch['tokens']", True, "batch"),
        ("something", True, None),
    ],
)
def test_each_leaf_has_its_row(name, full, row):
    assert row_of(name, full) == row


def test_the_table_says_gb_and_gib_and_what_is_an_estimate():
    found = ledger("100B in bfloat16", {"weights": 200_000_000_000}, {"workspace": 2**30})
    assert found.table().splitlines() == [
        "100B in bfloat16",
        "weights                      200.000 GB     186.265 GiB",
        "workspace               ~      1.074 GB       1.000 GiB",
        "total                   ~    201.074 GB     187.265 GiB",
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
        ({"method": "prayer"}, "there is no method 'prayer': choose full or lora"),
        ({"method": "full", "options": {"rank": 3}}, "full fine-tuning has no rank: leave it out"),
        ({"options": {"rnak": 3, "rank": 4}}, "lora has no rnak: it has rank, alpha, targets, "),
        ({"method": "full", "quantize": "nf4"}, "a quantized base is frozen and cannot be trained itself"),
        ({"quantize": "nf5"}, "quantize is 'nf5': choose one of None, nf4, int8"),
        ({"dtype": "float16"}, "dtype is 'float16': choose one of float32, bfloat16"),
        ({"batch": 0}, "batch is 0, and must be a whole number of 1 or more"),
        ({"length": -5}, "length is -5, and must be a whole number of 1 or more"),
        ({"batch": True}, "batch is True, and must be a whole number of 1 or more"),
        ({"rounding": "master"}, "rounding is for weights that train in 16 bits, and adapters train in float32"),
        ({"method": "full", "dtype": "float32", "rounding": "nearest"}, "in 16 bits, and the weights are in float32"),
        ({"method": "full", "rounding": "down"}, "there is no rounding 'down': choose master, stochastic, nearest"),
        ({"accumulate": 0}, "accumulate is 0, and must be a whole number of 1 or more"),
        ({"batch": 4, "accumulate": 3}, "a batch of 4 cannot be accumulated in 3 equal parts"),
    ],
)
def test_a_setup_that_is_none_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        Setup(SMALL, **change)
