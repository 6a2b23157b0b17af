"""A sequence that the model has no positions for is refused with both numbers, before anything is encoded."""

import pytest
import tiny

from lora_jax.commands import cli
from lora_jax.text import datasets


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of 2,048 positions."""
    return tiny.model_directory(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(tiny.TEXT * 40)
    return str(path)


@pytest.fixture
def nothing_is_encoded(monkeypatch):
    def encoded(*arguments, **options):
        raise AssertionError("something was encoded")

    monkeypatch.setattr(datasets, "load", encoded)


def refused(capsys, *words):
    assert cli.main(list(map(str, words))) == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("lora_jax: ")


PROMPT = ["--method", "prompt_tuning"]
MADE = "positions that this model was made for: pass"
CASES = [
    ([], 4096, f"--length 4,096 is more than the 2,048 {MADE} 2048 or less"),
    ([], 2049, f"--length 2,049 is more than the 2,048 {MADE} 2048 or less"),
    (["--method", "full"], 4096, f"--length 4,096 is more than the 2,048 {MADE} 2048 or less"),
    (PROMPT, 2048, f"--length 2,048 and 20 learned positions are 2,068, more than the 2,048 {MADE} 2028 or less"),
    (PROMPT, 2029, f"--length 2,029 and 20 learned positions are 2,049, more than the 2,048 {MADE} 2028 or less"),
    ([*PROMPT, "--virtual-tokens", "7"], 2042, "and 7 learned positions are 2,049, more than the 2,048"),
]


@pytest.mark.parametrize(("words", "length", "sentence"), CASES)
def test_train_counts_what_a_method_puts_before_each_sequence(
    capsys, nothing_is_encoded, tmp_path, model, data, words, length, sentence
):
    given = ["--model", model, "--data", data, "--out", tmp_path / "run", "--length", length]
    assert sentence in refused(capsys, "train", *given, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "length"), [([], 2048), (PROMPT, 2028), ([*PROMPT, "--virtual-tokens", "7"], 2041)])
def test_train_takes_the_longest_that_there_are_positions_for(nothing_is_encoded, tmp_path, model, data, words, length):
    given = ["--model", model, "--data", data, "--out", str(tmp_path / "run"), "--length", str(length)]
    with pytest.raises(AssertionError, match="something was encoded"):
        cli.main(["train", *given, *words])


def test_pretrain_names_the_small_models_positions(capsys, nothing_is_encoded, tmp_path, data):
    said = refused(capsys, "pretrain", "--data", data, "--out", tmp_path / "run", "--length", 513)
    assert f"--length 513 is more than the 512 {MADE} 512 or less" in said


@pytest.mark.parametrize(("words", "length", "taken"), [([], 4097, 4096), (PROMPT, 4096, 4076), (PROMPT, 4077, 4076)])
def test_plan_refuses_what_train_would(capsys, words, length, taken):
    said = refused(capsys, "plan", "llama2-7b", *words, "--length", length)
    assert f"--length {length:,}" in said and f"more than the 4,096 {MADE} {taken} or less" in said
    assert cli.main(["plan", "llama2-7b", *words, "--length", str(taken)]) == 0


def test_measure_refuses_what_train_would(capsys, tmp_path):
    words = ["--device", "cpu", "--model", "stories-2.8m", "--method", "full", "--length", 513]
    assert "--length 513 is more than the 512" in refused(capsys, "measure", *words, "--out", tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("tokens", "sentence"), [(2048, "more than the 2048 positions"), (5000, "than the 2048")])
def test_generate_names_both_numbers(capsys, model, tokens, sentence):
    assert sentence in refused(capsys, "generate", "The fox", "--model", model, "--new-tokens", tokens)
