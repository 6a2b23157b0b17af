"""What a checkpoint says of its run, by hand or by chance something else; and numbers that are none."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from lora_jax.errors import InputError
from lora_jax.files import checkpoint
from lora_jax.tuning.loop import fit

SETTINGS = {"rank": 8}


def run(path, steps=2):
    """A run of a few steps, which goes on from what stands at `path`."""

    def loss(trainable, frozen, batch):
        return (trainable["t"] ** 2).sum()

    start, rate = {"t": jnp.ones(2)}, optax.adam(0.1)
    batches = [{"tokens": np.ones((1, 3), np.int32), "mask": np.ones((1, 3), np.int32)}] * 9
    how = {"steps": steps, "checkpoint": path, "about": SETTINGS, "progress": False}
    return fit(loss, trainable=start, frozen=None, batches=batches, optimizer=rate, **how)


@pytest.fixture
def path(tmp_path):
    run(tmp_path / "c")
    return tmp_path / "c"


def say(path, about):
    """The checkpoint with another text in its metadata, as another program would write it: without a checksum."""
    save_file(load_file(path), path, {"about": about if isinstance(about, str) else json.dumps(about)})


def test_what_is_altered_below_goes_on_as_it_is(path):
    say(path, checkpoint.about(path))
    assert run(path, steps=4).step == 4


GOOD = {"run": SETTINGS, "step": 2, "losses": [2.0, 1.5], "evaluations": [[0, 2.5]]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": None}, "run is None, but must be an object"),
        ({"run": [1]}, r"run is \[1\], but must be an object"),
        ({"run": "x"}, "run is 'x', but must be an object"),
        ({"step": -1}, "step is -1, but must be a number, and a whole one of 0 to"),
        ({"step": 2.0}, "step is 2.0, but must be"),
        ({"step": "2"}, "step is '2', but must be"),
        ({"step": None}, "step is None, but must be"),
        ({"step": True}, "step is True, but must be"),
        ({"step": 2**63}, "step is 9223372036854775808, but must be"),
        ({"step": [2]}, r"step is \[2\], but must be"),
        ({"step": 3}, r"losses is \[2.0, 1.5\], and must be 3 finite numbers, one a step"),
        ({"losses": [2.0]}, r"losses is \[2.0\], and must be 2 finite numbers"),
        ({"losses": [2.0, None]}, r"losses is \[2.0, None\], and must be 2 finite numbers"),
        ({"losses": [2.0, "1"]}, r"losses is \[2.0, '1'\], and must be 2 finite numbers"),
        ({"losses": [2.0, True]}, r"losses is \[2.0, True\], and must be 2 finite numbers"),
        ({"losses": [2.0, float("nan")]}, r"losses is \[2.0, nan\], and must be 2 finite numbers"),
        ({"losses": 2.0}, "losses is 2.0, and must be 2 finite numbers"),
        ({"losses": {"0": 1, "1": 2}}, "losses is .*, and must be 2 finite numbers"),
        ({"evaluations": None}, "evaluations is None, and must be pairs of a step and a finite loss"),
        ({"evaluations": [[0]]}, r"evaluations is \[\[0\]\], and must be pairs"),
        ({"evaluations": [[0, 1, 2]]}, "evaluations is .*, and must be pairs"),
        ({"evaluations": [0, 1]}, r"evaluations is \[0, 1\], and must be pairs"),
        ({"evaluations": [["0", 1.0]]}, "evaluations is .*, and must be pairs"),
        ({"evaluations": [[0, None]]}, "evaluations is .*, and must be pairs"),
        ({"evaluations": [[0, float("inf")]]}, "evaluations is .*, and must be pairs"),
        ({"evaluations": {"0": 1}}, "evaluations is .*, and must be pairs"),
    ],
)
def test_what_a_checkpoint_says_is_checked_by_type_and_range(path, changes, words):
    say(path, GOOD | changes)
    with pytest.raises(InputError, match=f"c: (what it says of its run: )?{words}") as told:
        run(path, steps=4)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", GOOD)
def test_what_is_not_there_is_named(path, name):
    say(path, {key: found for key, found in GOOD.items() if key != name})
    with pytest.raises(InputError, match=f"c: (what it says of its run: )?{name} is "):
        run(path, steps=4)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"x"', "[" * 100_000, '{"step":' + "9" * 5000 + "}", "{}"]
)
def test_a_text_that_is_no_object_is_one_sentence(path, text):
    say(path, text)
    with pytest.raises(InputError, match="c: what it says of its run") as told:
        run(path, steps=4)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400 + len(str(path))


def test_a_flipped_digit_in_what_it_says_is_told(path):
    data = path.read_bytes()
    assert data.count(b'\\"step\\": 2') == 1
    path.write_bytes(data.replace(b'\\"step\\": 2', b'\\"step\\": 3'))
    with pytest.raises(InputError, match="c is not what was written"):
        run(path, steps=4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_neither_saved_nor_gone_on_with(path, value):
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"c: t\.b holds numbers that are not finite"):
        checkpoint.save(path, {"t": {"a": jnp.ones(2), "b": jnp.array([1.0, value], jnp.bfloat16)}}, {})
    assert path.read_bytes() == before
    arrays = load_file(path)
    name = min(name for name, array in arrays.items() if array.dtype == np.float32)
    save_file(arrays | {name: np.full_like(arrays[name], value)}, path, {"about": json.dumps(GOOD)})
    with pytest.raises(InputError, match=f"c: {name.replace('.', '[.]')} holds numbers that are not finite"):
        run(path, steps=4)
