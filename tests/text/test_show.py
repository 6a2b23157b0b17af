"""The first sequence as the model sees it: what is marked is what is learned, whatever the tokenizer."""

import numpy as np
import pytest
import tokenizers_of_many_kinds as kinds

from lora_jax import load_tokenizer
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.text import Document, encode_document, show
from lora_jax.text.packing import pack


def sequence(tokenizer, documents, length):
    """`(batch, example)` of documents that fit into one sequence."""
    batch = pack([encode_document(tokenizer, one) for one in documents], length, 7).rows(slice(0, 1))
    return batch, show.example(tokenizer, batch)


def test_a_sequence_by_hand():
    """A text, of which all but its first token is learned; a completion behind its prompt; and padding."""
    documents = [Document(text="A fox ran."), Document(prompt="Q: Who\nran?\nA:", completion=" A fox.\n")]
    tokenizer = load_tokenizer("stories-2.8m")
    sizes = [len(encode_document(tokenizer, one)[0]) for one in documents]
    answer = len(encode_document(tokenizer, Document(text=" A fox.\n"))[0])
    batch, found = sequence(tokenizer, documents, sum(sizes))
    padded = {name: np.pad(array, ((0, 0), (0, 3))) for name, array in batch.items()}
    want = [
        show.LEGEND,
        f"--- document 1 of 2: {sizes[0]} tokens, {sizes[0] - 1} learned",
        "A⟦ fox ran.<|endoftext|>⟧",
        f"--- document 2 of 2: {sizes[1]} tokens, {answer} learned",
        "Q: Who\nran?\nA:⟦ A fox.\n<|endoftext|>⟧",
    ]
    assert found["text"].split("\n") == "\n".join([*want, "--- end of the sequence"]).split("\n")
    assert found["learned"] == [0] + [1] * (sizes[0] - 1) + [0] * (sizes[1] - answer) + [1] * answer
    assert found["segments"] == [1] * sizes[0] + [2] * sizes[1] and found["tokens"] == batch["tokens"][0].tolist()
    assert show.example(tokenizer, padded)["text"].endswith("--- end of the sequence, behind 3 tokens of padding")


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_marked_text_is_what_the_tokens_are(tmp_path, kind):
    """Without its marks it is the decoded sequence, and what the marks enclose holds the answers, for every kind."""
    tokenizer = Tokenizer.load(kinds.write(tmp_path / kind, kind))
    for talk in kinds.conversations(20, seed=3):
        ids, mask = encode_document(tokenizer, Document(messages=tuple(talk)))
        ids, mask = ids[:100], mask[:100]  # perhaps in the middle of a letter
        text = show.marked(tokenizer, ids, mask.astype(bool))
        whole = tokenizer.decode(ids, skip_special=False)
        assert text.replace("⟦", "").replace("⟧", "") == whole
        begun = np.flatnonzero(np.diff(np.concatenate([[0], mask])) == 1)
        assert text.count("⟦") == text.count("⟧") == len(begun)
        for number, at in enumerate(begun):
            before = text.split("⟦")[: number + 1]
            prefix = tokenizer.decode(ids[:at], skip_special=False).rstrip("\ufffd")
            assert "".join(before).replace("⟧", "") == prefix


def test_special_tokens_are_seen_and_a_letter_of_several_tokens_is_whole():
    tokenizer = load_tokenizer("stories-2.8m")
    ids, mask = encode_document(tokenizer, Document(prompt="A ", completion="🦊é"))
    assert show.marked(tokenizer, ids, mask.astype(bool)) == "A ⟦🦊é<|endoftext|>⟧"
    half = np.arange(len(ids)) > 3  # as if the mask began inside the fox
    assert show.marked(tokenizer, ids, half).replace("⟦", "").replace("⟧", "") == "A 🦊é<|endoftext|>"


def test_long_stretches_are_shortened_and_every_mark_stays():
    tokenizer = load_tokenizer("stories-2.8m")
    document = Document(prompt="one two three " * 100, completion="four " * 100)
    ids, mask = encode_document(tokenizer, document)
    text = show.marked(tokenizer, ids, mask.astype(bool))
    assert text.count("⟦") == text.count("⟧") == 1 and text.startswith("one two three")
    middle = [f"[... {count - 2 * show.END} tokens ...]" for count in ((mask == 0).sum(), mask.sum())]
    assert [text.count(one) for one in middle] == [1, 1] and text.endswith("four <|endoftext|>⟧") and len(text) < 1200


def test_of_many_documents_the_first_are_shown():
    tokenizer = load_tokenizer("stories-2.8m")
    _, found = sequence(tokenizer, [Document(text=f"The fox {i}") for i in range(9)], 45)
    assert found["text"].count("--- document") == show.MOST and "--- 3 more documents\n--- end" in found["text"]


def test_the_share_that_is_learned():
    """Of a segment's tokens the first is never predicted: 3 + 2 of 7 here."""
    documents = [(np.arange(4, dtype=np.int32), np.ones(4, np.int32)),
                 (np.arange(3, dtype=np.int32), np.array([0, 1, 1], np.int32))]  # fmt: skip
    assert show.share_learned(pack(documents, 7)) == 5 / 7
