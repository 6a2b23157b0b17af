"""Make `peft_*/`: a base, and adapters as PEFT itself writes them, with their logits (needs torch).

python tests/golden/make_peft.py
"""

from pathlib import Path

import numpy as np
import torch
from make_transformers import make_model
from peft import LoraConfig, PeftModel, get_peft_model

HERE = Path(__file__).parent
QVD = ["q_proj", "v_proj", "down_proj"]
LINEAR = [*QVD, "k_proj", "o_proj", "gate_proj", "up_proj"]
CASES = {
    "plain": {"target_modules": QVD, "lora_dropout": 0.1},
    "patterns": {
        "target_modules": LINEAR,
        # In the order of the alphabet, since PEFT sorts them when it writes them, and the first that matches counts.
        "rank_pattern": {r".*\.1\.self_attn\..*": 4, "k_proj": 9, "model.layers.0.mlp.up_proj": 2},
        "alpha_pattern": {r".*\.2\.mlp\..*": 31, "down_proj": 13, "v_proj": 5},
    },
    "rslora": {"target_modules": QVD, "use_rslora": True},
    "regex": {"target_modules": r".*layers\.[02]\.(self_attn\.o_proj|mlp\.gate_proj)"},
    "embedding": {"target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "one_layer": {"target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1]},
}

if __name__ == "__main__":
    make_model("biases", 9).save_pretrained(HERE / "peft_base")
    (HERE / "peft_base" / "generation_config.json").unlink()
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 43, (5, 17)))
    for seed, (name, options) in enumerate(CASES.items()):
        config = LoraConfig(r=7, lora_alpha=11, task_type="CAUSAL_LM", **options)
        model = get_peft_model(make_model("biases", 9), config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                if "lora_" in key:
                    tensor.copy_(0.15 * torch.randn(tensor.shape, generator=generator))
        folder = HERE / f"peft_{name}"
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        again = PeftModel.from_pretrained(make_model("biases", 9), folder).eval()
        with torch.no_grad():
            logits = again(tokens).logits.numpy()
        np.savez_compressed(folder / "logits.npz", tokens=tokens.numpy(), logits=logits)
