"""The stories: short and simple, written by SmolLM2 (`story_writer.py`), sifted, and kept beside the package.

What went round in circles, speaks about itself or is no plain prose was dropped. A record has a story's `text`, and the
seed, batch and row that it is `from`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.files import atomic
from lora_jax.text import content
from lora_jax.untrusted import files, json_text

STORIES = Path(__file__).parents[1] / "data" / "stories.jsonl.gz"
WORDS = (40, 160)  # in a story

Story = dict[str, Any]

_ASIDE = re.compile(
    r"\b((in|of|this|original) (the |this |your )?story|(story|tale) (is|was|of|inspired)|user|assistant|AI|essay"
    r"|theme|readers?|narrator|author|film|movie|version|example|sentence|puzzle|riddle|answer is)\b",
    re.IGNORECASE,
)


def fault(story: str) -> str | None:
    """Why a story is not a plain, whole one, or None where it is."""
    words = re.findall(r"[a-z']+", story.lower())
    sentences = [s.strip().lower() for s in re.split(r"(?<=[.!?])[\"']?\s+", story)]
    fours = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    if not WORDS[0] <= len(words) <= WORDS[1]:
        return "length"
    if not re.search(r"[.!?][\"']?$", story) or story.count('"') % 2:
        return "ending"
    if not re.fullmatch(r"[A-Za-z .,;:!?'\"-]+", story) or re.search(r"\s\s|[A-Z]{4}|--", story):
        return "not plain prose"
    if _ASIDE.search(story):
        return "speaks about itself"
    if len(set(sentences)) < len(sentences) or fours.most_common(1)[0][1] > 3 or len(set(words)) < 0.42 * len(words):
        return "goes round in circles"
    return None


def sift(stories: Iterable[Story]) -> tuple[list[Story], Counter[str]]:
    """The stories without fault, each once, and how many were dropped for which reason."""
    kept: list[Story] = []
    seen: set[str] = set()
    dropped: Counter[str] = Counter()
    for story in stories:
        bare = re.sub(r"\W+", " ", story["text"].lower())
        reason = fault(story["text"]) or ("twice" if bare in seen else None)
        if reason:
            dropped[reason] += 1
        else:
            seen.add(bare)
            kept.append(story)
    return kept, dropped


def read(path: str | Path = STORIES) -> list[str]:
    """The texts of a file of stories, in its order. Raises InputError where the file is absent or damaged."""
    return [story["text"] for story in records(path)]


def records(path: str | Path) -> list[Story]:
    """The stories of a gzipped .jsonl file, each with where it is from."""
    try:
        text = files.decode(content.unpacked(files.read_bytes(path, content.LARGEST), path), str(path))
        found = [json_text.loads(line, f"line {n}") for n, line in enumerate(text.splitlines(), 1)]
        for number, story in enumerate(found, 1):
            if not isinstance(story, dict) or not isinstance(story.get("text"), str):
                raise InputError(f'line {number} is {json_text.shown(story)}, where a story is {{"text": "..."}}')
    except InputError as error:
        raise InputError(f"{path} is not a readable file of stories ({error})") from error
    return found


def save(path: str | Path, stories: list[Story]) -> None:
    """Write stories as gzipped JSON lines, the same bytes each time."""
    lines = "".join(json.dumps(story, ensure_ascii=False, separators=(",", ":")) + "\n" for story in stories)
    atomic.write_bytes(path, gzip.compress(lines.encode(), 9, mtime=0))
