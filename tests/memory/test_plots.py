"""The figures and tables of docs/memory.md: drawn from tables alone, the same each time, never stale in silence."""

import copy
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import matplotlib.image
import pytest

from lora_jax.memory import planner, zoo
from lora_jax.memory.estimate import estimate
from lora_jax.memory.ledger import ROWS, ledger
from lora_jax.memory.plots import DARK, HATCH, HELD, SAVED, WORK, bar, colour
from lora_jax.memory.setup import Setup, ways
from lora_jax.plots import COLOURS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
names = ("memory_figures", "memory_page", "estimate_page", "memory_tables")
page_figures, memory_page, estimate_page, tables = map(import_module, names)

PAGE = (ROOT / "docs" / "memory.md").read_text()
ERRORS = {
    "estimate": [
        {"group": "jax 1", "method": "full", "bytes": 3 * 10**9, "error": 0.011},
        {"group": "jax 1", "method": "lora", "bytes": 5 * 10**9, "error": -0.004},
        {"group": "jax 2", "method": "lora nf4", "bytes": 7 * 10**10, "error": 0.002},
    ],
    "cpu": [{"group": "a model", "method": "lora", "bytes": 10**9, "error": -0.05}],
    "gpu": [],
}
FIGURES = ["components", "growth", "fits", "checkpoints", "errors"]


@pytest.fixture(scope="module")
def made():
    return tables.tables() | {"errors": ERRORS}


def doubled(table):
    """The table with every whole number of bytes or tokens in it twice as large."""
    if isinstance(table, dict):
        return {name: doubled(value) for name, value in table.items()}
    if isinstance(table, list):
        return [doubled(value) for value in table]
    return 2 * table if isinstance(table, int | float) and not isinstance(table, bool) else table


def drawn(name, table, path):
    before = copy.deepcopy(table)
    getattr(page_figures, name)(table, path)
    assert table == before
    return path.read_bytes()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_to_the_byte_each_time(made, name, tmp_path):
    once, again = (drawn(name, json.loads(json.dumps(made[name])), tmp_path / f"{i}.png") for i in range(2))
    assert once == again
    height, width = matplotlib.image.imread(tmp_path / "0.png").shape[:2]
    assert width > 1000 and height > 400


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_follows_its_table(made, name, tmp_path):
    """Not its digest alone: the picture changes with the numbers."""
    pictures = []
    for i, table in enumerate((made[name], doubled(made[name]))):
        drawn(name, table, tmp_path / f"{i}.png")
        pictures.append(matplotlib.image.imread(tmp_path / f"{i}.png"))
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


@pytest.fixture
def figures(monkeypatch):
    """What is drawn, caught before it is written."""
    caught = []
    monkeypatch.setattr(page_figures, "_save", lambda figure, path, table: caught.append(figure))
    return caught


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_what_was_not_measured_is_said(figures):
    page_figures.errors(ERRORS, "")
    planned, cpu, gpu = figures[0].axes
    assert texts(gpu) == ["not measured yet"] and not gpu.lines
    assert "not measured yet" not in texts(planned) + texts(cpu)
    labels = [text.get_text() for text in planned.get_legend().get_texts()]
    assert labels == ["jax 1: median 0.75 %, worst 1.10 %", "jax 2: median 0.20 %, worst 0.20 %"]


def test_the_bars_add_up_to_the_peak_and_only_estimates_are_hatched(figures, made):
    table = made["components"]
    page_figures.components(table, "")
    for axes, (model, methods) in zip(figures[0].axes, table["models"].items(), strict=True):
        ends = {round(bar.get_y(), 6): bar.get_x() + bar.get_width() for bar in axes.patches}
        unit = {"MB": 1e6, "GB": 1e9}[axes.get_xlabel()[:2]]
        setups = ways(Setup(zoo.config(model), options={"rank": 16}, **tables.STEP))
        totals = [estimate(setups[way]).total for way in methods]
        assert [end * unit for end in ends.values()] == pytest.approx(totals)
        assert [bar.get_hatch() for bar in axes.patches] == [*[None] * 5, HATCH] * 3


def test_every_row_of_a_ledger_has_its_place_in_a_bar():
    assert sorted(name for names in [*HELD.values(), SAVED, WORK] for name in names) == sorted(ROWS)


def test_a_bar_is_as_long_as_the_total_even_where_not_all_is_there_at_once():
    from matplotlib.figure import Figure

    rows = ledger("a step", {"weights": 4 * 10**9, "saved activations": 3 * 10**9}, {"not at once": -(10**9)})
    assert bar(Figure().subplots(), 0, "lora", rows) == pytest.approx(6.0)
    assert colour("lora nf4") == COLOURS["lora nf4"] and colour("lora int8") == DARK


def test_the_crossover_is_where_the_lines_cross(made):
    table = made["growth"]
    for name in ("batch", "length"):
        (other, fixed) = next(iter(table[name]["fixed"].items()))
        for form, remat in tables.FORMS.items():
            at = table[name]["crossover"][form]["at"]
            brought = []
            for value in (at - 1, at):
                words = {"options": {"rank": 16}, "remat": remat, name: value, other: fixed}
                found = estimate(Setup(zoo.config(table["model"]), **words))
                brought.append(found.total - found.static)
            assert brought[0] < table["saved"] <= brought[1]


def test_a_square_is_filled_where_the_step_fits_and_marked_where_it_is_too_close(figures):
    step = {"batch": 1, "length": 8, "options": {"rank": 1}, "dtype": "float32", "optimizer": "adamw"}
    yes, perhaps, no = planner.FITS, planner.TOO_CLOSE, planner.DOES_NOT_FIT
    verdicts = {
        "full": {"plain": [no, no], "rematerialized": [no, perhaps]},
        "lora": {"plain": [no, perhaps], "rematerialized": [yes, yes]},
        "lora nf4": {"plain": [yes, perhaps], "rematerialized": [yes, perhaps]},
    }
    usable, models = {"a card": 7, "another": 8}, {"a model": verdicts}
    page_figures.fits({"step": step | {"attention": "blockwise"}, "usable": usable, "models": models}, "")
    (axes,) = figures[0].axes
    assert [patch.get_alpha() for patch in axes.patches[::2]] == [0.0, 0.0, 0.3, 0.3, 1.0, 0.0]
    assert texts(axes) == ["?", "?"]


def test_the_line_through_litgpts_runs(made):
    table = made["litgpt"]
    for whose, peaks in (
        ("published", table["published"]),
        ("ours", {n: t["total"] for n, t in table["ours"].items()}),
    ):
        line = table["lines"][whose]
        assert {n: line["intercept"] + int(n) * line["slope"] for n in peaks} == peaks
    assert table["lines"]["published"] == {"intercept": 13_530_000_000, "slope": 7_770_000_000}


def test_the_page_is_what_the_estimate_and_the_records_say():
    done = subprocess.run(
        [sys.executable, "tools/memory_page.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_check_can_fail(made, monkeypatch, tmp_path):
    monkeypatch.setattr(estimate_page, "outdated", lambda: [])  # has a test of its own
    table = {name: part for name, part in made.items() if name != "errors"}
    assert memory_page.stale(table) == []
    changed = json.loads(json.dumps(table))
    changed["growth"]["saved"] += 10**9
    said = [one.split(" is ")[0] for one in memory_page.stale(changed)]
    assert said == ["memory.json", "memory.md", "memory_growth.png"]
    monkeypatch.setattr(memory_page, "FIGURES", tmp_path)
    assert len(memory_page.stale(table)) == len(FIGURES)


@pytest.fixture
def record(monkeypatch, tmp_path):
    """Three rows of the judged draw by two made-up versions: half over, a quarter under, and refused by one."""
    steps = estimate_page.setups(estimate_page.JUDGED)
    seed = next(iter(estimate_page.JUDGED))
    rows = []
    for index, (share, other) in enumerate(((1.5, 1.5), (0.75, 0.75), (1.0, None))):
        total = estimate(steps[seed, index]).total
        plans = {"jax 1": round(total / share), "jax 2": round(total / other) if other else "it refused"}
        rows.append({"seed": seed, "index": index, "plans": plans, "estimate": total})
    found = {"made_by": {"jax 1": {}, "jax 2": {}}, "rows": rows}
    found["summary"] = {made: estimate_page.summary(rows, made) for made in found["made_by"]}
    monkeypatch.setattr(estimate_page, "RECORD", tmp_path / "record.json")
    estimate_page.RECORD.write_text(json.dumps(found))
    return found


def test_a_record_of_another_estimate_is_known(record, monkeypatch, tmp_path):
    monkeypatch.setattr(estimate_page, "VIEW", tmp_path / "view.json")
    estimate_page.VIEW.write_text(json.dumps({"rows": []}))
    assert estimate_page.outdated() == []
    record["rows"][0]["estimate"] += 1
    estimate_page.RECORD.write_text(json.dumps(record))
    (said,) = estimate_page.outdated()
    assert said.startswith("record.json is of another estimate")


def test_every_row_of_the_record_is_on_the_page_misses_in_bold(record):
    said = estimate_page.errors()
    rows = [line for line in said.splitlines() if re.match(r"\| [012] \|", line)]
    big = [row["estimate"] / share >= 1e9 for row, share in zip(record["rows"], (1.5, 0.75, 1), strict=True)]
    ends = ["+50.00%", "-25.00%", "+0.00%"]
    for row, end, bold in zip(rows, ends, big, strict=True):
        miss = f"**{end}**" if bold and end != "+0.00%" else end
        assert f"| {miss} |" in row
    assert "not compiled: it refused" in rows[2] and rows[2].endswith("| +0.00% | - |")
    assert "| jax 2 | 2 | 1 |" in said


def test_the_summary_of_a_record_is_by_hand():
    rows = [
        {"estimate": 2_100_000_000, "plans": {"jax 1": 2_000_000_000}},  # 5 % over
        {"estimate": 1_900_000_000, "plans": {"jax 1": 2_000_000_000}},  # 5 % under: 1.9 and its margin are 1.995
        {"estimate": 3_030_000_000, "plans": {"jax 1": 3_000_000_000}},  # 1 % over
        {"estimate": 10, "plans": {"jax 1": 900_000_000}},  # too small to be spoken of
        {"estimate": 10, "plans": {"jax 1": "it refused"}},
    ]
    found = estimate_page.summary(rows, "jax 1")
    assert (found["compiled"], found["not compiled"], found["of 1 GB and more"]) == (4, 1, 3)
    assert found["median"] == found["ninth decile"] == found["over"] == pytest.approx(0.05)
    assert (found["under-estimates"], found["beyond margin"], found["more than 8% off"]) == (1, 1, 0)


def test_what_was_in_view_is_told_with_its_misses():
    rows = estimate_page.read(estimate_page.VIEW)["rows"]
    said = " ".join(estimate_page.seen().split())
    assert f"| jax 0.10.2 | {len(rows)} | 0 |" in said and "judged earlier forms of it" in said
    assert not {row["seed"] for row in rows} & set(estimate_page.JUDGED)


def test_no_number_of_bytes_is_typed_into_the_page():
    written = re.sub(r"<!-- (\w+): .*?<!-- /\1 -->", "", PAGE, flags=re.S)
    assert len(written) < len(PAGE)
    assert not re.findall(r"\d[\d.,]*\s*(?:[kMGT]i?B\b|%|bytes\b|s\b)", written)


def test_the_tests_that_the_page_names_exist():
    for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / path).exists()
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    present = "".join(path.read_text() for path in (ROOT / "tests" / "memory").glob("test_*.py"))
    assert len(named) > 5 and all(f"def {name}(" in present for name in named)
