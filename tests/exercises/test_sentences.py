"""What a wrong answer is told: the mistake that it makes, one at a time, and no other."""

import math
import re
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import written
from exercises import test_cost, test_low_rank, test_memory, test_poems, test_pretraining

from lora_jax.exercises import registry
from lora_jax.exercises.outcomes import CORRECT, NOT_YET, outcome

SOURCES = Path(__file__).resolve().parents[2] / "notebooks" / "src"


def nll(softmax, middle, logarithm):
    """1.3 with each of its three mistakes made where an argument is True."""
    axis = 1 if softmax else -1

    def answer(logits, targets, mask):
        if logarithm:
            p = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=axis, keepdims=True)
            log_p = jnp.log(p)
        else:
            log_p = jax.nn.log_softmax(logits, axis=axis)
        nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        return jnp.mean(nats * mask) if middle else jnp.sum(nats * mask) / jnp.sum(mask)

    return answer


def cards(gradients, shared, gigabytes):
    def answer(P, whole, gib):
        held, card = P * (6 if gradients else 8), gib * (1e9 if gigabytes else 2**30)
        return int(np.ceil((held + whole) / card if shared else held / (card - whole)))

    return answer


def times(weights, halves, shrinks):
    def answer(P, A, kept):
        lora = (0 if weights else 2 * P) + (8 if halves else 16) * A + (kept * A / P if shrinks else kept)
        return (8 * P + kept) / lora

    return answer


# The answer with some of the three mistakes, and words that only the sentence of each has.
TO_MEND = {
    "1.3": (nll, ("runs over time", "divided by all positions", "exp overflows")),
    "2.5": (cards, ("gradients are missing", "whole on each card", "1e9 bytes")),
    "4.5": (times, ("LoRA's weights are missing", "16 bytes, not 8", "activations still shrink")),
}


@pytest.mark.parametrize("id", TO_MEND)
@pytest.mark.parametrize("made", list(product((False, True), repeat=3)), ids=str)
def test_of_the_mistakes_to_be_found_one_that_is_made_is_named(id, made):
    answer, words = TO_MEND[id]
    for seed in range(8):
        found = outcome(registry.find(id), answer(*made), seed)
        named = [one for one, word in zip(made, words, strict=True) if word in found.reason]
        assert found.status == (NOT_YET if any(made) else CORRECT), seed
        assert named == [True] * any(made), (seed, found.reason)


def given(id):
    """The code that the notebook gives to be mended, as it stands there."""
    if id == "1.3":
        text = (SOURCES / "01_pretrain_then_finetune.py").read_text()
        code = re.search(r"# ```python\n((?:# .*\n)+?)# ```", text[text.index("Exercise 1.3") :]).group(1)
        source, name = re.sub(r"^# ", "", code, flags=re.M), "next_token_loss"
    else:
        file = {"2.5": "02_what_full_finetuning_costs.py", "4.5": "04_memory_full_vs_lora.py"}[id]
        name = {"2.5": "colleagues_cards", "4.5": "colleagues_times_less"}[id]
        source = re.search(rf"^def {name}\(.*\n(?:    .*\n)+", (SOURCES / file).read_text(), re.M).group(0)
    space = {"np": np, "jnp": jnp, "jax": jax, "math": math}
    exec(source, space)  # the notebook's own text
    return space[name]


@pytest.mark.parametrize("id", TO_MEND)
def test_the_given_code_is_told_one_of_its_mistakes(id):
    for seed in range(8):
        found = outcome(registry.find(id), given(id), seed)
        assert found.status == NOT_YET
        assert sum(word in found.reason for word in TO_MEND[id][1]) == 1, found.reason


def known():
    """{id: [(answer, words of its sentence)]} of all that the tests of the notebooks list."""
    found = {}
    for module in (test_pretraining, test_low_rank):
        found |= {id: list(pairs) for id, pairs in module.WRONG.items()}
    for module in (test_cost, test_memory):
        found |= {id: [(written(id, *one[:-1]), one[-1]) for one in wrong] for id, wrong in module.WRONG.items()}
    for id, answer, words in test_poems.WRONG:
        found.setdefault(id, []).append((answer, words))
    return found


KNOWN = known()
# Words of two answers that make one mistake: its sentence is that of both.
ONE_MISTAKE = {
    "4.1": [{"two moments for each number", "two moments"}],
    "4.5": [{"16 bytes, not 8", "not 8: it, its gradient and its two moments are"}],
}


@pytest.mark.parametrize("id", KNOWN)
def test_no_answer_is_told_another_s_mistake(id):
    """The confusion matrix of known mistakes and sentences has nothing beside its diagonal: no sentence serves two."""
    told = {}
    for answer, own in KNOWN[id]:
        for seed in range(5):
            said = outcome(registry.find(id), answer, seed).reason
            assert own in said, seed
            told.setdefault(re.sub(r"[\d.,]+", "#", said), set()).add(own)
    for sentence, owners in told.items():
        assert len(owners) == 1 or owners in ONE_MISTAKE.get(id, []), (sentence, owners)
