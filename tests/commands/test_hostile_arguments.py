"""Arguments that nobody expects: names of every ugliness and odd JSON end in one line, and status 2."""

import json

import pytest
import tiny

from lora_jax.commands.cli import main

NAMES = ["x" * 300, "a/" * 3000, "\udcff", "a/\udcff", "/dev/null", "/dev/zero", "\x1b[2J", "a\nb"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_directory(tmp_path_factory.mktemp("model"))


def said(capsys, *arguments):
    assert main([str(one) for one in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lora_jax: ") and error.endswith("\n") and error[:-1].isprintable(), error
    assert len(error) < 9000
    return error


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:9])
def test_names_of_models_adapters_and_data(name, model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said(capsys, "generate", "--model", name, "a")
    said(capsys, "generate", "--model", model, "--adapter", name, "a")
    said(capsys, "train", "--model", model, "--data", name, "--out", "runs")
    said(capsys, "plan", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000])
def test_names_for_results_are_refused_before_anything_is_trained(name, model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.txt").write_text("The fox sat by the river. " * 200)
    assert "too long" in said(capsys, "train", "--model", model, "--data", "d.txt", "--out", name)
    assert [path.name for path in tmp_path.iterdir()] == ["d.txt"]


@pytest.mark.parametrize(
    "text", ["(", "[]", '{"q_proj": "4"}', '{"q_proj": NaN}', "{" * 9999, '{"q_proj": ' + "9" * 5000 + "}"]
)
def test_json_on_the_command_line(text, capsys):
    with pytest.raises(SystemExit) as status:
        main(["plan", "smollm2-135m", "--rank-pattern", text])
    assert status.value.code == 2 and "is not understood: ranks by name, as JSON" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--targets", "(.+)+#"), ("--rank-pattern", '{"(.+)+#": 2}'),
                                               ("--alpha", "nan"), ("--alpha", "inf"), ("--dropout", "nan"),
                                               ("--targets", "("), ("--rank-pattern", '{"q_proj": 0}')])  # fmt: skip
def test_options_of_a_method(option, value, capsys):
    said(capsys, "plan", "smollm2-135m", option, value)


SIZES = [{"num_hidden_layers": 10**18}, {"hidden_size": 10**18}, {"vocab_size": "many"}, {"rms_norm_eps": "NaN"}]


@pytest.mark.parametrize("changes", SIZES, ids=str)
def test_a_configuration_to_plan_for(changes, model, capsys, tmp_path):
    with open(f"{model}/config.json") as file:
        (tmp_path / "config.json").write_text(json.dumps(json.load(file) | changes))
    assert next(iter(changes)) in said(capsys, "plan", tmp_path / "config.json")
