"""A run is gone on with where nothing that decides it has changed, and whatever has is named."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import pytest
import runs
import tiny
from safetensors.numpy import load_file, save_file

from lora_jax.commands import cli, identity
from lora_jax.files import checkpoint, huggingface
from lora_jax.files.tokenizer import Tokenizer

FAST = [*runs.QUICK, "--rank", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run beside what it was given: a model, data with questions and answers, a text to watch."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.model_directory(folder / "model")
    write_data(folder / "data.jsonl", "The fox ran", " home to the sea.")
    for name, animal in (("watched.txt", "dog"), ("other.txt", "cow")):
        (folder / name).write_text(tiny.TEXT.replace("fox", animal) * 20)
    assert cli.main(train(folder)) == 0
    return folder


@pytest.fixture
def here(finished, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(finished, tmp_path / "here")
    path = tmp_path / "here" / "run" / "checkpoint.safetensors"
    arrays, about = dict(load_file(path)), checkpoint.about(path)
    moved = json.loads(json.dumps(about).replace(str(finished), str(tmp_path / "here")))
    save_file(arrays, path, {"about": json.dumps(moved)})
    return tmp_path / "here"


def train(folder, *words):
    given = ["--model", str(folder / "model"), "--data", str(folder / "data.jsonl")]
    given += ["--watch", str(folder / "watched.txt")]
    return ["train", *given, *FAST, "--out", str(folder / "run"), *words]


def write_data(path, asked, said):
    rows = [{"prompt": f"{i}: {asked}", "completion": f"{said} {i}"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))


def change_config(folder, **settings):
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_weight(folder, name="model.norm.weight"):
    """One bit of one number, the least."""
    path = folder / "model" / "model.safetensors"
    arrays = dict(load_file(path))
    changed = arrays[name].copy()
    changed.reshape(-1).view("u4")[0] ^= 1
    save_file(arrays | {name: changed}, path, {"format": "pt"})


def other_weights(folder):
    tokenizer = tiny.tokenizer()
    config = tiny.config(tokenizer.vocab_size)
    huggingface.save(folder / "model", config, tiny.init(jax.random.key(1), config), tokenizer)


def change_tokenizer(folder):
    """A token more than the model's text ever has: the ids of the data stay as they are."""
    path = folder / "model" / "tokenizer.json"
    found = json.loads(path.read_text())
    found["added_tokens"][0]["special"] = not found["added_tokens"][0]["special"]
    path.write_text(json.dumps(found))


def change_end(folder):
    path = folder / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cls_token": "<end>"}))


def change_template(folder):
    path = folder / "model" / "tokenizer_config.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"chat_template": found["chat_template"] + " "}))


def move_boundaries(folder):
    """The same tokens, another mask: two words that were answered are asked."""
    write_data(folder / "data.jsonl", "The fox ran home to", " the sea.")


def change_watched(folder):
    (folder / "watched.txt").write_text(tiny.TEXT.replace("fox", "cat") * 20)


CHANGES = {  # what is changed: a function of the folder, or words of the command; and what is named
    "the weights of the base under the same path": (other_weights, "base_weights"),
    "one bit of one weight": (change_weight, "base_weights"),
    "the rotary base in the configuration": (
        lambda f: change_config(f, rope_parameters={"rope_theta": 5e4, "rope_type": "default"}),
        "config",
    ),
    "the norm's epsilon in the configuration": (lambda folder: change_config(folder, rms_norm_eps=1e-6), "config"),
    "the positions in the configuration": (lambda f: change_config(f, max_position_embeddings=512), "config"),
    "the tokenizer, the ids being the same": (change_tokenizer, "tokenizer"),
    "a special token's name": (change_end, "tokenizer"),
    "the chat template, which writes nothing here": (change_template, "chat_template"),
    "the boundaries of prompts, the tokens being the same": (move_boundaries, "data"),
    "the text that is watched": (change_watched, "watch"),
    "another text that is watched too": (["--watch", "{here}/other.txt"], "watch"),
    "the share that is held out": (["--held-out", "0.3"], "data"),
    "the method": (["--method", "dora"], "method"),
    "the rank": (["--rank", "3"], "options"),
    "where adapters stand": (["--targets", "mlp"], "options"),
    "alpha": (["--alpha", "3"], "options"),
    "dropout": (["--dropout", "0.1"], "options"),
    "the dtype": (["--dtype", "bfloat16"], "dtype"),
    "the quantization": (["--quantize", "int8"], "quantize"),
    "what is kept for the backward pass": (["--remat"], "remat"),
    "the rate": (["--lr", "0.5"], "rate"),
    "the decay": (["--decay"], "decay"),
    "the warm-up": (["--warmup", "2"], "warmup"),
    "the bound on the gradient": (["--clip-norm", "2"], "clip_norm"),
    "the steps": (["--steps", "5"], "steps"),
    "the parts of a batch": (["--accumulate", "2"], "accumulate"),
    "the batch": (["--batch-size", "4"], "batch_size"),
    "the length": (["--length", "20"], "length"),
    "the seed": (["--seed", "1"], "seed"),
}


CASES = [pytest.param(what, marks=pytest.mark.slow if isinstance(change[0], list) else ()) for what, change in
         CHANGES.items()]  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_whatever_decides_a_run_is_refused_by_its_name_when_it_has_changed(capsys, here, what):
    change, name = CHANGES[what]
    words = [word.format(here=here) for word in change] if isinstance(change, list) else []
    if not words:
        change(here)
    before = runs.contents(here / "run")
    assert cli.main(train(here, *words)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is a checkpoint of another run: " in said
    named = said.partition("another run: ")[2]
    assert re.search(rf"(^|, ){name} is ", named), named
    assert runs.contents(here / "run") == before


def test_a_run_with_nothing_changed_is_gone_on_with_and_ends_in_the_same_bytes(capsys, finished):
    here = finished
    before = runs.contents(here / "run")
    often = ["--evaluate-every", "1", "--checkpoint-every", "1"]  # how often it is looked at decides nothing
    for words in ([], often):
        assert cli.main(train(here, *words)) == 0
        assert runs.contents(here / "run") == before
    for name in ("run", "data.jsonl"):  # and what is no part of it may change: another time, other places of files
        Path(here / name).touch()
    assert cli.main(train(here)) == 0
    assert "going on from" in capsys.readouterr().out


@pytest.mark.parametrize("missing", identity.LATELY)
def test_a_checkpoint_of_before_is_refused_and_told_why(capsys, here, missing):
    path = here / "run" / "checkpoint.safetensors"
    about = checkpoint.about(path)
    del about["run"][missing]
    save_file(dict(load_file(path)), path, {"about": json.dumps(about)})
    before = runs.contents(here / "run")
    assert cli.main(train(here)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"does not say which {missing} its run has, as checkpoints of an earlier version" in said
    assert "give --out another place to start anew" in said and runs.contents(here / "run") == before


def test_a_digest_sees_every_bit_dtype_shape_and_name():
    tree = {"a": jax.numpy.arange(6.0), "b": jax.numpy.zeros((2, 3, 4), "bfloat16")}
    others = [
        {"a": tree["a"].at[5].add(1e-6), "b": tree["b"]},
        {"a": tree["a"].reshape(2, 3), "b": tree["b"]},
        {"a": tree["a"].astype("bfloat16"), "b": tree["b"]},
        {"c": tree["a"], "b": tree["b"]},
        {"a": tree["a"], "b": tree["b"].at[1, 2, 3].set(-0.0)},
        {"a": tree["a"]},
    ]
    assert len({identity.of_tree(one) for one in [tree, *others]}) == 1 + len(others)
    assert identity.of_tree(tree) == identity.of_tree(jax.tree.map(jax.device_get, tree))


def test_the_name_of_a_tokenizer_and_a_model_do_not_depend_on_when_they_are_taken(finished):
    tokenizer = Tokenizer.load(finished / "model")
    again = dataclasses.replace(tokenizer, now=tokenizer.now.replace(year=1999))
    config, params = huggingface.load(finished / "model")
    from lora_jax.tuning import jobs

    job = jobs.make_job("full", config, params, key=None)
    assert identity.of_model(config, job, tokenizer) == identity.of_model(config, job, again)
