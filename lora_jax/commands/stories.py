"""The command `stories`: SmolLM2 writes what the small model learns from."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_jax.files import places
from lora_jax.text import stories as telling
from lora_jax.text import story_writer


@places.reserved("file")
def stories(
    *, say: Callable[[str], None], seed: int, batches: int, first: int, add: list[Path], out: Path
) -> dict[str, Any]:
    """Have SmolLM2 write stories, sift them together with those of other files, and write them to `out`."""
    found = [story for path in add for story in telling.records(path)]
    began = time.monotonic()
    for number, written in enumerate(story_writer.write(seed, range(first, first + batches)), 1):
        found += written
        kept, dropped = telling.sift(found)
        telling.save(out, kept)
        say(f"batch {number} of {batches}: {len(kept)} stories kept; {time.monotonic() - began:.0f} s")
    say(f"{len(kept)} of {len(found)} stories in {out}; dropped: {dict(dropped)}")
    return {"out": str(out), "kept": len(kept), "dropped": dict(dropped)}
