"""The notebooks: not stale, solved alike, in the style they promise; and the comparison that keeps their outputs true.

They are executed by `make notebooks` (tools/run_notebooks.py), which takes minutes.
"""

import ast
import itertools
import json
import re
import statistics
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from lora_jax.exercises import registry
from lora_jax.exercises.grading.extract import answer_of, statements

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from build_notebooks import write_zip
from compare import differences, text_difference
from masters import NOTEBOOKS, Cell, built, masters, parse, solved, stale, unsolved

MASTERS = masters()
COURSE = [master for master in MASTERS if not master.stem.startswith("00")]
each = pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


@each
def test_a_notebook_is_what_its_master_makes(master):
    for path, made in built(master).items():
        assert stale(path, made) is None, path


def test_every_notebook_has_a_master():
    names = {master.stem for master in MASTERS}
    for folder in (NOTEBOOKS, NOTEBOOKS / "solutions"):
        assert {path.stem for path in folder.glob("*.ipynb")} == names


@each
def test_with_solutions_and_without_only_the_checks_differ(master):
    learners, solutions = (read(path) for path in built(master))
    for number, (one, other) in enumerate(zip(*(_code(n) for n in (learners, solutions)), strict=True), 1):
        if "check(" in one.source:
            assert "not attempted" in one.outputs[0].text
            assert " correct: " in other.outputs[0].text
            one.outputs = other.outputs = []
        assert differences(_only(one), _only(other)) == [], number


@pytest.mark.parametrize("master", COURSE, ids=lambda path: path.stem)
def test_the_solutions_are_the_registrys(master):
    number = int(master.stem[:2])
    name = f"{master.stem}.ipynb"
    found, wrong = statements(name, (NOTEBOOKS / "solutions" / name).read_bytes())
    stubs, _ = statements(name, (NOTEBOOKS / name).read_bytes())
    assert not wrong
    for exercise in registry.topic(number):
        here = [node for names, node in found if exercise.name in names]
        there = [node for node in ast.parse(exercise.solution).body if exercise.name in ast.unparse(node)]
        assert _same(there[-1]) in [_same(node) for node in here], exercise.id
        assert answer_of(stubs, exercise.name, exercise.is_function) is None  # the learner's copy gives nothing away


def _same(node):
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef) and ast.get_docstring(child) is not None:
            child.body = child.body[1:]
    return ast.unparse(node)


@each
def test_short_cells_with_words_before_them(master):
    cells = parse(master.read_text())
    lengths = [len(solved(cell).splitlines()) for cell in cells if cell.kind == "code"]
    assert max(lengths) <= 30
    assert master.stem.startswith("00") or statistics.median(lengths) <= 6
    for before, cell in itertools.pairwise(cells):
        if cell.kind == "code" and before.kind == "code":  # an exercise and its check share their words
            assert "exercise" in before.tags and "check(" in cell.source, cell.source
    assert cells[0].kind == "markdown"
    assert "# " in cells[0].source


@each
def test_pictures_are_inside(master):
    for path in built(master):
        text = path.read_text()
        assert not re.search(r"!\[[^\]]*\]\(http|<img[^>]+src=.?.?http", text)
        for cell in _code(read(path)):
            for output in cell.outputs:
                if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                    around = [o for c in _code(read(path)) for o in c.outputs if "image/png" in o.get("data", {})]
                    assert around, "a widget needs a static twin"


MEASURED = re.compile(r"\d+\.\d+(?! of)\b(?!\.)|\b\d[\d,]*(?:\.\d+)?\s?(?:%|GB|GiB|MB|MiB|kB|ms|nats|tokens a second)")


@each
def test_numbers_in_the_text_are_computed(master):
    """A decimal or a number with a unit in the text stands in an output, in code, or in a formula beside it."""
    path = next(iter(built(master)))
    notebook = read(path)
    shown = json.dumps([[cell.source, cell.outputs] for cell in _code(notebook)], default=dict)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words = re.sub(r"\$[^$]*\$|`[^`]*`|\[[^\]]*\]\([^)]*\)|[Ee]xercises? \d\.\d", "", cell.source)
            for found in MEASURED.finditer(words):
                number = re.match(r"[\d.,]+", found[0])[0].strip(",.")
                assert number in shown, f"{found[0]!r} in {cell.source[:200]!r}"


# Every question to predict has its answer.

PREDICT, FOLD = re.compile(r"\*\*[Pp]redict\b"), re.compile(r"<details>.*?</details>", re.DOTALL)


def answers(cells):
    """For each question to predict: its words, the code that was run before its answer, and that answer's fold.

    Cells are (kind, source). The answer is the first fold behind the code; None where another question, or the end of
    the notebook, comes before it.
    """
    found, asked, code = [], None, []
    for kind, source in cells:
        if kind == "code":
            code.append(source)
            continue
        marks = [*PREDICT.finditer(source), *FOLD.finditer(source)]
        for mark in sorted(marks, key=lambda mark: mark.start()):
            if mark.re is FOLD and asked is not None and code:
                found.append((asked, "\n".join(code), mark[0]))
                asked = None
            elif mark.re is PREDICT:
                if asked is not None:
                    found.append((asked, "\n".join(code), None))
                asked, code = source[mark.start() :], []
    return found if asked is None else [*found, (asked, "\n".join(code), None)]


def unfounded(fold, shown):
    """The numbers of two digits and more in a fold that stand in no output and no code."""
    words = re.sub(
        r"<[^>]*>|`[^`]*`|\[[^\]]*\]\([^)]*\)|([Nn]otebook|[Ss]ection|[Ee]xercise) [\d.]+\d|\$[^$]*\$", "", fold
    )
    numbers = re.findall(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?", words)
    known = set(re.findall(r"\d+(?:\.\d+)?", re.sub(r"(?<=\d)[,_](?=\d)", "", shown)))
    return [n for n in numbers if len(re.sub(r"\D", "", n)) > 1 and re.sub(r",", "", n).rstrip(".") not in known]


def test_the_search_for_answers_finds_what_is_missing():
    question, fold = "Words. **Predict:** how many?", "<details><summary>So many</summary>\n12, and 3,072\n</details>"
    asked = "**Predict:** how many?"
    right = [("markdown", question), ("code", "assert 1"), ("markdown", fold)]
    assert answers(right) == [(asked, "assert 1", fold)]
    assert answers([*right[:2], ("markdown", "no fold")]) == [(asked, "assert 1", None)]
    assert answers([("markdown", f"{question} {fold}"), ("code", "1")]) == [
        (f"{asked} {fold}", "1", None)
    ]  # given away
    again = [*right[:2], ("markdown", "**predict** this"), *right[1:]]
    assert [answer is None for _, _, answer in answers(again)] == [True, False]
    assert unfounded(fold, "12 and 3072") == unfounded(fold, "120 / 10, 12, 3_072") == []
    assert unfounded(fold, "x = 3,072") == ["12"]
    assert unfounded(fold, "12.5 and 3,072,000") == ["12", "3,072"]
    assert unfounded("<details>As `12` in notebook 03, section 12, $12$: 1 or 2</details>", "") == []


@each
def test_every_question_to_predict_is_answered_behind_a_fold(master):
    """And what the answer says is asserted in the code that it is about."""
    for question, code, answer in answers([(cell.kind, cell.source) for cell in parse(master.read_text())]):
        assert answer is not None, question
        assert re.search(r"\bassert\b|\bassert_\w+\(", code), question


@each
def test_numbers_in_folds_stand_in_an_output_or_in_code(master):
    notebook = read(next(iter(built(master))))
    outputs = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in _outputs(notebook)]
    shown = "\n".join([*(cell.source for cell in _code(notebook)), *outputs])
    for cell in notebook.cells:
        for fold in FOLD.findall(cell.source) if cell.cell_type == "markdown" else ():
            assert unfounded(fold, shown) == [], fold


def wrong_captions(cells):
    """Sentences before a figure that name what it is drawn over, where no axis of the figure is labelled so."""
    wrong = []
    for (kind, words), (other, code) in itertools.pairwise(cells):
        labels = " ".join(re.findall(r'xlabel=f?"([^"]*)"', code)) if (kind, other) == ("markdown", "code") else ""
        for over in re.findall(r"\bover the ([\w ]+?)(?= that\b|[,.:])", words) if labels else ():
            wrong += [over] if not set(re.findall(r"\w{3,}", over)) & set(re.findall(r"\w+", labels)) else []
    return wrong


@each
def test_a_caption_names_the_axis_that_is_there(master):
    assert wrong_captions([(cell.kind, cell.source) for cell in parse(master.read_text())]) == []


def test_a_wrong_caption_is_found():
    figure = ("code", 'axes.set(xlabel="rank kept of each change", ylabel="loss")')
    caption = "The same, over the {} that was kept."
    assert wrong_captions([("markdown", caption.format("share of the squared norm")), figure]) == [
        "share of the squared norm"
    ]
    assert wrong_captions([("markdown", caption.format("rank")), figure]) == []


def _outputs(notebook):
    return [output for cell in _code(notebook) for output in cell.outputs]


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("loss 5.290 -> 5.10", "loss 5.291 -> 5.10", True),
        ("loss 5.29", "loss 5.39", False),
        ("rank 9", "rank 9", True),
        ("rank 9", "rank 10", False),
        ("12,345 numbers", "12,346 numbers", False),
        ("79% move", "80% move", True),
        ("79% move", "82% move", False),
        ("1.0e-07", "1.005e-07", True),
        ("True", "False", False),
        ("a b", "a  b", True),
    ],
)
def test_text_and_integers_are_equal_and_floats_near(found, expected, same):
    assert (text_difference(found, expected) is None) == same


def test_a_tagged_cell_is_compared_by_form_alone():
    def notebook(text, tags):
        output = nbformat.v4.new_output("stream", name="stdout", text=text)
        cell = nbformat.v4.new_code_cell("1", outputs=[output] if text else [], metadata={"tags": tags})
        return nbformat.v4.new_notebook(cells=[cell])

    assert differences(notebook("the sea", []), notebook("the sky", [])) == ["cell [1]: 'the sea' was 'the sky'"]
    assert differences(notebook("the sea", ["sampled"]), notebook("the sky", ["sampled"])) == []
    assert differences(notebook("it was 128.2", ["trained"]), notebook("it is 130.9", ["trained"])) == []
    assert differences(notebook("", ["timing"]), notebook("3 s", ["timing"])) == [
        "cell [1]: its outputs are [] and were ['text']"
    ]


def test_the_learner_gets_a_stub():
    cell = Cell(
        "code", 'def f(x):\n    """x (N,)."""\n    # solution\n    y = x\n    return y\n    # end of solution\n'
    )
    assert unsolved(cell) == 'def f(x):\n    """x (N,)."""\n    raise NotImplementedError  # your code here'
    assert solved(cell) == 'def f(x):\n    """x (N,)."""\n    y = x\n    return y'
    guess = Cell("code", "guess = 2 * 4  # solution")
    assert unsolved(guess) == "guess = None  # your prediction"
    assert solved(guess) == "guess = 2 * 4"
    with pytest.raises(ValueError, match="has no end"):
        unsolved(Cell("code", "# solution"))
    with pytest.raises(ValueError, match=r"line 1: .* does not begin a cell"):
        parse('# %% tags=["sample"]')
    with pytest.raises(ValueError, match="must begin with"):
        parse("# %% [markdown]\nwords")


def test_staleness_is_seen(tmp_path):
    path, made = next(iter(built(MASTERS[0]).items()))
    copy = tmp_path / "it.ipynb"
    assert stale(copy, made) == "is not there"
    notebook = read(path)
    for change, reason in (
        (lambda cell: cell.update(execution_count=7), "was not run from top to bottom"),
        (lambda cell: cell.update(source="1"), "differs from its master"),
    ):
        change(_code(notebook)[0])
        nbformat.write(notebook, copy)
        assert stale(copy, made) == reason


def test_a_class_gets_the_notebooks_without_outputs(tmp_path):
    write_zip(tmp_path / "class.zip")
    with zipfile.ZipFile(tmp_path / "class.zip") as file:
        assert file.namelist() == [f"notebooks/{master.stem}.ipynb" for master in MASTERS]
        for name in file.namelist():
            notebook = nbformat.reads(file.read(name).decode(), as_version=4)
            assert not any(cell.outputs for cell in _code(notebook))
            assert "# end of solution" not in json.dumps(notebook)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _only(cell):
    return nbformat.v4.new_notebook(cells=[cell])
