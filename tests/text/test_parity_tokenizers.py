"""Texts, prompts, conversations and what is written on from them, token for token as `transformers` has them.

The tokenizers are of unlike kinds (`tokenizers_of_many_kinds.py`). `transformers` opens the same folder.
"""

import random

import jax
import numpy as np
import pytest
import tokenizers_of_many_kinds as kinds

from lora_jax import generation
from lora_jax.files import huggingface
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.text import Document, encode_document
from lora_jax.transformer import Config, init

transformers = pytest.importorskip("transformers")
STRINGS, TALKS = 2000, 200


@pytest.fixture(scope="module", params=kinds.KINDS)
def pair(request, tmp_path_factory):
    """`(ours, theirs)`, opened from one folder."""
    folder = kinds.write(tmp_path_factory.mktemp("tokenizer"), request.param)
    return Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


def overlaps(spans, answers):
    """1 for each token that holds a character of an answer."""
    return [int(any(start < b and end > a for a, b in answers)) for start, end in spans]


def test_texts(pair):
    ours, theirs = pair
    for text in kinds.strings(STRINGS, marks=ours.named.values()):
        expected = theirs(text)["input_ids"]
        if text.startswith(ours.bos_token or "\0") and expected[:2] == [ours.bos_id] * 2:
            expected = expected[1:]  # never two
        assert ours.encode(text) == expected, text
        end = [] if expected[-1:] == [ours.eos_id] else [ours.eos_id]
        ids, mask = encode_document(ours, Document(text=text))
        assert ids.tolist() == expected + end and mask.all(), text
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


def test_prompts_and_completions(pair):
    ours, theirs = pair
    draw = random.Random(0)
    for text in kinds.strings(STRINGS, seed=1):
        if len(text) < 2:
            continue
        cut = draw.randrange(1, len(text))
        ids, mask = encode_document(ours, Document(prompt=text[:cut], completion=text[cut:]))
        found = theirs(text, return_offsets_mapping=True)
        assert ids.tolist() == [*found["input_ids"], ours.eos_id], text
        # Where offsets leave out spaces, a token of nothing but space has none: whether it is learned, they do not say.
        told = [i for i, (a, b) in enumerate(found["offset_mapping"]) if a < b or i == 0]
        expected = overlaps(found["offset_mapping"], [(cut, len(text))])
        assert [mask[i] for i in told] == [expected[i] for i in told], (text[:cut], text[cut:])
        assert mask[-1] == 1


def test_conversations(pair):
    ours, theirs = pair
    system = "INST" not in ours.chat_template
    for talk in kinds.conversations(TALKS, system=system):
        text = theirs.apply_chat_template(talk, tokenize=False)
        assert ours.apply_chat_template(talk) == text
        found = theirs.apply_chat_template(talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = encode_document(ours, Document(messages=tuple(talk)))
        assert ids.tolist() == found["input_ids"], text
        if "endgeneration" in theirs.chat_template:
            expected = found["assistant_masks"]
        else:
            answers = []
            for i, message in enumerate(talk):
                if message["role"] == "assistant":
                    opened = theirs.apply_chat_template(talk[:i], tokenize=False, add_generation_prompt=True)
                    closed = theirs.apply_chat_template(talk[: i + 1], tokenize=False)
                    answers.append((len(opened), len(closed.rstrip())))
            spans = theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            told = [a < b for a, b in spans]
            expected = [e if t else m for e, t, m in zip(overlaps(spans, answers), told, mask.tolist(), strict=True)]
        assert mask.tolist() == expected, text
        opened = theirs.apply_chat_template(talk[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat(talk[:-1]) == opened


def test_what_is_written_on(pair, tmp_path):
    """The likeliest tokens of a model of random weights, from texts and conversations, decoded with their prompt."""
    ours, theirs = pair
    torch = pytest.importorskip("torch")
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Config(vocab_size=ours.vocab_size, num_key_value_heads=2, head_dim=8, max_position_embeddings=512, **sizes)
    params = init(jax.random.key(3), config, std=0.5)
    huggingface.save(tmp_path / "model", config, params, ours)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    talks = [talk[:-1] for talk in kinds.conversations(3, seed=5)]
    prompts = [text for text in kinds.strings(8, seed=5) if text.strip()]
    encoded = [theirs(text)["input_ids"] for text in prompts]
    encoded += [theirs.apply_chat_template(t, add_generation_prompt=True, return_dict=False) for t in talks]
    asked = [*prompts, *map(ours.encode_chat, talks)]
    texts = generation.generate(config, params, ours, asked, new_tokens=12, temperature=0.0)
    for ids, text in zip(encoded, texts, strict=True):
        whole = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
        before, after = (again.decode(part, skip_special_tokens=True) for part in (ids, whole))
        assert text == (after[len(before) :] if after.startswith(before) else again.decode(whole[len(ids) :], True))
    assert len(set(texts)) > 4 and np.mean([len(text) for text in texts]) > 4
