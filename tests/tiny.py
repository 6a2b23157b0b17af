"""A model directory small enough to train in a test, with a tokenizer of its own."""

import jax
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from lora_jax.files import huggingface
from lora_jax.files.tokenizer import Tokenizer
from lora_jax.transformer import Config, init

TEXT = "The fox sat by the river and sang. The river ran to the sea, and the fox ran home.\n"
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer() -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return Tokenizer(backend, eos_token="<end>", pad_token="<end>", chat_template=CHAT)


def config(vocab_size: int) -> Config:
    return Config(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
    )


def model_directory(folder) -> str:
    """Write the model to `folder` and return it as a string."""
    tok = tokenizer()
    shape = config(tok.vocab_size)
    huggingface.save(folder, shape, init(jax.random.key(0), shape), tok)
    return str(folder)
