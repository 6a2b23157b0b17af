"""Model folders with tokenizers of unlike kinds, each with the shape that a well-known model's has, and their texts."""

import json
import random
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lora_jax.text import stories

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{
raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}{{
bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + message['content'].strip() + ' ' +
eos_token }}{% endif %}{% endfor %}"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
LLAMA3 = """{{- bos_token }}{%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- else %}
{%- set date = '26 Jul 2024' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date + '\n\n<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
TAGGED = """{% for m in messages %}{{ '\n' + m['role'] + ': ' }}{% if m['role'] == 'assistant' %}{% generation %}{{
m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}{%
if add_generation_prompt %}{{ '\nassistant: ' }}{% endif %}"""
AS_JSON = """{% for m in messages %}{{ '\n' + ({'role': m['role'], 'says': m['content']} | tojson(ensure_ascii=False,
sort_keys=True)) + eos_token }}{% endfor %}{% if tools is not none and documents is defined %}{{ 'tools' }}{%
endif %}"""
SPACE = "\u2581"


@cache
def corpus():
    return stories.read()[:120]


def _trained(backend, size, special, alphabet=(), unigram=False):
    how = {"vocab_size": size, "special_tokens": list(special), "initial_alphabet": list(alphabet)}
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **how) if unigram else trainers.BpeTrainer(**how)
    trainer.show_progress = False
    backend.train_from_iterator(corpus(), trainer)
    return backend


def _begin(backend, bos, ids, *, also=None):
    step = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, ids)])
    backend.post_processor = processors.Sequence([also, step]) if also else step
    return backend


def byte_level(special=("</s>",), pattern=None, **model):
    backend = Tokenizer(models.BPE(**model))
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    first = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, cut])
    backend.decoder = decoders.ByteLevel()
    return _trained(backend, 600, special, pre_tokenizers.ByteLevel.alphabet())


def trimmed():
    """Offsets without the spaces, as GPT-2's."""
    backend = byte_level()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return backend


def llama3():
    special = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>")
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend = byte_level(special, pattern, ignore_merges=True)
    return _begin(backend, "<|begin_of_text|>", 0, also=processors.ByteLevel(trim_offsets=True))


def qwen():
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend = byte_level(("<|endoftext|>",), pattern)
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    return backend


def smollm():
    """Each digit alone; the ends of texts and of turns are two tokens."""
    backend = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return backend


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _sentencepiece_decoder(strip=True):
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _plain_bytes(backend):
    """The bytes are tokens of the vocabulary, not marks that a text could hold."""
    found = json.loads(backend.to_str())
    found["added_tokens"] = [token | {"normalized": False} for token in found["added_tokens"] if token["id"] < 3]
    return Tokenizer.from_str(json.dumps(found))


def llama2():
    """A space put before the text by the normalizer, bytes for what is rare, BOS."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend = _plain_bytes(_trained(backend, 700, ["<unk>", "<s>", "</s>", *BYTES]))
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = _sentencepiece_decoder()
    return _begin(backend, "<s>", 1)


def metaspace():
    """As Mistral's newer ones: a space before the first word only, and no BOS."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend = _plain_bytes(_trained(backend, 700, ["<unk>", "<s>", "</s>", *BYTES]))
    backend.decoder = _sentencepiece_decoder()
    return backend


def unigram():
    """As XLM-R's and T5's: SentencePiece's other model, with characters made alike (NFKC) and runs of spaces joined."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return _begin(_trained(backend, 600, ["<unk>", "<s>", "</s>"], unigram=True), "<s>", 1)


def word_level():
    """Whole words, what is unknown is one token: as old models'."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "</s>"]
    backend.train_from_iterator(corpus(), trainers.WordLevelTrainer(vocab_size=900, special_tokens=special))
    return backend


KINDS = {  # the tokenizer, its special tokens by name, its template
    "byte_level": (byte_level, {"eos_token": "</s>"}, TAGGED),
    "trimmed": (trimmed, {"eos_token": "</s>", "pad_token": "</s>"}, AS_JSON),
    "llama3": (llama3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, LLAMA3),
    "qwen": (qwen, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, CHATML),
    "smollm": (smollm, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}, CHATML),
    "llama2": (llama2, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, LLAMA2),
    "tinyllama": (llama2, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, ZEPHYR),
    "metaspace": (metaspace, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, TAGGED),
    "unigram": (unigram, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, ZEPHYR),
    "word_level": (word_level, {"eos_token": "</s>", "unk_token": "<unk>"}, ZEPHYR),
}  # fmt: skip


@cache
def backend_json(build):
    """Trained once: training is not the same from one time to the next for all of them."""
    return build().to_str()


def write(folder, kind):
    """The folder of a tokenizer of this kind, as Hugging Face's tools write it."""
    build, names, template = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend_json(build), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def write_gguf(path, kind, pre, **more):
    """The byte-level tokenizer of this kind as a GGUF file without weights holds it; `more` are fields by method."""
    build, names, template = KINDS[kind]
    found = json.loads(backend_json(build))
    ids = {token["content"]: token["id"] for token in found["added_tokens"]}
    tokens = [token for token, _ in sorted((ids | found["model"]["vocab"]).items(), key=lambda item: item[1])]
    fields = {f"add_{name.removesuffix('_token')}_token_id": ids[token] for name, token in names.items()}
    types = [3 if token in ids else 1 for token in tokens]
    fields |= {"add_chat_template": template, "add_token_types": types} | more
    return gguf_file(path, "gpt2", pre, tokens, found["model"]["merges"], **fields)


def gguf_file(path, model, pre, tokens, merges=(), **fields):
    """A GGUF file with a tokenizer and nothing else; `fields` by the method of the library's writer."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    fields = {"add_token_types": [1] * len(tokens)} | fields
    if merges:
        fields["add_token_merges"] = [" ".join(pair) for pair in merges]
    fields |= {"add_tokenizer_model": model, "add_tokenizer_pre": pre, "add_token_list": tokens}
    for method, value in fields.items():
        getattr(writer, method)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


ODD = (
    "\u00e9", "e\u0301", "\ufb01", "\u00c5", "\u212b", "\U0001f600", "\U0001f469\u200d\U0001f467", "\u65e5\u672c\u8a9e",
    "\u0627\u0644", "\u00a0", "\u200b", "\t", "\n", "\n\n", "\r\n", "  ", "   ", "123", "1234567", "\u0663\u0664",
    "\u00bd", "'ll", "don't", "\u2581", "<0x41>", "<unk>", "...", "\u2014", "{}", "<b>&amp;", "\0", "\ufeff",
)  # fmt: skip


def strings(n, seed=0, marks=()):
    """Varied texts: pieces of stories with odd characters, spaces at both ends, and special tokens written out."""
    draw, words = random.Random(seed), " ".join(corpus()).split(" ")
    found = []
    for i in range(n):
        at, size = draw.randrange(len(words) - 40), draw.randrange(1, 25)
        parts = words[at : at + size]
        for _ in range(draw.randrange(4) if i % 2 else 0):
            parts.insert(draw.randrange(len(parts) + 1), draw.choice((*ODD, *marks)))
        text = draw.choice((" ", " ", " ", "", "\n")).join(parts)
        found.append(draw.choice(("", "", " ", "\n")) + text + draw.choice(("", "", " ", "\n", "  ")))
    return found


def conversations(n, seed=0, system=False):
    """Talks of one to four turns, some with a system's message first."""
    texts = iter(strings(12 * n, seed + 1))
    draw, found = random.Random(seed), []
    for _ in range(n):
        talk = [{"role": "system", "content": next(texts)}] if system and draw.random() < 0.4 else []
        for _ in range(draw.randrange(1, 5)):
            talk += [{"role": "user", "content": next(texts)}, {"role": "assistant", "content": next(texts)}]
        found.append(talk)
    return found
