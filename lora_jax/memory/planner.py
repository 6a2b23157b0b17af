"""What a fine-tuning step needs, which cards it fits on, and what it costs: the estimate, turned into choices.

One way leads through this file: a setup gives its step's shapes and its estimate (`steps`, `estimate`), these give what
fits, what is left behind and what it costs, and all of it together is a `Budget`. Nothing here loads weights or runs a
step. Bytes are integers, money is US dollars.

An estimate may fall short of what XLA plans, in nearly all steps by less than `peak.MARGIN` (docs/memory.md counts the
others), so that there are three verdicts: a step fits where the estimate and its margin do, it does not where the
estimate alone does not, and between them it is too close: the compiler has to be asked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from lora_jax.adapters.base import count
from lora_jax.memory import hardware, peak, steps
from lora_jax.memory.checkpoints import Checkpoint, Transfer, checkpoint, transfers
from lora_jax.memory.estimate import estimate
from lora_jax.memory.ledger import Ledger
from lora_jax.memory.setup import Setup, ways
from lora_jax.memory.units import size

FITS, TOO_CLOSE, DOES_NOT_FIT = "fits", "too close: --compile", "does not fit"


@dataclass(frozen=True)
class CardFit:
    """One kind of card for one step.

    `cards` is the fewest that it fits on with weights, adapters, gradients and optimizer state sharded evenly over
    them, and everything else (activations, logits, workspace) whole on each, every card with the batch that was asked
    for; None where what is whole does not fit. It is 1 where the verdict is "fits", and only there. Not counted: the
    layer that is gathered at the moment, and buffers of exchange.
    """

    card: str
    usable: int
    room: int  # usable less the estimate: below 0 where one card is too small
    verdict: str  # FITS, TOO_CLOSE or DOES_NOT_FIT, for one card
    cards: int | None
    largest_batch: int  # that fits on one card: 0 where not even one sequence does
    least_seconds: float | None  # a step takes longer than this: see `least_seconds`
    dollars_an_hour: float | None  # for all the cards; None where no price is stated
    price_date: str | None


@dataclass(frozen=True)
class MethodCost:
    """One method's row in the comparison: the same model, batch and length, trained another way."""

    method: str  # as `Setup.name` has it
    peak: int
    checkpoint: Checkpoint
    smallest: str | None  # the smallest card that one step fits on
    cards: int | None  # how many of `of` it takes
    of: str
    dollars_an_hour: float | None


@dataclass(frozen=True)
class Budget:
    """All that is said of one setup."""

    model: str
    setup: Setup
    parameters: int
    trained: int
    ledger: Ledger
    cards: tuple[CardFit, ...]
    checkpoint: Checkpoint
    transfers: tuple[Transfer, ...]
    methods: tuple[MethodCost, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        setup = dataclasses.asdict(self.setup) | {"rounding": self.setup.rounds}
        return dataclasses.asdict(self) | {"setup": setup, "ledger": self.ledger.as_json()}


def budget(setup: Setup, *, model: str = "the model", card: str | None = None) -> Budget:
    """The budget of one step of `setup`, on every card of `hardware.NVIDIA` or on `card` alone.

    Raises InputError where there is no such card, or the setup is no step that can be estimated.
    """
    cards = hardware.NVIDIA if card is None else {card: hardware.card(card)}
    step, ledger = steps.build(setup), estimate(setup)
    stored = checkpoint(step)
    links = dict.fromkeys(found.link for found in cards.values() if found.link is not None)
    return Budget(
        model=model,
        setup=setup,
        parameters=steps.parameters(setup.config),
        trained=count(step.trainable),
        ledger=ledger,
        cards=card_fits(setup, cards),
        checkpoint=stored,
        transfers=transfers(stored, sorted(links)),
        methods=tuple(method_cost(one, card or "h100") for one in ways(setup).values()),
        notes=tuple(_notes(setup, ledger, card)),
    )


def certain(usable: int) -> int:
    """The largest estimate with which a step fits into so many bytes, margin included."""
    return math.floor(usable / (1 + peak.MARGIN))


def verdict(total: int, usable: int) -> str:
    """Whether a step that is estimated at `total` bytes fits into what a card has."""
    if total <= certain(usable):
        return FITS
    return TOO_CLOSE if total <= usable else DOES_NOT_FIT


def card_fits(setup: Setup, cards: Iterable[str]) -> tuple[CardFit, ...]:
    """What one step means on each of these cards. Raises InputError where there is no such card."""

    @cache
    def at(batch: int) -> Ledger:
        return estimate(dataclasses.replace(setup, batch=batch))

    return tuple(_card_fit(card, at(setup.batch), at, setup.accumulate) for card in cards)


def _card_fit(card: str, ledger: Ledger, at: Callable[[int], Ledger], parts: int) -> CardFit:
    found, price = hardware.card(card), hardware.PRICES.get(card)
    number = cards_needed(ledger, certain(found.usable))
    return CardFit(
        card=card,
        usable=found.usable,
        room=found.usable - ledger.total,
        verdict=verdict(ledger.total, found.usable),
        cards=number,
        largest_batch=parts * largest(lambda rows: verdict(at(parts * rows).total, found.usable) == FITS),
        least_seconds=None if number is None else least_seconds(ledger, found, number),
        dollars_an_hour=rent(card, number),
        price_date=None if price is None else price.source.date,
    )


def cards_needed(ledger: Ledger, room: int) -> int | None:
    """The fewest cards with `room` bytes each that hold a step, static rows sharded evenly; None: no number is enough.

    Pure division: whoever asks for an estimate gives the room that is `certain`.
    """
    whole = ledger.total - ledger.static
    if ledger.total <= room:
        return 1
    return None if whole >= room else math.ceil(ledger.static / (room - whole))


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, by doubling and halving, where whatever is below one that fits does too; or 0."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def least_seconds(ledger: Ledger, card: hardware.Accelerator, cards: int) -> float:
    """A bound that no step on the card beats: what it must read and write at least once, at the memory's full speed.

    Weights, constants, adapters and optimizer state are read; what trains, as many bytes as its gradients, and the
    optimizer state are written. A real step takes longer, mostly in products: this bound is no estimate.
    """
    read = ledger.static - ledger["gradients"]
    written = ledger["gradients"] + ledger["optimizer state"]
    return (read + written) / (card.bandwidth * cards)


def rent(card: str, number: int | None) -> float | None:
    """US dollars an hour for so many cards; None where no price is stated, or no number is enough."""
    price = hardware.PRICES.get(card)
    return None if price is None or number is None else price.dollars * number


def method_cost(setup: Setup, of: str) -> MethodCost:
    """The step of `setup` in one row: its estimate, what it leaves behind, the smallest card it fits on."""
    ledger = estimate(setup)
    fitting = [(card.usable, name) for name, card in hardware.NVIDIA.items() if ledger.total <= certain(card.usable)]
    number = cards_needed(ledger, certain(hardware.card(of).usable))
    return MethodCost(
        method=setup.name,
        peak=ledger.total,
        checkpoint=checkpoint(steps.build(setup)),
        smallest=min(fitting)[1] if fitting else None,
        cards=number,
        of=of,
        dollars_an_hour=rent(of, number),
    )


def run_dollars(dollars_an_hour: float, seconds_per_step: float, steps: int) -> float:
    """What `steps` steps cost at a rate that somebody measured."""
    return dollars_an_hour * seconds_per_step * steps / 3600


def _notes(setup: Setup, ledger: Ledger, card: str | None) -> list[str]:
    notes = []
    if ledger["not at once"]:
        notes.append(
            "Not at once: gradients and saved activations that are not in memory together at the fullest moment."
        )
    if ledger.total < peak.SMALL:
        notes.append(
            f"A step below {size(peak.SMALL)} is to be compiled (--compile) to be known: in small steps one array more "
            "or less is a large share."
        )
    if setup.length > setup.config.max_position_embeddings:
        notes.append(
            f"{setup.length:,} tokens are more than the {setup.config.max_position_embeddings:,} positions that the "
            "model was trained for."
        )
    if setup.dtype == "bfloat16" and card in (None, "t4"):
        notes.append("A T4 has no bfloat16: XLA works in float32 there and needs more than this (--compile --for t4).")
    if card is not None and card not in hardware.NVIDIA:
        notes.append("The estimate follows XLA's plans for NVIDIA cards; a TPU pads its buffers and needs more.")
        return notes
    return [
        *notes,
        f"Fits: the estimate with {peak.MARGIN:.0%} on top does. Too close: only without; --compile asks the compiler.",
        "JAX takes 75 % of a GPU's memory unless told otherwise: XLA_CLIENT_MEM_FRACTION=0.95 gives it nearly all. "
        "What CUDA itself holds comes off what is called usable here.",
    ]
