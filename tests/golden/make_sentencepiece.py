"""Make `sentencepiece.json`: a small vocabulary of SentencePiece's BPE as Llama 2's is made, and how it cuts texts.

pip install sentencepiece==0.2.3
PYTHONPATH=tests python tests/golden/make_sentencepiece.py
"""

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers_of_many_kinds import corpus, strings

SPECIAL = ("<unk>", "<s>", "</s>")

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=700, byte_fallback=True,
    split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
)  # fmt: skip
spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
size = range(spm.vocab_size())
kinds = [2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 6 if spm.is_byte(i) else 1 for i in size]
texts = [text for text in strings(400, seed=9) if not any(mark in text for mark in (*SPECIAL, "\0"))]
found = {
    "pieces": [spm.id_to_piece(i) for i in size],
    "scores": [spm.get_score(i) for i in size],
    "types": kinds,  # as GGUF numbers them
    "texts": texts,
    "ids": [spm.encode(text) for text in texts],
}
Path(__file__).with_suffix("").with_name("sentencepiece.json").write_text(
    json.dumps(found, ensure_ascii=True, separators=(",", ":")) + "\n"
)
