"""The user's own data: each kind is read, and each mistake gets one sentence with its file and line."""

import json

import pytest

from lora_jax.errors import InputError
from lora_jax.text.documents import Document, read_documents


def test_documents_of_each_kind_are_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne\r\n\r\ntwo \xc3\xa9\n")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    rows = [{"text": "T\u2028\u0085", "id": 7}, {"completion": "C", "prompt": "P"}, {"messages": talk}]
    (tmp_path / "deeper").mkdir()
    data = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "deeper" / "b.jsonl").write_text(data + "\n", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\0\xff")
    documents = read_documents(tmp_path)
    where = f"{tmp_path}/deeper/b.jsonl, line "
    assert documents == [
        Document(text="One\n\ntwo é\n", where=f"{tmp_path}/a.txt"),
        Document(text="T\u2028\u0085", where=where + "1"),
        Document(prompt="P", completion="C", where=where + "3"),
        Document(messages=tuple(talk), where=where + "5"),
    ]
    assert read_documents(str(tmp_path / "a.txt")) == documents[:1]


ONLY = (
    "give 'text', or 'prompt' and 'completion', or 'instruction' and 'output', or 'messages', and only one of these "
    "(docs/data.md lists all that are read)"
)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"text": ', 'not JSON (Expecting value, column 10): write {"text": "..."}'),
        ("[" * 100_000, 'nested too deeply: write {"text": "..."}'),
        ('["a"]', 'a JSON list, not an object such as {"text": "..."}'),
        ("3.5", 'a JSON number, not an object such as {"text": "..."}'),
        ("{}", f"fields none: {ONLY}"),
        ('{"text": "a", "prompt": "b"}', f"fields 'text', 'prompt': {ONLY}"),
        ('{"prompt": "b"}', f"fields 'prompt': {ONLY}"),
        ('{"story": "b"}', f"fields 'story': {ONLY}"),
        ('{"text": null}', "'text' is a JSON null, not a string"),
        ('{"prompt": "p", "completion": {"a": 1}}', "'completion' is a JSON object, not a string"),
        ('{"text": "  "}', "'text' is empty"),
        ('{"text": "a\\ud800b"}', "'text' holds half of a surrogate pair: it is not Unicode text"),
        ('{"messages": "hi"}', "'messages' is a JSON string, not a list"),
        ('{"messages": []}', "no message has the role 'assistant': there is nothing to learn"),
        (
            '{"messages": [{"role": "user", "content": "hi"}]}',
            "no message has the role 'assistant': there is nothing to learn",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "hi"}]}',
            "the first message has the role 'assistant': begin with 'user' or 'system'",
        ),
        (
            '{"messages": [{"role": "user"}]}',
            "message 1 is not an object with 'role' and 'content', or 'from' and 'value'",
        ),
        ('{"messages": [{"role": "user", "content": 1}]}', "'content of message 1' is a JSON number, not a string"),
        (
            '{"messages": [{"role": "poet", "content": "a"}]}',
            "message 1 has the role 'poet', not 'system', 'user', 'assistant' or 'tool'",
        ),
    ],
)
def test_a_bad_line_gets_one_sentence(tmp_path, line, sentence):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError) as error:
        read_documents(path)
    assert str(error.value) == f"{path}, line 3: {sentence}"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", ": empty: there is nothing to learn from"),
        (b" \n\n", ": empty: there is nothing to learn from"),
        (b"one\ntwo \xff\xfe", ", line 2: not UTF-8 text: save it as UTF-8"),
        (b"one\ntwo\n\0\0", ", line 3: a NUL byte: this is a binary file, not text"),
    ],
)
@pytest.mark.parametrize("name", ["data.txt", "data.jsonl"])
def test_a_bad_file_gets_one_sentence(tmp_path, name, data, sentence):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read_documents(path)
    assert str(error.value) == f"{path}{sentence}"


def test_a_missing_file_and_a_folder_without_text_are_refused(tmp_path):
    cases = {
        tmp_path / "no": "no such file or folder",
        tmp_path: "no file in this folder is text, JSON, JSON lines, CSV or TSV",
    }
    for path, sentence in cases.items():
        with pytest.raises(InputError) as error:
            read_documents(path)
        assert str(error.value) == f"{path}: {sentence}"
