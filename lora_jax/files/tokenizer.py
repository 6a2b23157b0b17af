"""Text to token ids and back: a small face on Hugging Face's `tokenizers`, and on the chat template beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.files import atomic, chat_template, special_tokens, tokenizer_file
from lora_jax.files.backends import SPLITS, byte_level
from lora_jax.files.chat_template import Messages, Span
from lora_jax.files.tokenizer_file import told
from lora_jax.untrusted import files as untrusted

__all__ = ["SPLITS", "Encoding", "Tokenizer", "byte_level", "with_plain_template"]

FAILED = "the tokenizer cannot encode this text"


@dataclass(frozen=True)
class Encoding:
    """The n token ids of a text, and the characters [start, end) of it that each stands for."""

    ids: list[int]
    spans: list[Span]  # of what the tokenizer put before the text: (0, 0)


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer`, its special tokens by name (None where there is none), and a chat template.

    What a file says of cutting, padding and random merges never acts here: every text gets all of its tokens.
    """

    backend: Any
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None
    ends: tuple[int, ...] = ()  # ids that end a text, as the model's files name them
    others: Mapping[str, str] = field(default_factory=dict)  # what else has a name: unk_token, sep_token, ...
    # What a template takes for the time: one and the same for all texts, or a run could not be gone on with tomorrow.
    now: datetime = field(default_factory=datetime.now, compare=False)

    def __post_init__(self) -> None:
        if self.backend is not None:
            object.__setattr__(self, "backend", _whole(self.backend))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; those written out in it, such as `<|im_start|>`, are known.

        With `add_special_tokens` the tokenizer puts before it what it puts before a text (BOS, where it does), but
        never a second one. What it would put behind is left to who appends the end.
        """
        return self.encoding(text, add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        with told(FAILED):
            found = self.backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [_opened(encoding).ids for encoding in found]

    def encoding(self, text: str, add_special_tokens: bool = True) -> Encoding:
        """`encode`, and which characters of the text each token stands for."""
        with told(FAILED):
            found = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return _opened(found)

    def decode(self, ids: Any, skip_special: bool = True) -> str:
        """The text of token ids (any sequence of integers), special tokens left out unless asked for."""
        numbers = [int(i) for i in ids]
        with told("the tokenizer cannot decode these ids"):
            return self.backend.decode(numbers, skip_special_tokens=skip_special)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        return self._id(self.bos_token)

    @property
    def eos_id(self) -> int | None:
        """The token that is appended to what a model learns: the tokenizer's own, else the first of `ends`."""
        own = self._id(self.eos_token)
        return own if own is not None else next(iter(self.ends), None)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Every token that ends a text: generation stops at each."""
        return tuple(dict.fromkeys(i for i in (self.eos_id, *self.ends) if i is not None))

    @property
    def pad_id(self) -> int | None:
        return self._id(self.pad_token)

    @property
    def named(self) -> dict[str, str]:
        """The special tokens that have a name, by it, as a chat template sees them."""
        own = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        return {name: token for name, token in (own | dict(self.others)).items() if token is not None}

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The conversation as one text. `messages` are `{"role": ..., "content": ...}`, in order.

        `add_generation_prompt` ends it where the assistant's answer begins. The template writes BOS itself, where there
        is to be one: encode the text without `add_special_tokens`. Raises InputError where there is no template, or it
        refuses the messages.
        """
        return chat_template.render(self._template(), messages, add_generation_prompt, now=self.now, names=self.named)

    def encode_chat(self, messages: Messages) -> list[int]:
        """Token ids of a conversation up to where the assistant's answer begins."""
        return self.encode(self.apply_chat_template(messages, add_generation_prompt=True), add_special_tokens=False)

    def generated(self, messages: Messages) -> list[Span] | None:
        """Where the assistant's text stands in the conversation, if the template marks it by `{% generation %}`."""
        return chat_template.generated(self._template(), messages, now=self.now, names=self.named)

    def _template(self) -> str:
        if self.chat_template is None:
            raise InputError("this tokenizer has no chat template: write the prompt out as plain text")
        return self.chat_template

    def files(self) -> dict[str, str]:
        """The text of `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` opens."""
        settings = {
            "chat_template": self.chat_template,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self.named,
        }
        settings = {key: value for key, value in sorted(settings.items()) if value is not None}
        return {
            "tokenizer.json": self.backend.to_str(),
            "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
        }

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files into `folder`, beside what is there already."""
        for name, text in self.files().items():
            atomic.write_bytes(Path(folder) / name, text.encode())

    @staticmethod
    def load(folder: str | Path) -> Tokenizer:
        """The tokenizer in a folder with `tokenizer.json`, and what the files beside it say of its special tokens.

        Those files are `tokenizer_config.json` (or the older `special_tokens_map.json`), `chat_template.jinja`, and for
        the tokens that end a text `generation_config.json` and `config.json`; none of them need be there.
        """
        path, beside = Path(folder) / "tokenizer.json", Path(folder) / "tokenizer_config.json"
        if not untrusted.exists(path):
            raise InputError(f"{folder} has no tokenizer.json: give a folder that has one.")
        backend = tokenizer_file.load(path)
        settings = special_tokens.read_json(Path(folder) / "special_tokens_map.json") | special_tokens.read_json(beside)
        names = special_tokens.names(settings, beside)
        special_tokens.add(backend, special_tokens.named(settings, beside))
        template = Path(folder) / "chat_template.jinja"
        return Tokenizer(
            backend,
            names.pop("bos_token", None),
            names.pop("eos_token", None),
            names.pop("pad_token", None),
            chat_template=untrusted.read_text(template)
            if untrusted.exists(template)
            else chat_template.choose(settings.get("chat_template"), str(beside)),
            ends=special_tokens.ends(Path(folder)),
            others=names,
        )


def with_plain_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a plain chat template (`chat_template.PLAIN`), for one that has none.

    A conversation then begins as every text of this tokenizer does: with BOS, where it puts one.
    """
    begins = tokenizer.bos_token is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_id]
    return dataclasses.replace(tokenizer, chat_template="{{ bos_token }}" * begins + chat_template.PLAIN)


def _whole(backend: Any) -> Any:
    """The backend itself, or where it would cut, pad or merge at random a copy that does none of these."""
    from tokenizers import Tokenizer as Backend

    random = getattr(backend.model, "dropout", None)
    if backend.truncation is None and backend.padding is None and not random:
        return backend
    copy = Backend.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    if random:
        model = copy.model
        model.dropout = None
        copy.model = model
    return copy


def _opened(found: Any) -> Encoding:
    """A `tokenizers.Encoding` without what was added behind the text, and without a second BOS.

    A token of nothing but space may come with an empty span, where the space was trimmed off: it gets it back.
    """
    ids, spans, added = list(found.ids), list(found.offsets), list(found.special_tokens_mask)
    while added and added[-1] and not all(added):
        for values in (ids, spans, added):
            values.pop()
    for i in range(1, len(spans)):
        start, end = spans[i]
        spans[i] = (min(start, spans[i - 1][1]) if start == end and not added[i] else start, end)
    first = added.index(0) if 0 in added else 0
    if first and ids[first] == ids[first - 1]:  # the text begins with it
        del ids[first - 1], spans[first - 1]
    return Encoding(ids, spans)
