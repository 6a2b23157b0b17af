"""Which tokens a document is, and which of them are learned: worked out by hand, with tokenizers of several kinds."""

import dataclasses

import numpy as np
import pytest
import tokenizers_of_many_kinds as kinds
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from lora_jax.errors import InputError
from lora_jax.files.tokenizer import Tokenizer as Ours
from lora_jax.files.tokenizer import byte_level, with_plain_template
from lora_jax.text import Document, encode_document

CHATML = (  # SmolLM2-Instruct's own
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] if loop.last else '...' }}{% endfor %}"


def letters(chat_template=None, **names):
    """A tokenizer of single bytes, with the two marks of ChatML as tokens of their own."""
    marks = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = byte_level([*marks, *alphabet], [], split="gpt-2", special=marks)
    return Ours(backend, **({"eos_token": "<|im_end|>", "chat_template": chat_template} | names))


def opening(template="<s> $A", prefix=True):
    """A tokenizer of characters with a space before each text and `<s>` (and `</s>`, where the template has it)."""
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwxyzAQ:"])}
    vocabulary |= {"ab": len(vocabulary), "\u2581c": len(vocabulary) + 1}
    merges = [("a", "b"), ("\u2581", "c")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True))
    first = [normalizers.Prepend("\u2581")] if prefix else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "\u2581")])
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return Ours(backend, bos_token="<s>", eos_token="</s>")


def pieces(tokenizer, document):
    """`(all tokens, those that are learned)` as their texts in the vocabulary."""
    ids, mask = encode_document(tokenizer, document)
    assert ids.dtype == mask.dtype == np.int32 and ids.shape == mask.shape and set(mask) <= {0, 1}
    found = [tokenizer.backend.id_to_token(int(i)) for i in ids]
    return " ".join(found), " ".join(t for t, learned in zip(found, mask, strict=True) if learned)


def learned(tokenizer, document):
    """`(all text, learned text)` of an encoded document."""
    ids, mask = encode_document(tokenizer, document)
    return tokenizer.decode(ids, skip_special=False), tokenizer.decode(ids[mask == 1], skip_special=False)


def talk(*contents):
    roles = ("user", "assistant") * len(contents)
    messages = tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=False))
    return Document(messages=messages, where="a, line 2")


def test_plain_text_is_learned_whole_with_its_end():
    everything, answers = learned(letters(), Document(text="One\n"))
    assert everything == answers == "One\n<|im_end|>"


def test_of_a_prompt_and_completion_the_completion_and_its_end_are_learned():
    ids, mask = encode_document(letters(), Document(prompt="Hi ", completion="yo"))
    assert mask.tolist() == [0, 0, 0, 1, 1, 1] and ids[-1] == 1


def test_a_prompt_and_its_completion_are_one_text():
    """No space is put before the answer, where the tokenizer puts one before a text."""
    everything, answers = pieces(opening(), Document(prompt="Q:", completion=" cab"))
    assert everything == "<s> \u2581 Q : \u2581c ab </s>" and answers == "\u2581c ab </s>"


@pytest.mark.parametrize(
    ("prompt", "completion", "answers"),
    [("Qa", "bA", "ab A </s>"), ("Q ", "c", "\u2581c </s>"), ("Qab", "A", "A </s>"), ("Q", "ab", "ab </s>")],
)
def test_a_token_that_holds_letters_of_both_is_learned(prompt, completion, answers):
    tokenizer = opening()
    whole = " ".join(tokenizer.backend.encode(prompt + completion).tokens)
    assert pieces(tokenizer, Document(prompt=prompt, completion=completion)) == (f"{whole} </s>", answers)


def test_spaces_that_are_trimmed_off_a_tokens_span_are_still_the_prompts_or_the_answers():
    """The prompt ends in two spaces and the answer in one; spans without spaces would put them on the wrong side."""
    tokenizer = letters()
    tokenizer.backend.post_processor = processors.ByteLevel(trim_offsets=True)
    ids, mask = encode_document(tokenizer, Document(prompt="a  ", completion=" \nb "))
    assert mask.tolist() == [0, 0, 0, 1, 1, 1, 1, 1] and len(ids) == 8


@pytest.mark.parametrize(
    ("text", "everything"),
    [
        ("ab", "<s> \u2581 ab </s>"),
        ("<s>ab", "<s> \u2581 ab </s>"),  # never two
        ("<s><s>ab", "<s> <s> \u2581 ab </s>"),  # but those that the text itself has
        ("ab</s>", "<s> \u2581 ab </s>"),
        ("ab</s></s>", "<s> \u2581 ab </s> </s>"),
        ("a</s>b", "<s> \u2581 a </s> \u2581 b </s>"),
    ],
)
@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
def test_a_text_begins_and_ends_once(template, text, everything):
    tokenizer = opening(template)
    assert pieces(tokenizer, Document(text=text)) == (everything, everything)
    assert encode_document(tokenizer, Document(prompt="Q", completion=text))[1][0] == 0
    assert tokenizer.encode(text) == tokenizer.encode_batch([text])[0]


def test_a_prompt_to_be_continued_does_not_end():
    tokenizer = opening("<s> $A </s>")
    assert [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("ab")] == ["<s>", "\u2581", "ab"]
    assert tokenizer.encode("ab", add_special_tokens=False) == tokenizer.encode("ab")[1:]


def test_of_a_conversation_the_assistant_turns_are_learned():
    everything, answers = learned(letters(CHATML), talk("Hi", "Yo! ", "2+2?", "4", "Thanks"))
    assert everything == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo! <|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    )
    assert answers == "Yo! <|im_end|>4<|im_end|>"


def test_neighbouring_assistant_turns_are_each_learned():
    turns = [("system", "S"), ("user", "U"), ("assistant", "A"), ("assistant", "B")]
    document = Document(messages=tuple({"role": r, "content": c} for r, c in turns))
    everything, answers = learned(letters(CHATML), document)
    assert everything.endswith("A<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n")
    assert answers == "A<|im_end|>B<|im_end|>"


def test_a_template_without_end_tokens_gets_one_at_the_end():
    everything, answers = learned(letters(PLAIN), talk("Hi", "Yo", "So", "4"))
    assert everything == "[user]Hi[assistant]Yo[user]So[assistant]4<|im_end|>" and answers == "Yo4<|im_end|>"


def test_a_template_that_ends_turns_in_another_token_gets_the_end_behind_it_and_the_way_there_is_learned():
    everything, answers = learned(letters(CHATML, eos_token="<|im_start|>"), talk("Hi", "Yo"))
    assert everything.endswith("Yo<|im_end|>\n<|im_start|>") and answers == "Yo<|im_end|>\n<|im_start|>"


def test_a_second_end_that_the_models_files_name_is_an_end():
    """No other is put behind a turn that ends in it."""
    tokenizer = letters(CHATML, eos_token="<|im_start|>", ends=(1,))
    assert learned(tokenizer, talk("Hi", "Yo"))[1] == "Yo<|im_end|>"


@pytest.mark.parametrize("inside", [True, False])
def test_what_a_template_marks_is_learned_with_the_end_behind_it(inside):
    """Also where the template writes earlier turns otherwise, so that its prefixes would not tell."""
    end = "{{ '<|im_end|>' }}"
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}[{{ loop.length }}]{% generation %}{{ m['content'] }}"
        f"{end * inside}{{% endgeneration %}}{end * (not inside)}{{% else %}}[u]{{{{ m['content'] }}}}{{% endif %}}"
        "{% endfor %}"
    )
    everything, answers = learned(letters(template), talk("Hi", "Yo", "So", "4"))
    assert everything == "[u]Hi[4]Yo<|im_end|>[u]So[4]4<|im_end|>" and answers == "Yo<|im_end|>4<|im_end|>"


def test_a_document_with_both_writings_takes_the_one_that_the_tokenizer_has_a_template_for():
    document = dataclasses.replace(talk("Hi", "Yo"), prompt="Q: Hi A: ", completion="Yo")
    assert learned(letters(), document) == ("Q: Hi A: Yo<|im_end|>", "Yo<|im_end|>")
    assert learned(letters(PLAIN), document) == ("[user]Hi[assistant]Yo<|im_end|>", "Yo<|im_end|>")


def test_the_plain_template_writes_conversations_for_tokenizers_that_have_none():
    tokenizer = with_plain_template(letters())
    everything, answers = learned(tokenizer, talk("Hi", "Yo", "So", "4"))
    one = "### Instruction:\n{}\n\n### Response:\n{}<|im_end|>"
    assert everything == one.format("Hi", "Yo") + one.format("So", "4") and answers == "Yo<|im_end|>4<|im_end|>"
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert asked == "### Instruction:\nHi\n\n### Response:\n"


def test_conversations_that_cannot_be_masked_are_refused():
    with pytest.raises(InputError) as error:
        encode_document(letters(), talk("Hi", "Yo"))
    assert str(error.value) == (
        "a, line 2: 'messages' need a chat template, and this tokenizer has none: "
        "give 'prompt' and 'completion', or use an instruction-tuned model's tokenizer"
    )
    with pytest.raises(InputError) as error:
        encode_document(letters(FORGETFUL), talk("Hi", "Yo"))
    assert str(error.value) == (
        "a, line 2: this tokenizer's chat template writes earlier turns otherwise once message 2 follows, "
        "so the answer's tokens cannot be told apart: give 'prompt' and 'completion' instead"
    )


def test_what_a_template_refuses_is_told_with_the_place_of_the_document():
    message = r"^a, line 2: line \d of the chat template refused these messages \(Conversation roles must alternate"
    with pytest.raises(InputError, match=message):
        document = Document(
            messages=({"role": "system", "content": "S"}, *talk("Hi", "Yo").messages), where="a, line 2"
        )
        encode_document(letters(kinds.LLAMA2, bos_token="<|im_start|>"), document)


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = letters(eos_token=None)
    with pytest.raises(InputError, match=r"^this tokenizer names no end token, without which a model cannot learn to"):
        encode_document(tokenizer, Document(text="One"))
    assert learned(letters(eos_token=None, ends=(1,)), Document(text="One"))[0] == "One<|im_end|>"
