"""Text to token ids and back: a small face on Hugging Face's `tokenizers`, with `transformers`' chat templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.files import atomic

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_AFTER_GPT2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, tuple[str | None, ...]] = {  # GGUF's name -> patterns applied in turn; None isolates each digit
    "default": (GPT2,),
    "gpt-2": (GPT2,),
    "smollm": (None, GPT2),
    "qwen2": (_AFTER_GPT2 % "",),
    "llama-bpe": (_AFTER_GPT2 % "{1,3}",),
}


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer`, the names of three of its tokens (None where there is none), and a chat template."""

    backend: Any
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Adds no special token, but knows those that are written out, such as `<|im_start|>`."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        return [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Any, skip_special: bool = True) -> str:
        """The text of token ids (any sequence of integers), special tokens left out unless asked for."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        return self._id(self.bos_token)

    @property
    def eos_id(self) -> int | None:
        return self._id(self.eos_token)

    @property
    def pad_id(self) -> int | None:
        return self._id(self.pad_token)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        """The conversation as one text. `messages` are `{"role": ..., "content": ...}`, in order.

        `add_generation_prompt` ends it where the assistant's answer begins. Raises InputError where there is no
        template, or it refuses the messages.
        """
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.chat_template is None:
            raise InputError("this tokenizer has no chat template: write the prompt out as plain text.")

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        def tojson(value: Any, indent: int | None = None) -> str:
            return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja's own would escape HTML

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = tojson
        try:
            return environment.from_string(self.chat_template).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token or "",
                eos_token=self.eos_token or "",
                pad_token=self.pad_token or "",
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise InputError(f"the chat template refused these messages ({error}).") from error

    def files(self) -> dict[str, str]:
        """The text of `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` opens."""
        settings = {
            "add_bos_token": False,
            "bos_token": self.bos_token,
            "chat_template": self.chat_template,
            "clean_up_tokenization_spaces": False,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        settings = {key: value for key, value in settings.items() if value is not None}
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
        """The tokenizer in a folder with `tokenizer.json`, and `tokenizer_config.json` where there is one."""
        from tokenizers import Tokenizer as Backend

        path = Path(folder) / "tokenizer.json"
        try:
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{folder} has no tokenizer.json: give a folder that has one.") from error
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path} is not a readable tokenizer ({error}).") from error
        settings = _settings(Path(folder) / "tokenizer_config.json")
        template = Path(folder) / "chat_template.jinja"
        return Tokenizer(
            backend,
            **{name: _content(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token")},
            chat_template=template.read_text(encoding="utf-8")
            if template.is_file()
            else _default(settings.get("chat_template")),
        )


def byte_level(
    tokens: Sequence[str],
    merges: Sequence[tuple[str, str]],
    *,
    split: str,
    special: Sequence[str] = (),
    added: Sequence[str] = (),
) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer`: token i has id i, and `split` is one of SPLITS.

    `special` tokens are found whole in a text and left out when decoding; `added` ones are only found whole.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    steps: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern is None
        else pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for pattern in SPLITS[split]
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        backend = Backend(models.BPE(vocab=vocabulary, merges=list(merges)))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"the tokenizer's merges do not fit its tokens ({error}).") from error
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])
    return backend


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}).") from error


def _content(token: Any) -> str | None:
    """A token's text, which files give bare or within a record."""
    return token["content"] if isinstance(token, dict) else token


def _default(template: Any) -> str | None:
    """The chat template, or of several named ones the default."""
    if isinstance(template, list):
        return next((t["template"] for t in template if t["name"] == "default"), None)
    return template
