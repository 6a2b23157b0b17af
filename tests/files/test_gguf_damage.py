"""GGUF headers that lie about lengths, counts, types and places, and fields that hold what they should not.

Each is written byte by byte: the library's writer would not write them.
"""

import resource
import struct
import time

import numpy as np
import pytest

from lora_jax.errors import InputError
from lora_jax.files import gguf_header
from lora_jax.files.gguf import load, load_tokenizer

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, FLOAT64 = 4, 5, 6, 7, 8, 9, 10, 12
LETTERS = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?", UINT64: "Q", FLOAT64: "d", 0: "B"}


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, found):
    if kind == ARRAY:
        inner, values = found
        return struct.pack("<IQ", inner, len(values)) + b"".join(value(inner, one) for one in values)
    return text(found) if kind == STRING else struct.pack("<" + LETTERS[kind], found)


def field(key, kind, found):
    return text(key) + struct.pack("<I", kind) + value(kind, found)


def tensor(name="t", dims=(4, 2), kind=0, offset=0, count=None):
    dims = list(dims)
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims) if count is None else count, *dims, kind, offset)


def file(path, fields=(), tensors=(), rest=b"", counts=None, version=3, align=32):
    counts = counts or (len(tensors), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*fields, *tensors))
    path.write_bytes(head + bytes(-len(head) % align) * bool(tensors) + rest)
    return path


A = field("general.architecture", STRING, "llama")


def test_what_is_written_is_read(tmp_path):
    fields = [
        A,
        field("i", INT32, -5),
        field("b", BOOL, True),
        field("f", FLOAT64, 0.1),
        field("s", STRING, "ä"),
        field("bytes", STRING, b"\xff\xfe"),
        field("strings", ARRAY, (STRING, ["a", "", "b"])),
        field("numbers", ARRAY, (FLOAT32, [0.5, -2.0])),
        field("empty", ARRAY, (INT32, [])),
        field("nested", ARRAY, (ARRAY, [(UINT32, [1, 2]), (STRING, ["x"])])),
    ]
    rest = np.arange(8, dtype=np.float32).tobytes()
    header = gguf_header.read(file(tmp_path / "m", fields, [tensor()], rest))
    found = dict(header.said.found)
    nested, empty, numbers = found.pop("nested"), found.pop("empty"), found.pop("numbers")
    assert found == {
        "general.architecture": "llama",
        "i": -5,
        "b": True,
        "f": 0.1,
        "s": "ä",
        "bytes": b"\xff\xfe",
        "strings": ["a", "", "b"],
    }
    assert numbers.tolist() == [0.5, -2] and len(empty) == 0
    assert nested[0].tolist() == [1, 2] and nested[1] == ["x"]
    (one,) = header.tensors.values()
    assert one.shape == (2, 4) and one.count == 32
    assert (tmp_path / "m").read_bytes()[one.start : one.start + one.count] == rest


def deep(levels):
    found = (UINT32, [1])
    for _ in range(levels):
        found = (ARRAY, [found])
    return found


LYING = {
    "fields that are not there": ({"fields": [A], "counts": (0, 2)}, "ends too early"),
    "more fields than bytes": ({"fields": [A], "counts": (0, 2**63)}, "ends too early"),
    "more tensors than bytes": ({"fields": [A], "counts": (2**64 - 1, 1)}, "ends too early"),
    "a text that is longer than the file": (
        {"fields": [text("a") + struct.pack("<IQ", STRING, 2**62) + b"a"]},
        "ends too e",
    ),
    "a key that is longer than the file": ({"fields": [struct.pack("<Q", 2**63) + b"a"]}, "ends too early"),
    "an array that is longer than the file": (
        {"fields": [text("a") + struct.pack("<IIQ", ARRAY, 0, 2**40) + b"a"]},
        "ends too early",
    ),
    "texts that are more than the file": (
        {"fields": [text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**61) + b"a"]},
        "ends too early",
    ),
    "arrays inside arrays": ({"fields": [field("a", ARRAY, deep(200))]}, "arrays are nested more than 4 deep"),
    "an unknown type": ({"fields": [text("a") + struct.pack("<II", 13, 0)]}, "there is no type 13 of a field"),
    "an array of an unknown type": (
        {"fields": [text("a") + struct.pack("<IIQ", ARRAY, 99, 0)]},
        "there is no type 99 of a field",
    ),
    "a field that stands twice": ({"fields": [A, A]}, "the field general.architecture stands there twice"),
    "a key that is not UTF-8": ({"fields": [field(b"\xff", UINT32, 1)]}, "a field has a name that is none"),
    "a key that writes on the terminal": ({"fields": [field("\x1b[2J", UINT32, 1)]}, "a field has a name that is none"),
    "a key of many letters": ({"fields": [field("a" * 2000, UINT32, 1)]}, "a field has a name that is none"),
    "version 1": ({"version": 1}, "its version is 1, and versions 2 and 3 are read"),
    "version 4": ({"version": 4}, "its version is 4"),
    "another kind of machine": ({"version": 3 << 24}, "the order of its bytes is that of another kind of machine"),
    "no dimensions": ({"tensors": [tensor(dims=())]}, "t has 0 dimensions"),
    "many dimensions": ({"tensors": [tensor(count=2**32 - 1)]}, "t has 4294967295 dimensions, and 1 to 4 are possible"),
    "a product that overflows": ({"tensors": [tensor(dims=(2**32, 2**32))]}, "t reaches beyond its end"),
    "a product that is a multiple of 2**64": ({"tensors": [tensor(dims=(2**63, 2))]}, "t reaches beyond its end"),
    "an offset beyond the end": ({"tensors": [tensor(offset=32)], "rest": bytes(32)}, "t reaches beyond its end"),
    "an offset that overflows": (
        {"tensors": [tensor(offset=2**64 - 32)], "rest": bytes(32)},
        "t reaches beyond its end",
    ),
    "an unknown type of tensor": ({"tensors": [tensor(kind=99)], "rest": bytes(32)}, "t is stored as type 99"),
    "a type that was taken back": ({"tensors": [tensor(kind=4)], "rest": bytes(32)}, "t is stored as type 4"),
    "rows that blocks do not fill": (
        {"tensors": [tensor(kind=8)], "rest": bytes(68)},
        "t has rows of 4 numbers, and Q8_0 holds 32 at a time",
    ),
    "a tensor that stands twice": (
        {"tensors": [tensor(), tensor(offset=32)], "rest": bytes(64)},
        "the tensor t stands there twice",
    ),
    "tensors in one place": ({"tensors": [tensor(), tensor("u")], "rest": bytes(32)}, "u lies over t"),
    "tensors that overlap": ({"tensors": [tensor(), tensor("u", offset=16)], "rest": bytes(64)}, "u lies over t"),
    **{
        f"alignment {align}": (
            {"fields": [field("general.alignment", kind, align)], "tensors": [tensor()], "rest": bytes(32)},
            "its general.alignment is no power of two",
        )
        for kind, align in ((UINT32, 0), (UINT32, 3), (FLOAT32, 32.0), (STRING, "32"), (INT32, -8), (BOOL, True))
    },
    "an alignment beyond the file": (
        {"fields": [field("general.alignment", UINT32, 2**31)], "tensors": [tensor()], "rest": bytes(32)},
        "beyond its end",
    ),
}


@pytest.mark.parametrize("name", LYING)
def test_a_header_that_lies_is_one_sentence(tmp_path, name):
    how, words = LYING[name]
    file(tmp_path / "m.gguf", **how)
    for read in (load, load_tokenizer):
        with pytest.raises(InputError, match=r"m\.gguf is not a readable GGUF file \(.*" + words) as told:
            read(tmp_path / "m.gguf")
        assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_tensors_without_numbers_may_share_a_place(tmp_path):
    tensors = [tensor("none", dims=(0, 3)), tensor("t"), tensor("more", dims=(5, 0))]
    assert len(gguf_header.read(file(tmp_path / "m", tensors=tensors, rest=bytes(32))).tensors) == 3


TOKENIZER = [A, field("tokenizer.ggml.model", STRING, "llama"), field("tokenizer.ggml.scores", ARRAY, (FLOAT32, [0.0]))]


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ([text("a") + struct.pack("<IIQ", ARRAY, 0, 4_000_000) + bytes(4_000_000)], 4e6),
        ([text("a") + struct.pack("<IIQ", ARRAY, STRING, 500_000) + bytes(4_000_000)], 4e6),
        ([text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 330_000) + bytes(12 * 330_000)], 4e6),
        ([field(str(i), UINT32, 1) for i in range(150_000)], 4e6),
        ([*TOKENIZER, field("tokenizer.ggml.tokens", ARRAY, (STRING, ["x" * 4_000_000]))], 5e6),
    ],
)
def test_a_header_of_four_megabytes_takes_no_time_and_no_memory(tmp_path, fields, most):
    """It took the library's reader a minute and three gigabytes."""
    path = file(tmp_path / "m.gguf", fields)
    assert path.stat().st_size < most * 1.2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    for read in (load, load_tokenizer):
        with pytest.raises(InputError):
            read(path)
    assert time.process_time() - began < 4  # twice 0.2 s, where nothing else runs
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 200e6


def test_more_texts_than_any_vocabulary_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_header, "TEXTS", 1000)
    fields = [field("a", ARRAY, (STRING, ["x"] * 600)), field("b", ARRAY, (STRING, ["x"] * 600))]
    with pytest.raises(InputError, match="it holds more than 1,000 texts"):
        load(file(tmp_path / "m.gguf", fields))


MODEL = {
    "embedding_length": (UINT32, 8),
    "attention.head_count": (UINT32, 2),
    "feed_forward_length": (UINT32, 12),
    "block_count": (UINT32, 1),
    "attention.layer_norm_rms_epsilon": (FLOAT32, 1e-5),
    "context_length": (UINT32, 64),
    "vocab_size": (UINT32, 11),
    "rope.freq_base": (FLOAT32, 10_000.0),
}


def model(path, **changes):
    names = {name.replace("__", "."): found for name, found in changes.items()}
    fields = {
        **{f"llama.{name}": found for name, found in MODEL.items()},
        "general.architecture": (STRING, "llama"),
        **names,
    }
    return file(path, [field(name, *found) for name, found in fields.items() if found is not None])


NUMBERS = [
    (STRING, "8"),
    (STRING, b"\xff"),
    (ARRAY, (UINT32, [8, 8])),
    (ARRAY, (STRING, ["8"])),
    (BOOL, True),
    (FLOAT32, 8.0),
    (INT32, -8),
    (UINT32, 0),
    (FLOAT64, float("nan")),
]


@pytest.mark.parametrize("wrong", NUMBERS, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "embedding_length",
        "attention.head_count",
        "attention.head_count_kv",
        "block_count",
        "feed_forward_length",
        "context_length",
        "vocab_size",
        "attention.key_length",
        "rope.dimension_count",
        "attention.value_length",
    ],
)
def test_a_size_that_is_none_is_named(tmp_path, name, wrong):
    with pytest.raises(InputError, match=rf"m\.gguf: llama\.{name} is .+, but must be "):
        load(model(tmp_path / "m.gguf", **{f"llama.{name}": wrong}))


@pytest.mark.parametrize(
    "wrong",
    [
        (STRING, "1"),
        (ARRAY, (FLOAT32, [1.0])),
        (BOOL, True),
        (FLOAT32, float("nan")),
        (FLOAT32, float("inf")),
        (FLOAT32, 0.0),
        (FLOAT32, -1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["rope.freq_base", "attention.layer_norm_rms_epsilon"])
def test_a_number_that_is_none_is_named(tmp_path, name, wrong):
    ours = {"rope.freq_base": "rope_theta", "attention.layer_norm_rms_epsilon": "rms_norm_eps"}[name]
    with pytest.raises(InputError, match=rf"m\.gguf: (llama\.{name}|{ours}) is .+ must be "):
        load(model(tmp_path / "m.gguf", **{f"llama.{name}": wrong}))


@pytest.mark.parametrize("name", ["general.architecture", "llama.rope.scaling.type"])
@pytest.mark.parametrize(
    "wrong", [(UINT32, 1), (STRING, b"\xff"), (ARRAY, (STRING, ["llama"])), (BOOL, False)], ids=str
)
def test_a_name_that_is_none_is_named(tmp_path, name, wrong):
    with pytest.raises(InputError, match=rf"m\.gguf: {name} is .+, but must be a text"):
        load(model(tmp_path / "m.gguf", **{name: wrong}))


def test_the_numbers_of_parts_and_experts_are_numbers(tmp_path):
    for name in ("split.count", "llama.expert_count"):
        with pytest.raises(InputError, match=rf"m\.gguf: {name} is 'x', but must be"):
            load(model(tmp_path / "m.gguf", **{name: (STRING, "x")}))


# Tokenizers.

TOKENS = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab"]
SPM = {
    "tokenizer.ggml.model": (STRING, "llama"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, TOKENS)),
    "tokenizer.ggml.scores": (ARRAY, (FLOAT32, [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -1.5])),
    "tokenizer.ggml.token_type": (ARRAY, (INT32, [2, 3, 3, 1, 1, 1, 1])),
    "tokenizer.ggml.bos_token_id": (UINT32, 1),
    "tokenizer.ggml.eos_token_id": (UINT32, 2),
}
BPE = {
    "tokenizer.ggml.model": (STRING, "gpt2"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, ["</s>", "a", "b", "ab"])),
    "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b"])),
    "tokenizer.ggml.eos_token_id": (UINT32, 0),
}


def tokenizer(path, kind, **changes):
    fields = {**kind, **{f"tokenizer.ggml.{name}": found for name, found in changes.items()}}
    return file(path, [A, *(field(name, *found) for name, found in fields.items() if found is not None)])


def test_the_tokenizers_that_are_altered_below_are_whole(tmp_path):
    spm, bpe = (load_tokenizer(tokenizer(tmp_path / f"{i}.gguf", kind)) for i, kind in enumerate((SPM, BPE)))
    assert spm.encode("ab") == [1, 3, 6] and bpe.encode("ab") == [3]


FLOATS = (FLOAT32, [0.0] * 7)


@pytest.mark.parametrize(
    ("kind", "name", "wrong", "words"),
    [
        (SPM, "scores", (ARRAY, (FLOAT32, [0.0] * 6)), "tokenizer.ggml.scores is 6 things, and 7 numbers are needed"),
        (SPM, "scores", (ARRAY, (FLOAT32, [0.0] * 8)), "tokenizer.ggml.scores is 8 things, and 7 numbers are needed"),
        (SPM, "scores", (ARRAY, (FLOAT32, [])), "tokenizer.ggml.scores is 0 things"),
        (
            SPM,
            "scores",
            (ARRAY, (FLOAT32, [0.0] * 6 + [float("nan")])),
            "scores holds a number that is not finite at 6",
        ),
        (SPM, "scores", (ARRAY, (STRING, ["0"] * 7)), "tokenizer.ggml.scores is 7 things, and 7 numbers"),
        (SPM, "scores", (FLOAT32, 0.0), "tokenizer.ggml.scores is 0.0, and 7 numbers are needed, one a token"),
        (SPM, "token_type", (ARRAY, (INT32, [1])), "tokenizer.ggml.token_type is 1 things, and 7 numbers are needed"),
        (SPM, "token_type", (STRING, "1111111"), "tokenizer.ggml.token_type is '1111111', and 7 numbers are needed"),
        (SPM, "token_type", (ARRAY, (BOOL, [True] * 7)), "tokenizer.ggml.token_type is 7 things, and 7 numbers"),
        (SPM, "tokens", (ARRAY, (UINT32, [1] * 7)), "tokenizer.ggml.tokens is no list of texts"),
        (SPM, "tokens", (STRING, "abc"), "tokenizer.ggml.tokens is no list of texts, and a list of texts is needed"),
        (
            SPM,
            "tokens",
            (ARRAY, (STRING, [*TOKENS[:3], b"\xff\xfe", *TOKENS[4:]])),
            "tokens holds at 3 what is no text",
        ),
        (SPM, "tokens", None, "tokenizer.ggml.tokens is not there"),
        (SPM, "bos_token_id", (UINT32, 7), "bos_token_id is 7, but the file has 7 tokens"),
        (SPM, "bos_token_id", (UINT32, 2**32 - 1), "bos_token_id is 4294967295, but the file has 7 tokens"),
        (SPM, "eos_token_id", (INT32, -1), "eos_token_id is -1, but must be"),
        (SPM, "eos_token_id", (STRING, "2"), "eos_token_id is '2', but must be"),
        (SPM, "eos_token_id", (ARRAY, (UINT32, [2])), "eos_token_id is .*, but must be"),
        (SPM, "eos_token_id", (FLOAT32, 2.0), "eos_token_id is 2.0, but must be"),
        (SPM, "eos_token_id", (BOOL, True), "eos_token_id is True, but must be"),
        (SPM, "add_bos_token", (STRING, "no"), "add_bos_token is 'no', but must be true or false"),
        (SPM, "add_space_prefix", (UINT32, 1), "add_space_prefix is 1, but must be true or false"),
        (SPM, "model", (UINT32, 1), "tokenizer.ggml.model is 1, but must be a text"),
        (SPM, "model", (ARRAY, (STRING, ["llama"])), r"tokenizer.ggml.model is \['llama'\], but must be a text"),
        (BPE, "pre", (UINT32, 1), "tokenizer.ggml.pre is 1, but must be a text"),
        (
            BPE,
            "merges",
            (ARRAY, (STRING, ["a b", "ab"])),
            "merges holds 'ab' at 1, and two tokens with a space are needed",
        ),
        (BPE, "merges", (ARRAY, (STRING, ["a "])), "tokenizer.ggml.merges holds 'a ' at 0"),
        (BPE, "merges", (ARRAY, (STRING, [""])), "tokenizer.ggml.merges holds '' at 0"),
        (BPE, "merges", (ARRAY, (STRING, ["a z"])), "merges do not fit its tokens"),
        (BPE, "merges", (ARRAY, (INT32, [1])), "tokenizer.ggml.merges is no list of texts"),
        (BPE, "merges", (STRING, "a b"), "tokenizer.ggml.merges is no list of texts"),
        (BPE, "merges", None, "tokenizer.ggml.merges is not there"),
        (BPE, "tokens", (ARRAY, (STRING, [])), r"eos_token_id is 0, but the file has 0 tokens|merges do not fit"),
    ],
)
def test_what_a_tokenizers_field_holds_is_checked_before_it_is_used(tmp_path, kind, name, wrong, words):
    with pytest.raises(InputError, match=words) as told:
        load_tokenizer(tokenizer(tmp_path / "m.gguf", kind, **{name: wrong}))
    assert "\n" not in str(told.value)


def test_a_template_that_is_no_text_is_told(tmp_path):
    fields = [A, *(field(*one[:1], *one[1]) for one in BPE.items()), field("tokenizer.chat_template", UINT32, 3)]
    with pytest.raises(InputError, match=r"tokenizer\.chat_template is 3, but must be a text"):
        load_tokenizer(file(tmp_path / "m.gguf", fields))


@pytest.mark.parametrize("tokens", [["x" * 9_999], ["x" * 4_000_000], ["\u2581" * 20_000, "b"]])
def test_long_tokens_take_no_time(tmp_path, tokens):
    """Each place where a piece of SentencePiece's can be cut is looked at: of a million letters, a million."""
    more = {
        "tokens": (ARRAY, (STRING, tokens)),
        "scores": (ARRAY, (FLOAT32, [0.0] * len(tokens))),
        "token_type": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    began = time.process_time()
    try:
        load_tokenizer(tokenizer(tmp_path / "m.gguf", SPM, **more))
    except InputError as error:
        assert "holds tokens that are too long for SentencePiece's BPE" in str(error)
        assert max(map(len, tokens)) > 10_000
    assert time.process_time() - began < 2
