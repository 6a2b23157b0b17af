"""The real model: what we read in its GGUF against what `transformers` reads there."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import close, forward_pass, rounding
from golden.smollm2_strings import strings

from lora_jax.files import assets
from lora_jax.files.gguf import load, load_tokenizer
from lora_jax.transformer import forward

pytestmark = pytest.mark.assets
GOLDEN = Path(__file__).parents[1] / "golden"


logits_of = jax.jit(forward, static_argnums=0, compiler_options={"xla_backend_optimization_level": 2})  # it runs long


@pytest.fixture(scope="module")
def smollm2():
    return assets.fetch(assets.SMOLLM2)


def test_smollm2_gives_the_logits_that_transformers_gives(smollm2):
    config, params = load(smollm2)
    golden = np.load(GOLDEN / "smollm2_logits.npz")
    texts = [golden[f"tokens{n}"] for n in range(4)]
    rows = np.zeros((4, max(map(len, texts))), np.int32)  # what is filled up on the right, nobody before it sees
    for n, text in enumerate(texts):
        rows[n, : len(text)] = text
    whole = np.asarray(logits_of(config, params, rows))
    for n, text in enumerate(texts):
        logits = whole[n, : len(text)]  # (T, V)
        tolerance = rounding(forward_pass(config, len(logits)))
        close(logits[:, golden["columns"]], golden[f"slice{n}"], tolerance)
        close(logits[-1, golden[f"top{n}"]], golden[f"values{n}"], tolerance)
        first = golden[f"values{n}"] > (1 - 2 * tolerance.share) * golden[f"values{n}"][0]  # rounding chooses of these
        assert logits[-1].argmax() in golden[f"top{n}"][first]


def test_smollm2_cuts_3000_strings_as_its_own_tokenizer_does(smollm2):
    tokenizer = load_tokenizer(smollm2)
    golden = np.load(GOLDEN / "smollm2_ids.npz")
    expected = np.split(golden["ids"], np.cumsum(golden["lengths"])[:-1])
    texts = strings()
    found = tokenizer.encode_batch(texts)
    different = [text for text, a, b in zip(texts, found, expected, strict=True) if a != b.tolist()]
    assert different == []
    assert all(tokenizer.decode(ids, skip_special=False) == text for text, ids in zip(texts, found, strict=True))
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (49152, 2, 2)


def test_smollm2_in_transformers_now(smollm2, tmp_path):
    """What the golden files hold, asked afresh; and the saved tokenizer opens there with the same ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = {"pretrained_model_name_or_path": str(smollm2.parent), "gguf_file": smollm2.name}
    golden = np.load(GOLDEN / "smollm2_logits.npz")
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        logits = model(torch.tensor(golden["tokens0"][None])).logits[0].numpy()
    config, params = load(smollm2)
    ours = forward(config, params, jnp.asarray(golden["tokens0"])[None])[0]
    close(ours, logits, rounding(forward_pass(config, len(logits))))

    tokenizer = load_tokenizer(smollm2)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = strings()[:500]
    assert [theirs.encode(text) for text in texts] == tokenizer.encode_batch(texts)
    chat = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "12"}]
    for prompt in (False, True):
        rendered = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        assert rendered == tokenizer.apply_chat_template(chat, prompt)
