"""Tokenizers that abort the process, panic, or never end: a sentence when they are loaded or when they are used."""

import base64
import copy
import json
import shutil
from pathlib import Path

import pytest

from lora_jax.errors import InputError
from lora_jax.files import tokenizer_file
from lora_jax.files.tokenizer import Tokenizer

STORIES = tokenizer_file.OWN / "stories-2.8m"
WHOLE = json.loads((STORIES / "tokenizer.json").read_text())
TEXT = "Once upon a time, aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa! é"
TWICE = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}


def token(i, text="<x>"):
    return {**WHOLE["added_tokens"][0], "id": i, "content": text}


def split(pattern):
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}}


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}


def template(ids, tokens, single="A"):
    pieces = [{"SpecialToken": {"id": "[A]", "type_id": 0}}, {"Sequence": {"id": single, "type_id": 0}}]
    special = {"[A]": {"id": "[A]", "ids": ids, "tokens": tokens}} if ids else {}
    pair = [{"Sequence": {"id": "B", "type_id": 0}}]
    return {"post_processor": {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": special}}


def charsmap(data):
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}}


def model(**changes):
    return {"model": WHOLE["model"] | changes}


def vocabulary(**tokens):
    return model(vocab=WHOLE["model"]["vocab"] | tokens)


REFUSED = {  # where they are loaded
    "id 2**31": (vocabulary(time=2**31), "has the id 2,147,483,648, and with 2,049 tokens an id is at most 120,490"),
    "id 2**32-1": (vocabulary(time=2**32 - 1), "has the id 4,294,967,295"),
    "id 10**7": (vocabulary(time=10**7), "has the id 10,000,000"),
    "id 2**32": (vocabulary(time=2**32), "not a readable tokenizer"),
    "id -1": (vocabulary(time=-1), "not a readable tokenizer"),
    "id 1.5": (vocabulary(time=1.5), "not a readable tokenizer"),
    "template id": (template([2**32 - 1], ["x"]), "puts the id 4,294,967,295 before or behind a text"),
    "wide replace": ({"normalizer": replace("a" * 10**6)}, "puts 1,000,000 characters into a text"),
    "wide replace by pattern": ({"normalizer": replace("b" * 5000, Regex=".")}, "puts 5,000 characters into a text"),
    "wide prepend": ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "puts 1,000,000 characters"),
    "wide decoder": ({"decoder": replace("a" * 10**6)}, "puts 1,000,000 characters into a text"),
    "doubling": ({"normalizer": TWICE}, "MB of memory|more than 1"),
    "doubling decoder": (
        {"decoder": {"type": "Sequence", "decoders": [replace("aa")] * 40}},
        "MB of memory|more than 1",
    ),
    "charsmap that allocates": (charsmap(b"\xff" * 100), "not a readable tokenizer"),
    "charsmap that is empty": (charsmap(b""), "not a readable tokenizer"),
    "prefix": (model(continuing_subword_prefix="x" * 100), "not a readable tokenizer"),
    "dropout": (model(dropout=5.0), "not a readable tokenizer"),
    "no pattern": (split("("), "not a readable tokenizer"),
    "endless pattern": (split(r"(?<x>a\g<x>)"), "not a readable tokenizer"),
    "slow pattern": (split(r"(\w*)(\w*)[!#]"), "more than 1"),
    "deep": (json.loads("[" * 60 + "]" * 60), "not a readable tokenizer"),
    "merges": (model(merges=[["q", "zzzz"]]), "not a readable tokenizer"),
    "no model": ({"model": None}, "not a readable tokenizer"),
}
FAILS = {  # where they are used
    "backtracking": split("(a+)+$"),
    "backtracking alternatives": split("(a|aa)+$"),
    "backtracking normalizer": {"normalizer": replace("b", Regex="(a+)+$!")},
    "chunks of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "replace nothing": {"normalizer": replace("aa", String="")},
    "charsmap of few bytes": charsmap(b"\x04\0\0\0" + b"\xff" * 4),
    "charsmap of odd bytes": charsmap(bytes([0, 4, 0, 0]) + bytes(range(256)) * 4),
    "template without its token": template([], []),
    "template of a second text": template([1], ["x"], single="B"),
    "strip": {"decoder": {"type": "Strip", "content": "a", "start": 10**18, "stop": 10**18}},
    "no unknown token": {
        "model": {"type": "WordLevel", "unk_token": "z", "vocab": {"q": 0}}, "added_tokens": [], "pre_tokenizer": None
    },
}  # fmt: skip
HARMLESS = {
    "added id 2**32-1": {"added_tokens": [token(0, "<|endoftext|>"), token(2**32 - 1)]},
    "cut at 2**62": {
        "truncation": {"direction": "Right", "max_length": 2**62, "strategy": "LongestFirst", "stride": 0}
    },
    "filled to 10**12": {
        "padding": {
            "strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "x",
        }
    },
    "a step longer than the cut": {
        "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 7}
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(STORIES, tmp_path / "model"))


def write(folder, changes):
    found = copy.deepcopy(WHOLE) | changes if isinstance(changes, dict) else changes
    (folder / "tokenizer.json").write_text(json.dumps(found))


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_would_harm_its_process_is_refused_where_it_is_loaded(name, folder):
    changes, said = REFUSED[name]
    write(folder, changes)
    with pytest.raises(InputError, match=said) as refusal:
        Tokenizer.load(folder)
    assert "tokenizer.json" in str(refusal.value) and len(str(refusal.value)) < 600


@pytest.mark.parametrize("name", FAILS)
def test_a_tokenizer_that_panics_is_told_where_it_is_used(name, folder):
    write(folder, FAILS[name])
    with pytest.raises(InputError, match=r"the tokenizer cannot|not a readable tokenizer"):
        tokenizer = Tokenizer.load(folder)
        tokenizer.encode_batch([TEXT, TEXT])
        tokenizer.decode(tokenizer.encode(TEXT))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_never_acts_does_no_harm(name, folder):
    expected = Tokenizer.load(STORIES).encode(TEXT)
    write(folder, HARMLESS[name])
    assert Tokenizer.load(folder).encode(TEXT) == expected


def test_an_honest_file_is_tried_once(folder, monkeypatch):
    tried = []
    monkeypatch.setattr(tokenizer_file, "_survived", set())
    monkeypatch.setattr(tokenizer_file, "_try", lambda text, path: tried.append(path))
    for _ in range(2):
        assert Tokenizer.load(folder).encode(TEXT) == Tokenizer.load(STORIES).encode(TEXT)
    assert tried == [folder / "tokenizer.json"]  # that of the package is known


def test_letters_that_are_none_are_told():
    tokenizer = Tokenizer.load(STORIES)
    for use in (lambda: tokenizer.encode("\ud800"), lambda: tokenizer.decode([-1]), lambda: tokenizer.decode([2**40])):
        with pytest.raises(InputError, match="the tokenizer cannot"):
            use()


SETTINGS = [
    ({"added_tokens_decoder": []}, None),
    ({"added_tokens_decoder": ["a"]}, "must be an object"),
    ({"added_tokens_decoder": "12"}, "must be an object"),
    ({"added_tokens_decoder": {"x": {"content": "a"}}}, "'x' is no id"),
    ({"added_tokens_decoder": {"9" * 5000: {"content": "a"}}}, "is no id"),
    ({"added_tokens_decoder": {"-1": {"content": "a"}}}, "'-1' is no id"),
    ({"added_tokens_decoder": {"7": {"content": 7}}}, "is not the text of a token"),
    ({"added_tokens_decoder": {"7": {"content": "a", "lstrip": "false"}}}, "lstrip is 'false', but must be true or"),
    ({"added_tokens_decoder": {"7": {"content": "a", "special": 1}}}, "special is 1, but must be true or false"),
    ({"additional_special_tokens": "abc"}, "additional_special_tokens is 'abc', but must be a list"),
    ({"additional_special_tokens": 7}, "but must be a list"),
    ({"additional_special_tokens": [["a"]]}, "is not the text of a token"),
    ({"eos_token": 2}, "2 is not the text of a token"),
    ({"bos_token": ["a"]}, "is not the text of a token"),
    ({"chat_template": 7}, "chat_template is neither"),
    ({"chat_template": [{"name": ["a"], "template": "b"}]}, "chat_template is neither"),
    ({"chat_template": {"default": 1}}, "chat_template is neither"),
]


@pytest.mark.parametrize(("changes", "said"), SETTINGS)
def test_wrong_types_in_the_settings_of_a_tokenizer(changes, said, folder):
    (folder / "tokenizer_config.json").write_text(json.dumps(changes))
    if said is None:  # an empty list says as much as an empty object
        Tokenizer.load(folder)
        return
    with pytest.raises(InputError, match=said) as refusal:
        Tokenizer.load(folder)
    assert "tokenizer_config.json" in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.parametrize("value", [1.5, "2", True, -1, 2**31, 10**30, [[2]], {"a": 2}, [2, "3"], 1e300])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_ends_that_are_no_ids(value, name, folder):
    (folder / name).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(InputError, match=rf"{name}: eos_token_id is .*, but must be a token id or a list of them"):
        Tokenizer.load(folder)
