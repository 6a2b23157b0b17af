"""The tokenizer against cases worked by hand, and against `transformers` on the files it writes."""

# ruff: noqa: RUF001

import dataclasses
import json

import pytest

from lora_jax.errors import InputError
from lora_jax.files.tokenizer import SPLITS, Tokenizer, byte_level

MESSAGES = [{"role": "user", "content": "hi <&>"}, {"role": "assistant", "content": "ho"}]
TEMPLATE = """{% for m in messages %}
    {% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
{{ '<s>' + m['role'] + ': ' + m['content'] + eos_token }}
{% endfor %}
{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"""


def alphabet():
    """GPT-2's 256 printable stand-ins for bytes, in order of the bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


MERGES = [("a", "b"), ("ab", "c"), ("Ġ", "Ġ"), ("Ġ", "ab"), ("Ġ", "1"), ("1", "2"), ("12", "3"), ("Ċ", "Ċ")]


def make(split="smollm", **names):
    tokens = ["<s>", "<e>", "<think>", *alphabet(), *(a + b for a, b in MERGES)]
    backend = byte_level(tokens, MERGES, split=split, special=["<s>", "<e>"], added=["<think>"])
    return Tokenizer(backend, **({"bos_token": "<s>", "eos_token": "<e>"} | names))


def pieces(tokenizer, text):
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("smollm", ["abc", "ĠĠ", "1", "2", "3", "ĊĊ", "4"]),  # each digit alone, whatever stands before it
        ("gpt-2", ["abc", "Ġ", "Ġ1", "2", "3", "Ċ", "Ċ", "4"]),
        ("default", ["abc", "Ġ", "Ġ1", "2", "3", "Ċ", "Ċ", "4"]),
        ("qwen2", ["abc", "Ġ", "Ġ", "1", "2", "3", "ĊĊ", "4"]),
        ("llama-bpe", ["abc", "Ġ", "Ġ", "123", "ĊĊ", "4"]),
    ],
)
def test_how_each_split_cuts_spaces_and_digits(split, expected):
    found = pieces(make(split), "abc  123\n\n4")
    assert found == expected


def test_every_split_is_covered():
    assert set(SPLITS) == {"smollm", "gpt-2", "default", "qwen2", "llama-bpe"}


def test_special_tokens_in_a_text_are_known_and_none_are_added():
    tokenizer = make()
    assert tokenizer.encode("") == []
    assert pieces(tokenizer, "<s>ab<think> ab<e>") == ["<s>", "ab", "<think>", "Ġab", "<e>"]
    ids = tokenizer.encode("<s>ab<think>ab<e>")
    assert tokenizer.decode(ids) == "ab<think>ab"
    assert tokenizer.decode(ids, skip_special=False) == "<s>ab<think>ab<e>"


@pytest.mark.parametrize("text", [" a  b ", "naïve 😀 １２３\r\n\t", "\x00\x7f", " 'll don't", "٣٤ ½"])
@pytest.mark.parametrize("split", SPLITS)
def test_decoding_gives_the_text_back(split, text):
    tokenizer = make(split)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "ab", text]) == [tokenizer.encode(t) for t in (text, "ab", text)]


def test_ids_and_sizes():
    tokenizer = make()
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (267, 0, 1, None)
    assert make(pad_token="<think>").pad_id == 2


def test_merges_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"merges do not fit"):
        byte_level(["a"], [("a", "b")], split="gpt-2")


def test_a_chat_is_rendered_as_transformers_would():
    tokenizer = make(chat_template=TEMPLATE)
    assert tokenizer.apply_chat_template(MESSAGES) == "<s>user: hi <&><e>\n<s>assistant: ho<e>\n"
    assert tokenizer.apply_chat_template(MESSAGES[:1], True) == "<s>user: hi <&><e>\n<s>assistant: "
    assert tokenizer.encode_chat(MESSAGES[:1]) == tokenizer.encode("<s>user: hi <&><e>\n<s>assistant: ")


def test_a_chat_that_the_template_refuses_is_one_sentence():
    with pytest.raises(InputError, match=r"refused these messages .no tools here."):
        make(chat_template=TEMPLATE).apply_chat_template([{"role": "tool", "content": ""}])
    with pytest.raises(InputError, match=r"no chat template"):
        make().apply_chat_template(MESSAGES)
    with pytest.raises(InputError, match=r"refused"):
        make(chat_template="{{ ''.__class__.__mro__ }}").apply_chat_template(MESSAGES)


def cutting(backend):
    backend.enable_truncation(max_length=16)


def cutting_on_the_left(backend):
    backend.enable_truncation(max_length=3, stride=1, direction="left")


def filling(backend):
    backend.enable_padding(length=4000, pad_id=0, pad_token="<s>")


def filling_on_the_left(backend):
    backend.enable_padding(pad_to_multiple_of=64, direction="left")


def merging_at_random(backend):
    model = backend.model
    model.dropout = 0.6
    backend.model = model


@pytest.mark.parametrize("change", [cutting, cutting_on_the_left, filling, filling_on_the_left, merging_at_random])
def test_what_a_file_says_of_cutting_filling_and_random_merges_never_acts(tmp_path, change):
    """A document of 1,400 tokens once became 16, since a trainer had saved its settings with the tokenizer."""
    plain, text = make(), "abc 12 ab" * 200
    changed = make().backend
    change(changed)
    assert len(set(map(tuple, (changed.encode(text).ids for _ in range(3))))) > 1 or (
        changed.encode(text).ids != plain.backend.encode(text).ids
    ), "it acts where nothing is done"
    plain.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(changed.to_str())
    for tokenizer in (Tokenizer.load(tmp_path), Tokenizer(changed, eos_token="<e>")):
        assert tokenizer.encode(text) == plain.encode(text)
        assert tokenizer.encode_batch([text, "ab"]) == plain.encode_batch([text, "ab"])
        tokenizer.save(tmp_path / "again")
        saved = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
        assert saved["truncation"] is saved["padding"] is None and not saved["model"]["dropout"]
    assert changed.to_str() != plain.backend.to_str(), "the caller's own is as it was"


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({"eos_token_id": [1, 0]}, None, (1, 0)),
        ({"eos_token_id": 1}, {"eos_token_id": [2, 1]}, (1, 2)),
        ({"eos_token_id": 0}, {"eos_token_id": 2}, (1, 2, 0)),
        ({"eos_token_id": None}, {}, (1,)),
        ({}, {"eos_token_id": [2]}, (1, 2)),
        (None, None, (1,)),
        ({"eos_token_id": []}, {"eos_token_id": 1}, (1,)),
    ],
)
def test_every_end_that_a_models_files_name(tmp_path, config, generation, ends):
    make().save(tmp_path)
    for name, found in (("config", config), ("generation_config", generation)):
        if found is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(found))
    assert Tokenizer.load(tmp_path).end_ids == ends


@pytest.mark.parametrize("wrong", ["</s>", [1, "2"], True, -1, 1.5, {"a": 1}, [[1]]])
def test_ends_that_are_no_token_ids_are_refused_by_file_and_value(tmp_path, wrong):
    make().save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id is .*, but must be a token id"):
        Tokenizer.load(tmp_path)


def test_special_tokens_that_only_the_settings_name_are_found_whole_in_a_text(tmp_path):
    """As `transformers` does: `tokenizer.json` has them in its vocabulary, but not among its added tokens."""
    make().save(tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    found["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    tokenizer = Tokenizer.load(tmp_path)
    assert pieces(tokenizer, "ab<e>ab") == ["ab", "<e>", "ab"]
    assert tokenizer.decode(tokenizer.encode("ab<e>ab")) == "abab"


def test_older_folders_name_special_tokens_in_a_file_of_their_own(tmp_path):
    make().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    named = {"eos_token": {"content": "<e>", "lstrip": False}, "bos_token": "<e>", "unk_token": "<think>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.named == {"bos_token": "<s>", "eos_token": "<e>", "unk_token": "<think>"}


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = make(chat_template=TEMPLATE, pad_token="<e>")
    (tmp_path / "kept.txt").write_text("mine")
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert dataclasses.replace(loaded, backend=None) == dataclasses.replace(tokenizer, backend=None)
    text = "<s>abc  12 naïve<think>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (tmp_path / "kept.txt").exists()


def test_other_ways_to_write_the_same_settings(tmp_path):
    make().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<e>"}, "chat_template": [{"name": "default", "template": "one"}]})
    )
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.eos_token, loaded.chat_template) == ("<e>", "one")
    (tmp_path / "chat_template.jinja").write_text("two")
    assert Tokenizer.load(tmp_path).chat_template == "two"
    (tmp_path / "chat_template.jinja").unlink()
    for several in ([{"name": "tool_use", "template": "three"}], {"rag": "four"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
        with pytest.raises(InputError, match=r"of the chat templates '\w+' none is named 'default'"):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [1]}))
    with pytest.raises(InputError, match=r"tokenizer_config.json: chat_template is neither a text nor a list"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path).eos_id is None


def test_broken_files_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer.json"):
        Tokenizer.load(tmp_path)
    make().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config.json is not readable JSON"):
        Tokenizer.load(tmp_path)
    for wrong, message in (("[]", "holds a list"), ('{"eos_token": 3}', "3 is not the text of a token")):
        (tmp_path / "tokenizer_config.json").write_text(wrong)
        with pytest.raises(InputError, match=message):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json is not a readable tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("split", SPLITS)
def test_transformers_opens_what_we_save(tmp_path, split):
    transformers = pytest.importorskip("transformers")
    tokenizer = make(split, chat_template=TEMPLATE, pad_token="<e>")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("abc  123\n\n4", "<s>ab<think> ab<e>", " naïve 😀", "½ ²"):
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 1)
    for prompt in (False, True):
        rendered = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        assert rendered == tokenizer.apply_chat_template(MESSAGES, prompt)
