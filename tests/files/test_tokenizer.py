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


def test_a_chat_that_the_template_refuses_is_one_sentence():
    with pytest.raises(InputError, match=r"refused these messages .no tools here."):
        make(chat_template=TEMPLATE).apply_chat_template([{"role": "tool", "content": ""}])
    with pytest.raises(InputError, match=r"no chat template"):
        make().apply_chat_template(MESSAGES)
    with pytest.raises(InputError, match=r"refused"):
        make(chat_template="{{ ''.__class__.__mro__ }}").apply_chat_template(MESSAGES)


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
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path).eos_id is None


def test_broken_files_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer.json"):
        Tokenizer.load(tmp_path)
    make().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config.json is not readable JSON"):
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
