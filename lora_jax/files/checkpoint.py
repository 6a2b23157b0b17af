"""Checkpoints: a tree of arrays in one safetensors file, written atomically, refused where it does not fit.

A leaf's name in the file is its path in the tree; what else is known of the run is JSON in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.errors import InputError
from lora_jax.files import tensors
from lora_jax.untrusted import files, json_text
from lora_jax.untrusted.fields import Fields, is_number
from lora_jax.untrusted.json_text import shown

Tree = Any


def save(path: str | Path, tree: Tree, about: Mapping[str, Any]) -> None:
    """Write the arrays of `tree`, and `about` as JSON, to one file. Raises InputError where the disk refuses."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    tensors.write(path, {_name(at): leaf for at, leaf in leaves}, {"about": json.dumps(about)})


def about(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says beside its arrays; nothing where there is none. Raises InputError if it is broken."""
    return _about(tensors.metadata(path).get("about", "{}"), path) if files.exists(path) else {}


def load(
    path: str | Path, like: Tree, check: Callable[[dict[str, Any]], None] = lambda about: None
) -> tuple[Tree, dict[str, Any]]:
    """The tree in a file, with the structure, shapes and dtypes of `like` (arrays or shapes), and its `about`.

    `check` is given `about` before the tree is looked at: what it raises says more than that a leaf is another one.
    Raises InputError naming the leaf, what was found and what was expected, where the file is another tree's.
    """
    found, metadata = tensors.read(path)
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_name(at): leaf for at, leaf in leaves}
    odd = sorted(set(found) ^ set(wanted))
    if "about" not in metadata:
        raise InputError(f"{path} is a safetensors file, but not a checkpoint of this package")
    said = _about(metadata["about"], path)
    check(said)
    if odd:
        where = f"{odd[0]} is only {'there' if odd[0] in found else 'here'}"
        raise InputError(f"{path} is a checkpoint of another configuration: {where}")
    for name, leaf in wanted.items():
        there, here = (f"{x.dtype}{list(x.shape)}" for x in (found[name], leaf))
        if there != here:
            raise InputError(
                f"{path} is a checkpoint of another configuration: {name} is {there} there and {here} here"
            )
    return jax.tree.unflatten(structure, [jnp.array(found[name]) for name in wanted]), said


def load_run(path: str | Path, like: Tree, check: Callable[[dict[str, Any]], None]) -> tuple[Tree, dict[str, Any]]:
    """`load` of a run's checkpoint: its `about` holds `run`, an object of settings, and how far the run is.

    That is `step`, `losses`, one a step, and `evaluations`, pairs of a step and a loss. Raises InputError, before
    `check` is called, where they are something else.
    """

    def whole(said: dict[str, Any]) -> None:
        fields = Fields(said, f"{path}: what it says of its run")
        fields.object("run")
        step = fields.integer("step", low=0)
        losses, evaluations = said.get("losses"), said.get("evaluations")
        if not (isinstance(losses, list) and len(losses) == step and all(map(is_number, losses))):
            raise InputError(f"{path}: losses is {shown(losses)}, and must be {step:,} finite numbers, one a step")
        pairs = evaluations if isinstance(evaluations, list) else [None]
        if not all(
            isinstance(one, list) and len(one) == 2 and type(one[0]) is int and is_number(one[1]) for one in pairs
        ):
            raise InputError(
                f"{path}: evaluations is {shown(evaluations)}, and must be pairs of a step and a finite loss"
            )
        check(said)

    return load(path, like, whole)


def _about(text: str, path: str | Path) -> dict[str, Any]:
    where = f"{path}: what it says of its run"
    return json_text.an_object(json_text.loads(text, where, non_finite=True), where)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
