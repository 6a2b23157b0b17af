"""How the stories were written: SmolLM2 goes on from openings put together at random.

A model this small writes plainly when a story is begun for it. So a story is an opening and the paragraphs that the
model makes of it, the unfinished last one left out. `python -m lora_jax stories` does it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax

from lora_jax import generation
from lora_jax.files import models
from lora_jax.text.stories import Story
from lora_jax.untrusted import json_text

WRITER = "smollm2-135m"
BATCH, NEW_TOKENS, TEMPERATURE, TOP_K = 96, 160, 0.75, 40

OPENINGS = Path(__file__).parents[1] / "data" / "openings.json"


@cache
def _words() -> dict[str, list[str]]:
    """The parts that openings are put together from, by what they stand for."""
    return json_text.load_object(OPENINGS)


def opening(draw: random.Random) -> str:
    """The start of a story: somebody, somewhere, and the first words of what happened."""
    words = _words()
    name, other = draw.sample(words["name"], 2)
    chosen = {"name": name, "other": other} | {part: draw.choice(words[part]) for part in ("who", "what", "where")}
    text = f"{draw.choice(words['beginnings'])} {draw.choice(words['turns'])}".format(**chosen)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


# Typographic signs to plain ones.
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u00a0": " "})


def write(seed: int, batches: Iterable[int]) -> Iterator[list[Story]]:
    """A batch of stories at a time as the model writes them, faults included; the batches are drawn by their number."""
    config, params = models.load_model(WRITER)
    tokenizer = models.load_tokenizer(WRITER)
    for batch in batches:
        draw = random.Random(f"{seed}/{batch}")
        openings = [opening(draw) for _ in range(BATCH)]
        key = jax.random.fold_in(jax.random.key(seed), batch)
        options: dict[str, Any] = {"new_tokens": NEW_TOKENS, "temperature": TEMPERATURE, "top_k": TOP_K}
        written = generation.generate(config, params, tokenizer, openings, key=key, **options)
        texts = [begun + rest.rpartition("\n")[0] for begun, rest in zip(openings, written, strict=True)]
        plain = [" ".join(text.translate(_PLAIN).split()) for text in texts]
        yield [{"text": text, "from": [seed, batch, row]} for row, text in enumerate(plain)]
