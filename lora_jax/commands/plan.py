"""The command `plan`: what it takes from the command line, and what it prints for a person."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_jax.errors import InputError
from lora_jax.memory import hardware, planner, zoo
from lora_jax.memory.compiled import compiler
from lora_jax.memory.planner import Budget, CardFit, MethodCost
from lora_jax.memory.setup import Setup, planning_options
from lora_jax.memory.steps import check_length
from lora_jax.memory.units import dollars, duration, size
from lora_jax.tuning.optimizers import ROUNDING

Say = Callable[[str], None]


def plan(
    *,
    say: Say,
    model: str,
    method: str,
    options: Mapping[str, Any],
    batch_size: int,
    card: str | None,
    compile: bool,
    seconds_per_step: float | None,
    steps: int,
    within_context: bool = False,
    **words: Any,
) -> dict[str, Any]:
    """Print what a step needs, where it fits and what it costs; with `compile`, the compiler's plan beside it.

    `words` are Setup's own: quantize, double_quantization, length, remat, attention, dtype, optimizer, moments,
    rounding, accumulate.
    A length that the model has no positions for is planned and noted, or with `within_context` refused, as the command
    does. Raises InputError for a user's mistake, before anything is compiled.
    """
    check_rate(seconds_per_step, steps, card)
    options = planning_options(method, options)
    setup = Setup(zoo.config(model), method=method, options=options, batch=batch_size, **words)
    if within_context:
        check_length(setup)
    found = planner.budget(setup, model=model, card=card)
    say("\n".join(_text(found)))
    result = found.as_json() | {"run": _run(say, found, seconds_per_step, steps), "compiled": None}
    if compile:
        result["compiled"] = _compiled(say, found, card or "h100")
    return result


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


def _text(found: Budget) -> Iterator[str]:
    setup = found.setup
    what = setup.said or ("every weight trains" if setup.method == "full" else "as it comes")
    yield f"{found.model}, {found.parameters:,} parameters; {setup.name}, {what}: {found.trained:,} train"
    parts = f" in {setup.accumulate} parts" if setup.accumulate > 1 else ""
    yield (
        f"a step of {setup.batch} x {setup.length} tokens{parts}, {setup.dtype}, {setup.optimizer}; "
        f"{setup.attention} attention, {'blocks' if setup.remat else 'nothing'} rematerialized"
    )
    if setup.rounds is not None:
        yield f"rounding {setup.rounds}: {ROUNDING[setup.rounds]}"
    for part in ([found.ledger.table()], _methods(found.methods), _cards(found.cards), _checkpoint(found), found.notes):
        yield ""
        yield from part


def _methods(methods: Sequence[MethodCost]) -> Iterator[str]:
    of = hardware.card(methods[0].of).name
    columns = f"{'peak':>12}{'left behind':>14}{'to go on':>12}{'fits from':>12}{'x ' + of:>14}{'$ an hour':>11}"
    width = max(14, *(len(one.method) + 1 for one in methods))
    yield f"{'method':{width}}{columns}"
    for one in methods:
        smallest = "no card" if one.smallest is None else hardware.card(one.smallest).name
        yield (
            f"{one.method:{width}}{size(one.peak):>12}{size(one.checkpoint.bytes):>14}{size(one.checkpoint.resumable):>12}"
            f"{smallest:>12}{_number(one.cards):>14}{_dollars(one.dollars_an_hour):>11}"
        )


def _cards(cards: Sequence[CardFit]) -> Iterator[str]:
    columns = f"{'usable':>10}{'room':>12}  {'one card':22}{'cards':>7}{'largest batch':>15}{'$ an hour':>11}"
    yield f"{'card':12}{columns}"
    for one in cards:
        yield (
            f"{hardware.card(one.card).name:12}{size(one.usable):>10}{size(one.room):>12}  {one.verdict:22}"
            f"{_number(one.cards):>7}{one.largest_batch:>15,}{_dollars(one.dollars_an_hour):>11}"
        )
    yield (
        "several cards: weights, adapters, gradients and optimizer state sharded evenly; activations, logits and\n"
        "workspace whole on each, with a batch of its own; the layer gathered at the moment and exchange not counted"
    )
    if dates := sorted({one.price_date for one in cards if one.price_date}):
        yield f"prices: {hardware.PRICES['h100'].source.what}, {', '.join(dates)}"


def _checkpoint(found: Budget) -> Iterator[str]:
    stored = found.checkpoint
    yield f"{'a checkpoint':14}{'one':>12}{'ten':>12}"
    kinds = {f"the {stored.what}": stored.bytes, "in 16 bits": stored.in_16_bits, "resumable": stored.resumable}
    for kind, number in kinds.items():
        if kind != "in 16 bits" or number != stored.bytes:
            yield f"{kind:14}{size(number):>12}{size(10 * number):>12}"
    yield ""
    yield f"{'on its way':48}{'GB/s':>8}  {'':38}{'one':>10}{'ten':>10}{'resumable':>11}"
    for one in found.transfers:
        way, stated = f"{one.way}, {one.hop.name}", f"{one.hop.kind} ({one.hop.source.date})"
        times = "".join(f"{duration(s):>{n}}" for s, n in ((one.one, 10), (one.ten, 10), (one.resumable, 11)))
        yield f"{way:48}{one.hop.speed / 1e9:>8.4g}  {stated:38}{times}"


def _run(say: Say, found: Budget, seconds_per_step: float | None, steps: int) -> dict[str, Any] | None:
    """What a run costs, at the rate that the user measured; without one, how long a step takes at the very least."""
    if len(found.cards) != 1:
        return None
    (card,) = found.cards
    if seconds_per_step is None:
        if card.least_seconds is not None:
            say(
                f"a step takes more than {duration(card.least_seconds)}: so long the memory alone is busy, products "
                "not counted; time a few steps and give --seconds-per-step for what a run costs"
            )
        return None
    hours, hourly = seconds_per_step * steps / 3600, card.dollars_an_hour
    all_of_them = None if hourly is None else planner.run_dollars(hourly, seconds_per_step, steps)
    thousand = None if hourly is None else planner.run_dollars(hourly, seconds_per_step, 1000)
    first = "" if steps == 1000 else f"1,000 steps {_dollars(thousand)} $; "
    cost = f"{duration(3600 * hours)} and {_dollars(all_of_them)} $ ({card.price_date or 'no price stated'})"
    say(f"at {seconds_per_step:g} seconds a step: {first}{steps:,} steps {cost}")
    return {"steps": steps, "hours": hours, "dollars_1000_steps": thousand, "dollars": all_of_them}


def _compiled(say: Say, found: Budget, target: str) -> dict[str, Any]:
    """The compiler's plan beside the estimate, and what it says of the card."""
    say(f"\ncompiling the step for {target} ...")
    try:
        plan = compiler.plan(found.setup, target)
    except compiler.DoesNotFit as answer:
        say(str(answer))
        return {"target": target, "refused": str(answer), "needed": answer.needed, "available": answer.available}
    error, usable = found.ledger.total / plan.needed - 1, hardware.card(target).usable
    found_to = planner.FITS if plan.needed <= usable else planner.DOES_NOT_FIT
    say(found.ledger.compare(plan.ledger))
    say(f"the estimate is {error:+.2%} off what XLA plans for {target}, which took {duration(plan.seconds)} to compile")
    say(f"by XLA's plan the step {found_to} on one {hardware.card(target).name}: {size(plan.needed)} of {size(usable)}")
    sizes = {name: getattr(plan, name) for name in ("needed", "argument", "output", "alias", "temp")}
    about = {"target": target, "error": error, "fits": plan.needed <= usable, "seconds": plan.seconds}
    return about | {"ledger": plan.ledger.as_json()} | sizes


def _number(number: int | None) -> str:
    return "none" if number is None else f"{number:,}"


def _dollars(amount: float | None) -> str:
    return "-" if amount is None else dollars(amount)
