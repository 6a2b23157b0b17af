"""N-gram models: a case worked by hand, probabilities that sum to one, the tokens that a transformer is asked for."""

import itertools

import numpy as np
import pytest
from close import close, rounding

from lora_jax.errors import InputError
from lora_jax.text import ngrams, packing


def packed(*documents, length=6):
    return packing.pack([(np.array(ids, np.int32), np.ones(len(ids), np.int32)) for ids in documents], length)


def test_grams_are_what_a_transformer_is_asked_for():
    """Rows of six: the text of seven tokens is cut, and goes on without what stood before the cut."""
    found = ngrams.grams(packed([4, 5, 6, 7], [8, 9, 1, 2, 3, 10, 11]), 3, 99)
    begun = [[99, 4, 5], [4, 5, 6], [5, 6, 7], [99, 8, 9]]  # its first two fill the space behind the four
    assert found.tolist() == [*begun, [99, 1, 2], [1, 2, 3], [2, 3, 10], [3, 10, 11]]


def test_unigrams_and_bigrams_by_hand():
    """Seen: 0 1, 0 1, 0 2, 3 1, of a vocabulary of five.

    Unigrams of a bigram model count kinds in front: 1 has two (0 and 3), 2 has one; n1 = n2 = 1, so d = 1/3 and
    p(1) = (2 - 1/3 + 1/3 * 2 / 5) / 3 = 0.6. Bigrams: counts 2, 1, 1, so d = 2 / (2 + 2) = 1/2 and
    p(1 | 0) = (2 - 1/2 + 1/2 * 2 * 0.6) / 3 = 0.7.
    """
    seen = np.array([[0, 1], [0, 1], [0, 2], [3, 1]])
    found = ngrams.probabilities(seen, np.array([[0, 1], [4, 1]]), 5)
    close(found, np.asarray([0.7, 0.6]), rounding(16, np.float64))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one(order):
    draw = np.random.default_rng(order)
    V = 7
    seen = np.minimum(draw.geometric(0.4, (60, order)) - 1, V - 1)
    for context in itertools.islice(itertools.product(range(V + 1), repeat=order - 1), 0, None, 5):
        asked = np.array([[*context, w] for w in range(V)])
        close(ngrams.probabilities(seen, asked, V).sum(), 1.0, rounding(16 * order + V, np.float64))


def test_longer_contexts_predict_what_repeats():
    train, held_out = packed(*[[1, 2, 3, 1, 4, 5]] * 9), packed([1, 2, 3, 1, 4, 5])
    losses = [ngrams.nats(train, held_out, order, 9) for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]


def test_an_order_out_of_range_is_refused():
    with pytest.raises(InputError, match="order of an n-gram model is 1 to 4 here, not 5"):
        ngrams.nats(packed([1, 2, 3, 4, 5, 6]), packed([1, 2, 3, 4, 5, 6]), 5, 9)
