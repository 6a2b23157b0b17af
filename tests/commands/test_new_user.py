"""As a new user: public formats of data, from the file to an adapter that answers as it was taught.

The base has random weights, so everything that it answers it was taught. Its tokenizer is Llama 2's kind (BOS by the
post-processor, a space mark in front, no chat template) or Qwen's (byte-level, a chat template, no BOS). A prompt is
put as the last line that `train` prints says.
"""

import json
import re
import shlex

import jax
import pytest
import tokenizers_of_many_kinds as kinds

from lora_jax import load_model, transformer
from lora_jax.commands import cli
from lora_jax.files import huggingface
from lora_jax.files.tokenizer import Tokenizer

ASKED, SAID = "Say {}", "The fox ran home {}."
TALKS = [
    [{"role": "user", "content": ASKED.format(i)}, {"role": "assistant", "content": SAID.format(i)}] for i in range(40)
]
SHAREGPT = [[{"from": "human", "value": ASKED.format(i)}, {"from": "gpt", "value": SAID.format(i)}] for i in range(40)]
MODELS = ("llama2", "qwen")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small model by the kind of its tokenizer, with a head that can be sure of a token."""

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        kinds.write(folder / "tokenizer", kind)
        if kind == "llama2":
            (folder / "tokenizer" / "chat_template.jinja").unlink()
        tokenizer = Tokenizer.load(folder / "tokenizer")
        config = transformer.Config(
            vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        )  # fmt: skip
        params = transformer.init(jax.random.key(0), config, std=0.1)
        huggingface.save(folder / "model", config, params | {"embed_tokens": 5 * params["embed_tokens"]}, tokenizer)
        return str(folder / "model")

    found = {}
    return lambda kind: found.setdefault(kind, make(kind)) if kind not in found else found[kind]


def write(folder, form):
    """The same forty questions and answers in a public format."""
    if form == "texts":
        folder = folder / "texts"
        folder.mkdir()
        for i in range(40):
            (folder / f"{i}.txt").write_text(f"{ASKED.format(i)}: {SAID.format(i)}")
        return folder
    rows = {
        "alpaca.json": json.dumps(
            [{"instruction": ASKED.format(i), "input": "", "output": SAID.format(i)} for i in range(40)], indent=2
        ),
        "pairs.csv": "prompt,completion\n" + "".join(f"{ASKED.format(i)}:, {SAID.format(i)}\n" for i in range(40)),
        "sharegpt.json": json.dumps([{"id": f"a_{i}", "conversations": one} for i, one in enumerate(SHAREGPT)]),
        "messages.jsonl": "\n".join(json.dumps({"messages": one}) for one in TALKS),
    }
    (folder / form).write_text(rows[form])
    return folder / form


def taught(capsys, model, kind, form, folder):
    data, out = write(folder, form), folder / "run"
    settings = ["--rank", "16", "--lr", "1e-2", "--decay", "--steps", "120", "--out", str(out)]
    assert cli.main(["train", "--model", model(kind), "--data", str(data), *settings]) == 0
    printed = capsys.readouterr().out
    run = json.loads((out / "run.json").read_text())
    shown = run["first_example"]["text"]
    assert shown in printed and ("⟦The fox ran home" in shown.replace("⟦ ", "⟦") or form == "texts")
    numbers = [int(i) for i in re.findall(r"Say\s+(\d+)", re.sub("[⟦⟧]", "", shown))][:3]
    assert len(numbers) == 3

    line = re.search(r"^try it: python -m lora_jax (generate .*)$", printed, re.MULTILINE)[1]
    behind = ":" if form in ("texts", "pairs.csv") else ""
    for i in numbers:
        *command, prompt = shlex.split(line.replace("$'", "'"))
        asked = ASKED.format(i) + behind
        prompt = prompt.replace("your question", asked).replace("\\n", "\n") if "###" in prompt else asked
        assert cli.main([*command, prompt, "--temperature", "0", "--new-tokens", "30", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["texts"]
        assert found["text"].strip() == SAID.format(i), (kind, form, found)


@pytest.mark.parametrize(("kind", "form"), [("llama2", "sharegpt.json"), ("qwen", "alpaca.json")])
def test_a_public_format_becomes_an_adapter_that_answers_as_taught(capsys, model, tmp_path, kind, form):
    taught(capsys, model, kind, form, tmp_path)


OTHERS = [
    (kind, form)
    for kind in MODELS
    for form in ("texts", "pairs.csv", "alpaca.json", "sharegpt.json", "messages.jsonl")
    if (kind, form) not in (("llama2", "sharegpt.json"), ("qwen", "alpaca.json"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form"), OTHERS)
def test_every_public_format_becomes_an_adapter_that_answers_as_taught(capsys, model, tmp_path, kind, form):
    taught(capsys, model, kind, form, tmp_path)


def test_plain_conversations_begin_as_the_tokenizer_begins_every_text(capsys, model, tmp_path):
    """Where `generate` puts BOS before a prompt, training did too, though there is no template that writes it."""
    data = write(tmp_path, "messages.jsonl")
    fast = ["--steps", "1", "--rank", "2", "--out", str(tmp_path / "run"), "--json"]
    assert cli.main(["train", "--model", model("llama2"), "--data", str(data), *fast]) == 0
    example = json.loads(capsys.readouterr().out)["first_example"]
    tokenizer = Tokenizer.load(model("llama2"))
    (i, *_) = re.findall(r"Say\W* (\d+)", example["text"])
    asked = tokenizer.encode(f"### Instruction:\nSay {i}\n\n### Response:\n")
    assert asked[0] == tokenizer.bos_id and example["tokens"][: len(asked) - 1] == asked[:-1]
    assert example["tokens"].count(tokenizer.bos_id) == max(example["segments"])


def test_a_length_of_the_whole_context_is_used_and_one_more_is_refused(capsys, model, tmp_path):
    data = write(tmp_path, "alpaca.json")
    fast = ["--steps", "1", "--rank", "2", "--batch-size", "1", "--out", str(tmp_path / "run")]
    train = ["train", "--model", model("qwen"), "--data", str(data), *fast]
    assert load_model(model("qwen"))[0].max_position_embeddings == 512
    assert cli.main([*train, "--length", "512"]) == 0
    assert "sequences of 512 tokens to train on" in capsys.readouterr().out
    assert cli.main([*train, "--length", "513"]) == 2
    assert "--length 513 is more than the 512 positions" in capsys.readouterr().err


def test_documents_that_do_not_fit_are_counted_and_few_learned_tokens_are_told(capsys, model, tmp_path):
    rows = [{"prompt": f"the fox {i} ", "completion": " ran home"} for i in range(30)]
    rows += [{"prompt": f"the fox {i} " * 60, "completion": " ran"} for i in range(3)]
    rows += [{"prompt": f"the fox {i}", "completion": " ran" * 100} for i in range(2)]
    data = tmp_path / "x.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    train = ["train", "--model", model("qwen"), "--data", str(data), "--steps", "1", "--rank", "2", "--batch-size", "1"]
    assert cli.main([*train, "--length", "80", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"{data}: 5 documents are longer than 80 tokens: 2 truncated, 3 dropped" in said and "few tokens" not in said
    data.write_text("\n".join(map(json.dumps, [*rows[30:33], {"prompt": "a fox " * 60, "completion": " ran"}])))
    assert cli.main([*train, "--length", "400", "--out", str(tmp_path / "second")]) == 0
    said = capsys.readouterr().out
    assert "longer than" not in said and f"{data}: few tokens are learned" in said


def test_a_token_without_a_row_in_the_embedding_is_refused_before_training(capsys, model, tmp_path):
    """A token was added to the tokenizer, and the model was not resized: in training, held-out or watched text."""
    import shutil

    from tokenizers import AddedToken

    folder = tmp_path / "grown"
    shutil.copytree(model("qwen"), folder)
    grown = Tokenizer.load(folder)
    size = grown.vocab_size
    grown.backend.add_special_tokens([AddedToken("<|new|>")])
    grown.save(folder)
    plain, new = tmp_path / "plain.txt", tmp_path / "new.txt"
    plain.write_text("Say 1: The fox ran home. " * 100)
    new.write_text("Say 1: The fox <|new|> ran home. " * 100)
    fast = ["--steps", "1", "--rank", "2", "--length", "32", "--out", str(tmp_path / "run")]
    for data in (["--data", str(new)], ["--data", str(plain), "--watch", str(new)]):
        assert cli.main(["train", "--model", str(folder), *data, *fast]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"token id {size}" in said and f"has {size} rows" in said
        assert not (tmp_path / "run").exists()
