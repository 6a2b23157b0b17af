"""Prompt tuning: where it starts, what it stands in front of, and what it cannot become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small as tiny
from close import close, difference

from lora_jax import transformer
from lora_jax.adapters import prompt_tuning
from lora_jax.adapters.base import attach, count, merge
from lora_jax.errors import InputError
from lora_jax.files import huggingface

CONFIG, PARAMS = tiny.model()
TOKENS = tiny.tokens()


def test_it_starts_as_different_tokens_of_the_vocabulary():
    adapters, constants = prompt_tuning.init(jax.random.key(1), PARAMS, virtual_tokens=6)
    prompt = attach(PARAMS, adapters, constants)["prompt"]
    rows = [np.flatnonzero((np.asarray(PARAMS["embed_tokens"]) == row).all(axis=1)) for row in np.asarray(prompt)]
    assert len({int(row[0]) for row in rows}) == 6 and count(adapters) == 6 * 24


def test_its_loss_is_of_the_text_alone():
    """The same as that of the rows written in front, where neither they nor the step into the text are learned."""
    adapters, constants = prompt_tuning.init(jax.random.key(1), PARAMS, virtual_tokens=6)
    found = transformer.loss(CONFIG, attach(PARAMS, adapters, constants), {"tokens": TOKENS})
    ids = [int(np.flatnonzero((np.asarray(PARAMS["embed_tokens"]) == row).all(axis=1))[0])
           for row in np.asarray(adapters["prompt"].embeddings)]  # fmt: skip
    whole = np.concatenate([np.tile(ids, (len(TOKENS), 1)), TOKENS], axis=1)
    mask = np.broadcast_to(np.arange(whole.shape[1]) > 6, whole.shape).astype(int)
    close(found, transformer.loss(CONFIG, PARAMS, {"tokens": whole, "mask": mask}), tiny.FORWARD)
    assert difference(found, transformer.loss(CONFIG, PARAMS, {"tokens": TOKENS})) > 1e-3


def test_a_second_prompt_stands_behind_the_first():
    first, second = (prompt_tuning.init(jax.random.key(i), PARAMS, virtual_tokens=n) for i, n in ((1, 2), (2, 3)))
    both = attach(attach(PARAMS, *first), *second)["prompt"]
    assert tiny.raw(both) == tiny.raw(jnp.concatenate([first[0]["prompt"].embeddings, second[0]["prompt"].embeddings]))


def test_what_cannot_be_is_refused(tmp_path):
    adapters, constants = prompt_tuning.init(jax.random.key(1), PARAMS)
    _, wider = tiny.model(hidden_size=32)
    with pytest.raises(InputError, match="prompt: the prompt is 24 wide and the base's embeddings 32: another base"):
        attach(wider, adapters, constants)
    with pytest.raises(InputError, match="a model directory has no place for prompt: keep the adapter beside its base"):
        huggingface.save(tmp_path / "m", CONFIG, merge(PARAMS, adapters, constants))
    for number in (0, 51, True):
        with pytest.raises(InputError, match=f"virtual_tokens must be 1 to 50, .* not {number}"):
            prompt_tuning.init(jax.random.key(1), PARAMS, virtual_tokens=number)
    with pytest.raises(InputError, match="the tensor prompt_embeddings is missing"):
        prompt_tuning.from_peft("", {}, {"num_virtual_tokens": 3})
    with pytest.raises(InputError, match=r"prompt_embeddings is of \(2, 24\), and its configuration says 3 virtual"):
        prompt_tuning.from_peft("", {"prompt_embeddings": np.ones((2, 24))}, {"num_virtual_tokens": 3})
