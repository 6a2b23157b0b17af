"""Make `transformers_*.safetensors`: logits, loss and every gradient of tiny models, by `transformers` (needs torch).

python tests/golden/make_transformers.py
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).parent
ROWS = 5
SIZES = {"vocab_size": 43, "hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 6}
# Wavelengths are 6 to 1,600 positions: one pair turns often in 40 positions, one a few times, the others hardly.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
CASES = {  # name: (options of the configuration, kind of batch, its length)
    "grouped": ({**HEADS, "tie_word_embeddings": True}, "plain", 17),
    "ungrouped": ({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 10}, "right", 17),
    "one_kv_head": ({**HEADS, "num_key_value_heads": 1, "tie_word_embeddings": True}, "left", 17),
    "llama3": ({**HEADS, "head_dim": 10, "num_hidden_layers": 2, "rope_parameters": LLAMA3}, "masked", 41),
    "biases": ({**HEADS, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 3e-3}, "left", 17),
    "qwen2": ({"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}, "masked", 17),
}


def make_model(name: str, seed: int, **sizes: int) -> torch.nn.Module:
    """The case's model with weights so large that attention is sharp, norms away from 1 and biases away from 0."""
    options = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}} | SIZES | CASES[name][0] | sizes
    family = (Qwen2Config, Qwen2ForCausalLM) if name == "qwen2" else (LlamaConfig, LlamaForCausalLM)
    model = family[1](family[0](**options, attn_implementation="eager"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator) + ("norm" in key))
    return model.eval()


def make_batch(name: str, vocab: int, seed: int) -> dict[str, np.ndarray]:
    """Tokens (B, T); segments, 0 on padding; the mask, 0 on what is not to be learned; positions."""
    _, kind, length = CASES[name]
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (ROWS, length))
    segments, mask = np.ones_like(tokens), np.ones_like(tokens)
    for row, padding in enumerate(rng.permutation(ROWS)):
        if kind == "right":
            segments[row, length - 2 * padding :] = 0
        elif kind == "left":
            segments[row, : 2 * padding] = 0
        elif kind == "masked":
            mask[row, : 3 + padding] = 0
            mask[row, 2 * padding + 6] = 0
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
    return {"tokens": tokens, "segments": segments, "mask": mask, "positions": positions}


def reference(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `transformers` makes of the batch: the weights, logits, loss and gradients under its own names."""
    tokens, segments, mask, positions = (torch.tensor(batch[k]) for k in ("tokens", "segments", "mask", "positions"))
    labels = torch.where(mask * segments == 1, tokens, -100)
    # The step from padding into the text is not learned.
    labels[:, 1:][segments[:, :-1] == 0] = -100
    output = model(tokens, attention_mask=segments, position_ids=positions, labels=labels)
    model.zero_grad()
    output.loss.backward()
    found = {"logits": output.logits.detach(), "loss": output.loss.detach()}
    for key, tensor in model.named_parameters():
        found |= {f"weight/{key}": tensor.detach(), f"gradient/{key}": tensor.grad}
    return {key: tensor.numpy().copy() for key, tensor in found.items()}


if __name__ == "__main__":
    for seed, name in enumerate(CASES):
        model = make_model(name, seed)
        batch = make_batch(name, SIZES["vocab_size"], seed)
        arrays = reference(model, batch) | {key: array.astype(np.int32) for key, array in batch.items()}
        save_file(arrays, HERE / f"transformers_{name}.safetensors", {"config": model.config.to_json_string()})
