"""Train the small model's tokenizer anew, on the stories and as much verse: `python tools/train_tokenizer.py`."""

from itertools import accumulate

from lora_jax.files import models
from lora_jax.text import corpora, stories
from lora_jax.tuning import pretraining

told = stories.read()
verse = corpora.split_verse(corpora.poems(), train_passages=3000, seed=0).train
enough = sum(map(len, told))
lengths = accumulate(map(len, verse))
tokenizer = pretraining.train_tokenizer([*told, *(one for one, n in zip(verse, lengths, strict=True) if n < enough)])
tokenizer.save(models.BESIDE[pretraining.NAME])
