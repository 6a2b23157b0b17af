"""What a fine-tuning step needs, which cards it fits on, and what it costs: the formula's ledger, turned into choices.

It is the choice of a seat: full fine-tuning flies business class, LoRA and QLoRA in the sleeper's row, and the plan
says what each ticket costs. Nothing here loads weights or runs a step. Bytes are integers, money is US dollars.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lora_jax.errors import InputError
from lora_jax.memory import formula, hardware, sizes
from lora_jax.memory.ledger import Ledger
from lora_jax.memory.setup import Setup

METHODS = ("full", "lora", "qlora")
MOST_SEQUENCES = 2**20  # no batch beyond this is looked for


@dataclass(frozen=True)
class Seat:
    """One kind of card for one step.

    `cards` is how many it takes with weights, adapters, gradients and optimizer state sharded evenly over them, and
    everything else (activations, logits, workspace) whole on each, every card with the batch that was asked for; None
    where what is whole does not fit. Not counted: the layer that is gathered at the moment, and buffers of exchange.
    """

    card: str
    usable: int
    room: int  # usable less the step's peak: below 0 where one card is too small
    cards: int | None
    largest_batch: int  # on one card: 0 where not even one sequence fits
    least_seconds: float | None  # a step takes longer than this: see `least_seconds`
    dollars_an_hour: float | None  # for all the cards; None where no price is stated
    price_date: str | None


@dataclass(frozen=True)
class Checkpoint:
    """What a run leaves behind: the model or the adapter alone, and what it takes to go on training. Tensors alone."""

    what: str  # "model" or "adapter"
    bytes: int
    resumable: int  # with the optimizer's state
    in_16_bits: int


@dataclass(frozen=True)
class Trip:
    """One stretch of a checkpoint's way, in seconds at the stated speed."""

    way: str
    hop: hardware.Hop
    one: float
    ten: float
    resumable: float


@dataclass(frozen=True)
class Ticket:
    """One method's row in the comparison: the same model, batch and length, trained another way."""

    method: str
    peak: int
    checkpoint: Checkpoint
    smallest: str | None  # the smallest card that one step fits on
    cards: int | None  # else how many of `of`
    of: str
    dollars_an_hour: float | None


@dataclass(frozen=True)
class Plan:
    """All that a plan says of one setup."""

    model: str
    setup: Setup
    parameters: int
    trained: int
    ledger: Ledger
    seats: tuple[Seat, ...]
    checkpoint: Checkpoint
    trips: tuple[Trip, ...]
    tickets: tuple[Ticket, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        found = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return found | {"ledger": self.ledger.as_json()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def plan(setup: Setup, *, model: str = "the model", card: str | None = None) -> Plan:
    """The plan for one step of `setup`, on every card of `hardware.NVIDIA` or on `card` alone.

    Raises InputError where there is no such card, or the formula cannot count the setup.
    """
    cards = hardware.NVIDIA if card is None else {card: hardware.card(card)}
    ledger = formula.predict(setup)

    @cache
    def peak(batch: int) -> int:
        return formula.predict(dataclasses.replace(setup, batch=batch)).total

    links = dict.fromkeys(found.link for found in cards.values() if found.link is not None)
    stored = checkpoint(setup)
    return Plan(
        model=model,
        setup=setup,
        parameters=sizes.parameters(setup.config),
        trained=trained(setup),
        ledger=ledger,
        seats=tuple(seat(setup, name, ledger, peak) for name in cards),
        checkpoint=stored,
        trips=trips(stored, sorted(links)),
        tickets=tuple(ticket(setup, method, card or "h100") for method in METHODS),
        notes=tuple(_notes(setup, card)),
    )


def trained(setup: Setup) -> int:
    """How many numbers train."""
    return sum(math.prod(shape) for shape, _ in sizes.trained(setup))


def seat(setup: Setup, card: str, ledger: Ledger, peak: Callable[[int], int]) -> Seat:
    """What `ledger`, the step of `setup`, means on that card; `peak(batch)` is the step's peak with another batch."""
    found, price = hardware.card(card), hardware.PRICES.get(card)
    number = cards_needed(ledger, found.usable)
    return Seat(
        card=card,
        usable=found.usable,
        room=found.usable - ledger.total,
        cards=number,
        largest_batch=largest(lambda batch: peak(batch) <= found.usable),
        least_seconds=None if number is None else least_seconds(setup, ledger, found, number),
        dollars_an_hour=None if price is None or number is None else price.dollars * number,
        price_date=None if price is None else price.source.date,
    )


def cards_needed(ledger: Ledger, usable: int) -> int | None:
    """The fewest cards on which a step fits, its static rows sharded evenly; None where no number is enough."""
    whole = ledger.total - ledger.static
    if ledger.total <= usable:
        return 1
    return None if whole >= usable else math.ceil(ledger.static / (usable - whole))


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, by doubling and halving, where whatever is below one that fits does too; or 0."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < MOST_SEQUENCES:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def least_seconds(setup: Setup, ledger: Ledger, card: hardware.Accelerator, cards: int) -> float:
    """A bound that no step on the card beats: what it must read and write at least once, at the memory's full speed.

    Weights, constants, adapters and optimizer state are read; what trains and the optimizer state are written. A real
    step takes longer, mostly in products: this bound is no estimate.
    """
    read = ledger.static - ledger["gradients"]
    written = sizes.trainable_bytes(setup) + ledger["optimizer state"]
    return (read + written) / (card.bandwidth * cards)


def checkpoint(setup: Setup) -> Checkpoint:
    """The model after full fine-tuning, in its dtype; else the adapter, float32 as it trains, with A though frozen."""
    if setup.method == "full":
        what, size, numbers = "model", sizes.weight_bytes(setup.config, setup.dtype), sizes.parameters(setup.config)
    else:
        numbers = sizes.lora_parameters(setup.config, setup.rank, setup.targets)
        what, size = "adapter", numbers * sizes.ITEMSIZE["float32"]
    return Checkpoint(what, size, size + sizes.optimizer_bytes(setup), 2 * numbers)


def trips(stored: Checkpoint, links: Sequence[str]) -> tuple[Trip, ...]:
    """A checkpoint's way from the card to memory over each of `links`, and on to each disk and over the network."""
    hops = [("card to memory", hardware.LINKS[link]) for link in links]
    hops += [("memory to disk", hop) for hop in hardware.DISKS.values()]
    hops += [("memory to network", hop) for hop in hardware.NETWORKS.values()]
    return tuple(
        Trip(way, hop, stored.bytes / hop.speed, 10 * stored.bytes / hop.speed, stored.resumable / hop.speed)
        for way, hop in hops
    )


def ticket(setup: Setup, method: str, of: str) -> Ticket:
    """The same step by another method: its peak, what it leaves behind, the smallest card it fits on."""
    other = dataclasses.replace(
        setup, method=method, master=setup.master and method == "full", freeze_a=setup.freeze_a and method != "full"
    )
    ledger, price = formula.predict(other), hardware.PRICES.get(of)
    fitting = [(found.usable, name) for name, found in hardware.NVIDIA.items() if ledger.total <= found.usable]
    number = cards_needed(ledger, hardware.card(of).usable)
    return Ticket(
        method=method,
        peak=ledger.total,
        checkpoint=checkpoint(other),
        smallest=min(fitting)[1] if fitting else None,
        cards=number,
        of=of,
        dollars_an_hour=None if price is None or number is None else price.dollars * number,
    )


def run_dollars(dollars_an_hour: float, seconds_per_step: float, steps: int) -> float:
    """What `steps` steps cost at a rate that somebody measured."""
    return dollars_an_hour * seconds_per_step * steps / 3600


def check_rate(seconds_per_step: float | None, steps: int, card: str | None) -> None:
    """Raise InputError for a rate that is none, or that is of no card in particular."""
    if steps < 1:
        raise InputError(f"a run of {steps} steps cannot be planned: give --steps a whole number of 1 or more")
    if seconds_per_step is None:
        return
    if not 0 < seconds_per_step < math.inf:
        raise InputError(f"{seconds_per_step} seconds a step is no rate: give --seconds-per-step a number above 0")
    if card is None:
        raise InputError("seconds a step are a card's own: say with --for on which card they were measured")


def _notes(setup: Setup, card: str | None) -> list[str]:
    notes = []
    if setup.length > setup.config.max_position_embeddings:
        notes.append(
            f"{setup.length:,} tokens are more than the {setup.config.max_position_embeddings:,} positions that the "
            "model was trained for."
        )
    if setup.dtype == "bfloat16" and card in (None, "t4"):
        notes.append("A T4 has no bfloat16: XLA works in float32 there and needs more than this (--compile --for t4).")
    if card is not None and card not in hardware.NVIDIA:
        notes.append("The formula follows XLA's plans for NVIDIA cards; a TPU pads its buffers and needs more.")
        return notes
    notes.append(
        "JAX takes 75 % of a GPU's memory unless told otherwise: XLA_CLIENT_MEM_FRACTION=0.95 gives it nearly all. "
        "What CUDA itself holds comes off what is called usable here."
    )
    return notes
