"""Every number of every command: a bad one is one sentence, before anything is loaded or written."""

import json
import re
import subprocess

import pytest

from lora_jax.commands import cli
from lora_jax.files import models
from lora_jax.text import datasets

TRAIN = ["train", "--model", "nothing", "--data", "nowhere.txt", "--out", "out"]
PRETRAIN = ["pretrain", "--data", "nowhere.txt", "--out", "out"]
GENERATE = ["generate", "The fox", "--model", "nothing"]
STORIES = ["stories", "--out", "out.jsonl.gz"]
PLAN = ["plan", "llama3.1-8b", "--for", "h100"]
GRADE = ["grade", "nowhere"]
LARGE = "9" * 5000
SIGNS = {"nan": "nan", "inf": "inf", "-inf": "-inf"}
RATES = ("nan", "inf", "-inf", "-1", "0", "1e400", "-1e-9")
COUNTS = ("0", "-1", str(2**31), LARGE, "nan", "1.5", "")
SEEDS = ("-1", str(2**32), str(2**64), "nan", "1.5")
BAD = [
    *((start, "--lr", value) for start in (TRAIN, PRETRAIN) for value in RATES),
    *((start, "--clip-norm", value) for start in (TRAIN, PRETRAIN) for value in RATES),
    *((start, "--warmup", value) for start in (TRAIN, PRETRAIN) for value in ("-1", "501", "nan", str(2**31))),
    *((TRAIN, "--held-out", value) for value in ("nan", "inf", "0", "1", "1.5", "-0.1")),
    *((GENERATE, "--temperature", value) for value in ("nan", "inf", "-inf", "-0.1")),
    *((GENERATE, "--top-p", value) for value in ("nan", "inf", "0", "1.5", "-1")),
    *((TRAIN, "--dropout", value) for value in ("nan", "inf", "1", "-0.1")),
    *((start, "--alpha", value) for start in (TRAIN, PLAN) for value in SIGNS),
    *((TRAIN, "--alpha-pattern", value) for value in ('{"q_proj": NaN}', '{"q_proj": "4"}', "[4]", '{"q_proj": true}')),
    *((TRAIN, "--rank-pattern", value) for value in ('{"q_proj": "4"}', "4", '{"q_proj": null}')),
    *((TRAIN, name, value) for name in ("--steps", "--batch-size", "--length", "--accumulate", "--evaluate-every",
                                        "--checkpoint-every") for value in COUNTS),
    *((GENERATE, name, value) for name in ("--new-tokens", "--top-k") for value in COUNTS),
    *((PLAN, name, value) for name in ("--steps", "--batch-size", "--length", "--accumulate") for value in COUNTS),
    *((start, "--seed", value) for start in (TRAIN, PRETRAIN, GENERATE, STORIES, ["demo"], GRADE) for value in SEEDS),
    *((STORIES, "--batches", value) for value in COUNTS),
    *((STORIES, "--first", value) for value in ("-1", str(2**31), "nan")),
    *((["demo"], "--steps", value) for value in COUNTS),
    *((["measure"], name, value) for name in ("--batch-size", "--length") for value in COUNTS),
    *((PLAN, "--seconds-per-step", value) for value in RATES),
    *((GRADE, "--seconds", value) for value in RATES),
]  # fmt: skip


@pytest.fixture
def nothing_runs(tmp_path, monkeypatch):
    """Whatever would read, load, start or write something fails the test."""

    def loaded(*arguments, **options):
        raise AssertionError("something was loaded")

    monkeypatch.chdir(tmp_path)
    for home, name in ((models, "load_model"), (models, "load_tokenizer"), (datasets, "read"), (subprocess, "Popen")):
        monkeypatch.setattr(home, name, loaded)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("start", "flag", "value"), BAD, ids=[f"{s[0]} {f} {v[:12]}" for s, f, v in BAD])
def test_a_number_out_of_its_range_is_one_sentence(capsys, nothing_runs, start, flag, value):
    try:
        status = cli.main([*start, f"{flag}={value}"])
    except SystemExit as stop:  # what argparse refuses
        status = stop.code
    said = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and "Traceback" not in "\n".join(said)
    assert re.search(flag.strip("-").replace("-", "[- _]"), said[-1]), said[-1]


def test_numbers_at_the_ends_of_their_ranges_are_taken():
    """So that the table above does not hold for want of any that pass."""
    from lora_jax.commands import numbers

    numbers.check({"lr": 1e-300, "clip_norm": 1e9, "warmup": 7, "steps": 7, "held_out": 0.999, "temperature": 0.0})
    numbers.check({"top_p": 1.0, "dropout": 0.0, "alpha": -3.0, "seed": 0, "first": 0, "lr": None, "length": None})
    numbers.check({"alpha_pattern": {"q_proj": 4, "k_proj": 0.5}, "seed": 2**32 - 2, "steps": 2**31 - 1})


def test_a_warm_up_that_outlasts_the_run_names_both(capsys, nothing_runs):
    assert cli.main([*TRAIN, "--steps", "20", "--warmup", "21"]) == 2
    assert "--warmup 21 is more than the --steps 20 of the run" in capsys.readouterr().err


def test_every_number_that_a_command_takes_has_a_range():
    """Read off the parser: an option that is added without one is found here."""
    from lora_jax.commands import numbers

    methods = {"rank", "virtual_tokens"}  # which end at the size of a model: `init` says so
    known = {*numbers.RANGES, *numbers.PATTERNS, *methods, "notebooks"}
    commands = cli._parser()._subparsers._group_actions[0].choices
    taken = {
        action.dest
        for parser in commands.values()
        for action in parser._actions
        if action.type is not None and any(action.type is one for one in (int, float, cli._positive))
    } | {name for name, option in cli.OPTIONS.items() if option.read in (int, float, json.loads)}
    assert taken <= known and len(taken) > 18
