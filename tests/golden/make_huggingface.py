"""Make `hf_*/`: tiny models as `transformers` writes them, and the logits it gives (needs torch).

python tests/golden/make_huggingface.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).parent
COMMON = {
    "vocab_size": 53,
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 30_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
MODELS = {
    "llama": LlamaForCausalLM(
        LlamaConfig(
            **COMMON,
            head_dim=10,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=LLAMA3,
            rms_norm_eps=3e-5,
            max_position_embeddings=320,
        )
    ),
    "qwen2": Qwen2ForCausalLM(Qwen2Config(**COMMON, tie_word_embeddings=True, max_position_embeddings=64)),
    "mistral": MistralForCausalLM(MistralConfig(**COMMON, sliding_window=None, head_dim=8)).to(torch.bfloat16),
}

torch.manual_seed(0)
for name, model in MODELS.items():
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3 + ("norm" in key))
        tokens = torch.randint(0, COMMON["vocab_size"], (2, 17))
        model.save_pretrained(HERE / f"hf_{name}", max_shard_size="40KB" if name == "llama" else "5GB")
        again = type(model).from_pretrained(HERE / f"hf_{name}", dtype=torch.float32)  # its rotations were bfloat16 too
        logits = again(tokens).logits.numpy()
    (HERE / f"hf_{name}" / "generation_config.json").unlink()
    np.savez_compressed(HERE / f"hf_{name}" / "logits.npz", tokens=tokens.numpy(), logits=logits)
