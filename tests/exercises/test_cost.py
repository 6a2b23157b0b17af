"""The exercises of notebook 02: right answers pass, plausible wrong ones are told what is wrong with them."""

import math

import jax
import pytest
from answers import is_told, written

from lora_jax import transformer
from lora_jax.exercises.outcomes import CORRECT, outcome
from lora_jax.exercises.registry import find
from lora_jax.memory import activations, peak, planner, steps
from lora_jax.memory.estimate import estimate
from lora_jax.memory.ledger import ledger
from lora_jax.memory.setup import Setup


def another_count(config):
    """By the package's own shapes, with nothing multiplied by hand."""
    shape = transformer.Config(**config)
    tree = jax.eval_shape(lambda key: transformer.init(key, shape), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def another_state(P, master):
    """By the package's ledger, for a model of one array: an embedding of width 1, and the scale of its norm."""
    shape = transformer.Config(P - 1, 1, 1, 0, 1, 1, 2)
    found = estimate(Setup(shape, "full", rounding="master" if master else "nearest"))
    return {row: found[row] for row in ("optimizer state", "gradients", "weights")}


def another_working_set(N, D, F, Q, K, size, remat):
    """By the package's estimate: what the layers' moment grows by when the batch of one-token sequences is doubled.

    What does not grow (gradients, one layer's matrices) falls out; what is saved of the batch is taken off.
    """
    config = transformer.Config(8, D, F, 2, Q // 8, K // 8, 8)
    setups = [Setup(config, "full", batch=n, length=1, dtype=f"{'bfloat' if size == 2 else 'float'}{8 * size}",
                    remat=remat) for n in (N, 2 * N)]  # fmt: skip
    trainable = steps.build(setups[0]).trainable
    held = [peak.temporary(one, trainable) for one in setups]
    saved = [activations.kept_by_layers(one, trainable) for one in setups]
    assert {moment for moment, _ in held} == {"layers"}
    return (held[1][1] - saved[1]) - (held[0][1] - saved[0])


def another_save(size, speeds, pieces):
    """Piece by piece, as the notebook's picture moves them."""
    free = [0.0] * len(speeds)
    for _ in range(pieces):
        there = 0.0
        for row, speed in enumerate(speeds):
            there = free[row] = max(there, free[row]) + size / pieces / speed
    return there


def another_number(P, whole, card_gib):
    """By the planner, and as a float, since cards are whole either way."""
    held = {"weights": 2 * P, "gradients": 2 * P, "optimizer state": 4 * P, "saved activations": whole}
    return float(planner.cards_needed(ledger("by hand", held), card_gib * 2**30))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("2.1", another_count),
        ("2.2", another_state),
        ("2.3", another_working_set),
        ("2.4", another_save),
        ("2.5", another_number),
    ],
)
def test_another_way_to_the_same_answer_is_correct(id, answer, seed):
    assert outcome(find(id), answer, seed).status == CORRECT


WRONG = {
    "2.1": [
        (('config["num_key_value_heads"]', 'config["num_attention_heads"]'), "k_proj and v_proj are too wide"),
        (('config["num_hidden_layers"] * block', "block"), "you count one block"),
        (("3 * D * F", "2 * D * F"), "you count two"),
        (("2 * D * Q", "D * Q"), "o_proj is missing"),
        ((" + 2 * D\n", "\n"), "the norms inside the blocks are missing"),
        (("block + D + head", "block + head"), "the norm behind the last block is missing"),
        (("2 * D * Q", "2 * D * D"), "q_proj is D x"),
        (("V * D +", "2 * (V * D +"), ("+ D + head", "+ D + head)"), "those are bytes"),
        (('0 if config["tie_word_embeddings"] else D * V', "D * V"), "you count the head beside the embedding"),
        (('0 if config["tie_word_embeddings"] else D * V', "0"), "the head is missing"),
        (("return V * D +", "return 7 + V * D +"), "you count 7 too many"),
    ],
    "2.2": [
        (('"weights": 2 * P', '"weights": 4 * P if master else 2 * P'), "the weights are off"),
        (('"gradients": 2 * P', '"gradients": 0'), "the gradients are missing"),
        (('"gradients": 2 * P', '"gradients": 4 * P if master else 2 * P'), "the gradients are off"),
        (("state + 4", "state"), "counts its steps"),
        (("else 2 * 2 * P", "else 2 * P"), "one moment is missing"),
        (("else 2 * 2 * P", "else 2 * 4 * P"), "moments have the dtype of what trains"),
        (("3 * 4 * P if master else ", ""), "the copy is state too"),
        (("3 * 4 * P", "2 * 4 * P"), "all three are float32"),
        (("3 * 4 * P", "3 * 2 * P"), "is 6 bytes a number"),
        (('"optimizer state": state + 4', '"state": state + 4'), "return a dict with the keys"),
    ],
    "2.3": [
        (("4 * F + 4 * D", "3 * F + 4 * D"), "its gradient needs the product once more"),
        (("2 * F + D + 2 * Q", "D + 2 * Q"), "gate and up are missing"),
        (("2 * F + D + 2 * Q", "F + D + 2 * Q"), "one of gate and up is missing"),
        (("    if remat:\n        numbers += ", "    numbers += "), "nothing is made again where nothing"),
        (("4 * F + 4 * D", "(4 if remat else 6) * F + 4 * D"), "gate and up are saved where nothing is"),
        (("if remat:", "if False:"), "all in the table but its input"),
        (("4 * F + 4 * D", "4 * F"), "the text names them"),
        (("F + D + 2 * Q", "F + 2 * Q"), "the stream between the block's halves"),
        (("D + 2 * Q + 2 * K", "D + Q + 2 * K"), "q or mixed is missing"),
        (("D + 2 * Q + 2 * K", "D + 2 * Q + K"), "k or v is missing"),
        ((" + D + 2 * Q + 2 * K", ""), "the stream, q, k, v and mixed are missing"),
        (("N * size * numbers", "size * numbers"), "those are the bytes of one token"),
        (("N * size * numbers", "N * numbers"), "those are numbers"),
        (("return N", "return 7 + N"), "you count 7 bytes too many"),
    ],
    "2.4": [
        (("sum(each) + (pieces - 1) * max(each)", "pieces * sum(each)"), "nothing overlaps"),
        (("sum(each) + (pieces - 1) * max(each)", "pieces * max(each)"), "the slowest hop alone"),
        (("(pieces - 1)", "pieces"), "one piece too many"),
        ((" + (pieces - 1) * max(each)", ""), "the first piece arrives"),
        (("sum(each) + (pieces - 1) * max(each)", "size / (sum(speeds) / len(speeds))"), "speeds do not average"),
        (("sum(each) + (pieces - 1) * max(each)", "size / sum(speeds)"), "speeds add up where ways are side by side"),
        (("max(each)", "min(each)"), "at the pace of the slowest hop"),
        (("max(each)", "each[-1]"), "at the pace of the slowest hop"),
        (("max(each)", "each[0]"), "at the pace of the slowest hop"),
        (("sum(each) +", "sum(each) + 1 +"), "follow the last piece"),
        (("size / pieces / speed", "8 * size / pieces / speed"), "bytes a second, not bits"),
    ],
    "2.5": [
        (("2 + 2 + 2 + 2", "2 + 2 + 2"), "the gradients are missing"),
        (("2**30", "10**9"), "it is 2**30"),
        ((" - whole", ""), ("P * (2 + 2 + 2 + 2)", "P * 8 + whole"), "does not come off what that card has"),
        (("2 + 2 + 2 + 2", "2 + 2 + 2"), ("2**30", "10**9"), "the gradients are missing"),
        (("-(-held // room)", "held // room"), "rounded down"),
        (("-(-held // room)", "held / room"), "round up"),
        (("2 + 2 + 2 + 2", "2 + 2 + 4 + 4"), "12 bytes a parameter"),
        ((" - whole", ""), "does not come off what that card has"),
        (("-(-held // room)", "7 - (-held // room)"), "the room left on a card"),
    ],
}


@pytest.mark.parametrize(("id", "wrong"), [(id, wrong) for id, cases in WRONG.items() for wrong in cases])
def test_a_wrong_answer_is_told_why(id, wrong):
    *changes, reason = wrong
    is_told(id, written(id, *changes), reason)
