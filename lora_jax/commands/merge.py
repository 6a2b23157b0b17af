"""The command `merge`: an adapter folded into its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_jax.adapters import base
from lora_jax.files import huggingface, models, peft, places
from lora_jax.memory.units import size


@places.reserved("folder")
def merge(*, say: Callable[[str], None], model: str, adapter: Path, out: Path) -> dict[str, Any]:
    """Fold an adapter into its model and write the model directory `out`."""
    config, params = models.load_model(model)
    merged = base.merge(params, *peft.load_adapter(adapter, base=params))
    huggingface.save(out, config, merged, models.load_tokenizer(model))
    say(f"{model} with {adapter} folded in is a model of its own in {out} ({size(base.num_bytes(merged))})")
    say(f'open it with transformers, or: python -m lora_jax generate --model {out} "Once upon a time"')
    return {"out": str(out), "bytes": base.num_bytes(merged)}
