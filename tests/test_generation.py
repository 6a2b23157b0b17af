"""Sampling: what the cache and the padding must not change, and draws counted against their probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import forward_pass, rounding

from lora_jax.errors import InputError
from lora_jax.generation import choose, continuation, decode, generate, init_cache, sample
from lora_jax.transformer import Config, forward, init

CONFIG = Config(
    vocab_size=61,
    hidden_size=20,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=6,
    rope_theta=300.0,
    tie_word_embeddings=False,
)
NEW, LONGEST = 9, 12
ROUNDING = rounding(forward_pass(CONFIG, LONGEST + NEW)).share
LOGITS = np.asarray([0.3, 2.0, -1.0, 1.2, 0.9, -0.4, 1.7], np.float32)  # the order is 1, 6, 3, 4, 0, 5, 2


class Letters:
    """One token a letter; the end is never drawn."""

    end_ids = ()

    def encode(self, text):
        return [ord(letter) - ord("A") for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("A") + i) for i in ids)


@pytest.fixture(scope="module")
def params():
    """Weights large enough that the next token depends on all before it."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: init(jax.random.key(0), CONFIG))

    def leaf(path, x):
        return jnp.asarray(rng.normal("norm" in jax.tree_util.keystr(path), 0.4, x.shape), jnp.float32)

    return jax.tree.map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def prompts():
    """`(tokens, segments, lengths)`: four prompts of different lengths, padded on the left with a real token."""
    lengths = np.asarray([12, 1, 7, 4])
    tokens = np.random.default_rng(29).integers(0, 61, (4, 12)).astype(np.int32)
    segments = (np.arange(12) >= 12 - lengths[:, None]).astype(np.int32)
    return np.where(segments == 1, tokens, 5), segments, lengths


@pytest.fixture(scope="module")
def greedy(params, prompts):
    return np.asarray(sample(CONFIG, params, *prompts[:2], jax.random.key(0), new_tokens=NEW, temperature=0.0))


@jax.jit
def whole(params, text):
    return forward(CONFIG, params, text[None])[0]


def likeliest(params, prompt):
    """The tokens that greedy decoding should give, by a forward of the whole text, and that no rounding can change."""
    text = np.zeros(LONGEST + NEW, np.int32)
    text[: len(prompt)] = prompt
    for at in range(len(prompt), len(prompt) + NEW):
        logits = np.asarray(whole(params, text))[at - 1]
        *_, second, best = np.sort(logits)
        assert best - second > 10 * ROUNDING * np.abs(logits).max(), "another seed: this one's tokens are nearly tied"
        text[at] = logits.argmax()
    return text[len(prompt) : len(prompt) + NEW].tolist()


def test_greedy_decoding_takes_the_likeliest_token_of_a_plain_forward_at_each_step(params, prompts, greedy):
    """The forward sees each whole text without a cache and without padding on the left."""
    tokens, _, lengths = prompts
    assert greedy.tolist() == [likeliest(params, tokens[row, LONGEST - n :]) for row, n in enumerate(lengths)]
    assert len({tuple(row) for row in greedy}) == 4 and len(set(greedy.flat)) > 8


def test_a_row_ends_with_its_end_token_and_is_filled_with_it(params, prompts, greedy):
    end_id = int(greedy[0, 3])
    found = sample(CONFIG, params, *prompts[:2], jax.random.key(0), new_tokens=NEW, temperature=0.0, end_ids=end_id)
    expected = greedy.copy()
    for row in expected:
        if end_id in row:
            row[row.tolist().index(end_id) :] = end_id
    np.testing.assert_array_equal(found, expected)
    assert (expected[0] == end_id).sum() > 1 and not (expected == end_id).any(axis=1).all()


def test_all_rows_ending_at_once_leaves_nothing_but_the_end_token(params, prompts, greedy):
    tokens, segments, _ = (x[:1] for x in prompts)
    end_id = int(greedy[0, 0])
    found = sample(CONFIG, params, tokens, segments, jax.random.key(0), new_tokens=NEW, temperature=0.0, end_ids=end_id)
    assert (np.asarray(found) == end_id).all()


def probabilities(temperature, top_k, top_p):
    """By hand: of the k likeliest, the fewest whose probabilities sum to at least p."""
    p = np.exp(LOGITS / temperature)
    order = np.argsort(-LOGITS)[:top_k]
    kept = order if top_p is None else order[: np.searchsorted(np.cumsum(p[order]) / p[order].sum(), top_p) + 1]
    return np.where(np.isin(np.arange(LOGITS.size), kept), p, 0) / p[kept].sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "possible"),
    [
        (1.0, None, None, 7),
        (0.5, None, None, 7),
        (3.0, None, None, 7),
        (1.0, 3, None, 3),
        (0.7, None, 0.8, 3),
        (1.0, None, 1.0, 7),
        (2.0, 4, 0.6, 3),
        (1.0, None, 0.01, 1),
    ],
)
def test_draws_come_as_often_as_their_probabilities_say(temperature, top_k, top_p, possible):
    expected = probabilities(temperature, top_k, top_p)
    assert (expected > 0).sum() == possible
    draws = 20_000
    drawn = choose(jax.random.key(4), jnp.tile(LOGITS, (draws, 1)), temperature, top_k, top_p)
    counts = np.bincount(drawn, minlength=LOGITS.size)
    assert counts[expected == 0].sum() == 0
    seen, wanted = counts[expected > 0], draws * expected[expected > 0]
    # Chi-square with at most 6 degrees of freedom: above 30 once in 25,000 keys.
    assert ((seen - wanted) ** 2 / wanted).sum() < 30


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.5)])
def test_temperature_zero_takes_the_likeliest_whatever_the_key(top_k, top_p):
    rows = jax.random.randint(jax.random.key(1), (50, 7), -3, 3) * 1.0  # where two share the first place: the earlier
    for key in jax.random.split(jax.random.key(2), 3):
        np.testing.assert_array_equal(choose(key, rows, 0.0, top_k, top_p), rows.argmax(axis=1))


def test_the_same_key_gives_the_same_text_and_another_key_another(params):
    first, again, other = (
        generate(CONFIG, params, Letters(), "HELLO", key=jax.random.key(k), new_tokens=NEW) for k in (3, 3, 4)
    )
    assert first == again != other
    assert len(first) == NEW


def test_every_row_and_every_step_draws_anew(params, prompts):
    """Where all tokens are equally likely, 64 draws of 61 tokens hold about 40 different ones."""
    even = params | {"lm_head": 0 * params["lm_head"]}
    found = np.asarray(sample(CONFIG, even, *prompts[:2], jax.random.key(0), new_tokens=64))
    assert all(len(set(row.tolist())) > 25 for row in found)
    assert max((found[i] == found[j]).mean() for i in range(4) for j in range(i)) < 0.2


def test_a_string_gives_a_string_and_a_list_gives_each_what_it_gets_alone(params):
    words = ["HELLO", "AB"]
    alone = [generate(CONFIG, params, Letters(), word, new_tokens=NEW, temperature=0.0) for word in words]
    assert alone == [Letters().decode(likeliest(params, Letters().encode(word))) for word in words]
    assert generate(CONFIG, params, Letters(), words, new_tokens=NEW, temperature=0.0) == alone
    assert all(isinstance(text, str) for text in alone)


def test_the_text_ends_before_the_end_token(params):
    whole = generate(CONFIG, params, Letters(), "HELLO", new_tokens=NEW, temperature=0.0)
    ending = Letters()
    ending.end_ids = (ending.encode(whole)[4],)
    text = generate(CONFIG, params, ending, "HELLO", new_tokens=NEW, temperature=0.0)
    assert text == whole[: whole.index(whole[4])]


def test_each_of_several_ends_ends_its_row(params):
    """Two prompts whose likeliest continuations meet different ends, and a third end that is met by none."""
    words = ["HELLO", "AB"]
    whole = generate(CONFIG, params, Letters(), words, new_tokens=NEW, temperature=0.0)
    ending = Letters()
    ending.end_ids = (ending.encode(whole[0])[4], ending.encode(whole[1])[6], 60)
    stops = [min(text.index(end) for end in map(ending.decode, ([i] for i in ending.end_ids)) if end in text)
             for text in whole]  # fmt: skip
    texts = generate(CONFIG, params, ending, words, new_tokens=NEW, temperature=0.0)
    assert texts == [text[:stop] for text, stop in zip(whole, stops, strict=True)] and texts != whole


def test_the_last_position_of_the_model_is_usable(params):
    """Whatever the multiple that prompts are padded to: the numbers are those that the user gave."""
    config = dataclasses.replace(CONFIG, max_position_embeddings=128)
    long = "A" * 97
    assert len(generate(config, params, Letters(), long, new_tokens=31, temperature=0.0)) == 31
    whole = forward(CONFIG, params, np.zeros((1, 97), np.int32))[0, -1]
    assert generate(config, params, Letters(), long, new_tokens=1, temperature=0.0) == Letters().decode(
        [whole.argmax()]
    )
    message = (
        "^a prompt of 97 tokens and 32 new ones are 129, more than the 128 positions that this model was made for$"
    )
    with pytest.raises(InputError, match=message):
        generate(config, params, Letters(), ["AB", long], new_tokens=32)


def test_token_ids_are_a_prompt_too(params):
    text = generate(CONFIG, params, Letters(), "HELLO", new_tokens=NEW, temperature=0.0)
    assert generate(CONFIG, params, Letters(), [Letters().encode("HELLO")], new_tokens=NEW, temperature=0.0) == [text]


def test_a_token_that_the_embedding_has_no_row_for_is_refused_with_both_numbers(params):
    assert generate(CONFIG, params, Letters(), [[60]], new_tokens=1)
    message = "the tokenizer gives the token id 61, but the model's embedding has 61 rows, 0 to 60"
    with pytest.raises(InputError, match=message):
        generate(CONFIG, params, Letters(), [[3], [5, 61, 2]])


class Spaced(Letters):
    """As Llama 2's: a space before each word, and none where a text opens."""

    def decode(self, ids):
        return "".join(" " + chr(ord("A") + i) for i in ids)[1:]


class Bytes(Letters):
    """Two tokens make a letter; half of one reads as a sign of damage, and so does what it stands beside."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


def test_a_continuation_reads_as_it_does_in_the_whole_text():
    assert continuation(Spaced(), [0, 1], [2, 3]) == " C D"
    assert continuation(Spaced(), [], [2, 3]) == "C D"
    assert continuation(Letters(), [0, 1], [2, 3]) == "CD"
    assert continuation(Bytes(), [*"é".encode()], [*"è".encode()]) == "è"
    assert continuation(Bytes(), [0xC3], [0xA9]) == "\ufffd", "the text before it changes with it: it is decoded alone"


def test_two_temperatures_and_two_prompts_share_one_compilation(params):
    before = sample._cache_size()
    for prompt, temperature, top_p in (("HELLO", 0.7, 0.9), ("AB", 0.9, 0.5), ("ABCDEFGHIJ", 0.0, 1.0)):
        generate(CONFIG, params, Letters(), prompt, new_tokens=NEW, temperature=temperature, top_p=top_p, top_k=11)
    assert sample._cache_size() == before + 1


def test_a_bfloat16_model_generates(params, prompts):
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = sample(CONFIG, halved, *prompts[:2], jax.random.key(0), new_tokens=NEW)
    assert found.shape == (4, NEW) and found.dtype == jnp.int32


def test_a_cache_that_is_too_small_is_named(params, prompts):
    with pytest.raises(InputError, match="12 tokens do not fit a cache of 11 slots: make it larger"):
        decode(CONFIG, params, prompts[0], init_cache(CONFIG, 4, 11))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("", {}, "give at least one prompt, none of them empty"),
        ([], {}, "give at least one prompt, none of them empty"),
        (["AB", ""], {}, "give at least one prompt, none of them empty"),
        ("AB", {"temperature": -0.1}, "temperature must be 0 or more"),
        ("AB", {"new_tokens": 0}, "new_tokens at least 1"),
        ("AB", {"temperature": float("nan")}, "temperature must be 0 or more"),
        ("AB", {"top_k": 0}, "top_k at least 1"),
        ("AB", {"new_tokens": 100_000}, "more than the [0-9]+ positions that this model was made for"),
        ("AB", {"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ("AB", {"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
    ],
)
def test_settings_out_of_range_are_refused_in_a_sentence(params, prompts, options, message):
    with pytest.raises(InputError, match=message):
        generate(CONFIG, params, Letters(), prompts, **options)
