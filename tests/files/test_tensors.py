"""safetensors files: what was written is read, what was changed since is told, what nobody could mean is refused."""

import json
import os
import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_jax.errors import InputError
from lora_jax.files import tensors

ARRAYS = {
    "b": np.linspace(-3, 4, 30, dtype=np.float32).reshape(5, 6),
    "a": np.arange(7, dtype=np.int32),
    "c": (np.arange(12) / 8).astype(ml_dtypes.bfloat16).reshape(3, 4),
    "d": np.array(2.5, np.float16),
    "e": np.zeros((0, 3), np.float64),
    "f": np.array([True, False]),
}


def split(path):
    """`(header, bytes behind it)` of a file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(path, header, rest):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    return path


@pytest.fixture
def path(tmp_path):
    tensors.write(tmp_path / "t", ARRAYS, {"format": "pt", "about": '{"step": 5}'})
    return tmp_path / "t"


def test_what_was_written_is_read_and_other_programs_read_it(path):
    found, metadata = tensors.read(path)
    assert metadata["about"] == '{"step": 5}' and metadata["format"] == "pt" and len(metadata["lora_jax_sha256"]) == 64
    for theirs in (found, load_file(path)):
        assert theirs.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert theirs[name].dtype == array.dtype
            np.testing.assert_array_equal(theirs[name], array)
    with safe_open(path, "np") as file:
        assert file.metadata() == metadata


def test_the_checksum_is_the_one_that_the_page_gives(path):
    """Worked out again from the library's own view of the file."""
    import hashlib

    names = {"float32": "F32", "int32": "I32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "bool": "BOOL"}
    summed = hashlib.sha256(json.dumps('{"step": 5}').encode())
    for name, array in sorted(load_file(path).items()):
        summed.update(json.dumps([name, names[str(array.dtype)], list(array.shape)]).encode() + array.tobytes())
    assert tensors.metadata(path)["lora_jax_sha256"] == summed.hexdigest()


def test_a_flipped_bit_of_any_tensor_is_told(path):
    header, rest = split(path)
    for at in range(0, 8 * len(rest), 37):
        changed = bytearray(rest)
        changed[at // 8] ^= 1 << at % 8
        join(path, header, bytes(changed))
        with pytest.raises(
            InputError, match=r"t is not what was written \(its checksum is another\): copy or fetch it a"
        ):
            tensors.read(path)


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "about", "checksum", "places"])
def test_what_the_header_says_of_them_is_under_the_checksum(path, change):
    header, rest = split(path)
    match change:
        case "name":
            header["bb"] = header.pop("b")
        case "dtype":
            header["a"]["dtype"] = "U32"
        case "shape":
            header["b"]["shape"] = [6, 5]
        case "about":
            header["__metadata__"]["about"] = '{"step": 6}'
        case "checksum":
            header["__metadata__"]["lora_jax_sha256"] = "0" * 64
        case "places":
            header["a"], header["b"] = header["b"], header["a"]
    join(path, header, rest)
    with pytest.raises(InputError, match="its checksum is another"):
        tensors.read(path)


def test_a_file_of_another_program_has_no_checksum_and_is_read(path):
    """So is one of ours that another program wrote again."""
    save_file(load_file(path), path, {"format": "pt"})
    assert tensors.read(path)[0].keys() == ARRAYS.keys()
    header, rest = split(path)
    join(path, {name: header[name] for name in reversed(header)}, rest)
    np.testing.assert_array_equal(tensors.read(path)[0]["b"], ARRAYS["b"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(path, value, dtype):
    before = path.read_bytes()
    spoiled = ARRAYS | {"g": np.array([[1, 2], [3, value]], dtype)}
    with pytest.raises(InputError, match="t: g holds numbers that are not finite"):
        tensors.write(path, spoiled, {})
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]
    save_file(spoiled, path)
    with pytest.raises(
        InputError, match=r"t: g holds numbers that are not finite \(NaN or infinity\): train or fetch it"
    ):
        tensors.read(path)


def test_a_float64_that_float32_does_not_hold_is_not_finite_here(path):
    save_file({"a": np.array([1e300])}, path)
    with pytest.raises(InputError, match="t: a holds numbers that are not finite"):
        tensors.read(path)
    save_file({"a": np.array([1e-300, 3e38])}, path)
    assert tensors.read(path)[0]["a"].dtype == np.float64


def test_the_largest_and_smallest_numbers_are_finite(path):
    arrays = {
        str(kind): np.array([np.finfo(kind).max, np.finfo(kind).tiny, -0.0], kind) for kind in (np.float32, np.float16)
    }
    tensors.write(path, arrays, {})
    assert tensors.read(path)[0].keys() == arrays.keys()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "I64", "BOOL"])
def test_a_dtype_that_is_not_asked_for_is_told_by_name(path, dtype):
    size = {"I32": 4, "I64": 8}.get(dtype, 1)
    join(path, {"x": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, 6 * size]}}, bytes(6 * size))
    with pytest.raises(InputError, match=f"t: x is stored as {dtype}; supported are F64, F32, F16, BF16$"):
        tensors.read(path, tensors.FLOATING)


def test_a_dtype_that_is_not_known_is_refused_whatever_is_asked_for(path):
    join(path, {"x": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, bytes(4))
    with pytest.raises(InputError, match="t: x is stored as F8_E8M0; supported are F64"):
        tensors.read(path)
    with pytest.raises(InputError, match=r"t: x is of dtype float8_e4m3fn; written are float64, float32"):
        tensors.write(path, {"x": jnp.ones(3, jnp.float8_e4m3fn)}, {})


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"x": ENTRY}, 23),
        ({"x": ENTRY}, 25),
        ({"x": ENTRY | {"shape": [2, 4]}}, 24),
        ({"x": ENTRY | {"shape": [2**32, 2**32]}}, 24),
        ({"x": ENTRY | {"shape": [-2, -3]}}, 24),
        ({"x": ENTRY | {"shape": "23"}}, 24),
        ({"x": ENTRY | {"shape": None}}, 24),
        ({"x": ENTRY | {"data_offsets": [24, 0]}}, 24),
        ({"x": ENTRY | {"data_offsets": [0]}}, 24),
        ({"x": ENTRY | {"data_offsets": []}}, 24),
        ({"x": ENTRY | {"data_offsets": ["", "a"]}}, 24),
        ({"x": ENTRY | {"data_offsets": [0, 2**63]}}, 24),
        ({"x": ENTRY | {"dtype": "F99"}}, 24),
        ({"x": ENTRY | {"dtype": 8}}, 24),
        ({"x": ENTRY, "y": ENTRY}, 24),
        ({"x": ENTRY, "y": ENTRY | {"data_offsets": [32, 56]}}, 56),
        ({"x": 3}, 24),
        ({"x": None}, 24),
        ([], 24),
        (b"[" * 50_000, 0),
        (b'{"x":' * 1000 + b"1" + b"}" * 1000, 0),
        (
            b'{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
            4,
        ),
        (b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,' + b"4" * 5000 + b"]}}", 4),
        (b"\xff\xfe{}", 0),
        (b"", 0),
        ({"__metadata__": 3, "x": ENTRY}, 24),
        ({"__metadata__": {"about": 3}, "x": ENTRY}, 24),
    ],
)
def test_a_header_that_lies_is_one_sentence(path, header, size):
    join(path, header, bytes(size))
    for read in (tensors.read, tensors.metadata):
        with pytest.raises(
            InputError, match=r"t is not a whole safetensors file \(.+\): fetch or write it again$"
        ) as told:
            read(path)
        assert len(str(told.value)) < 400 + len(str(path)) and "\n" not in str(told.value)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 2**24, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_one_sentence(path, count):
    path.write_bytes(struct.pack("<Q", count) + path.read_bytes()[8:])
    with pytest.raises(InputError, match="t is not a whole safetensors file"):
        tensors.read(path)


def test_a_header_that_nobody_writes_is_not_parsed(path):
    path.write_bytes(struct.pack("<Q", 20_000_000) + b"{" + b" " * 19_999_998 + b"}")
    with pytest.raises(InputError, match="its header has 20,000,000 bytes, and at most 16,000,000 are read"):
        tensors.read(path)


def test_a_file_with_a_terabyte_behind_it_is_refused_before_memory_is_asked_for(path):
    os.truncate(path, 2**40)  # a hole, which takes no room on the disk
    with pytest.raises(InputError, match="its tensors and the bytes behind its header are not as many"):
        tensors.read(path)


def test_a_file_that_is_cut_short_while_it_is_read_is_a_sentence(tmp_path):
    save_file({"x": np.ones((2000, 1000), np.float32)}, tmp_path / "t")
    with tensors.opened(tmp_path / "t") as file:
        os.truncate(tmp_path / "t", 4_000_000)
        with pytest.raises(InputError, match="t ends too early"):
            file.read("x")
