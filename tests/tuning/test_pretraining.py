"""From scratch: the tokenizer, the model beside the package, and one function for every kind of training."""

import json
from pathlib import Path

import pytest
from close import close, forward_pass, rounding

from lora_jax import count, load_model, load_tokenizer
from lora_jax.commands import cli
from lora_jax.files import models
from lora_jax.text import datasets, ngrams
from lora_jax.text import stories as telling
from lora_jax.text.packing import Batches
from lora_jax.training import evaluate, make_step
from lora_jax.tuning import loop, pretraining
from lora_jax.tuning.jobs import make_job

RECORD = Path(__file__).resolve().parents[2] / "figures" / "data" / "small_model.json"
LOSS = rounding(forward_pass(pretraining.SMALL, 32))
FOLDER = models.BESIDE[pretraining.NAME]


def test_the_tokenizer_has_2048_tokens_and_writes_back_any_text():
    tokenizer = load_tokenizer(pretraining.NAME)
    assert tokenizer.vocab_size == pretraining.SMALL.vocab_size == 2048
    assert tokenizer.eos_id == tokenizer.pad_id == 0
    for text in ("Once upon a time", "O rose,\nthou art sick!", "Zoë's 1,234 naïve 🦊s\t—  fin\n\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234")) == 4, "digits stand alone"
    told = telling.read()[:200]
    assert sum(map(len, told)) / sum(map(len, tokenizer.encode_batch(told))) > 3.5  # characters a token


@pytest.mark.assets
def test_the_tokenizer_is_what_its_script_makes(tmp_path, monkeypatch):
    import runpy

    monkeypatch.setitem(models.BESIDE, pretraining.NAME, tmp_path)
    runpy.run_path(str(RECORD.parents[2] / "tools" / "train_tokenizer.py"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((FOLDER / name).read_text())


def test_the_model_is_small_and_as_good_as_recorded():
    """Under 6 MB with its tokenizer, and its held-out loss, taken again here, that of the record; below a trigram's."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000
    config, params = load_model(pretraining.NAME)
    assert config == pretraining.SMALL
    assert 2_000_000 < count(params) < 3_000_000
    record = json.loads(RECORD.read_text())
    tokenizer = load_tokenizer(pretraining.NAME)
    told, kept = datasets.tales(tokenizer, 256)
    job = make_job("full", config, params, key=None)
    found = evaluate(job.loss, params, None, Batches.in_order(kept, 8))
    close(found, record["held_out"], rounding(forward_pass(config, 256) + kept.tokens.size))
    trigram = ngrams.nats(told, kept, 3, config.vocab_size)
    close(trigram, record["ngrams"]["trigram"], rounding(kept.tokens.size, "float64"))
    assert found < trigram


def test_held_out_stories_are_no_training_stories():
    told = telling.read()
    tokenizer = load_tokenizer(pretraining.NAME)
    train, kept = datasets.tales(tokenizer, 512)  # every story fits, so it stands there in one piece
    seen = tokenizer.decode(train.tokens.ravel(), skip_special=False)
    for story in told[::10][:20]:
        assert story not in seen
    assert told[0] in tokenizer.decode(kept.tokens.ravel(), skip_special=False)
    assert told[1] in seen


def test_pretraining_full_fine_tuning_and_lora_are_one_function(tmp_path, monkeypatch):
    """Each command's every step is a call of the function that one `make_step` makes; only what trains differs."""
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"text": story}) + "\n" for story in telling.read()[:40]))
    steps, trained = [], []

    def watched(loss, optimizer, **options):
        step = make_step(loss, optimizer, **options)
        steps.append(step)

        def call(trainable, *rest):
            trained.append(count(trainable))
            return step(trainable, *rest)

        return call

    monkeypatch.setattr(loop, "make_step", watched)
    fast = ["--data", str(data), "--steps", "2", "--batch-size", "2", "--length", "32"]
    small = ["--model", pretraining.NAME, *fast]
    assert cli.main(["pretrain", *fast, "--out", str(tmp_path / "new")]) == 0
    assert cli.main(["train", "--method", "full", *small, "--out", str(tmp_path / "full")]) == 0
    lora = ["train", "--method", "lora", "--rank", "4", *small, "--watch", str(data), "--out", str(tmp_path / "lora")]
    assert cli.main(lora) == 0
    codes = {step.__wrapped__.__code__ for step in steps}
    assert len(steps) == 3 and len(codes) == 1
    whole = count(load_model(pretraining.NAME)[1])
    D, F, KV, L, R = 192, 512, 64, 6, 4
    adapters = L * R * (2 * (D + D) + 2 * (D + KV) + 3 * (D + F))
    assert trained == [whole, whole, whole, whole, adapters, adapters]

    records = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in ("new", "full", "lora")}
    assert all(len(record["losses"]) == 2 for record in records.values())
    before, after = records["lora"]["watched"][str(data)]
    close(before, records["lora"]["evaluations"][0][1], LOSS)
    close(after, records["lora"]["evaluations"][-1][1], LOSS)
    assert before != after
    assert load_model(tmp_path / "new" / "model")[0] == pretraining.SMALL
