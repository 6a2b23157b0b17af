"""What files say of a tokenizer's special tokens: their names, how each is found, which of them end a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.files.tokenizer_file import told
from lora_jax.untrusted import files, json_text
from lora_jax.untrusted.fields import LARGEST, Fields
from lora_jax.untrusted.json_text import shown

HOW = ("special", "normalized", "lstrip", "rstrip", "single_word")  # the flags of an added token
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def names(settings: dict[str, Any], path: Path) -> dict[str, str]:
    """The special tokens that have a name, by it."""
    return {name: token for name in NAMES if (token := _text(settings.get(name), path)) is not None}


def named(settings: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The tokens that a settings file names, with how each is found in a text: first those with an id, in its order."""
    where = f"{path}: added_tokens_decoder"
    by_id: Mapping[str, Any] = {}
    if settings.get("added_tokens_decoder"):
        by_id = Fields(settings, str(path)).object("added_tokens_decoder").found
    by_name = [settings.get(name) for name in NAMES]
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if not isinstance(more, list | dict):
        raise InputError(f"{path}: additional_special_tokens is {shown(more)}, but must be a list of tokens")
    if odd := [key for key in by_id if not key.isdecimal() or len(key) > 10]:
        raise InputError(f"{where}: {shown(odd[0])} is no id")
    records = [by_id[key] for key in sorted(by_id, key=int)]
    special = [*by_name, *(more.values() if isinstance(more, dict) else more)]
    found: dict[str, dict[str, Any]] = {}
    for record, how in (*((one, {}) for one in records), *((one, {"special": True}) for one in special)):
        token = _text(record, path)
        if token is not None and token not in found:
            given = Fields(record if isinstance(record, dict) else {}, f"{path}: the token {shown(token)}")
            found[token] = how | {name: given.flag(name) for name in HOW if given.has(name)}
    return found


def add(backend: Any, tokens: Mapping[str, Mapping[str, Any]]) -> None:
    """Have the backend find these tokens whole in a text, beside those that it knows already."""
    from tokenizers import AddedToken

    with told("the tokenizer's special tokens cannot be added to its tokens"):
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_tokens([AddedToken(token, **how) for token, how in tokens.items() if token not in known])


def ends(folder: Path) -> tuple[int, ...]:
    """The ids of the tokens that end a text, as a model's files name them: one or several, in either file."""
    found: list[int] = []
    for path in (folder / "generation_config.json", folder / "config.json"):
        ids = read_json(path).get("eos_token_id")
        for one in ids if isinstance(ids, list) else [ids]:
            if one is not None and (type(one) is not int or not 0 <= one <= LARGEST):
                raise InputError(f"{path}: eos_token_id is {shown(ids)}, but must be a token id or a list of them")
            found += [] if one is None else [one]
    return tuple(dict.fromkeys(found))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of settings; empty where there is no such file. Raises InputError for anything else."""
    return json_text.load_object(path) if files.exists(path) else {}


def _text(token: Any, path: Path) -> str | None:
    """A token's text, which files give bare or within a record."""
    found = token.get("content") if isinstance(token, dict) else token
    if found is not None and not isinstance(found, str):
        raise InputError(f"{path}: {shown(token)} is not the text of a token")
    return found or None
