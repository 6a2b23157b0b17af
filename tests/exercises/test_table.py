"""The table of marks: what a spreadsheet makes of it, what a terminal does, and what is left of it on a full disk."""

import csv
import os
import re
import subprocess
import sys
import unicodedata

import pytest

from lora_jax.errors import InputError
from lora_jax.exercises.grading import table
from lora_jax.exercises.grading.printed import distinct, one_line, shown
from lora_jax.exercises.grading.table import Table, cell, not_judged, row
from lora_jax.exercises.outcomes import CORRECT, NOT_ATTEMPTED, NOT_JUDGED, NOT_YET, Outcome
from lora_jax.files import atomic

FORMULAS = (
    "=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "a;=1+1", "a\t=1+1", "a\n=1", "a\r=1", "a;b;c;=1", ";;=1", " =1",
    "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20SUM(1)", "a;\uff1d1+1", "\u00a0=1", "\u3000=1", "\u200b=1", "\ufeff=1",
    "\u2060\u202e=1", "\t=1", "\r\n=1", '"=1', 'a;"=1', 'a;""=1', "| =1", "x|=1", "a; \u00a0=1", "\u2212 1", "\ufe63 1",
    "\u207a1", "\u2a751", "\u27961", "\0=1", "\x1b=1", '=HYPERLINK("http://x";"=1")', "=cmd|' /C calc'!A0", "\udcff=1",
    "\ud800;=1",
)  # fmt: skip
HARMLESS = (
    "Müller", "O'Neill", "a;b", "a, b", "(3, -1)", "山田 太郎", "1.5", "anna@example.org", "a-b", "", "3.2 = x",
)  # fmt: skip
BEGINS = re.compile(r"[=+\-@]")


def cells_in_any_country(text):
    """Every cell that a spreadsheet could see in a line, whatever it takes for a separator or a quotation mark."""
    found = []
    for delimiter in ",;\t|":
        found += [one for line in csv.reader(text.splitlines(), delimiter=delimiter) for one in line]
    for delimiter in ";\t|":  # one that knows no quotation marks; commas are told apart by these alone
        found += [one for line in text.splitlines() for one in line.split(delimiter)]
    return found


def runs(one):
    """Whether a spreadsheet that ignores what cannot be seen would find a formula."""
    seen = "".join(c for c in one if not c.isspace() and unicodedata.category(c)[0] != "C").lstrip('"')
    return bool(seen) and bool(BEGINS.match(unicodedata.normalize("NFKC", seen)) or seen[0] in "\u2212\u2795\u2796")


def written(tmp_path, *rows):
    made = Table(tmp_path / "marks.csv", ["3.1"], pytest.fail)
    for place, one in enumerate(rows):
        made.add(place, one)
    made.close()
    return tmp_path / "marks.csv"


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_no_spreadsheet_finds_a_formula(text, tmp_path):
    assert any(runs(one) for one in cells_in_any_country(text)), "the test must know one when it sees one"
    one = row(text, {"3.1": Outcome(NOT_YET, text)}, [text])
    raw = written(tmp_path, one, one).read_text("utf-8-sig")
    assert not [one for one in cells_in_any_country(raw) if runs(one)]


@pytest.mark.parametrize("text", HARMLESS)
def test_other_words_stay_as_they_are(text):
    assert cell(text) == text


def test_a_reader_of_any_kind_finds_the_columns(tmp_path):
    """With the mark of the encoding, which Excel needs, and for a program that does not know it."""
    path = written(tmp_path, row("Müller", {"3.1": Outcome(CORRECT)}), row('"x", y', {"3.1": Outcome(NOT_ATTEMPTED)}))
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    for encoding in ("utf-8-sig", "utf-8"):
        with open(path, newline="", encoding=encoding) as file:
            found = [(one["submission"], one["3.1"], one["total"], one["remarks"]) for one in csv.DictReader(file)]
        assert found == [("Müller", "1", "1", ""), ('"x", y', "", "0", "")]


def test_a_row_says_what_was_wrong_and_blames_the_machine_where_it_is_at_fault():
    outcomes = {
        "3.1": Outcome(CORRECT),
        "3.2": Outcome(NOT_YET, "it raised\nValueError: \x1b[31m\u202e."),
        "3.3": Outcome(NOT_JUDGED, "the disk is full"),
        "3.4": Outcome(NOT_JUDGED, "the disk is full"),
        "3.5": Outcome(NOT_ATTEMPTED, "hw.ipynb cannot be read"),
        "3.6": Outcome(NOT_ATTEMPTED, "hw.ipynb cannot be read"),
        "3.7": Outcome(NOT_ATTEMPTED),
    }
    found = row("anna", outcomes, ["two\tfiles"])
    assert found == {
        "name": "anna",
        "marks": {"3.1": 1, "3.2": 0, "3.3": None, "3.4": None, "3.5": None, "3.6": None, "3.7": None},
        "total": 1,
        "remarks": [
            "hw.ipynb cannot be read",
            "3.3, 3.4 could not be judged: the disk is full",
            r"3.2 not yet: it raised ValueError: \x1b[31m\u202e.",
            "two files",
        ],
    }
    assert not_judged(found) == ["3.3", "3.4"]
    said = row("x", {"3.2": Outcome(NOT_YET, "3.2 could not be judged: says the submission")}, ["3.2 could not be"])
    assert not_judged(said) == []
    named = row("x", {"3.2": Outcome(NOT_YET, "no")}, ["3.2 could not be judged: x.zip is a zip file"])  # a file's name
    assert not_judged(named) == []


def test_the_summary_counts_what_the_machine_is_to_blame_for(tmp_path):
    made = Table(None, ["3.1", "3.2"], pytest.fail)
    made.add(0, row("anna", {"3.1": Outcome(CORRECT), "3.2": Outcome(CORRECT)}))
    made.add(1, row("bert", {"3.1": Outcome(NOT_YET, "no"), "3.2": Outcome(NOT_ATTEMPTED)}))
    assert made.summary() == "2 rows, 1 with every mark"
    made.add(2, row("carl", dict.fromkeys(("3.1", "3.2"), Outcome(NOT_JUDGED, "no time"))))
    made.add(3, row("dora", {"3.1": Outcome(CORRECT), "3.2": Outcome(NOT_JUDGED, "no time")}))
    made.close()
    assert made.summary() == (
        "4 rows, 1 with every mark; 3 marks of 2 submissions could not be judged: mark these again"
    )


def test_the_file_holds_the_rows_so_far_in_the_order_of_the_entries(tmp_path):
    path = tmp_path / "new" / "marks.csv"
    made = Table(path, ["3.1"], pytest.fail)
    assert not path.exists()  # an older table stays until there is a row
    seen = []
    for place in (2, 0, 1):
        made.add(place, row("abc"[place], {"3.1": Outcome(CORRECT)}))
        with open(path, newline="", encoding="utf-8-sig") as file:
            seen.append([(one["number"], one["submission"]) for one in csv.DictReader(file)])
    assert seen == [[("3", "c")], [("1", "a"), ("3", "c")], [("1", "a"), ("2", "b"), ("3", "c")]]
    made.close()
    assert [one["name"] for one in made.rows] == ["a", "b", "c"]
    assert os.listdir(path.parent) == ["marks.csv"]


def full_disk(monkeypatch, refuses):
    write = atomic.write_bytes

    def refuse(path, data):
        if refuses():
            raise InputError(f"could not write {path} (No space left on device): free some space.")
        write(path, data)

    monkeypatch.setattr(atomic, "write_bytes", refuse)


def test_a_full_disk_is_mentioned_once_and_asked_again(tmp_path, monkeypatch):
    is_full, said = [True], []
    full_disk(monkeypatch, lambda: is_full[0])
    made = Table(tmp_path / "marks.csv", ["3.1"], said.append)
    for place in range(3):
        made.add(place, row(f"s{place}", {"3.1": Outcome(CORRECT)}))
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert "each row tries again" in said[0]
    with pytest.raises(InputError, match="No space left"):
        made.close()
    is_full[0] = False
    made.close()
    assert len((tmp_path / "marks.csv").read_text("utf-8-sig").splitlines()) == 4


def test_a_disk_that_is_freed_gets_every_row(tmp_path, monkeypatch):
    is_full = iter([False, True, True, False])
    full_disk(monkeypatch, lambda: next(is_full))
    made = Table(tmp_path / "marks.csv", ["3.1"], lambda _: None)
    for place, lines in enumerate((2, 2, 2, 5)):
        made.add(place, row(f"s{place}", {"3.1": Outcome(CORRECT)}))
        assert len((tmp_path / "marks.csv").read_text("utf-8-sig").splitlines()) == lines
    made.close()


REFUSED = """
import os, resource, sys
from pathlib import Path
from lora_jax.errors import InputError
from lora_jax.exercises.grading.table import Table, row
from lora_jax.exercises.outcomes import CORRECT, Outcome

path, said = Path(sys.argv[1]), []
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
made = Table(path, ["3.1"], said.append)
for place, size in enumerate([-1, 20, 20, -1, 20]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size if size > 0 else most, most))
    made.add(place, row(f"s{place}", {"3.1": Outcome(CORRECT)}))
    print(len(open(path).readlines()), len(said), os.listdir(os.path.dirname(path)))
try:
    made.close()
except InputError as error:
    print(error)
"""


def test_what_the_system_refuses_to_write_leaves_the_table_before(tmp_path):
    """No file over 20 bytes: as a full disk does, in the middle of a write; then all of it, and no more again."""
    path = tmp_path / "marks.csv"
    done = subprocess.run([sys.executable, "-c", REFUSED, str(path)], capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    assert lines == [f"{rows} {said} ['marks.csv']" for rows, said in ((2, 0), (2, 1), (2, 1), (5, 1), (5, 1))]
    assert last.startswith(f"could not write {path} (File too large)")


def test_where_no_table_can_be_is_said_before_anything_is_marked(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "pipe.csv", tmp_path / "file" / "marks.csv", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"is no file|cannot be written"):
            Table(path, ["3.1"], pytest.fail)
    (tmp_path / "link.csv").symlink_to(tmp_path / "file")
    Table(tmp_path / "link.csv", ["3.1"], pytest.fail)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cell_is_no_longer_than_a_spreadsheet_takes(tmp_path):
    one = row("x" * 40_000, {"3.1": Outcome(NOT_YET, "y" * 10**6)}, ["z=" * 200] * 1000)
    with open(written(tmp_path, one), newline="", encoding="utf-8-sig") as file:
        (found,) = csv.DictReader(file)
    assert max(map(len, found.values())) == 30_000 < 32_767


NAMES = {  # what is on the disk, and what is printed
    b"anna": "anna",
    "Müller".encode(): "Müller",
    "Mu\u0308ller".encode(): "Müller",  # as a Mac writes it
    b"M\xfcller": "Müller",  # as Windows and old Linux do
    b"M\x81ller": "Müller",  # as Windows' zip files do
    b"Ren\x82e": "Renée",
    b"caf\xe9.html": "café.html",
    "山田".encode(): "山田",
    b"\xc3\x28": "Ã(",
    b"a\nb": r"a\nb",
    b"\x1b]0;mine\x07": r"\x1b]0;mine\x07",
    "a\u202egnp.exe".encode(): r"a\u202egnp.exe",
    "a\u2066b".encode(): r"a\u2066b",
    "a\u0085b\u2028".encode(): r"a\x85b\u2028",
    "a\u200bb".encode(): r"a\u200bb",
    "a\u00a0b".encode(): r"a\xa0b",
    "\u3164".encode(): r"\u3164",
    "\u2800".encode(): r"\u2800",
    b" ": r"\x20",
    b"  ": r"\x20\x20",
    b" a  b ": r"\x20a \x20b\x20",
    b"-rf": "-rf",
    b"=1+1": "=1+1",
    b"\x7f": r"\x7f",
    "x" * 255: "x" * 255,
    "❤️".encode(): r"❤\ufe0f",
}


@pytest.mark.parametrize(("raw", "printed"), NAMES.items(), ids=ascii)
def test_a_name_is_printed_in_letters_and_harms_no_terminal(raw, printed):
    name = os.fsdecode(raw)
    assert shown(name) == printed
    assert shown(name).isprintable()
    shown(name).encode()  # no half of a character


def test_no_two_titles_are_alike():
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    assert distinct(["a", "a (2)", "a"]) == ["a", "a (2)", "a (3)"]
    assert distinct(["x.ipynb", "x.ipynb", "y.PY", "y.PY"]) == ["x.ipynb", "x (2).ipynb", "y.PY", "y (2).PY"]
    many = distinct(["a"] * 1000 + [f"a ({n})" for n in range(1000)])
    assert len(set(many)) == 2000


def test_a_remark_is_one_short_line():
    assert one_line(" a\r\n\tb\u2029c  d ") == "a b c d"
    assert one_line("\x1b[2J\u202e\0") == r"\x1b[2J\u202e\x00"
    assert one_line("x" * 300) == "x" * 300
    assert one_line("x" * 301) == "x" * 297 + "..."
    assert len(one_line("\x1b" * 10**7)) == 300
    assert one_line("\ud800\udc80") == r"\ud800\udc80"
    assert table.one_line is one_line
