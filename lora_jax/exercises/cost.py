"""Exercises of notebook 02: what full fine-tuning costs, in bytes, seconds and cards."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_jax.exercises.colleague import CARDS_NEEDED
from lora_jax.exercises.judging import near, number
from lora_jax.exercises.layer import WORKING_SET
from lora_jax.exercises.registry import Exercise


# 2.1: the parameters of a model, from its config.
def _shape(rng: np.random.Generator, tied: bool) -> dict[str, Any]:
    """A config whose sizes all differ; its heads together are wider than the model."""
    group, kv_heads, layers, head = rng.integers((2, 2, 7, 6), (5, 6, 12, 10)).tolist()
    D = group * kv_heads * head * 8 - int(rng.integers(1, 50))
    return {
        "vocab_size": 1000 + int(rng.integers(0, 500)) * 2,
        "hidden_size": D,
        "intermediate_size": 3 * D + int(rng.integers(1, 30)),
        "num_hidden_layers": layers,
        "num_attention_heads": group * kv_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 8 * head,
        "tie_word_embeddings": tied,
    }


def _shapes(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Tied and untied in turn; then heads that are narrower than the model, which is large; then a very small one.

    The count of the large ones is odd, which float32 cannot hold. The small one has one layer, heads that share
    nothing, and together they are as wide as the model.
    """
    D = 2 * int(rng.integers(1100, 1280)) + 1
    large = {"vocab_size": 100_000 + 2 * int(rng.integers(0, 9000)), "hidden_size": D, "intermediate_size": 2 * D + 2,
             "num_hidden_layers": 20, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 64}  # fmt: skip
    C = 2 * int(rng.integers(2, 9))
    small = {"vocab_size": 9, "hidden_size": 2 * C, "intermediate_size": 5, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": C}  # fmt: skip
    others = [one | {"tie_word_embeddings": tied} for one in (large, small) for tied in (True, False)]
    return [(config,) for config in [*(_shape(rng, tied) for tied in (True, False, True, False)), *others]]


def _parameters(
    c: dict[str, Any], *, kv: str = "num_key_value_heads", square: bool = False, layers: int | None = None,
    output: int = 1, gated: int = 3, norms: int = 2, last: int = 1, other_head: bool = False, embedding: int = 1,
) -> int:  # fmt: skip
    """The parameters of a config; each keyword is a mistake that somebody may make."""
    D, C = c["hidden_size"], c["head_dim"]
    Q, KV = D if square else c["num_attention_heads"] * C, c[kv] * C
    block = (1 + output) * D * Q + 2 * D * KV + gated * D * c["intermediate_size"] + norms * D
    tables = embedding + (c["tie_word_embeddings"] == other_head)
    return tables * c["vocab_size"] * D + (c["num_hidden_layers"] if layers is None else layers) * block + last * D


_PARAMETER_MISTAKES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"kv": "num_attention_heads"}, "k_proj and v_proj are too wide: they have num_key_value_heads heads."),
    ({"layers": 1}, "you count one block: multiply what is in a block by num_hidden_layers."),
    ({"gated": 2}, "the feed-forward has three matrices, gate_proj, up_proj and down_proj, and you count two."),
    ({"output": 0}, "o_proj is missing: it leads from the heads back to the stream."),
    ({"norms": 0, "last": 0}, "the norms are missing: two scales of length D in each block, and one behind the last."),
    ({"norms": 0}, "the norms inside the blocks are missing: two scales of length D in each."),
    ({"last": 0}, "the norm behind the last block is missing: D numbers."),
    ({"square": True}, "q_proj is D x (num_attention_heads * head_dim), not D x D; o_proj is its mirror."),
    ({"embedding": 0}, "the embedding is missing: V x D, whether or not it is the head too."),
)  # fmt: skip


def _judge_parameters(arguments: tuple[Any, ...], answer: Any) -> str | None:
    (config,) = arguments
    answer, right = number(answer), _parameters(config)
    if answer == right:
        return None
    if answer == _parameters(config, other_head=True):
        tied = "you count the head beside the embedding: where tie_word_embeddings is true it is the embedding itself."
        own = "the head is missing: where tie_word_embeddings is false it is a matrix of its own, D x V."
        return tied if config["tie_word_embeddings"] else own
    for wrong, sentence in _PARAMETER_MISTAKES:
        if answer == _parameters(config, **wrong):
            return sentence
    heads = config["num_attention_heads"]
    if answer == _parameters(config | {"head_dim": config["hidden_size"] // heads}):
        return "head_dim stands in the config: it need not be hidden_size / num_attention_heads."
    if answer in (2 * right, 4 * right):
        return "those are bytes: return how many numbers there are, before any dtype."
    side = "many" if answer > right else "few"
    return f"you count {abs(answer - right):,} too {side}: go through the table of arrays row by row."


# 2.2: the bytes that AdamW holds.
_ROWS = ("weights", "gradients", "optimizer state")
_STATE_MISTAKES = {  # (master, bytes a number)
    (False, 2): "one moment is missing: AdamW keeps two for each number, mu and nu.",
    (False, 8): "without a master copy both moments have the dtype of what trains, bfloat16: 2 bytes each.",
    (True, 4): "with a master copy AdamW works on float32: both moments are float32, and the copy is state too.",
    (True, 8): "8 bytes a number, where mu, nu and the copy take 12: with a master copy all three are float32.",
}


def _judge_state(arguments: tuple[Any, ...], answer: Any) -> str | None:
    P, master = arguments
    if not isinstance(answer, dict) or set(answer) != set(_ROWS):
        return f"return a dict with the keys {', '.join(map(repr, _ROWS))}, bytes under each."
    weights, gradients, state = (number(answer[row]) for row in _ROWS)
    if weights != 2 * P:
        return "the weights are off: 2 bytes each in bfloat16; a float32 copy stands beside them, as optimizer state."
    if gradients == 0:
        return "the gradients are missing: full fine-tuning has one for every weight."
    if gradients != 2 * P:
        return "the gradients are off: jax.grad gives each the dtype of its weight, bfloat16, 2 bytes a number."
    right = (12 if master else 4) * P + 4
    if state == right:
        return None
    if state == right - 4:
        return "the optimizer state is 4 bytes short: AdamW counts its steps in an int32."
    if abs(state - right) < 16:
        return "the optimizer state is a few bytes off: AdamW counts its steps in one int32, 4 bytes, whatever P is."
    each = round(state / P)  # bytes a number: the count is lost in the rounding
    other = f"the optimizer state is {each} bytes a number: count its arrays, and the bytes of a number in each."
    return _STATE_MISTAKES.get((master, each), other)


# 2.4: the seconds of a save over several hops.
def _save_cases(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """The slowest hop stands last, first, and in the middle; one hop, one piece, and equal hops; and a few bytes."""
    cases = [(rng.integers(10, 900), np.sort(rng.choice(np.arange(100, 6000), hops, replace=False)), n)
             for hops, n in ((2, 5), (3, 8), (4, 37))]  # fmt: skip
    found = [(1e9 * int(size), [1e7 * int(s) for s in speeds], n) for size, speeds, n in cases]
    (one, falling, _), (two, (a, b, c), _), (three, rising, _) = found
    found = [(one, falling[::-1], 5), (two, [b, a, c], 8), (three, rising, 37)]
    return [
        *found,
        (one, falling, 1),
        (two, [b], 7),
        (three, [c, b, b], 3),
        (int(rng.integers(20, 30)) * 7 + 3, [9, 4], 7),
    ]


def _judge_save(arguments: tuple[Any, ...], answer: Any) -> str | None:
    size, speeds, pieces = arguments
    answer, whole = number(answer), [size / speed for speed in speeds]
    first, slowest = sum(whole) / pieces, max(whole) / pieces
    right = first + (pieces - 1) * slowest
    if near(answer, right, pieces + len(speeds) + 4):
        return None
    over = f"{len(speeds)} hops, pieces: {pieces}"
    mistakes = (
        (sum(whole), "nothing overlaps: while one hop moves a piece, the hop before it moves the next."),
        (max(whole), "the slowest hop alone: it must wait for its first piece, and the hops behind it for the last."),
        (first + pieces * slowest, "one piece too many: the first is in the sum over hops, so pieces - 1 follow it."),
        (first, "that is when the first piece arrives: pieces - 1 more follow, each a slowest hop's time later."),
        (size / (sum(speeds) / len(speeds)), "speeds do not average: add the seconds that a hop takes, not its speed."),
        (size / sum(speeds), "speeds add up where ways are side by side; these hops stand one behind the other."),
        (first + (pieces - 1) * min(whole) / pieces, "pieces come at the pace of the slowest hop, wherever it stands."),
        (right * 8, "eight times too long: the speeds are bytes a second, not bits."),
    )  # fmt: skip
    for wrong, sentence in mistakes:
        if near(answer, wrong):
            return f"({over}) {sentence}"
    return f"({over}) you say {answer:.4g} s: draw a row for each hop, and follow the last piece."


# fmt: off
EXERCISES = (
    Exercise(
        id="2.1", name="parameters", title="The parameters of a config",
        minutes=15, difficulty=2, judge=_judge_parameters,
        cases=_shapes,
        hints=(
            "Start with one block: four matrices of attention, three of the feed-forward, two norms of length D.",
            "q_proj is D x (H * C), k_proj and v_proj are D x (K * C), o_proj is (H * C) x D.",
            "Around L blocks: the embedding V x D, one last norm, and a head D x V unless it is tied.",
        ),
        solution='''def parameters(config):
    """How many numbers a model is, from a dict with the names of `config.json`: an int."""
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    Q = config["num_attention_heads"] * config["head_dim"]
    KV = config["num_key_value_heads"] * config["head_dim"]
    block = 2 * D * Q + 2 * D * KV + 3 * D * F + 2 * D
    head = 0 if config["tie_word_embeddings"] else D * V
    return V * D + config["num_hidden_layers"] * block + D + head''',
    ),
    Exercise(
        id="2.2", name="training_bytes", title="The bytes that AdamW holds for every step",
        minutes=10, difficulty=2, judge=_judge_state,
        # Odd, so that no half of P is whole; and so large that float32 cannot hold the bytes.
        cases=lambda rng: [(2 * int(rng.integers(10**8, 5 * 10**10)) + 1, master) for master in (False, True) * 2],
        hints=(
            "Weights and gradients are bfloat16 either way. Which arrays does AdamW hold, and of which dtype?",
            "Without a master copy mu and nu are bfloat16. With one, mu, nu and the copy are float32.",
        ),
        solution='''def training_bytes(P, master):
    """Bytes of a step over P bfloat16 weights: a dict of "weights", "gradients", "optimizer state".

    `master`: whether AdamW works on a float32 copy of the weights, which is then part of its state.
    """
    state = 3 * 4 * P if master else 2 * 2 * P
    return {"weights": 2 * P, "gradients": 2 * P, "optimizer state": state + 4}''',
    ),
    WORKING_SET,
    Exercise(
        id="2.4", name="save_seconds", title="The seconds of a save, piece by piece",
        minutes=15, difficulty=3, cases=_save_cases, judge=_judge_save,
        hints=(
            "With one piece, each hop waits for the one before: add up the seconds of each.",
            "Follow the first piece to the end. How long after it does the second arrive, and which hop decides that?",
        ),
        solution='''def save_seconds(size, speeds, pieces):
    """Seconds until the last of `pieces` equal pieces of `size` bytes is over the last hop.

    `speeds`: bytes a second of each hop, in order. A hop takes a piece as soon as it is free and the piece is there.
    """
    each = [size / pieces / speed for speed in speeds]
    return sum(each) + (pieces - 1) * max(each)''',
    ),
    CARDS_NEEDED,
)
# fmt: on
