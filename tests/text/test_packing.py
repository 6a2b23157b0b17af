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
