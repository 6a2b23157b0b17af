"""Tokenizers in GGUF files, against the ones that they were written from."""

import json
from pathlib import Path

import pytest
import tokenizers_of_many_kinds as kinds

from lora_jax.errors import InputError
from lora_jax.files.gguf import load_tokenizer
from lora_jax.files.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sentencepiece.json").read_text())
KINDS = {"smollm": "smollm", "qwen": "qwen2", "llama3": "llama-bpe"}  # the kind and GGUF's name for how it cuts
MESSAGES = [{"role": "user", "content": "Hi <&>"}, {"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize(("kind", "pre"), KINDS.items())
def test_it_cuts_texts_as_the_tokenizer_that_it_was_written_from(tmp_path, kind, pre):
    theirs = Tokenizer.load(kinds.write(tmp_path / kind, kind))
    ours = load_tokenizer(kinds.write_gguf(tmp_path / "m.gguf", kind, pre))
    for text in kinds.strings(2000, marks=theirs.named.values()):
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    for talk in kinds.conversations(200):
        assert ours.encode_chat(talk[:-1]) == theirs.encode_chat(talk[:-1])
    assert (ours.bos_id, ours.eos_id, ours.named, ours.vocab_size) == (
        theirs.bos_id, theirs.eos_id, theirs.named, theirs.vocab_size)  # fmt: skip


def test_a_word_that_is_a_token_is_taken_whole_by_llama_3s_kind_alone(tmp_path):
    """No merge reaches the last token: Llama 3's own tokenizer gives it all the same (`ignore_merges`)."""
    kind = kinds.backend_json(kinds.llama3)
    found = json.loads(kind)
    unreached = "\u0120zzyzx"
    found["model"]["vocab"][unreached] = len(found["model"]["vocab"])
    found["model"]["merges"] = [pair for pair in found["model"]["merges"] if "zz" not in "".join(pair)]
    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        path = tmp_path / f"{pre}.gguf"
        kinds.gguf_file(path, "gpt2", pre, [*found["model"]["vocab"]], found["model"]["merges"])
        ids = load_tokenizer(path).encode("a zzyzx")
        assert (ids[-1] == found["model"]["vocab"][unreached] and len(ids) <= 3) == whole


def sentencepiece(path, **more):
    ids = {"add_bos_token_id": 1, "add_eos_token_id": 2, "add_unk_token_id": 0}
    own = {"add_token_scores": GOLDEN["scores"], "add_token_types": GOLDEN["types"]}
    return kinds.gguf_file(path, "llama", "default", GOLDEN["pieces"], **own, **ids, **more)


def test_sentencepieces_own_cuts(tmp_path):
    """388 texts, cut by the `sentencepiece` library: with a space put before them, bytes for what is rare, and BOS."""
    tokenizer = load_tokenizer(sentencepiece(tmp_path / "m.gguf"))
    for text, ids in zip(GOLDEN["texts"], GOLDEN["ids"], strict=True):
        assert tokenizer.encode(text) == [1, *ids], text
        assert tokenizer.decode([1, *ids]) == text.replace("\u2581", " ")
    assert tokenizer.encode("a</s>")[-1] == 2
    assert (tokenizer.end_ids, tokenizer.named["unk_token"]) == ((2,), "<unk>")


def test_without_its_leading_space(tmp_path):
    tokenizer = load_tokenizer(sentencepiece(tmp_path / "m.gguf", add_add_space_prefix=False))
    with_space = load_tokenizer(sentencepiece(tmp_path / "n.gguf"))
    assert tokenizer.encode(" the fox") == with_space.encode("the fox")
    assert tokenizer.decode(tokenizer.encode(" the fox")) == " the fox"


@pytest.mark.parametrize(
    ("kind", "pre", "flag", "expected"),
    [("smollm", "smollm", None, False), ("smollm", "smollm", True, True), ("llama3", "llama-bpe", None, True),
     ("llama3", "llama-bpe", False, False), ("llama3", "qwen2", None, False)],
)  # fmt: skip
def test_bos_goes_before_a_text_where_the_file_says_so_or_llama_cpp_would(tmp_path, kind, pre, flag, expected):
    more = {} if flag is None else {"add_add_bos_token": flag}
    tokenizer = load_tokenizer(kinds.write_gguf(tmp_path / "m.gguf", kind, pre, **more))
    ids = tokenizer.encode("the fox")
    assert (ids[0] == tokenizer.bos_id) == expected
    assert tokenizer.encode(tokenizer.bos_token + "the fox") == ids if expected else ids[0] != tokenizer.bos_id
    assert tokenizer.encode("the fox", add_special_tokens=False) == (ids[1:] if expected else ids)


def test_sentencepiece_without_bos(tmp_path):
    ids = load_tokenizer(sentencepiece(tmp_path / "m.gguf", add_add_bos_token=False)).encode("the fox")
    assert ids == load_tokenizer(sentencepiece(tmp_path / "n.gguf")).encode("the fox")[1:]


def test_every_end_that_the_file_names(tmp_path):
    more = {"add_eot_token_id": 0, "add_eom_token_id": 1}
    tokenizer = load_tokenizer(kinds.write_gguf(tmp_path / "m.gguf", "smollm", "smollm", **more))
    assert tokenizer.eos_id == 2 and tokenizer.end_ids == (2, 0, 1)
    with pytest.raises(InputError, match="eot_token_id is 9999, but the file has 600 tokens"):
        load_tokenizer(kinds.write_gguf(tmp_path / "n.gguf", "smollm", "smollm", add_eot_token_id=9999))
