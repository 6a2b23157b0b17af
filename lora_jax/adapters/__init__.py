"""The registry: one row a method. Adding a method is one file beside `lora.py` and one row here."""

from __future__ import annotations

from lora_jax.adapters import dora, ia3, lora, prompt_tuning
from lora_jax.adapters.method import Method

METHODS: dict[str, Method] = {
    "lora": lora.METHOD,
    "dora": dora.METHOD,
    "ia3": ia3.METHOD,
    "prompt_tuning": prompt_tuning.METHOD,
}
DEFAULT = next(iter(METHODS))  # where a command or a setup names none
