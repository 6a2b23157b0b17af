"""The command line, called as a user would: what it writes, what it prints, and one sentence for each mistake."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from lora_jax import METHODS, forward, load_adapter, load_model, load_tokenizer, merge
from lora_jax.commands import cli

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--steps", "4", "--batch-size", "2", "--length", "16"]
FAST = [*QUICK, "--rank", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_directory(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "mine.txt"
    path.write_text(tiny.TEXT * 40)
    return str(path)


@pytest.fixture(scope="module", params=[name for name in METHODS if name != "lora"])
def other(request, tmp_path_factory, model, data):
    """A run of another method, with its own options and rate."""
    out = tmp_path_factory.mktemp("runs") / request.param
    assert (
        cli.main(["train", "--model", model, "--data", data, "--out", str(out), *QUICK, "--method", request.param]) == 0
    )
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model, data):
    out = tmp_path_factory.mktemp("runs") / "lora"
    assert cli.main(["train", "--model", model, "--data", data, "--out", str(out), *FAST]) == 0
    return out


def refused(capsys, *arguments: str) -> str:
    """The one sentence that a user's mistake gets, with exit status 2 and no traceback."""
    assert cli.main(list(arguments)) == 2
    printed = capsys.readouterr()
    sentence = printed.err.strip().splitlines()[-1]
    assert sentence.startswith("lora_jax: ") and "Traceback" not in printed.err
    return sentence.removeprefix("lora_jax: ")


def test_train_generate_and_merge_go_together(capsys, model, trained, tmp_path):
    run = json.loads((trained / "run.json").read_text())
    assert len(run["losses"]) == 4 and run["evaluations"][-1][1] < run["evaluations"][0][1]
    config, params = load_model(model)
    adapter = load_adapter(trained / "adapter", base=params)
    assert (
        cli.main(["merge", "--model", model, "--adapter", str(trained / "adapter"), "--out", str(tmp_path / "m")]) == 0
    )
    merged_config, merged = load_model(tmp_path / "m")
    assert merged_config == config
    for want, got in zip(jax.tree.leaves(merge(params, *adapter)), jax.tree.leaves(merged), strict=True):
        np.testing.assert_array_equal(want, got)
    capsys.readouterr()

    said = []
    for source in (["--model", model, "--adapter", str(trained / "adapter")], ["--model", str(tmp_path / "m")]):
        options = ["--new-tokens", "6", "--temperature", "0", "--top-k", "9", "--json"]
        assert cli.main(["generate", "The fox", "A river ran", *source, *options]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert [text["prompt"] for text in said[0]["texts"]] == ["The fox", "A river ran"]


def test_every_method_trains_generates_and_merges_or_says_why_not(capsys, model, other, tmp_path):
    run = json.loads((other / "run.json").read_text())
    assert len(run["losses"]) == 4 and all(np.isfinite(run["losses"]))
    source = ["--model", model, "--adapter", str(other / "adapter")]
    options = ["--new-tokens", "6", "--temperature", "0", "--top-k", "9", "--json"]
    capsys.readouterr()
    assert cli.main(["generate", "The fox", *source, *options]) == 0
    said = json.loads(capsys.readouterr().out)
    if cli.main(["merge", *source, "--out", str(tmp_path / "m")]) == 0:
        capsys.readouterr()
        assert cli.main(["generate", "The fox", "--model", str(tmp_path / "m"), *options]) == 0
        assert json.loads(capsys.readouterr().out) == said
    else:
        assert "has no place for prompt: keep the adapter beside its base" in capsys.readouterr().err
        assert not (tmp_path / "m").exists()


def test_an_option_that_cannot_be_read_says_what_it_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--data", "poems", "--out", "x", "--rank-pattern", "q_proj=4"])
    words = """argument --rank-pattern: 'q_proj=4' is not understood: ranks by name, as JSON: {"q_proj": 4}"""
    assert words in capsys.readouterr().err


def test_full_fine_tuning_writes_a_model_that_opens(model, data, tmp_path):
    fast = ["--steps", "3", "--batch-size", "2", "--length", "16", "--method", "full"]
    assert cli.main(["train", "--model", model, "--data", data, "--out", str(tmp_path), *fast]) == 0
    config, params = load_model(tmp_path / "model")
    ids = np.array([load_tokenizer(tmp_path / "model").encode("The fox")])
    before = forward(*load_model(model), ids)
    assert np.abs(forward(config, params, ids) - before).max() > 1e-4


def test_a_finished_run_is_not_run_again_and_another_run_is_refused(capsys, model, data, trained):
    again = ["train", "--model", model, "--data", data, "--out", str(trained), *FAST]
    before = (trained / "checkpoint.safetensors").read_bytes()
    assert cli.main(again) == 0
    assert (trained / "checkpoint.safetensors").read_bytes() == before
    assert "rate is 0.001 there and 0.5 here" in refused(capsys, *again, "--lr", "0.5")
    assert "data is " in refused(capsys, *again, "--seed", "5")  # another seed holds other text out
    assert "a checkpoint of another run: options is {'rank': 2} there" in refused(capsys, *again, "--rank", "3")


def test_a_quantized_base_is_trained_over_and_its_adapter_fits_the_plain_one(model, data, tmp_path):
    """QLoRA from the command line: it learns, from another start than over the plain base."""
    quantized = ["train", "--model", model, "--data", data, "--out", str(tmp_path), "--quantize", "nf4", *FAST]
    assert cli.main(quantized) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["about"]["quantize"] == "nf4" and run["evaluations"][-1][1] < run["evaluations"][0][1]
    load_adapter(tmp_path / "adapter", base=load_model(model)[1])


def test_a_chat_prompt_goes_through_the_template(capsys, model):
    assert cli.main(["generate", "Hi", "--model", model, "--chat", "--new-tokens", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["texts"]) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--model", "no-such-model"], "there is no model 'no-such-model': give smollm2-135m, "),
        (["--data", "missing.txt"], "missing.txt: no such file or folder"),
        (["--method", "prayer"], "there is no method 'prayer': choose full or lora"),
        (["--targets", "z_proj"], "no weight matches the target 'z_proj'; there are: "),
        (["--rank", "0"], "layers.0.self_attn.q_proj: rank must be 1 to 24 for a 24 x 48 matrix, not 0"),
        (["--rank", "400"], "layers.0.self_attn.q_proj: rank must be 1 to 24 for a 24 x 48 matrix, not 400"),
        (["--length", "2000"], "fewer than the 2,000 of one sequence"),
        (
            ["--length", "2049"],
            "--length 2,049 is more than the 2,048 positions that this model was made for: pass 2048",
        ),
        (["--batch-size", "5000"], "a batch of 5000 sequences"),
        (["--accumulate", "3"], "--accumulate 3 does not divide --batch-size 2"),
        (["--lr", "-1"], "the learning rate is -1.0: give --lr a number above 0"),
        (["--dropout", "1"], "dropout must be at least 0 and below 1, not 1.0"),
        (["--method", "full"], "full fine-tuning has no rank"),
        (["--method", "full", "--quantize", "nf4"], "a quantized base is frozen and cannot be trained itself"),
        (["--targets", "embed_tokens"], "embed_tokens is tied to the head in this base"),
        (["--watch", "nowhere.txt"], "nowhere.txt: no such file or folder"),
    ],
)
def test_a_mistake_in_training_gets_one_sentence(capsys, tmp_path, model, data, change, sentence):
    out = tmp_path / "out"
    said = refused(capsys, "train", "--model", model, "--data", data, "--out", str(out), *FAST, *change)
    assert sentence in said
    assert not out.exists()


def test_bad_data_is_refused_before_the_model_is_read(capsys, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    said = refused(capsys, "train", "--data", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "o"))
    assert said.startswith(f"{tmp_path}/bad.jsonl, line 2: not JSON")


def test_a_loss_that_is_not_finite_stops_in_one_sentence(capsys, tmp_path, model, data):
    fast = ["--steps", "40", "--batch-size", "2", "--length", "16", "--lr", "1e30", "--method", "full"]
    said = refused(capsys, "train", "--model", model, "--data", data, "--out", str(tmp_path / "o"), *fast)
    assert said.startswith("at step 2 (") and "try a lower learning rate" in said


def test_a_broken_adapter_or_prompt_gets_one_sentence(capsys, tmp_path, model):
    generate = ["generate", "The fox", "--model", model]
    assert "there is no adapter_config.json" in refused(capsys, *generate, "--adapter", str(tmp_path))
    assert "there is nothing to continue" in refused(capsys, "generate", "", "--model", model)
    assert "top_p must be above 0" in refused(capsys, *generate, "--top-p", "1.5")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_letter_that_the_terminal_lacks_stops_nothing(encoding, options, monkeypatch):
    """Names of a class are in every alphabet, and terminals are not."""
    name = "Müller 山田"

    def found(say, **_):
        say(name)
        return {"name": name}

    monkeypatch.setattr("lora_jax.exercises.grading.grader.grade", found)
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["grade", "folder", *options]) == 0
        stream.flush()
        text = written.getvalue().decode(encoding)
    if options:
        assert json.loads(text) == {"name": name}
    else:
        assert text == name.encode(encoding, "backslashreplace").decode(encoding) + "\n"


def test_help_is_there_for_every_command(capsys):
    for command in ([], ["demo"], ["pretrain"], ["train"], ["generate"], ["stories"], ["merge"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, "--help"])
        assert stop.value.code == 0
        assert "example" in capsys.readouterr().out or not command


def test_the_arguments_own_mistakes_exit_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "lora_jax", "train", "--steps", "none"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "none is not a whole number of 1 or more" in done.stderr


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, model, data):
    """The system refuses files over 4 kB: as a full disk does, in the middle of a write."""

    arguments = ["train", "--model", model, "--data", data, "--out", str(tmp_path / "o"), *FAST]
    limited = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", sys.executable, "-B", "-m", "lora_jax", *arguments]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lora_jax: could not write ") and "checkpoint.safetensors" in last
    assert list((tmp_path / "o").iterdir()) == []
