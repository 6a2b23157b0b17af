import time

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_jax.errors import InputError
from lora_jax.text.documents import Document
from lora_jax.text.encoding import encode_document
from lora_jax.text.packing import Batches, Packed, pack, split
from lora_jax.transformer import target_mask

CHATML = (  # SmolLM2-Instruct's own
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] if loop.last else '...' }}{% endfor %}"


class Letters:
    """A tokenizer of single bytes, with the two marks of ChatML as tokens of their own."""

    eos_id, pad_id, vocab_size = 257, 0, 258

    def __init__(self, chat_template=None):
        self.marks = {"<|im_start|>": 256, "<|im_end|>": 257}
        self.chat_template = chat_template

    def encode(self, text):
        for mark in self.marks:
            if mark in text:
                before, after = text.split(mark, 1)
                return [*self.encode(before), self.marks[mark], *self.encode(after)]
        return list(text.encode())

    def decode(self, ids):
        names = {number: mark for mark, number in self.marks.items()}
        return "".join(names.get(i) or chr(i) for i in map(int, ids))

    def apply_chat_template(self, messages, add_generation_prompt=False):
        template = jinja2.Template(self.chat_template)
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


def learned(tokenizer, document):
    """`(all text, learned text)` of an encoded document."""
    ids, mask = encode_document(tokenizer, document)
    assert ids.dtype == mask.dtype == np.int32 and ids.shape == mask.shape
    return tokenizer.decode(ids), tokenizer.decode(ids[mask == 1])


def talk(*contents):
    roles = ("user", "assistant") * len(contents)
    messages = tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=False))
    return Document(messages=messages, where="a, line 2")


def test_plain_text_is_learned_whole_with_its_end():
    ids, mask = encode_document(Letters(), Document(text="One\n"))
    assert ids.tolist() == [79, 110, 101, 10, 257] and mask.tolist() == [1] * 5


def test_of_a_prompt_and_completion_the_completion_and_its_end_are_learned():
    ids, mask = encode_document(Letters(), Document(prompt="Hi ", completion="yo"))
    assert ids.tolist() == [72, 105, 32, 121, 111, 257] and mask.tolist() == [0, 0, 0, 1, 1, 1]


def test_of_a_conversation_the_assistant_turns_are_learned():
    everything, answers = learned(Letters(CHATML), talk("Hi", "Yo! ", "2+2?", "4", "Thanks"))
    assert everything == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo! <|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    assert answers == "Yo! <|im_end|>4<|im_end|>"


def test_neighbouring_assistant_turns_are_each_learned():
    turns = [("system", "S"), ("user", "U"), ("assistant", "A"), ("assistant", "B")]
    document = Document(messages=tuple({"role": r, "content": c} for r, c in turns))
    everything, answers = learned(Letters(CHATML), document)
    assert everything.endswith("A<|im_end|>\n<|im_start|>assistant\nB<|im_end|>")
    assert answers == "A<|im_end|>B<|im_end|>"


def test_a_template_without_end_tokens_gets_one_at_the_end():
    everything, answers = learned(Letters(PLAIN), talk("Hi", "Yo", "So", "4"))
    assert everything == "[user]Hi[assistant]Yo[user]So[assistant]4<|im_end|>" and answers == "Yo4<|im_end|>"


def test_conversations_that_cannot_be_masked_are_refused():
    with pytest.raises(InputError) as error:
        encode_document(Letters(), talk("Hi", "Yo"))
    assert str(error.value) == (
        "a, line 2: 'messages' need a chat template, and this tokenizer has none: "
        "give 'prompt' and 'completion', or use an instruction-tuned model's tokenizer"
    )
    with pytest.raises(InputError) as error:
        encode_document(Letters(FORGETFUL), talk("Hi", "Yo"))
    assert str(error.value) == (
        "a, line 2: this tokenizer's chat template writes earlier turns otherwise once message 2 follows, "
        "so the answer's tokens cannot be told apart: give 'prompt' and 'completion' instead"
    )


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = Letters()
    tokenizer.eos_id = None
    with pytest.raises(InputError, match=r"^this tokenizer names no end token, without which a model cannot learn to"):
        encode_document(tokenizer, Document(text="One"))


def plain(*sizes):
    """Documents of these sizes; every token of all of them is another number, from 1."""
    ends = np.cumsum(sizes)
    ids = [np.arange(end - size + 1, end + 1, dtype=np.int32) for size, end in zip(sizes, ends, strict=True)]
    return [(document, np.ones_like(document)) for document in ids]


def test_packing_by_hand():
    packed = pack(plain(3, 6, 2), 4, pad_id=99)
    assert packed.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 99]]
    assert packed.segments.tolist() == [[1, 1, 1, 2], [1, 1, 1, 1], [1, 2, 2, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 1, 0]]
    assert packed.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert target_mask(packed.rows(slice(None))).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 16), st.randoms(use_true_random=False))
def test_packing_loses_nothing_and_mixes_nothing(sizes, length, random):
    encoded = [(ids, np.array([random.randrange(2) for _ in ids], np.int32)) for ids, _ in plain(*sizes)]
    total = sum(sizes)
    if total < length:
        with pytest.raises(InputError):
            pack(encoded, length)
        return
    packed = pack(encoded, length)
    batch = packed.rows(slice(None))
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    assert {array.shape for array in batch.values()} == {(-(-total // length), length)}
    real = packed.segments != 0
    assert packed.tokens[real].tolist() == list(range(1, total + 1))
    assert packed.mask[real].tolist() == np.concatenate([mask for _, mask in encoded]).tolist()
    assert not packed.tokens[~real].any() and not packed.mask[~real].any() and not packed.positions[~real].any()
    owner = np.repeat(np.arange(len(sizes)), sizes)  # the document of each token
    targets = np.asarray(target_mask(batch))
    rows = zip(packed.tokens, packed.segments, packed.positions, targets, strict=True)
    for tokens, segments, positions, target in rows:
        numbers = segments[segments != 0]
        assert numbers[0] == 1 and set(np.diff(numbers)) <= {0, 1}
        documents = owner[tokens[segments != 0] - 1]
        for number in np.unique(numbers):
            here = numbers == number
            assert len(set(documents[here])) == 1  # a token sees its own segment only, hence its own document
            assert positions[segments == number].tolist() == list(range(here.sum()))
        assert len(set(documents)) == numbers[-1]  # and no document is cut inside a row
        for t in np.flatnonzero(target):
            assert owner[tokens[t] - 1] == owner[tokens[t + 1] - 1] and tokens[t + 1] == tokens[t] + 1


def test_text_shorter_than_one_sequence_is_refused():
    with pytest.raises(InputError) as error:
        pack(plain(30, 70), 128)
    assert str(error.value) == (
        "the text has 100 tokens, fewer than the 128 of one sequence: pass --length 100 or less, or give more text"
    )


def test_a_million_tokens_pack_fast():
    encoded = plain(*[200] * 5000)
    started = time.process_time()  # of this process alone, whatever else runs
    packed = pack(encoded, 128)
    assert time.process_time() - started < 2 and len(packed) == 7813


def tokens_of(packed):
    return set(packed.tokens[packed.segments != 0].tolist())


def test_whole_documents_are_held_out_where_there_are_many():
    encoded = plain(*[50] * 40)
    train, held_out = split(encoded, 32, 0.1, seed=3)
    a, b = tokens_of(train), tokens_of(held_out)
    assert not a & b and len(a | b) == 2000 and len(b) == 200
    assert len({(token - 1) // 50 for token in b}) == 4
    again = split(encoded, 32, 0.1, seed=3)[1]
    assert np.array_equal(again.tokens, held_out.tokens)
    assert not np.array_equal(split(encoded, 32, 0.1, seed=4)[1].tokens, held_out.tokens)


def test_copies_of_a_document_stay_on_one_side():
    encoded = [document for document in plain(*[50] * 40) for _ in range(2)]
    for seed in range(5):
        train, held_out = split(encoded, 32, 0.2, seed=seed)
        assert not tokens_of(train) & tokens_of(held_out)


@pytest.mark.parametrize("sizes", [(16 * 200 + 5,), (16 * 150, 16 * 50 + 5)])
def test_of_one_long_document_blocks_are_held_out_with_gaps(sizes):
    for seed in range(5):
        train, held_out = split(plain(*sizes), 16, 0.1, seed=seed)
        train_rows, held_rows = (sorted({(t - 1) // 16 for t in tokens_of(packed)}) for packed in (train, held_out))
        assert len(held_rows) == len(held_out) == 20 and min(abs(a - b) for a in train_rows for b in held_rows) == 2
        assert len(train_rows) >= 201 - 20 - 2 * 3 and max(held_rows) < 200  # three blocks; never the ragged row


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 400), st.floats(0.01, 0.9), st.integers(0, 99))
def test_a_split_of_one_document_is_apart_or_refused(rows, share, seed):
    try:
        train, held_out = split(plain(rows * 4 + 3), 4, share, seed=seed)
    except InputError:
        assert rows < 4 or share > 0.7 or rows < 3 * (rows * share + 1)
        return
    a, b = ({(t - 1) // 4 for t in tokens_of(packed)} for packed in (train, held_out))
    assert a and b and min(abs(x - y) for x in a for y in b) >= 2 and len(held_out) == max(1, round(share * rows))


def test_too_little_text_to_split_is_refused():
    with pytest.raises(InputError) as error:
        split(plain(390), 128, 0.1)
    assert str(error.value) == (
        "the text has 390 tokens, 3 sequences of 128: too few to hold out 10% and train on the rest (4 are needed): "
        "pass a smaller --length or give more text"
    )
    with pytest.raises(InputError, match=r"^the held-out share is 1.5: give a number between 0 and 1, such as 0.1$"):
        split(plain(390), 128, 1.5)


def rows_of(batch):
    return batch["tokens"][:, 0].tolist()


def numbered(rows) -> Packed:
    tokens = np.repeat(np.arange(1, rows + 1, dtype=np.int32)[:, None], 5, axis=1)
    return Packed(tokens, np.ones_like(tokens), np.ones_like(tokens), np.tile(np.arange(5, dtype=np.int32), (rows, 1)))


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_every_sequence_is_seen_equally_often(rows, batch_size, seed):
    if batch_size > rows:
        rows, batch_size = batch_size, rows
    batches = Batches(numbered(rows), batch_size, seed=seed)
    seen = np.zeros(rows, int)
    for step in range(3 * len(batches)):
        batch = batches[step]
        assert all(array.shape == (batch_size, 5) for array in batch.values())
        np.add.at(seen, np.array(rows_of(batch)) - 1, 1)
        assert seen.max() - seen.min() <= 1
        if step + 1 == len(batches):
            assert seen.min() == 1
        if step + 1 == len(batches) - 1:
            assert seen.min() == 0  # `len` is the fewest that will do
    assert batches.tokens_per_batch == 5 * batch_size


def test_batches_are_found_by_step_and_seed():
    batches = Batches(numbered(12), 4, seed=1)
    first, second = ([rows_of(batches[step]) for step in range(at, at + 3)] for at in (0, 3))
    assert first != second and all(sorted(np.ravel(epoch)) == list(range(1, 13)) for epoch in (first, second))
    assert rows_of(Batches(numbered(12), 4, seed=1)[5]) == second[2]
    assert rows_of(Batches(numbered(12), 4, seed=2)[0]) != first[0]
    assert [rows_of(batch) for batch in batches] == first
    assert len(rows_of(batches[10**12])) == 4
    with pytest.raises(IndexError, match=r"^step -1: steps count from 0$"):
        batches[-1]


def test_a_batch_larger_than_the_data_is_refused():
    for size in (5, 0):
        with pytest.raises(InputError) as error:
            Batches(numbered(4), size)
        assert str(error.value) == (
            f"a batch of {size} sequences needs as many to draw from, and there are 4: "
            "pass --batch-size from 1 to 4, a smaller --length, or give more text"
        )


def test_evaluation_covers_every_sequence_once_in_one_shape():
    batches = Batches.in_order(numbered(7), 3)
    assert [rows_of(batch) for batch in batches] == [[1, 2, 3], [4, 5, 6], [7, 0, 0]]
    assert all(array.shape == (3, 5) and array.dtype == np.int32 for batch in batches for array in batch.values())
    last = batches[-1]
    assert not last["segments"][1:].any() and not last["mask"][1:].any()
    assert np.asarray(target_mask(last)).sum() == 4
    assert len(Batches.in_order(numbered(6), 3)) == 2 and len(Batches.in_order(numbered(2), 3)) == 1
