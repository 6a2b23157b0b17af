"""Tokenizers in GGUF files: byte-level BPE, and SentencePiece's BPE. A field is checked before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.errors import InputError
from lora_jax.files import gguf_header
from lora_jax.files.backends import SPLITS, begin_with, byte_level, sentencepiece
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.untrusted.fields import Fields
from lora_jax.untrusted.json_text import shown

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # token types
SPM_WORK = 100_000_000  # letters squared, summed over the tokens, that are gone through; 262,144 tokens take 16 million


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a GGUF file: byte-level BPE, or SentencePiece's BPE. Raises InputError for other kinds."""
    said = gguf_header.read(path).said

    def of(key: str) -> str:
        return f"tokenizer.ggml.{key}"

    kind, pre = (said.text(of(key)) if said.has(of(key)) else None for key in ("model", "pre"))
    pre = "default" if pre is None else pre
    if not ((kind == "gpt2" and pre in SPLITS) or (kind == "llama" and said.has(of("scores")))):
        raise InputError(
            f"{path} holds a tokenizer of kind {shown(kind)} with pre-tokenizer {shown(pre)}, but only byte-level BPE "
            f"('gpt2') with one of {', '.join(SPLITS)}, and SentencePiece's BPE ('llama') with its scores can be "
            "rebuilt: load tokenizer.json from the model's own folder instead."
        )
    tokens = texts(said, of("tokens"))
    types = _numbers(said, of("token_type"), len(tokens)) if said.has(of("token_type")) else np.ones(len(tokens))

    def typed(*wanted: int) -> list[str]:
        return [tokens[i] for i in np.flatnonzero(np.isin(types, wanted))]

    def id_of(key: str) -> int | None:
        if not said.has(name := of(f"{key}_token_id")):
            return None
        index = said.integer(name, low=0, high=2**63 - 1)
        if index >= len(tokens):
            raise InputError(f"{path}: {key}_token_id is {index}, but the file has {len(tokens)} tokens.")
        return index

    def named(key: str) -> str | None:
        return None if (index := id_of(key)) is None else tokens[index]

    whole = {"special": typed(CONTROL, UNKNOWN), "added": typed(USER_DEFINED)}
    if kind == "llama":
        if sum(len(token) ** 2 for token in tokens) > SPM_WORK:
            raise InputError(f"{path}: {of('tokens')} holds tokens that are too long for SentencePiece's BPE")
        backend = sentencepiece(
            tokens,
            _numbers(said, of("scores"), len(tokens)).tolist(),
            unknown=named("unknown") or next(iter(typed(UNKNOWN)), None),
            prefix=said.flag(of("add_space_prefix"), True),
            **whole,
        )
    else:
        backend = byte_level(tokens, _merges(said, of("merges")), split=pre, **whole)
    bos = named("bos")
    # What llama.cpp assumes where a file is silent.
    if said.flag(of("add_bos_token"), kind == "llama" or pre == "llama-bpe") and bos is not None:
        begin_with(backend, bos)
    others = {f"{name}_token": named(key) for name, key in (("unk", "unknown"), ("sep", "seperator"), ("mask", "mask"))}
    template = "tokenizer.chat_template"
    return Tokenizer(
        backend,
        bos_token=bos,
        eos_token=named("eos"),
        pad_token=named("padding"),
        chat_template=said.text(template) if said.has(template) else None,
        ends=tuple(index for key in ("eos", "eot", "eom") if (index := id_of(key)) is not None),
        others={name: token for name, token in others.items() if token is not None},
    )


def texts(said: Fields, name: str, default: list[str] | None = None) -> list[str]:
    """A field that is a list of texts. Raises InputError where it is something else, or absent without a default."""
    value = said.found.get(name, default)
    if not isinstance(value, list) or (wrong := [i for i, one in enumerate(value) if not isinstance(one, str)]):
        what = "is not there" if value is None else "is no list of texts"
        what = f"holds at {wrong[0]} what is no text" if isinstance(value, list) else what
        raise InputError(f"{said.where}: {name} {what}, and a list of texts is needed")
    return value


def _numbers(said: Fields, name: str, count: int) -> Any:
    """A field that is an array of `count` finite numbers."""
    value = said.found.get(name)
    if not isinstance(value, np.ndarray) or value.dtype == bool or len(value) != count:
        what = f"{len(value):,} things" if isinstance(value, list | np.ndarray) else shown(value)
        raise InputError(f"{said.where}: {name} is {what}, and {count:,} numbers are needed, one a token")
    if not np.isfinite(value).all():
        raise InputError(
            f"{said.where}: {name} holds a number that is not finite at {int(np.argmin(np.isfinite(value)))}"
        )
    return value


def _merges(said: Fields, name: str) -> list[tuple[str, str]]:
    """Each merge as the two tokens that it joins."""
    pairs = []
    for number, merge in enumerate(texts(said, name)):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise InputError(
                f"{said.where}: {name} holds {shown(merge)} at {number}, and two tokens with a space are needed"
            )
        pairs.append((left, right))
    return pairs
