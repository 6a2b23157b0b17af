"""The command `generate`: what a model writes after each prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lora_jax import generation
from lora_jax.adapters import base
from lora_jax.files import models, peft
from lora_jax.files.tokenizer import with_plain_template


def generate(
    *,
    say: Callable[[str], None],
    prompt: list[str],
    model: str,
    adapter: Path | None,
    chat: bool,
    seed: int,
    **options: Any,
) -> dict[str, Any]:
    """Print what a model, with an adapter or without, writes after each prompt."""
    config, params = models.load_model(model)
    tokenizer = models.load_tokenizer(model)
    if adapter is not None:
        params = base.attach(params, *peft.load_adapter(adapter, base=params))
    asked: list[Any] = list(prompt)
    if chat and tokenizer.chat_template is None:
        tokenizer = with_plain_template(tokenizer)
        say(f"{model} has no chat template: the messages are written in the plain form that `train` writes, too")
    if chat:
        asked = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in prompt]
    texts = generation.generate(config, params, tokenizer, asked, key=jax.random.key(seed), **options)
    for before, after in zip(prompt, texts, strict=True):
        say(f"{before}\n{after.strip()}\n" if chat else f"{before}{after}\n")
    return {"texts": [{"prompt": before, "text": after} for before, after in zip(prompt, texts, strict=True)]}
