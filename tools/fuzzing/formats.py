"""Every format that the package reads: a small real file of it, and how a user has it read.

A reader is given the folder in which one file was altered, and returns what was read, as plain values and arrays: two
files that say the same give the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
GOLDEN = ROOT / "tests" / "golden"
TALK = [{"role": "user", "content": "Hi <&> there"}, {"role": "assistant", "content": "Yo 12"}]
TEXTS = ("The fox ran home, 12 times.", " a</s>b <unk>", "\u00e9\u2581\u65e5 \U0001f600\n\n\t", "")


class NotFinite(Exception):
    """What was read makes numbers that are none."""


@dataclass(frozen=True)
class Format:
    """A file of one format: its folder's name, its name there, how it is altered, and how it is read."""

    name: str
    folder: str
    file: str
    kind: str
    read: Callable[[Path], Any]
    own: bool = False  # written by this package, with a checksum of its own


# How a user has each read.


def model(folder: Path, file: str = "") -> Any:
    from lora_jax.files.models import load_model
    from lora_jax.rope import rope_frequencies

    config, params = load_model(folder / file)
    frequencies = np.asarray(rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))
    if not (np.isfinite(frequencies).all() and np.isfinite(config.rms_norm_eps)):
        raise NotFinite(f"the frequencies {frequencies} and the epsilon {config.rms_norm_eps}")
    return repr(config), params


def tokenizer(folder: Path, file: str = "", chat: bool = True) -> Any:
    from lora_jax.files.models import load_tokenizer

    found = load_tokenizer(folder / file)
    ids = [found.encode(text) for text in TEXTS]
    told = [found.decode(one) for one in ids]
    talk = found.encode_chat(TALK[:1]) if chat and found.chat_template is not None else None
    marked = found.generated(TALK) if talk is not None else None
    return ids, told, talk, marked, found.end_ids, found.eos_id, found.bos_id, found.pad_id, sorted(found.named.items())


@cache
def base() -> Any:
    from lora_jax.files import huggingface

    return huggingface.load(GOLDEN / "peft_base")[1]


def adapter(folder: Path) -> Any:
    from lora_jax.files.peft import load_adapter

    return load_adapter(folder, base=base())


@cache
def trained() -> Any:
    """What a run of a few steps holds: adapters and the optimizer's state."""
    import jax
    import optax

    from lora_jax.adapters import METHODS

    adapters, _ = METHODS["lora"].init(jax.random.key(0), base(), rank=2)
    return adapters, optax.adamw(1e-3).init(adapters)


ABOUT = {"rank": 2, "data": "poems"}


def checkpoint(folder: Path) -> Any:
    from lora_jax.tuning import loop

    like = loop.State(0, *trained())
    state = loop._load(folder / "checkpoint.safetensors", like, ABOUT)
    return state.step, state.trainable, state.opt_state, state.losses, state.evaluations


def documents(folder: Path, file: str) -> Any:
    from lora_jax.text.documents import read_documents

    return [repr(one).replace(str(folder), "") for one in read_documents(folder / file)]


def told(folder: Path) -> Any:
    from lora_jax.text import stories

    return stories.read(folder / "stories.jsonl.gz")


def verse(folder: Path) -> Any:
    from lora_jax.text.corpora import read_lines

    return read_lines(folder / "data.pkl.compress")


def handed_in(folder: Path, file: str) -> Any:
    import ast

    from lora_jax.errors import InputError
    from lora_jax.exercises.grading.extract import answer_of, statements

    try:
        found, wrong = statements(folder / file)
    except ValueError as error:  # what `statements` says that it raises
        raise InputError(str(error)) from error
    answer = answer_of(found, "perplexity", True)
    return None if answer is None else ast.unparse(answer), len(wrong)


def reply(folder: Path) -> Any:
    from lora_jax.errors import InputError
    from lora_jax.exercises import plain

    try:
        return plain.loads((folder / "reply.json").read_bytes())
    except plain.NotPlain as error:
        raise InputError(str(error)) from error


def wheel(folder: Path) -> Any:
    from lora_jax.errors import InputError
    from lora_jax.files import assets

    path, target = folder / "verse-1.0-py3-none-any.whl", folder / "out"
    target.unlink(missing_ok=True)
    found = assets._sha256(path) if path.is_file() and path.stat().st_size < 2**30 else ""
    member = hashlib.sha256(VERSE).hexdigest()
    asset = assets.Asset("verse", "verse", "1.0", found, 20_000, "verse/data.bin", member, "MIT", "lines")
    if trouble := assets._extract(asset, path, target):
        assert not target.exists()
        raise InputError(trouble)
    return target.read_bytes()


# The small real files.

VERSE = b"".join(b"Line %d of the verse that is fetched\n" % i for i in range(3000))
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


def _formats() -> dict[str, Format]:
    st, shard = "model.safetensors", "model-00002-of-00003.safetensors"
    rows: list[tuple[Any, ...]] = [
        ("config.json", "hf_llama", "config.json", "json", model),
        ("config.json, qwen2", "hf_qwen2", "config.json", "json", model),
        ("index of shards", "hf_llama", "model.safetensors.index.json", "json", model),
        ("model, one file", "hf_qwen2", st, "safetensors", model),
        ("model, a shard", "hf_llama", shard, "safetensors", model),
        ("model, our own", "saved", st, "safetensors", model, True),
        ("generation_config.json", "smollm", "generation_config.json", "json", tokenizer),
        ("tokenizer.json, byte-level", "smollm", "tokenizer.json", "json", tokenizer),
        ("tokenizer.json, SentencePiece's", "llama2", "tokenizer.json", "json", tokenizer),
        ("tokenizer.json, unigram", "unigram", "tokenizer.json", "json", tokenizer),
        ("tokenizer.json, words", "word_level", "tokenizer.json", "json", tokenizer),
        ("tokenizer_config.json", "llama2", "tokenizer_config.json", "json", tokenizer),
        ("special_tokens_map.json", "llama2", "special_tokens_map.json", "json", tokenizer),
        ("chat_template.jinja", "smollm", "chat_template.jinja", "template", tokenizer),
        ("chat_template.jinja, long", "unigram", "chat_template.jinja", "template", tokenizer),
        *(
            (f"adapter_config.json, {name}", f"peft_{folder}", "adapter_config.json", "json", adapter)
            for name, folder in (
                ("LoRA", "plain"),
                ("DoRA", "dora"),
                ("(IA)3", "ia3"),
                ("prompt", "prompt"),
                ("patterns", "patterns"),
            )
        ),
        *(
            (f"adapter, {name}", f"peft_{folder}", "adapter_model.safetensors", "safetensors", adapter)
            for name, folder in (("LoRA", "plain"), ("DoRA", "dora"), ("(IA)3", "ia3"), ("prompt", "prompt"))
        ),
        ("adapter, our own", "own_adapter", "adapter_model.safetensors", "safetensors", adapter, True),
        ("checkpoint", "run", "checkpoint.safetensors", "safetensors", checkpoint, True),
        ("GGUF, model", "gguf", "model.gguf", "gguf", partial(model, file="model.gguf")),
        ("GGUF, byte-level tokenizer", "gguf", "bpe.gguf", "gguf", partial(tokenizer, file="bpe.gguf")),
        ("GGUF, SentencePiece's tokenizer", "gguf", "spm.gguf", "gguf", partial(tokenizer, file="spm.gguf")),
        *(
            (f"data, {file}", "data", file, kind, partial(documents, file=file))
            for file, kind in (
                ("rows.json", "json"),
                ("rows.jsonl", "jsonl"),
                ("talks.jsonl", "jsonl"),
                ("rows.csv", "csv"),
                ("rows.tsv", "csv"),
                ("prose.txt", "text"),
                ("page.md", "text"),
                ("rows.json.gz", "json.gz"),
                ("rows.jsonl.gz", "jsonl.gz"),
                ("rows.csv.gz", "csv.gz"),
                ("rows.tsv.gz", "csv.gz"),
                ("prose.txt.gz", "text.gz"),
            )
        ),
        ("stories", "data", "stories.jsonl.gz", "jsonl.gz", told),
        ("notebook handed in", "data", "answer.ipynb", "notebook", partial(handed_in, file="answer.ipynb")),
        *((f"{f} handed in", "data", f, "python", partial(handed_in, file=f)) for f in ("answer.py", "percent.py")),
        ("a submission's reply", "data", "reply.json", "reply", reply),
        ("poems' pickle", "poems", "data.pkl.compress", "pickle.gz", verse),
        ("wheel", "wheel", "verse-1.0-py3-none-any.whl", "zip", wheel),
    ]
    return {row[0]: Format(*row) for row in rows}


FORMATS = _formats()
