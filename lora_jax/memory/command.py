"""The commands `plan` and `measure`: what they take from the command line, and what they print for a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_jax.memory import compiler, device, hardware, planner, sizes, zoo
from lora_jax.memory.planner import Plan, Ticket
from lora_jax.memory.setup import Setup

Say = Callable[[str], None]


def plan(
    *,
    say: Say,
    model: str,
    targets: str,
    card: str | None,
    compile: bool,
    seconds_per_step: float | None,
    steps: int,
    **options: Any,
) -> dict[str, Any]:
    """Print what a step needs, where it fits and what it costs; with `compile`, the compiler's plan beside it.

    `options` are Setup's: method, rank, batch, length, remat, attention, dtype, optimizer, moments, master, freeze_a,
    double_quantization. Raises InputError for a user's mistake, before anything is compiled.
    """
    planner.check_rate(seconds_per_step, steps, card)
    setup = Setup(zoo.config(model), targets=_targets(targets), **options)
    found = planner.plan(setup, model=model, card=card)
    say("\n".join(_text(found)))
    result = found.as_json() | {"run": _run(say, found, seconds_per_step, steps), "compiled": None}
    if compile:
        result["compiled"] = _compiled(say, found, card or "h100")
    return result


def measure(*, say: Say, device_kind: str, model: list[str], out: Path | None, **options: Any) -> dict[str, Any]:
    """Run steps for real, each in a process of its own, and write what the device used (see `device.py`)."""
    return device.measure(say=say, kind=device_kind, models=model, out=out, **options)


def _targets(targets: str) -> str | list[str]:
    return targets if targets in sizes.SHORTHANDS else targets.split(",")


def _text(found: Plan) -> Iterator[str]:
    setup = found.setup
    kind = "every weight trains" if setup.method == "full" else f"rank {setup.rank} on {_named(setup.targets)}"
    yield f"{found.model}, {found.parameters:,} parameters; {setup.method}, {kind}: {found.trained:,} train"
    yield (
        f"a step of {setup.batch} x {setup.length} tokens, {setup.dtype}, {setup.optimizer}; attention in "
        f"{setup.attention}, {'blocks' if setup.remat else 'nothing'} rematerialized"
    )
    yield ""
    yield found.ledger.table()
    yield ""
    yield from _tickets(found.tickets)
    yield ""
    yield from _seats(found)
    yield ""
    yield from _checkpoints(found)
    yield ""
    yield from found.notes


def _named(targets: str | Sequence[str]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _tickets(tickets: Sequence[Ticket]) -> Iterator[str]:
    of = hardware.card(tickets[0].of).name
    columns = f"{'peak':>12}{'left behind':>14}{'to go on':>12}{'fits from':>12}{'x ' + of:>14}{'$ an hour':>11}"
    yield f"{'choose a seat':14}{columns}"
    for one in tickets:
        smallest = "no card" if one.smallest is None else hardware.card(one.smallest).name
        yield (
            f"{one.method:14}{size(one.peak):>12}{size(one.checkpoint.bytes):>14}{size(one.checkpoint.resumable):>12}"
            f"{smallest:>12}{_number(one.cards):>14}{_dollars(one.dollars_an_hour):>11}"
        )


def _seats(found: Plan) -> Iterator[str]:
    dates = sorted({one.price_date for one in found.seats if one.price_date})
    yield f"{'card':12}{'usable':>12}{'room':>12}{'cards':>8}{'largest batch':>16}{'$ an hour':>12}"
    for one in found.seats:
        yield (
            f"{hardware.card(one.card).name:12}{size(one.usable):>12}{size(one.room):>12}{_number(one.cards):>8}"
            f"{one.largest_batch:>16,}{_dollars(one.dollars_an_hour):>12}"
        )
    yield (
        "several cards: weights, adapters, gradients and optimizer state sharded evenly; activations, logits and\n"
        "workspace whole on each, with a batch of its own; the layer gathered at the moment and exchange not counted"
    )
    if dates:
        yield f"prices: {hardware.PRICES['h100'].source.what}, {', '.join(dates)}"


def _checkpoints(found: Plan) -> Iterator[str]:
    stored = found.checkpoint
    yield f"{'a checkpoint':14}{'one':>12}{'ten':>12}"
    yield f"{'the ' + stored.what:14}{size(stored.bytes):>12}{size(10 * stored.bytes):>12}"
    if stored.in_16_bits != stored.bytes:
        yield f"{'in 16 bits':14}{size(stored.in_16_bits):>12}{size(10 * stored.in_16_bits):>12}"
    yield f"{'resumable':14}{size(stored.resumable):>12}{size(10 * stored.resumable):>12}"
    yield ""
    yield f"{'on its way':48}{'GB/s':>8}  {'':38}{'one':>10}{'ten':>10}{'resumable':>11}"
    for trip in found.trips:
        way, stated = f"{trip.way}, {trip.hop.name}", f"{trip.hop.kind} ({trip.hop.source.date})"
        times = "".join(f"{seconds(s):>{n}}" for s, n in ((trip.one, 10), (trip.ten, 10), (trip.resumable, 11)))
        yield f"{way:48}{trip.hop.speed / 1e9:>8.4g}  {stated:38}{times}"


def _run(say: Say, found: Plan, seconds_per_step: float | None, steps: int) -> dict[str, Any] | None:
    """What a run costs, at the rate that the user measured; without one, how long a step takes at the very least."""
    if len(found.seats) != 1:
        return None
    (seat,) = found.seats
    if seconds_per_step is None:
        if seat.least_seconds is not None:
            say(
                f"a step takes more than {seconds(seat.least_seconds)}: so long the memory alone is busy, products not "
                "counted; time a few steps and give --seconds-per-step for what a run costs"
            )
        return None
    hours = seconds_per_step * steps / 3600
    dollars = [
        None if seat.dollars_an_hour is None else planner.run_dollars(seat.dollars_an_hour, seconds_per_step, number)
        for number in (1000, steps)
    ]
    thousand = "" if steps == 1000 else f"1,000 steps {_dollars(dollars[0])} $; "
    say(
        f"at {seconds_per_step:g} seconds a step: {thousand}{steps:,} steps "
        f"{hours:,.2f} hours and {_dollars(dollars[1])} $ ({seat.price_date or 'no price stated'})"
    )
    return {"steps": steps, "hours": hours, "dollars_1000_steps": dollars[0], "dollars": dollars[1]}


def _compiled(say: Say, found: Plan, target: str) -> dict[str, Any]:
    """The compiler's plan beside the formula's."""
    say(f"\ncompiling the step for {target} ...")
    try:
        plan = compiler.plan(found.setup, target)
    except compiler.DoesNotFit as answer:
        say(str(answer))
        return {"target": target, "refused": str(answer), "needed": answer.needed, "available": answer.available}
    error = found.ledger.total / plan.needed - 1
    say(found.ledger.compare(plan.ledger))
    say(f"the formula is {error:+.2%} off what XLA plans for {target}, which took {plan.seconds:.0f} s to compile")
    sizes = {name: getattr(plan, name) for name in ("needed", "argument", "output", "alias", "temp")}
    return {"target": target, "error": error, "seconds": plan.seconds, "ledger": plan.ledger.as_json()} | sizes


def size(number: int) -> str:
    """Bytes for a person: GB are 1e9 of them."""
    for unit, of in (("GB", 1e9), ("MB", 1e6)):
        if abs(number) >= of:
            return f"{number / of:,.1f} {unit}"
    return f"{number / 1e3:,.1f} kB"


def seconds(number: float) -> str:
    """A time for a person."""
    if number < 0.1:
        return f"{1000 * number:.2g} ms"
    return f"{number:,.1f} s" if number < 100 else f"{number:,.0f} s"


def _number(number: int | None) -> str:
    return "none" if number is None else f"{number:,}"


def _dollars(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:,.2f}"
