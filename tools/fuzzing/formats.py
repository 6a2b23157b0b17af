"""Every format that the package reads: a small real file of it, and how a user has it read.

A reader is given the folder in which one file was altered, and returns what was read, as plain values and arrays: two
files that say the same give the same.
"""

from __future__ import annotations

import hashlib
import sys
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
        found, wrong = statements(file, (folder / file).read_bytes())
        answer = answer_of(found, "perplexity", True)
        return None if answer is None else ast.unparse(answer), len(wrong)
    except ValueError as error:  # what `statements` says that it raises
        raise InputError(str(error)) from error
    except RecursionError as error:  # of `unparse` here; the runner compiles it, in C
        raise InputError("nested too deep to be written out") from error


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


VERSE = b"".join(b"Line %d of the verse that is fetched\n" % i for i in range(3000))


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
