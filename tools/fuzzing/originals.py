"""The small real files that are altered, one folder for each kind of model, adapter or data."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.formats import ABOUT, GOLDEN, TALK, VERSE, base, trained

ROWS = [{"prompt": f"Say {i}", "completion": f"The fox ran home {i}."} for i in range(12)]
NOTEBOOK = """import numpy as np

SCALE = 2.5


def helper(x):
    return np.exp(x) * SCALE


def perplexity(loss):
    \"\"\"Its exponential.\"\"\"
    return helper(loss) / SCALE
"""


def write_all(folder: Path) -> None:
    """Write the files of every format, each in the folder that it names."""
    import jax
    import tokenizers_of_many_kinds as kinds

    from lora_jax.files import huggingface, peft
    from lora_jax.tuning import loop

    for name in ("hf_llama", "hf_qwen2", "peft_plain", "peft_dora", "peft_ia3", "peft_prompt", "peft_patterns"):
        shutil.copytree(GOLDEN / name, folder / name, ignore=shutil.ignore_patterns("*.npz"))
    for name in ("smollm", "llama2", "unigram", "word_level"):
        kinds.write(folder / name, name)
    (folder / "smollm" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "bos_token_id": 1}))
    special = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False, "special": True},
        "unk_token": "<unk>",
    }
    (folder / "llama2" / "special_tokens_map.json").write_text(json.dumps(special))
    settings = json.loads((folder / "llama2" / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        str(i): {"content": t, "special": True} for i, t in enumerate(("<unk>", "<s>", "</s>"))
    }
    settings["chat_template"] = (folder / "llama2" / "chat_template.jinja").read_text()
    (folder / "llama2" / "chat_template.jinja").unlink()
    (folder / "llama2" / "tokenizer_config.json").write_text(json.dumps(settings))

    config, params = huggingface.load(GOLDEN / "hf_mistral")
    huggingface.save(folder / "saved", config, params)
    adapters = jax.tree.map(lambda leaf: leaf + 0.01, trained()[0])
    peft.save_adapter(folder / "own_adapter", adapters, constants(), base=base())
    (folder / "run").mkdir()
    state = loop.State(3, *trained(), [2.5, 2.25, 2.0], [(0, 2.75), (3, 2.0)])
    loop._save(folder / "run" / "checkpoint.safetensors", state, ABOUT)

    _gguf_files(folder / "gguf")
    _text_files(folder / "data")
    table = pickle.dumps([(1, (2, 40), None, False, [f"Line {i} of a poem" for i in range(40)] + ["iamb"] * 40)], 4)
    (folder / "poems").mkdir()
    (folder / "poems" / "data.pkl.compress").write_bytes(gzip.compress(table, mtime=0))
    (folder / "wheel").mkdir()
    with zipfile.ZipFile(folder / "wheel" / "verse-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("verse/__init__.py", "raise SystemExit('imported')")
        archive.writestr("verse/data.bin", VERSE)


def constants() -> Any:
    import jax

    from lora_jax.adapters import METHODS

    return METHODS["lora"].init(jax.random.key(0), base(), rank=2)[1]


def _gguf_files(folder: Path) -> None:
    import gguf
    import tokenizers_of_many_kinds as kinds

    from lora_jax.files import huggingface
    from lora_jax.files.assemble import disassemble

    folder.mkdir()
    kinds.write_gguf(folder / "bpe.gguf", "smollm", "smollm")
    golden = json.loads((GOLDEN / "sentencepiece.json").read_text())
    ids = {"add_bos_token_id": 1, "add_eos_token_id": 2, "add_unk_token_id": 0}
    own = {"add_token_scores": golden["scores"], "add_token_types": golden["types"]}
    kinds.gguf_file(folder / "spm.gguf", "llama", "default", golden["pieces"], **own, **ids)
    config, params = huggingface.load(GOLDEN / "hf_mistral")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 99)
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, array in disassemble(config, params).items():
        name = table.get_name(name, try_suffixes=(".weight", ".bias"))
        kind = gguf.GGMLQuantizationType.Q8_0 if array.ndim == 2 and array.shape[1] % 32 == 0 else None
        array = np.ascontiguousarray(array, np.float32)
        writer.add_tensor(name, array if kind is None else gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _text_files(folder: Path) -> None:
    import nbformat

    from lora_jax.exercises import plain

    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    talks = "".join(json.dumps({"messages": TALK}) + "\n" for _ in range(6))
    table = "prompt,completion\n" + "".join(f'"{r["prompt"]}","{r["completion"]}"\n' for r in ROWS)
    files = {
        "rows.json": json.dumps(ROWS, indent=1),
        "rows.jsonl": lines,
        "talks.jsonl": talks,
        "rows.csv": table,
        "rows.tsv": table.replace('","', "\t").replace('"', "").replace(",", "\t"),
        "prose.txt": "The fox sat by the river.\n" * 20,
        "page.md": "# A page\n\nThe fox sat by the river.\n",
        "answer.py": NOTEBOOK,
        "percent.py": "# %%\n" + NOTEBOOK.replace("\n\n\n", "\n\n# %%\n"),
        "reply.json": plain.dumps({"a": [1, 2.5, "x"], "b": (np.arange(6.0).reshape(2, 3), float("nan"), None)}),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("rows.json", "rows.jsonl", "rows.csv", "rows.tsv", "prose.txt"):
        (folder / f"{name}.gz").write_bytes(gzip.compress(files[name].encode(), mtime=0))
    stories = "".join(json.dumps({"text": f"Once there was a fox, {i}.", "from": [0, 0, i]}) + "\n" for i in range(9))
    (folder / "stories.jsonl.gz").write_bytes(gzip.compress(stories.encode(), mtime=0))
    cells = [nbformat.v4.new_code_cell(cell) for cell in NOTEBOOK.split("\n\n\n")]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    text = nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Hi", id="m"), *cells]))
    (folder / "answer.ipynb").write_text(text)
