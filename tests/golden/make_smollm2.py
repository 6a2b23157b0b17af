"""Make `smollm2_logits.npz` and `smollm2_ids.npz` with `transformers` (needs torch).

    python tests/golden/make_smollm2.py

The model is read by `transformers` from the same GGUF. What it makes of the tokenizer there leaves out the splitting of
digits that SmolLM2's own tokenizer.json has: "a  1" becomes a, space, space, 1 in place of a, two spaces, 1. Hence its
pre-tokenizer is replaced here by the rule as llama.cpp states it for `smollm`: each \\p{N} alone, then GPT-2's pattern.
"""

import json
from pathlib import Path

import numpy as np
import torch
from smollm2_strings import strings
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lora_jax.files.assets import SMOLLM2, fetch

HERE = Path(__file__).parent
PROMPTS = (
    "Once upon a time, there was a little girl who",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nHow many legs have 12 spiders?<|im_end|>\n<|im_start|>assistant\n",
    "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\nRough winds do shake",
)
COLUMNS = np.arange(5, 49152, 769)  # a slice of the vocabulary, at every position
TOP = 50

path = fetch(SMOLLM2)
source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
converted = AutoTokenizer.from_pretrained(**source)
pipeline = json.loads(converted.backend_tokenizer.to_str())
gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
split = {"type": "Split", "behavior": "Isolated", "invert": False}
pipeline["pre_tokenizer"] = {
    "type": "Sequence",
    "pretokenizers": [
        split | {"pattern": {"Regex": r"\p{N}"}},
        split | {"pattern": {"Regex": gpt2}},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
(place := HERE / "tokenizer.json.tmp").write_text(json.dumps(pipeline))
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place))
place.unlink()

texts = strings()
ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
agrees = np.array([converted.encode(t, add_special_tokens=False) == i for t, i in zip(texts, ids, strict=True)])
assert all(tokenizer.decode(i) == converted.decode(i) for i in ids)
np.savez_compressed(
    HERE / "smollm2_ids.npz",
    lengths=np.array([len(i) for i in ids], np.uint16),
    ids=np.concatenate([np.array(i, np.uint16) for i in ids]),
    agrees=agrees,  # where transformers' own conversion gives the same
)
print(f"{len(texts)} strings, {sum(map(len, ids))} ids; transformers' own conversion differs on {(~agrees).sum()}")

model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
golden = {"columns": COLUMNS}
for n, prompt in enumerate(PROMPTS):
    tokens = np.array(tokenizer.encode(prompt, add_special_tokens=False))
    with torch.no_grad():
        logits = model(torch.tensor(tokens[None])).logits[0].numpy()
    top = np.argsort(-logits[-1])[:TOP]
    golden |= {f"tokens{n}": tokens, f"slice{n}": logits[:, COLUMNS], f"top{n}": top, f"values{n}": logits[-1, top]}
np.savez_compressed(HERE / "smollm2_logits.npz", **golden)
