"""The explorer: what the controls say is what is drawn and said. No browser."""

import io
import re

import numpy as np
import pytest

from lora_jax.memory import hardware, peak, planner, zoo
from lora_jax.memory.estimate import estimate
from lora_jax.memory.explorer import CARDS, LENGTHS, RANKS, View, explorer, picture, verdict
from lora_jax.memory.setup import Setup
from lora_jax.plots import TITLES

MOVES = {
    "model": "smollm2-135m",
    "method": "full",
    "rank": 64,
    "batch": 9,
    "length": 8192,
    "remat": True,
    "card": "h100",
}


def pixels(png):
    from matplotlib.image import imread

    return imread(io.BytesIO(png))


def found_in(box):
    """`(controls by name, sentence, picture)` of the explorer."""
    *rows, sentence, shown = box.children
    controls = [control for row in rows for control in row.children]
    names = {"rematerialize blocks": "remat"}
    return {names.get(one.description, one.description): one for one in controls}, sentence, shown


@pytest.mark.parametrize("name", MOVES)
def test_each_control_changes_the_picture_and_what_is_said(name):
    controls, sentence, shown = found_in(explorer())
    before, said = shown.value, sentence.value
    controls[name].value = MOVES[name]
    now, then = (pixels(png)[30:225, 110:] for png in (shown.value, before))  # the bars, between title and axis
    assert (now != then).any()
    assert shown.value == picture(View(**{name: MOVES[name]}))
    assert verdict(View(**{name: MOVES[name]})) in sentence.value
    assert sentence.value != said


def test_moved_back_it_shows_what_it_showed():
    controls, sentence, shown = found_in(explorer())
    before = shown.value, sentence.value
    for value in (5, 1):
        controls["batch"].value = value
    assert (shown.value, sentence.value) == before


def test_it_starts_where_it_is_told_to():
    view = View(**MOVES)
    controls, _, shown = found_in(explorer(view))
    assert {name: control.value for name, control in controls.items()} == MOVES
    assert shown.value == picture(view)


def test_the_controls_reach_every_model_and_no_step_that_cannot_be_counted():
    controls, _, _ = found_in(explorer())
    assert list(controls["model"].options) == list(zoo.MODELS)
    assert [value for _, value in controls["method"].options] == list(View().ways)
    for model in zoo.MODELS:
        assert verdict(View(model=model, rank=RANKS[-1], batch=64, length=LENGTHS[-1]))


def test_each_verdict_is_the_planner_s():
    fits, small, shard, never = (
        View(card="l4"),
        View(card="l4", batch=30),
        View(card="l4", method="full"),
        View(card="t4", batch=64, length=LENGTHS[-1]),
    )
    assert verdict(fits).startswith("It fits on one L4")
    batch = planner.budget(fits.setup, card="l4").cards[0].largest_batch
    assert verdict(fits).endswith(f"the largest batch is {batch}.")
    assert verdict(small).endswith(f"with a batch of {batch} it would fit.")
    cards = planner.budget(shard.setup, card="l4").cards[0].cards
    assert verdict(shard).endswith(f"sharded it takes {cards}.") and cards > 1
    assert "sharding is no help" in verdict(never)
    (fit,) = planner.card_fits(View().setup, ["h200"])
    batch = fit.largest_batch
    close = View(card="h200", batch=batch + 1)
    assert planner.card_fits(close.setup, ["h200"])[0].verdict == planner.TOO_CLOSE
    assert verdict(close) == (
        f"On one H200 it is too close to tell: less than {peak.MARGIN:.0%} to spare, so ask the compiler; "
        f"with a batch of {batch} it would fit."
    )


@pytest.mark.parametrize("card", CARDS)
def test_the_room_to_spare_is_what_the_card_has_less_the_peak(card):
    view = View(model="smollm2-135m", card=card)
    setup = Setup(zoo.config("smollm2-135m"), options={"rank": 16}, length=1024)
    room = hardware.card(card).usable - estimate(setup).total
    (said,) = re.findall(r"about ([\d.,]+) GB", verdict(view))
    assert float(said.replace(",", "")) == pytest.approx(room / 1e9, abs=0.05)


def test_the_chosen_method_is_the_one_in_full_colour():
    shown = {method: pixels(picture(View(method=method, card="h200"))) for method in TITLES}
    orange = np.array([0xD5, 0x5E, 0x00]) / 255  # full fine-tuning's own colour
    counts = {method: int((np.abs(found[..., :3] - orange).max(-1) < 0.02).sum()) for method, found in shown.items()}
    assert counts["full"] > 1000 > max(counts["lora"], counts["lora nf4"])
