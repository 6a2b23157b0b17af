"""Tokenizers put together from a vocabulary, as GGUF files hold them: byte-level BPE, and SentencePiece's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_jax.files.tokenizer_file import told

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
COMPOSED = ("qwen2",)  # these compose accents first (NFC)
WHOLE_WORDS = ("llama-bpe",)  # these take a word that is a token as it is, whatever the merges would make of it


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
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    steps: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern is None
        else pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for pattern in SPLITS[split]
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend = _bpe(models.BPE, tokens, merges, special, added, ignore_merges=split in WHOLE_WORDS)
    if split in COMPOSED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece(
    tokens: Sequence[str],
    scores: Sequence[float],
    *,
    unknown: str | None,
    prefix: bool = True,
    special: Sequence[str] = (),
    added: Sequence[str] = (),
) -> Any:
    """SentencePiece's BPE, as Llama 2's: "\u2581" stands for a space, one goes before the text, bytes for what is rare.

    Of two neighbouring pieces those are joined first that make the piece with the highest score.
    """
    from tokenizers import decoders, models, normalizers

    ids = {token: index for index, token in enumerate(tokens)}
    apart = {*special, *added}
    pairs = [
        (scores[index], token[:at], token[at:])
        for token, index in ids.items()
        if token not in apart
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]
    merges = [pair[1:] for pair in sorted(pairs, key=lambda pair: (-pair[0], ids[pair[1]], ids[pair[2]]))]
    how = {"byte_fallback": True, "unk_token": unknown, "fuse_unk": True}
    backend = _bpe(models.BPE, tokens, merges, special, added, **how)
    before: list[Any] = [normalizers.Prepend("\u2581")] if prefix else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "\u2581")])
    after: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    space = decoders.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), *after])
    return backend


def begin_with(backend: Any, token: str) -> None:
    """Have the backend put this token before every text."""
    from tokenizers import processors

    backend.post_processor = processors.TemplateProcessing(
        single=f"{token}:0 $A:0", special_tokens=[(token, backend.token_to_id(token))]
    )


def _bpe(
    model: Any, tokens: Sequence[str], merges: Any, special: Sequence[str], added: Sequence[str], **how: Any
) -> Any:
    from tokenizers import AddedToken, Tokenizer

    vocabulary = {token: index for index, token in enumerate(tokens)}
    with told("the tokenizer's merges do not fit its tokens"):
        backend = Tokenizer(model(vocab=vocabulary, merges=list(merges), **how))
    with told("the tokenizer's special tokens cannot be added to its tokens"):
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
        backend.add_tokens([AddedToken(token, normalized=False) for token in added])
    return backend
