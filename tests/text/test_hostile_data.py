"""Data files and stories that are none, never end or take all memory: a sentence each, with file and line."""

import gzip
import json
import os
from pathlib import Path

import pytest

from lora_jax.errors import InputError
from lora_jax.text import content, stories, tables
from lora_jax.text.documents import read_documents

GOOD = '{"text": "a"}\n'


def refused(path, said):
    with pytest.raises(InputError, match=said) as refusal:
        read_documents(path)
    assert len(str(refusal.value)) < 500


LINES = [
    ("[" * 100_000, "nested too deeply|not JSON"),
    ('{"a": ' * 5000, "nested too deeply|not JSON"),
    ('{"text": ' + "9" * 5000 + "}", "thousands of digits"),
    ('{"text": "a", "n": ' + "9" * 1001 + "}", "thousands of digits"),
    ('{"text": "a", "text": "b"}', "the field 'text' stands there twice"),
    ('{"text": NaN}', "'text'"),
    ('{"text": 1e400}', "'text'"),
    ('{"text": ["a"]}', "'text'"),
    ('{"text": {"a": 1}}', "'text'"),
    ('{"text": null}', "line 2"),
    ('{"text": true}', "'text'"),
    ('{"text": "\\ud800"}', "half of a surrogate pair"),
    ('{"text": "\\udfff\\ud800"}', "half of a surrogate pair"),
    ('{"messages": "a"}', "line 2"),
    ('{"messages": [[]]}', "line 2"),
    ('{"messages": [{"role": 1, "content": "a"}]}', "line 2"),
    ('{"messages": [{"role": "user", "content": {"a": [1]}}]}', "line 2"),
    ('{"prompt": "a", "completion": 7}', "line 2"),
    ('"' * 99_999, "not JSON|a JSON"),
    ("]" * 99_999, "not JSON"),
]


@pytest.mark.parametrize(("line", "said"), LINES, ids=lambda value: ascii(value)[:20])
def test_a_line_that_is_none(line, said, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + line + "\n" + GOOD)
    refused(path, said)
    (tmp_path / "b.json").write_text("[" + GOOD + "," + line + "]")
    with pytest.raises(InputError, match=r"b\.json"):
        read_documents(tmp_path / "b.json")


def test_numbers_that_nobody_learns_from_may_be_none(tmp_path):
    """As programs write a column of scores in which some are missing."""
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": NaN}\n{"text": "b", "score": 1e999}\n')
    assert [one.text for one in read_documents(tmp_path / "a.jsonl")] == ["a", "b"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.md", "a.jsonl.gz"])
@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_is_no_file(name, kind, tmp_path):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with open(path, "wb") as file:
            file.truncate(10**13)  # it takes no room on the disk
    refused(path, "is a pipe|is a device|more than the 500,000,000 that are read")


def test_a_small_file_that_unpacks_to_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "LARGEST", 10_000_000)  # and of so small a file a fifth of it
    for name in ("a.txt.gz", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"a" * 10_000_001))
        refused(tmp_path / name, "unpacked it has more than 2,000,000 bytes, which is more than is read")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"a" * 9_999) * 100)  # gzip files may stand one behind the other
    assert len(read_documents(tmp_path / "b.txt.gz")[0].text) == 999_900


@pytest.mark.parametrize("first", ["a,b\rc", "prompt,completion\r", 'prompt,"a\rb",x', "a;b\rc;d", "a\tb\r\r"])
def test_prose_with_odd_line_ends_is_no_table(first, tmp_path):
    (tmp_path / "a.md").write_bytes(f"{first}d\nIt was a fox.\n".encode())
    assert read_documents(tmp_path / "a.md")


BROKEN = {
    "cut": b"\x1f\x8b",
    "odd": b"\x1f\x8b\x08" + b"\xff" * 99,
    "short": gzip.compress(b"a" * 9999)[:-9],
    "more": gzip.compress(b"a") + b"b",
}


@pytest.mark.parametrize("name", BROKEN)
def test_gzip_files_that_are_none(name, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(BROKEN[name])
    refused(tmp_path / "a.jsonl.gz", "not a whole gzip file")
    with pytest.raises(InputError, match="is not a readable file of stories"):
        stories.read(tmp_path / "a.jsonl.gz")


def test_more_values_than_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_VALUES", 1000)
    (tmp_path / "a.json").write_text("[" + "[]," * 1001 + "0]")
    refused(tmp_path / "a.json", r"a\.json: more than 1,000 values")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "[," * 9999}) + "\n")  # in a text they count nothing
    assert read_documents(tmp_path / "b.jsonl")[0].text == "[," * 9999


def test_memory_running_out_is_a_sentence(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    (tmp_path / "a.jsonl").write_text(GOOD)
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", fail)
    refused(tmp_path / "a.jsonl", "more than memory holds")


@pytest.mark.parametrize(
    "name", ["a" * 300, "a/" * 3000, "a\0b", "\ud800", "a" * 300 + ".jsonl"], ids=lambda name: ascii(name)[:9]
)
def test_names_that_lead_nowhere(name):
    with pytest.raises(InputError, match="no such file or folder"):
        read_documents(name)


def test_a_folder_that_is_too_deep_to_be_walked(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c.txt").write_text("c")
    for error in (RecursionError("maximum recursion depth exceeded"), OSError(36, "File name too long")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(Path, "rglob", fail)
        refused(tmp_path, "the folders inside it cannot be read")


RECORDS = ["", "[]", "1", '"a"', '{"text": 1}', '{"text": null}', "{}", '{"text": ["a"]}', "[" * 9999, '{"text": "a"',
           '{"text": "\\ud800"}', "9" * 5000, '{"text": "a", "text": "b"}', "NaN"]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record[:20])
def test_stories_that_are_none(record, tmp_path):
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD + record + "\n" + GOOD).encode()))
    with pytest.raises(InputError, match=r"s\.jsonl\.gz is not a readable file of stories \(.*line 2"):
        stories.read(path)


def test_stories_of_other_bytes(tmp_path):
    for data in (b"\xff", b"plain", gzip.compress(b"\xff\xfe"), b""):
        (tmp_path / "s").write_bytes(data)
        try:
            assert stories.read(tmp_path / "s") == [] == list(data)
        except InputError as error:
            assert "is not a readable file of stories" in str(error)


def test_the_committed_stories_read_as_before():
    found = stories.records(stories.STORIES)
    expected = [json.loads(line) for line in gzip.decompress(stories.STORIES.read_bytes()).decode().splitlines()]
    assert found == expected
