"""`config.json` of the model types llama, mistral and qwen2, to our `Config` and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.rope import RopeScaling
from lora_jax.transformer import Config
from lora_jax.untrusted import files, json_text
from lora_jax.untrusted.fields import LARGEST, Fields
from lora_jax.untrusted.json_text import shown

QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION_BIASES = (*QKV, "o_proj")
MLP_BIASES = ("gate_proj", "up_proj", "down_proj")
DEFAULTS: dict[str, dict[str, Any]] = {  # what `transformers` assumes where a file is silent
    "llama": {"max_position_embeddings": 2048, "sliding_window": None},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
}
LAYERS = 10_000  # the deepest models in use have fewer than 200; what counts layer by layer is to come to an end
SIZE = 100_000_000  # of any other size


def read_config(source: str | Path | dict[str, Any]) -> Config:
    """The `Config` that a `config.json` describes, given as a path or as its parsed content.

    Raises InputError where it is malformed, or asks for what the transformer does not do: the sizes must be whole
    numbers of 1 or more, the query heads a multiple of the key/value heads, and other numbers finite and in their
    range.
    """
    where = "the configuration" if isinstance(source, dict) else str(source)
    found = source if isinstance(source, dict) else _parse(Path(source))
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise InputError(f"{where}: model_type is {shown(kind)}; supported are {', '.join(DEFAULTS)}.")
    known = DEFAULTS[kind] | {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
    known |= {key: value for key, value in found.items() if value is not None or key == "sliding_window"}
    fields = Fields(known, where)

    def size(name: str, default: int | None = None, most: int = SIZE) -> int:
        value = known.get(name, default)
        if type(value) is int and value < 1:
            raise InputError(f"{where}: {name} is {shown(value)}, and must be 1 or more")
        return fields.integer(name, default, high=most)

    if known["hidden_act"] != "silu":
        raise InputError(f"{where}: hidden_act is {shown(known['hidden_act'])}, but only silu is supported.")
    if "quantization_config" in known:
        raise InputError(f"{where}: quantization_config is not supported: load the model that was not quantized.")
    D, H, context = size("hidden_size"), size("num_attention_heads"), size("max_position_embeddings", most=LARGEST)
    used = kind != "qwen2" or fields.flag("use_sliding_window", False)
    window = None if known["sliding_window"] is None else fields.integer("sliding_window", low=0)
    if window is not None and window < context and used:
        raise InputError(
            f"{where}: sliding_window is {window} with a context of {context}, but only full attention is supported: "
            "set max_position_embeddings to the window's size or less to stay within it."
        )
    theta, scaling = _rope(fields, context)
    config = Config(
        vocab_size=size("vocab_size"),
        hidden_size=D,
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers", most=LAYERS),
        num_attention_heads=H,
        num_key_value_heads=size("num_key_value_heads", H),
        head_dim=size("head_dim", D // H),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=fields.number("rms_norm_eps", above=0, below=1),
        max_position_embeddings=context,
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        biases=_biases(fields, kind),
    )
    if config.head_dim < 1:
        raise InputError(f"{where}: head_dim is {config.head_dim}, and must be 1 or more")
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
    if not files.exists(path):
        raise InputError(f"could not read {path} (No such file or directory): a model directory has a config.json.")
    found = json_text.load(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, but a configuration is a JSON object.")
    return found


def _rope(fields: Fields, context: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    The bounds are those within which every frequency is a finite number and none is divided by 0.
    """
    given = next((name for name in ("rope_parameters", "rope_scaling") if fields.found.get(name)), None)
    rope = fields.object(given) if given else Fields({}, fields.where)
    theta = (rope if rope.has("rope_theta") else fields).number("rope_theta", 10_000.0, above=0, high=1e30)
    kind = rope.found.get("rope_type", rope.found.get("type", "default"))
    partial = rope.found.get("partial_rotary_factor", fields.found.get("partial_rotary_factor", 1.0))
    if kind not in ("default", "llama3") or type(partial) not in (int, float) or partial != 1.0:
        raise InputError(
            f"{fields.where}: rope_type is {shown(kind)} and partial_rotary_factor {shown(partial)}; supported are "
            "default and llama3, each on the whole head."
        )
    if kind == "default":
        return theta, None
    if missing := [name for name in ("factor", "low_freq_factor", "high_freq_factor") if not rope.has(name)]:
        raise InputError(f"{fields.where}: rope_type llama3 needs {missing[0]}, which is not given.")
    factor = rope.number("factor", low=1, high=1e6)
    low = rope.number("low_freq_factor", above=0, high=1e6)
    high = rope.number("high_freq_factor", above=low, high=1e9)
    return theta, RopeScaling(factor, low, high, rope.integer("original_max_position_embeddings", context))


def _biases(fields: Fields, kind: str) -> tuple[str, ...]:
    if kind == "qwen2":
        return QKV
    if kind == "mistral":
        return ()
    return ATTENTION_BIASES * fields.flag("attention_bias", False) + MLP_BIASES * fields.flag("mlp_bias", False)
