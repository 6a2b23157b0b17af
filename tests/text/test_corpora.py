"""The poems: read without unpickling, prose left out, and no held-out line in the training text."""

import gzip
import os
import pickle
import re

import pytest

from lora_jax.errors import InputError
from lora_jax.text import corpora
from lora_jax.text.corpora import read_lines, split_verse, verse_passages


def lines(text):
    return text.split("\n")


VERSE = lines("""Should you ask me, whence these stories?
Whence these legends and traditions,
With the odors of the forest
With the dew and damp of meadows,
With the curling smoke of wigwams,
With the rushing of great rivers,
With their frequent repetitions,
And their wild reverberations
As of thunder in the mountains?
I should answer, I should tell you,
"From the forests and the prairies,
From the great lakes of the Northland,""")

PROSE = lines("""The Song of Hiawatha is based on the legends and stories of
many North American Indian tribes, but especially those of the
Ojibway Indians of northern Michigan, Wisconsin, and Minnesota.
They were collected by Henry Rowe Schoolcraft, the reknowned
historian, pioneer explorer, and geologist. He was superintendent
of Indian affairs for Michigan from eighteen hundred and thirty-six
fur trader, and O-shau-gus-coday-way-qua (The Woman of the Green
Prairie), who was a daughter of Waub-o-jeeg (The White Fisher),
who was Chief of the Ojibway tribe at La Pointe, Wisconsin.""")

LATIN = lines("""Illum si somnus tenuit, vos somnia terrent,
Somnia tam vanos ingeminata metus.
Nil Christi nocuit somnus, mihi credite. Somnus
Qui nocuit, vestrae somnus erat fidei.
Jamque pates, cordisque seram gravis hasta reclusit,
Et clavi claves undique te reserant.
Ah, vereor, sibi ne manus impia clauserit illas,
Quae coeli has ausa est sic aperire fores.""")


class Runs:
    """What an object array's pickle does where this is reduced: calls a function that the file names."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def table(columns, state=(), protocol=4):
    """The bytes of a table as numpy pickles one: the state (version, (columns, rows), dtype, False, strings)."""
    rows = len(columns[0])
    strings = [text for column in columns for text in column]
    index = (1, (len(columns),), None, False, ["text", "meter"][: len(columns)])
    return pickle.dumps([index, *state, (1, (len(columns), rows), None, False, strings)], protocol=protocol)


def write(path, data):
    path.write_bytes(gzip.compress(data))
    return path


def test_the_first_column_is_read_in_order(tmp_path):
    lines = [f"Line {i}, with a tail of its own — é" for i in range(5000)] + ["L" * 300]
    path = write(tmp_path / "table", table([lines, ["iambic"] * len(lines)]))
    assert read_lines(path) == lines


def test_nothing_in_the_file_is_run(tmp_path):
    trace = tmp_path / "trace"
    data = table([["one", "two", "three"]], state=[Runs(os.mkdir, str(trace))])
    assert read_lines(write(tmp_path / "table", data)) == ["one", "two", "three"]
    assert not trace.exists()
    pickle.loads(data)  # the file would have done it
    assert trace.exists()


def test_a_damaged_table_is_refused(tmp_path):
    data = table([[f"line {i}" for i in range(100)]])
    whole = gzip.compress(data)
    path = tmp_path / "table"
    again = "delete it and fetch it again"
    for damaged in (whole[:-20], b"not gzip at all", gzip.compress(data[:400]), gzip.compress(b"\x80\x04\xff")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"^{re.escape(str(path))} is not a whole gzipped pickle .*{again}$"):
            read_lines(path)
    with pytest.raises(InputError, match=r"holds no column of text: it is not the table of poems$"):
        read_lines(write(path, pickle.dumps({"text": ["one", "two"]})))
    same = "a line that stands twice as one object"
    with pytest.raises(InputError, match=r"holds BINGET where line 1 of 2 should stand$"):
        read_lines(write(path, table([[same, same]])))


def test_poems_are_walked_once_and_then_read_as_text(tmp_path, monkeypatch):
    assets = pytest.importorskip("lora_jax.files.assets")
    source = write(tmp_path / "table", table([VERSE, ["trochaic"] * len(VERSE)]))
    monkeypatch.setattr(assets, "fetch", lambda asset: source)
    monkeypatch.setattr(corpora, "POEM_LINES", len(VERSE))
    assert corpora.poems() == VERSE
    assert (tmp_path / "table.txt").read_text(encoding="utf-8").split("\n") == VERSE
    monkeypatch.setattr(corpora, "read_lines", None)
    assert corpora.poems() == VERSE


def test_a_cut_short_text_of_poems_is_made_again(tmp_path, monkeypatch):
    assets = pytest.importorskip("lora_jax.files.assets")
    source = write(tmp_path / "table", table([VERSE, ["trochaic"] * len(VERSE)]))
    monkeypatch.setattr(assets, "fetch", lambda asset: source)
    monkeypatch.setattr(corpora, "POEM_LINES", len(VERSE))
    (tmp_path / "table.txt").write_text("Should you ask me")
    assert corpora.poems() == VERSE


CHANGES = {
    "one letter": lambda text: text.replace(b"forest", b"forost", 1),
    "a line's end moved": lambda text: text.replace(b"odors of", b"odors\nof", 1).replace(b"forest\n", b"forest ", 1),
    "two lines swapped": lambda text: b"\n".join([*text.split(b"\n")[1::-1], *text.split(b"\n")[2:]]),
    "a byte that is no UTF-8": lambda text: text[:5] + b"\xff" + text[6:],
    "nothing at all": lambda text: b"",
    "a zero page": lambda text: bytes(len(text)),
    "a line more": lambda text: text + b"\nmore",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", ["table.txt", "table.txt.sha256"])
def test_a_text_of_poems_that_was_damaged_is_made_anew(tmp_path, monkeypatch, change, where):
    """With as many lines as before, too: it is checked by its sha256, and not by their number."""
    assets = pytest.importorskip("lora_jax.files.assets")
    source = write(tmp_path / "table", table([VERSE, ["trochaic"] * len(VERSE)]))
    monkeypatch.setattr(assets, "fetch", lambda asset: source)
    assert corpora.poems() == VERSE
    damaged = CHANGES[change]((tmp_path / where).read_bytes())
    if where == "table.txt":
        assert damaged != (tmp_path / where).read_bytes()
    (tmp_path / where).write_bytes(damaged)
    assert corpora.poems() == VERSE
    assert (tmp_path / "table.txt").read_text(encoding="utf-8").split("\n") == VERSE
    monkeypatch.setattr(corpora, "read_lines", None)
    assert corpora.poems() == VERSE


def test_verse_is_told_from_prose_latin_and_indexes():
    index = ["O that the earth, or only this fair isle,", "O thou that art with me,", "Over the hills and far away,"]
    index = sorted(index + [f"{letter}ou and all of the others," for letter in "PRSTUVWY"])
    page = [f"The song of the river and of the sea, {n}" for n in range(12)]
    assert verse_passages(VERSE) == ["\n".join(VERSE)]
    for other in (PROSE, LATIN, index, page, VERSE[:7], []):
        assert verse_passages(other) == []
    shuffled = index[5:] + index[:3] + index[3:5][::-1]  # the same lines, out of the alphabet's order
    assert verse_passages(shuffled[::2] + shuffled[1::2]) != []
    prose = PROSE[4:6]
    assert verse_passages(PROSE + prose + VERSE + prose + LATIN + prose + VERSE) == ["\n".join(VERSE)] * 2
    assert verse_passages(VERSE + LATIN) == []  # and a passage that is part Latin is none


def test_long_runs_are_cut_into_passages_of_at_most_forty_lines():
    lines = [f"And the {chr(97 + i % 26) * (1 + i // 26)} of the mountain," for i in range(0, 100)]
    lines[::3] = [line.replace("And", "From") for line in lines[::3]]
    passages = verse_passages(lines)
    assert "\n".join(passages) == "\n".join(lines)
    assert [p.count("\n") + 1 for p in passages] == [33, 33, 34]


WORDS = ["river", "mountain", "shadow", "morning", "winter", "summer", "garden", "silver", "golden", "sorrow"]


def made_up_lines(count):
    """Distinct lines of 'verse', each with its own number spelled in words."""
    spelled = (" ".join(WORDS[int(digit)] for digit in f"{i:05d}"[1:]) for i in range(count))
    return [f"{('And', 'For')[i % 2]} in the {words}," for i, words in enumerate(spelled)]


def numbers(passages):
    return [
        int("".join(str(WORDS.index(word)) for word in line[:-1].split()[3:]))
        for passage in passages
        for line in passage.split("\n")
    ]


def test_training_keeps_its_distance_from_held_out_blocks():
    lines = made_up_lines(10_000)
    split = split_verse(lines, held_out_blocks=5, block_lines=80, gap=200)
    train, held_out = numbers(split.train), numbers(split.held_out)
    assert len(held_out) == 5 * 80 and len(set(train)) == len(train)
    assert min(abs(a - b) for a in held_out for b in (*filter(lambda n: abs(n - a) < 400, train), 10**6)) == 201
    assert len(train) > 10_000 - 5 * 480 - 300 and split.dropped == 0
    assert [n // 2000 for n in held_out[::80]] == [0, 1, 2, 3, 4]  # one block in each fifth


def test_a_split_depends_on_its_seed_only():
    lines = made_up_lines(10_000)
    options = {"held_out_blocks": 2, "block_lines": 80, "gap": 200}
    assert split_verse(lines, **options, seed=3) == split_verse(lines, **options, seed=3)
    assert split_verse(lines, **options, seed=3).held_out != split_verse(lines, **options, seed=4).held_out
    some = split_verse(lines, **options, seed=3, train_passages=50)
    assert len(some.train) == 50 and set(some.train) <= set(split_verse(lines, **options, seed=3).train)


def test_passages_that_repeat_a_held_out_line_are_dropped():
    lines = made_up_lines(10_000)
    options = {"held_out_blocks": 2, "block_lines": 80, "gap": 200}
    held_out = split_verse(lines, **options).held_out
    copied, short = held_out[0].split("\n")[3], "And so it is"
    far = numbers(held_out)[0] + 1500  # in training, and in no gap
    lines[far] = copied.upper().replace("AND", "And").replace(",", " --")  # another book's spelling of it
    lines[far + 300] = short
    split = split_verse(lines, **options)
    assert split.held_out == held_out and split.dropped == 1
    assert copied.lower() not in "\n".join(split.train).lower() and short in "\n".join(split.train)


def test_too_few_lines_to_split_are_refused():
    with pytest.raises(InputError) as error:
        split_verse(made_up_lines(1000), held_out_blocks=2, block_lines=100, gap=200)
    assert str(error.value) == (
        "1,000 lines are too few for 2 held-out blocks of 100 lines with gaps of 200: more than 1,000 are needed"
    )


@pytest.mark.assets
def test_the_poems_are_there_and_no_held_out_line_is_trained_on():
    lines = corpora.poems()
    split = split_verse(lines, train_passages=400)
    assert len(lines) == corpora.POEM_LINES
    assert lines[0] == "The Song of Hiawatha is based on the legends and stories of"
    assert lines[30] == "Should you ask me, whence these stories?"
    assert len(split.train) == 400 and sum(map(len, split.held_out)) > 128 * 128 * 5
    held_out = {line for passage in split.held_out for line in passage.split("\n") if len(line) > 20}
    assert not any(line in held_out for passage in split.train for line in passage.split("\n"))
    kept = sum(p.count("\n") + 1 for p in verse_passages(lines[:300_000])) / 300_000
    assert 0.7 < kept < 0.9


def test_a_table_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "TABLE_BYTES", 1_000_000)
    path = tmp_path / "table"
    path.write_bytes(gzip.compress(bytes(100_000)) * 30)
    with pytest.raises(InputError, match=r"table unpacks to more than 1,000,000 bytes: delete it and fetch it again$"):
        read_lines(path)
    path.write_bytes(gzip.compress(table([["a"]])))
    os.truncate(path, 2**40)  # a hole of zeros, which a reader of gzip passes over one by one
    with pytest.raises(InputError, match="unpacks to more than"):
        read_lines(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04I" + b"9" * 10_000 + b"\n.",  # a number that takes hours to read
        b"\x80\x04\x8b\xff\xff\xff\x7f",  # one of two gigabytes
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x",
        b"\x80\x04\x8d" + (2**64 - 1).to_bytes(8, "little") + b"x",
        b"\x80\x04X" + (2**32 - 1).to_bytes(4, "little") + b"x",
        b"(" * 1_000_000,
        b"\x80\x04" + b"]" * 1_000_000,
        b"\x80\xff.",
        b"V\\ud800\n.",
        b"",
        b".",
    ],
)
def test_operations_that_lie_are_one_sentence(tmp_path, data):
    with pytest.raises(InputError, match=r"table (is not a whole gzipped pickle|holds no column of text)") as told:
        read_lines(write(tmp_path / "table", data))
    assert "\n" not in str(told.value) and len(str(told.value)) < 400 + len(str(tmp_path))


def test_a_line_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is not a whole gzipped pickle .*surrogates not allowed"):
        read_lines(write(tmp_path / "table", table([["a", "\ud800", "c"]])))


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path, "is a folder"),
        (tmp_path / "x", "there is no file"),
    ):
        with pytest.raises(InputError, match=words):
            read_lines(path)
