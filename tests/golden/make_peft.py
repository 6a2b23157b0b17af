"""Make `peft_*/`: bases, and adapters as PEFT itself writes them, with logits and gradients (needs torch and peft).

python tests/golden/make_peft.py [NAME ...]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from make_transformers import make_model
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

HERE = Path(__file__).parent
BASES = {"peft_base": "biases", "peft_base_plain": "ungrouped"}  # with biases on all projections, and with none
QVD = ["q_proj", "v_proj", "down_proj"]
LINEAR = [*QVD, "k_proj", "o_proj", "gate_proj", "up_proj"]
LORA = {"r": 7, "lora_alpha": 11}
CASES = {  # name: (configuration, its options, base)
    "plain": (LoraConfig, LORA | {"target_modules": QVD, "lora_dropout": 0.1}, "peft_base"),
    "patterns": (
        LoraConfig,
        LORA
        | {
            "target_modules": LINEAR,
            # By the alphabet, since PEFT sorts them when it writes them, and the first that matches counts.
            "rank_pattern": {r".*\.1\.self_attn\..*": 4, "k_proj": 9, "model.layers.0.mlp.up_proj": 2},
            "alpha_pattern": {r".*\.2\.mlp\..*": 31, "down_proj": 13, "v_proj": 5},
        },
        "peft_base",
    ),
    "rslora": (LoraConfig, LORA | {"target_modules": QVD, "use_rslora": True}, "peft_base"),
    "regex": (
        LoraConfig,
        LORA | {"target_modules": r".*layers\.[02]\.(self_attn\.o_proj|mlp\.gate_proj)"},
        "peft_base",
    ),
    "embedding": (LoraConfig, LORA | {"target_modules": ["embed_tokens", "lm_head", "k_proj"]}, "peft_base"),
    "one_layer": (
        LoraConfig,
        LORA | {"target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1]},
        "peft_base",
    ),
    "dora": (
        LoraConfig,
        LORA | {"target_modules": QVD, "use_dora": True, "rank_pattern": {r".*\.1\..*": 4}},
        "peft_base",
    ),
    "dora_plain": (LoraConfig, LORA | {"target_modules": LINEAR, "use_dora": True}, "peft_base_plain"),
    "ia3": (
        IA3Config,
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        "peft_base",
    ),
    "ia3_plain": (
        IA3Config,
        {"target_modules": ["q_proj", "up_proj", "lm_head"], "feedforward_modules": ["up_proj"]},
        "peft_base_plain",
    ),
    "prompt": (PromptTuningConfig, {"num_virtual_tokens": 5}, "peft_base"),
    "prompt_plain": (PromptTuningConfig, {"num_virtual_tokens": 9}, "peft_base_plain"),
}


def model_of(base: str) -> torch.nn.Module:
    return make_model(BASES[base], 9)


def shake(model: torch.nn.Module, seed: int) -> None:
    """All that trains away from its start: factors anew, what starts at a value of the base or at one moved from it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if tensor.requires_grad:
                noise = 0.15 * torch.randn(tensor.shape, generator=generator)
                factor = any(part in key for part in ("lora_A", "lora_B", "lora_embedding"))
                tensor.copy_(noise if factor else tensor + noise)


def reference(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, np.ndarray]:
    """Logits of the tokens, and the gradient of their mean loss for all that trains, by the key in PEFT's file."""
    logits = model(input_ids=tokens).logits[:, -tokens.shape[1] :]  # a prompt has logits of its own, in front
    targets = tokens[:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(len(targets), -1), targets)
    loss.backward()
    found = {"tokens": tokens, "logits": logits.detach()}
    for key, tensor in model.named_parameters():
        if tensor.grad is not None:
            key = "prompt_embeddings" if key.startswith("prompt_encoder") else key.replace(".default", "")
            found[f"gradient/{key}"] = tensor.grad
    return {key: tensor.numpy() for key, tensor in found.items()}


if __name__ == "__main__":
    for base in BASES:
        model_of(base).save_pretrained(HERE / base)
        (HERE / base / "generation_config.json").unlink()
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 43, (5, 17)))
    for seed, (name, (kind, options, base)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(seed)
        model = get_peft_model(model_of(base), kind(task_type="CAUSAL_LM", **options))
        shake(model, seed)
        folder = HERE / f"peft_{name}"
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        found = reference(model.eval(), tokens)
        with torch.no_grad():
            again = PeftModel.from_pretrained(model_of(base), folder).eval()(input_ids=tokens).logits[:, -17:]
        assert np.array_equal(again.numpy(), found["logits"]), "what PEFT reads is not what it wrote"
        np.savez_compressed(folder / "reference.npz", base=base, **found)
