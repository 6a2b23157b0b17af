import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_jax.errors import InputError
from lora_jax.text.packing import Batches, Packed, pack, split
from lora_jax.transformer import target_mask


def plain(*sizes):
    """Documents of these sizes; every token of all of them is another number, from 1."""
    ends = np.cumsum(sizes)
    ids = [np.arange(end - size + 1, end + 1, dtype=np.int32) for size, end in zip(sizes, ends, strict=True)]
    return [(document, np.ones_like(document)) for document in ids]


def test_packing_by_hand():
    """3 and 2 tokens fit and are whole; of the text of 6, two fill the space beside the 2, and four are a row."""
    packed = pack(plain(3, 6, 2), 4, pad_id=99)
    assert packed.tokens.tolist() == [[1, 2, 3, 99], [4, 5, 10, 11], [6, 7, 8, 9]]
    assert packed.segments.tolist() == [[1, 1, 1, 0], [1, 1, 2, 2], [1, 1, 1, 1]]
    assert packed.positions.tolist() == [[0, 1, 2, 0], [0, 1, 0, 1], [0, 1, 2, 3]]
    assert packed.mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert target_mask(packed.rows(slice(None))).tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]]


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
    assert time.process_time() - started < 2 and len(packed) < 7813 / 0.99


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


def test_copies_of_a_long_text_are_held_out_alike():
    """A block of one copy is a block of the other, else what is held out would be trained on."""
    (text,) = plain(16 * 60 + 5)
    for seed in range(5):
        train, held_out = split([text, *plain(3), text], 16, 0.1, seed=seed)
        assert len(held_out) == 2 * 6 and not tokens_of(train) & tokens_of(held_out) - {1, 2, 3}


def test_a_book_among_short_texts_is_held_out_in_blocks():
    sizes = (16 * 200, *[9] * 30)
    train, held_out = split(plain(*sizes), 16, 0.1, seed=1)
    assert max(tokens_of(held_out)) <= 16 * 200 and not tokens_of(train) & tokens_of(held_out)
    assert len(tokens_of(train) & set(range(16 * 200 + 1, sum(sizes) + 1))) == 270


def test_a_few_documents_of_almost_a_sequence_are_held_out_whole():
    """None of 120 tokens fits into the share beside another, and none is long enough for blocks."""
    train, held_out = split(plain(*[120] * 10), 128, 0.1)
    assert len(train) == 8 and len(held_out) == 2 and not tokens_of(train) & tokens_of(held_out)


def test_what_is_held_out_is_shortened_by_the_same_rule():
    """Ten prompts of 20 and answers of 10, in sequences of 24: each is truncated, on both sides, and counted."""
    encoded = [(ids, np.array([0] * 20 + [1] * 10, np.int32)) for ids, _ in plain(*[30] * 10)]
    train, held_out = split(encoded, 24, 0.2)
    assert (train.shortened.truncated, held_out.shortened.truncated) == (8, 2)
    for packed in (train, held_out):
        assert all((row - 1) % 30 == column for tokens in packed.tokens for column, row in enumerate(tokens.tolist()))


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


def test_nothing_left_to_learn_is_refused_with_the_reason():
    encoded = [(ids, np.array([0] * 20 + [1] * 10, np.int32)) for ids, _ in plain(*[30] * 10)]
    with pytest.raises(InputError) as error:
        pack(encoded, 16)
    assert str(error.value) == (
        "nothing to learn from is left. 10 documents are longer than 16 tokens: 0 truncated, 10 dropped, since an "
        "answer must not be learned without its prompt. Pass a larger --length or give other data"
    )
    with pytest.raises(InputError, match=r"^a sequence of 1 token has nothing to predict: pass --length 2 or more$"):
        pack(encoded, 1)


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
