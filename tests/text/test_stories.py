"""The stories: the committed file is clean, each fault is found, and the writer writes the same again."""

import random
import re

import pytest
import tiny

from lora_jax.commands import cli
from lora_jax.errors import InputError
from lora_jax.text import stories, story_writer

PLAIN = (
    "Mina was a little fox who lived by the sea. One day she lost her red hat. She looked under the boat and behind "
    'the stones, but it was not there. "Is this yours?" asked a duck. It was! Mina laughed, and they played together '
    "until the sun went down."
)


def test_the_committed_file_is_clean():
    """No prompt left in, nothing twice, no truncated ending, plain text; 2 MB at most."""
    assert stories.STORIES.stat().st_size <= 2_000_000
    records = stories.records(stories.STORIES)
    assert len(records) > 1000
    texts = [record["text"] for record in records]
    for text in texts:
        assert stories.fault(text) is None, text
        assert re.search(r"[.!?][\"']?$", text), text
        assert text.isascii() and text == " ".join(text.split())
        assert not re.search(r"<\||im_start|\bassistant\b|\buser\b|Write a|\{|\}", text), text
    bare = [re.sub(r"\W+", " ", text.lower()) for text in texts]
    assert len(set(bare)) == len(bare)
    beginnings = [" ".join(text.split()[:40]) for text in bare]
    assert len(set(beginnings)) == len(beginnings), "two stories share their first forty words"
    assert len({tuple(record["from"]) for record in records}) == len(records)


def test_every_story_begins_as_its_seed_says():
    openings = {}
    for record in stories.records(stories.STORIES):
        seed, batch, row = record["from"]
        if (seed, batch) not in openings:
            draw = random.Random(f"{seed}/{batch}")
            openings[seed, batch] = [story_writer.opening(draw) for _ in range(story_writer.BATCH)]
        assert record["text"].startswith(openings[seed, batch][row])


def test_a_plain_story_is_kept():
    assert stories.fault(PLAIN) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Mina was a fox. She slept.", "length"),
        (PLAIN * 4, "length"),
        (PLAIN.removesuffix("went down."), "ending"),
        (PLAIN.replace('"Is', "Is"), "ending"),
        (PLAIN.replace("red hat", "2 hats"), "not plain prose"),
        (PLAIN.replace("little fox", "little  fox"), "not plain prose"),
        (PLAIN.replace("One day", "**One day**"), "not plain prose"),
        (PLAIN.replace("One day", "In this story"), "speaks about itself"),
        (PLAIN.replace("a duck", "the assistant"), "speaks about itself"),
        (PLAIN + " One day she lost her red hat.", "goes round in circles"),
        (PLAIN + " And she ran and ran and ran and ran and ran and ran and ran.", "goes round in circles"),
    ],
)
def test_each_fault_is_found(text, reason):
    assert stories.fault(text) == reason


def test_sifting_keeps_each_story_once():
    kept, dropped = stories.sift([{"text": PLAIN}, {"text": PLAIN.upper().title()}, {"text": "No."}])
    assert kept == [{"text": PLAIN}]
    assert dropped == {"twice": 1, "length": 1}


def test_the_writer_writes_the_same_again_and_keeps_only_whole_paragraphs(tmp_path, monkeypatch):
    monkeypatch.setattr(story_writer, "WRITER", tiny.model_directory(tmp_path / "model"))
    monkeypatch.setattr(story_writer, "BATCH", 3)
    monkeypatch.setattr(story_writer, "NEW_TOKENS", 8)
    monkeypatch.setattr(story_writer, "TOP_K", 9)
    (one,), (again,) = (list(story_writer.write(5, [2])) for _ in range(2))
    assert one == again and [story["from"] for story in one] == [[5, 2, row] for row in range(3)]

    def continued(config, params, tokenizer, prompts, **options):
        return [" sang.\n\nThen the \u2018sea\u2019 rose.\n\nAnd th", " sang, and", "\nThe end"]

    monkeypatch.setattr(story_writer.generation, "generate", continued)
    (found,) = story_writer.write(5, [2])
    begun = [story["text"] for story in one]
    openings = [story_writer.opening(draw) for draw in [random.Random("5/2")] for _ in range(3)]
    assert [story["text"] for story in found] == [f"{openings[0]} sang. Then the 'sea' rose.", *openings[1:]]
    assert all(text.startswith(opening) for text, opening in zip(begun, openings, strict=True))


def test_the_command_sifts_old_and_new_together(tmp_path, monkeypatch):
    stories.save(tmp_path / "old.gz", [{"text": PLAIN, "from": [0, 0, 0]}])
    new = {"text": PLAIN.replace("Mina", "Tom"), "from": [1, 0, 0]}
    monkeypatch.setattr(story_writer, "write", lambda seed, batches: ([new, new] for _ in batches))
    out = tmp_path / "new.gz"
    command = ["stories", "--seed", "1", "--batches", "2", "--add", str(tmp_path / "old.gz"), "--out", str(out)]
    assert cli.main(command) == 0
    assert stories.read(out) == [PLAIN, new["text"]]
    first = out.read_bytes()
    assert cli.main(command) == 0 and out.read_bytes() == first


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "x.gz").write_bytes(b"no")
    with pytest.raises(InputError, match="not a readable file of stories"):
        stories.read(tmp_path / "x.gz")
