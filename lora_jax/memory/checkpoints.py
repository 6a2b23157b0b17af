"""What a run leaves behind, and how long it takes on its way: a checkpoint's bytes, from the shapes of its step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from lora_jax.adapters.base import count, num_bytes
from lora_jax.memory import hardware
from lora_jax.memory.steps import Step


@dataclass(frozen=True)
class Checkpoint:
    """What a run leaves behind: the model or the adapter alone, and what it takes to go on training. Tensors alone."""

    what: str  # "model" or "adapter"
    bytes: int
    resumable: int  # with the optimizer's state
    in_16_bits: int


@dataclass(frozen=True)
class Transfer:
    """A checkpoint over one stretch of its way, in seconds at the stated speed."""

    way: str
    hop: hardware.Hop
    one: float
    ten: float
    resumable: float


def checkpoint(step: Step) -> Checkpoint:
    """The model after full fine-tuning, as it trains; else the adapter, and those of its matrices that do not train.

    What an adapter has one number a layer of, a scaling say, stands in its file's configuration.
    """
    held = jax.tree.leaves(step.trainable)
    if step.frozen is not None:
        held += [leaf for leaf in jax.tree.leaves(step.frozen[1]) if leaf.ndim > 1]
    what, stored = "model" if step.frozen is None else "adapter", num_bytes(held)
    return Checkpoint(what, stored, stored + num_bytes(step.opt_state), 2 * count(held))


def transfers(stored: Checkpoint, links: Sequence[str]) -> tuple[Transfer, ...]:
    """A checkpoint's way from the card to memory over each of `links`, and on to each disk and over the network."""
    hops = [("card to memory", hardware.LINKS[link]) for link in links]
    hops += [("memory to disk", hop) for hop in hardware.DISKS.values()]
    hops += [("memory to network", hop) for hop in hardware.NETWORKS.values()]
    return tuple(
        Transfer(way, hop, stored.bytes / hop.speed, 10 * stored.bytes / hop.speed, stored.resumable / hop.speed)
        for way, hop in hops
    )
