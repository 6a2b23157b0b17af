"""What `generate` and `merge` do with text: a prompt and what follows it, ends, tokens that a model has no row for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers_of_many_kinds as kinds

from lora_jax import load_tokenizer
from lora_jax.commands import cli
from lora_jax.files import huggingface
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.transformer import Config, init

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
DRAWN = ["--temperature", "0", "--new-tokens", "3", "--json"]


def folder(path, kind, *, rows=None, **settings):
    """A model of random weights with a tokenizer of this kind, and what `config.json` says besides."""
    kinds.write(path, kind)
    tokenizer = Tokenizer.load(path)
    config = Config(vocab_size=rows or tokenizer.vocab_size, tie_word_embeddings=False, **SIZES)
    params = init(jax.random.key(0), config)
    huggingface.save(path.with_name("saved"), config, params)
    for file in path.with_name("saved").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    found = json.loads((path / "config.json").read_text()) | settings
    (path / "config.json").write_text(json.dumps(found))
    return str(path)


def always(path, token):
    """The model folder, changed so that it writes this one token whatever came before."""
    config, params = huggingface.load(path)
    settings = (path / "config.json").read_text()
    embedding = np.zeros((config.vocab_size, config.hidden_size), np.float32)
    head = np.zeros((config.hidden_size, config.vocab_size), np.float32)
    embedding[:, 0], head[0, token] = 1, 1
    layers = jax.tree.map(lambda x: jnp.zeros_like(x) if x.ndim > 2 else x, params["layers"])
    changed = params | {"embed_tokens": jnp.asarray(embedding), "lm_head": jnp.asarray(head), "layers": layers}
    huggingface.save(path.with_name("changed"), config, changed)
    (path / "model.safetensors").write_bytes((path.with_name("changed") / "model.safetensors").read_bytes())
    (path / "config.json").write_text(settings)


@pytest.mark.parametrize("kind", ["llama2", "metaspace", "unigram", "qwen", "llama3", "byte_level"])
def test_a_prompt_and_what_follows_it_read_as_one_text(capsys, tmp_path, kind):
    """Once `generate "The fox"` printed `The foxran` for tokenizers of Llama 2's kind."""
    folder(tmp_path / "model", kind)
    tokenizer = load_tokenizer(tmp_path / "model")
    token = tokenizer.encode("he and", add_special_tokens=False)[-1]
    always(tmp_path / "model", token)
    written = tokenizer.backend.id_to_token(token).replace("\u2581", " ").replace("\u0120", " ")
    assert cli.main(["generate", "the fox", "--model", str(tmp_path / "model"), *DRAWN[:-1]]) == 0
    assert capsys.readouterr().out == f"the fox{3 * written}\n\n"


@pytest.mark.parametrize(("kind", "mark"), [("qwen", "<|im_end|>"), ("qwen", "<|im_start|>"), ("llama3", "<|eot_id|>")])
def test_tokens_that_the_model_has_no_row_for_are_refused_before_anything_runs(capsys, tmp_path, kind, mark):
    model = folder(tmp_path / "model", kind)
    tokenizer = load_tokenizer(model)
    top = tokenizer.backend.token_to_id(mark)
    model = folder(tmp_path / "small", kind, rows=top) if top > 300 else folder(tmp_path / "small", kind, rows=1)
    rows = json.loads((tmp_path / "small" / "config.json").read_text())["vocab_size"]
    assert cli.main(["generate", f"{mark}a", "--model", model, *DRAWN]) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"but the model's embedding has {rows} rows" in sentence and "the tokenizer gives the token id" in sentence


@pytest.mark.parametrize("named", ["both", "it", "another"])
def test_every_end_stops_and_is_kept_by_merge(capsys, tmp_path, named):
    """The model writes one token always: whether that is an end is for the files to say."""
    folder(tmp_path / "model", "llama2")
    token = load_tokenizer(tmp_path / "model").encode("fox", add_special_tokens=False)[-1]
    ends = {"both": [2, token], "it": token, "another": [2]}[named]
    model = folder(tmp_path / "model", "llama2", eos_token_id=ends)
    always(tmp_path / "model", token)
    expected = [2] if named == "another" else [2, token]
    assert list(load_tokenizer(model).end_ids) == expected
    assert cli.main(["generate", "the fox", "--model", model, *DRAWN]) == 0
    assert (json.loads(capsys.readouterr().out)["texts"][0]["text"] == "") == (named != "another")
    data = tmp_path / "data.txt"
    data.write_text("The fox sat by the river and sang. " * 60)
    train = ["train", "--model", model, "--data", str(data), "--steps", "1", "--batch-size", "1", "--length", "16"]
    assert cli.main([*train, "--out", str(tmp_path / "run")]) == 0
    adapter = ["--adapter", str(tmp_path / "run" / "adapter")]
    assert cli.main(["merge", "--model", model, *adapter, "--out", str(tmp_path / "merged")]) == 0
    assert list(load_tokenizer(tmp_path / "merged").end_ids) == expected
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "merged" / name).read_text())["eos_token_id"]
        assert written == (expected if len(expected) > 1 else 2)


def test_a_message_to_a_model_without_a_template_is_written_plainly_and_that_is_said(capsys, tmp_path):
    folder(tmp_path / "model", "llama2")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    assert cli.main(["generate", "Hi", "--chat", "--model", str(tmp_path / "model"), *DRAWN[:-1]]) == 0
    assert "has no chat template: the messages are written in the plain form" in capsys.readouterr().out
