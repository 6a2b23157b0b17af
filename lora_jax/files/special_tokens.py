"""What files say of a tokenizer's special tokens: their names, how each is found, which of them end a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError

HOW = ("special", "normalized", "lstrip", "rstrip", "single_word")  # the flags of an added token
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def names(settings: dict[str, Any], path: Path) -> dict[str, str]:
    """The special tokens that have a name, by it."""
    return {name: token for name in NAMES if (token := _text(settings.get(name), path)) is not None}


def named(settings: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The tokens that a settings file names, with how each is found in a text: first those with an id, in its order."""
    by_id = settings.get("added_tokens_decoder") or {}
    by_name = [settings.get(name) for name in NAMES]
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    try:
        records = [by_id[key] for key in sorted(by_id, key=int)]
        special = [*by_name, *(more.values() if isinstance(more, dict) else more)]
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: added_tokens_decoder is not an object of tokens by id") from error
    found: dict[str, dict[str, Any]] = {}
    for record, how in (*((one, {}) for one in records), *((one, {"special": True}) for one in special)):
        token = _text(record, path)
        if token is not None and token not in found:
            given = record if isinstance(record, dict) else {}
            found[token] = how | {name: bool(given[name]) for name in HOW if name in given}
    return found


def add(backend: Any, tokens: Mapping[str, Mapping[str, Any]]) -> None:
    """Have the backend find these tokens whole in a text, beside those that it knows already."""
    from tokenizers import AddedToken

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([AddedToken(token, **how) for token, how in tokens.items() if token not in known])


def ends(folder: Path) -> tuple[int, ...]:
    """The ids of the tokens that end a text, as a model's files name them: one or several, in either file."""
    found: list[int] = []
    for path in (folder / "generation_config.json", folder / "config.json"):
        ids = read_json(path).get("eos_token_id")
        for one in ids if isinstance(ids, list) else [ids]:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int) or one < 0):
                raise InputError(f"{path}: eos_token_id is {ids!r}, but must be a token id or a list of them")
            found += [] if one is None else [one]
    return tuple(dict.fromkeys(found))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of settings; empty where there is no such file. Raises InputError for anything else."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, where a JSON object should be.")
    return found


def _text(token: Any, path: Path) -> str | None:
    """A token's text, which files give bare or within a record."""
    found = token.get("content") if isinstance(token, dict) else token
    if found is not None and not isinstance(found, str):
        raise InputError(f"{path}: {token!r} is not the text of a token")
    return found or None
