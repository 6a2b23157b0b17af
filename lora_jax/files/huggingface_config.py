"""`config.json` of the model types llama, mistral and qwen2, to our `Config` and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.rope import RopeScaling
from lora_jax.transformer import Config

QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION_BIASES = (*QKV, "o_proj")
MLP_BIASES = ("gate_proj", "up_proj", "down_proj")
DEFAULTS: dict[str, dict[str, Any]] = {  # what `transformers` assumes where a file is silent
    "llama": {"max_position_embeddings": 2048, "sliding_window": None},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
}


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim")  # fmt: skip


def read_config(source: str | Path | dict[str, Any]) -> Config:
    """The `Config` that a `config.json` describes, given as a path or as its parsed content.

    Raises InputError where it is malformed, or asks for what the transformer does not do: the sizes must be whole
    numbers of 1 or more, and the query heads a multiple of the key/value heads.
    """
    where = "the configuration" if isinstance(source, dict) else str(source)
    found = source if isinstance(source, dict) else _parse(Path(source))
    kind = found.get("model_type")
    if kind not in DEFAULTS:
        raise InputError(f"{where}: model_type is {kind!r}; supported are {', '.join(DEFAULTS)}.")
    known = DEFAULTS[kind] | {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
    known |= {key: value for key, value in found.items() if value is not None or key == "sliding_window"}

    def number(key: str, default: int | None = None, kind: Any = int) -> Any:
        value = known.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | kind):
            raise InputError(f"{where}: {key} is {value!r}, but must be a number.")
        return kind(value)

    if known["hidden_act"] != "silu":
        raise InputError(f"{where}: hidden_act is {known['hidden_act']!r}, but only silu is supported.")
    if "quantization_config" in known:
        raise InputError(f"{where}: quantization_config is not supported: load the model that was not quantized.")
    D, H, context = number("hidden_size"), number("num_attention_heads"), number("max_position_embeddings")
    window = known["sliding_window"]
    if window is not None and window < context and (kind != "qwen2" or known.get("use_sliding_window", False)):
        raise InputError(
            f"{where}: sliding_window is {window} with a context of {context}, but only full attention is supported: "
            "set max_position_embeddings to the window's size or less to stay within it."
        )
    theta, scaling = _rope(known, context, where)
    config = Config(
        vocab_size=number("vocab_size"),
        hidden_size=D,
        intermediate_size=number("intermediate_size"),
        num_hidden_layers=number("num_hidden_layers"),
        num_attention_heads=H,
        num_key_value_heads=number("num_key_value_heads", H),
        head_dim=number("head_dim", D // max(H, 1)),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=number("rms_norm_eps", kind=float),
        max_position_embeddings=context,
        tie_word_embeddings=bool(known["tie_word_embeddings"]),
        biases=_biases(known),
    )
    for size in SIZES:
        if getattr(config, size) < 1:
            raise InputError(f"{where}: {size} is {getattr(config, size)}, and must be 1 or more")
    if H % config.num_key_value_heads:
        raise InputError(
            f"{where}: num_attention_heads is {H}, which num_key_value_heads, {config.num_key_value_heads}, does not "
            "divide"
        )
    return config


def write_config(config: Config) -> dict[str, Any]:
    """The content of a `config.json`, which new and old versions of `transformers` read alike.

    Raises InputError where no model type carries these biases.
    """
    common = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }
    if (s := config.rope_scaling) is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_position_embeddings,
        }
        common |= {"rope_scaling": scaling, "rope_parameters": scaling | {"rope_theta": config.rope_theta}}
    biases = set(config.biases)
    if biases == set(QKV):
        return common | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
    attention, mlp = bool(biases & set(ATTENTION_BIASES)), bool(biases & set(MLP_BIASES))
    if biases != set(ATTENTION_BIASES * attention + MLP_BIASES * mlp):
        raise InputError(f"no Hugging Face model type has biases on exactly {', '.join(config.biases)}.")
    return common | {"attention_bias": attention, "mlp_bias": mlp}


def biases_around(found: set[str]) -> tuple[str, ...]:
    """The fewest biases that hold those found and that some Hugging Face model type has."""
    known = ((), QKV, ATTENTION_BIASES, MLP_BIASES, ATTENTION_BIASES + MLP_BIASES)
    return min((biases for biases in known if found <= set(biases)), key=len)


def _parse(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"could not read {path} ({error.strerror}): a model directory has a config.json.") from error
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, but a configuration is a JSON object.")
    return found


def _rope(known: dict[str, Any], context: int, where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    rope = known.get("rope_parameters") or known.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", known.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", known.get("partial_rotary_factor", 1.0))
    if kind not in ("default", "llama3") or partial != 1.0:
        raise InputError(
            f"{where}: rope_type is {kind!r} and partial_rotary_factor {partial}; supported are default and llama3, "
            "each on the whole head."
        )
    if kind == "default":
        return theta, None
    try:
        factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        return theta, RopeScaling(factor, low, high, int(rope.get("original_max_position_embeddings", context)))
    except KeyError as error:
        raise InputError(f"{where}: rope_type llama3 needs {error.args[0]}, which is not given.") from error


def _biases(known: dict[str, Any]) -> tuple[str, ...]:
    if known["model_type"] == "qwen2":
        return QKV
    if known["model_type"] == "mistral":
        return ()
    return ATTENTION_BIASES * bool(known.get("attention_bias")) + MLP_BIASES * bool(known.get("mlp_bias"))
