"""LoRA and its family from scratch in JAX: a transformer that writes `x @ w`, and adapters as a pytree beside it.

The family: LoRA, with rsLoRA and LoRA-FA as options of it, DoRA, (IA)3 and prompt tuning. `METHODS` has a row for each.
The public face; a thing has one home, and only this file hands names on. Importing it does no work.
"""

from lora_jax.adapters import METHODS, Method
from lora_jax.adapters.base import Adapted, Adapter, attach, count, merge, num_bytes
from lora_jax.errors import InputError
from lora_jax.files.compilation import keep_compiled_programs
from lora_jax.files.models import load_model, load_tokenizer
from lora_jax.files.peft import load_adapter, save_adapter
from lora_jax.generation import Cache, decode, generate, init_cache
from lora_jax.rope import RopeScaling
from lora_jax.training import evaluate, make_step
from lora_jax.transformer import Config, Past, forward, init, loss, read, untie
from lora_jax.tuning.loop import NonFiniteLoss, State, fit
from lora_jax.weights import Biased, Weight

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "Adapted",
    "Adapter",
    "Biased",
    "Cache",
    "Config",
    "InputError",
    "Method",
    "NonFiniteLoss",
    "Past",
    "RopeScaling",
    "State",
    "Weight",
    "attach",
    "count",
    "decode",
    "evaluate",
    "fit",
    "forward",
    "generate",
    "init",
    "init_cache",
    "keep_compiled_programs",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "loss",
    "make_step",
    "merge",
    "num_bytes",
    "read",
    "save_adapter",
    "untie",
]


def __getattr__(name: str) -> Method:
    """Each method by its name: `lora_jax.lora.init(key, params, rank=8)`."""
    if name in METHODS:
        return METHODS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *METHODS])
