"""Public data as it comes: every format is read as data or refused in one sentence, and none is read as prose."""

import csv
import gzip
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_jax.errors import InputError
from lora_jax.text import records, tables
from lora_jax.text.documents import Document, read_documents

ROWS = [{"instruction": f"Say {i}", "input": "", "output": f"The fox ran home {i}."} for i in range(3)]
PAIRS = [{"prompt": f"Say {i}: ", "completion": f" The fox, {i}\n"} for i in range(3)]


def plain(instruction, output, where="", system=""):
    """An instruction and its answer, written out by hand."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": instruction}, {"role": "assistant", "content": output}]
    before = f"{system}\n\n" if system else ""
    return Document(
        prompt=f"{before}### Instruction:\n{instruction}\n\n### Response:\n",
        completion=output,
        messages=tuple(messages),
        where=where,
    )


def read(folder, name, data):
    """`(documents, what is said)` of a file of these bytes or this text."""
    path = Path(folder) / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    said = []
    return read_documents(path, said.append), said


def refusal(folder, name, data):
    with pytest.raises(InputError) as error:
        read(folder, name, data)
    return str(error.value).replace(f"{folder}/", "")


def bare(documents):
    """Documents without where they are from."""
    return [(one.text, one.prompt, one.completion, one.messages) for one in documents]


def table(rows, **how):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), **how)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


WRITTEN = {  # one data set in every way that programs write it
    "array.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "lines.jsonl": "\n".join(map(json.dumps, ROWS)),
    "lines.ndjson": "\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    "lines.jsonlines": "\n\n".join(map(json.dumps, ROWS)),
    "old_mac.jsonl": "\r".join(map(json.dumps, ROWS)),
    "lines.json": "\n".join(map(json.dumps, ROWS)) + "\n",
    "array.jsonl": json.dumps(ROWS, indent=1),
    "behind.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "wrapped_line.json": json.dumps({"train": ROWS}),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "wide.json": json.dumps(ROWS).encode("utf-16"),
    "array.txt": json.dumps(ROWS, indent=2),
    "lines.txt": "\n".join(map(json.dumps, ROWS)),
    "no_suffix": "\n".join(map(json.dumps, ROWS)),
    "LOUD.JSON": json.dumps(ROWS),
    "comma.csv": table(ROWS),
    "semicolon.csv": table(ROWS, delimiter=";"),
    "tabs.csv": table(ROWS, delimiter="\t"),
    "tabs.tsv": table(ROWS, delimiter="\t"),
    "unix.csv": table(ROWS, lineterminator="\n"),
    "mac.csv": table(ROWS, lineterminator="\r"),
    "quoted.csv": table(ROWS, quoting=csv.QUOTE_ALL),
    "semicolon_quoted.csv": table(ROWS, quoting=csv.QUOTE_ALL, delimiter=";"),
    "told.csv": "sep=;\r\n" + table(ROWS, delimiter=";"),
    "bom.csv": b"\xef\xbb\xbf" + table(ROWS).encode(),
    "excel.txt": table(ROWS, delimiter="\t").encode("utf-16"),
    "comma.txt": table(ROWS),
    "blank_rows.csv": "\n" + table(ROWS).replace("\r\n", "\r\n\r\n") + ",,\r\n",
    "trailing.csv": table(ROWS).replace("\r\n", ",\r\n"),
    "trailing_rows.csv": table(ROWS).replace(".\r\n", ".,\r\n"),
    "index.csv": table([{"": i} | row for i, row in enumerate(ROWS)]),
    "capitals.csv": table(ROWS).replace("instruction,input,output", " Instruction , Input , Output "),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("name", WRITTEN)
def test_one_data_set_in_every_format_is_the_same_documents(tmp_path, name, zipped):
    data = WRITTEN[name] if isinstance(WRITTEN[name], bytes) else WRITTEN[name].encode()
    named = name + ".gz" if zipped and name != "no_suffix" else name  # one is judged by its bytes alone
    documents, said = read(tmp_path, named, gzip.compress(data) if zipped else data)
    assert bare(documents) == bare(plain(row["instruction"], row["output"]) for row in ROWS)
    assert said[0] == f"{tmp_path}/{named}: 3 by 'instruction' and 'output'"


def test_a_record_is_found_by_its_file_and_line(tmp_path):
    want = {
        "a.json": ["record 1 (line 2)", "record 2 (line 7)", "record 3 (line 12)"],
        "a.jsonl": ["line 1", "line 3", "line 5"],
        "b.json": ["line 1", "line 6", "line 11"],
        "a.csv": ["line 2", "line 4", "line 6"],
    }
    many = [row | {"output": "two\nlines"} for row in ROWS]
    data = {
        "a.json": json.dumps(ROWS, indent=1),
        "a.jsonl": "\n\n".join(map(json.dumps, ROWS)),
        "b.json": "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "a.csv": table(many),
    }
    for name, places in want.items():
        documents, _ = read(tmp_path, name, data[name])
        assert [one.where for one in documents] == [f"{tmp_path}/{name}, {place}" for place in places]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, pairs, delimiter, quoting, end):
    pairs = [pair for pair in pairs if not {cell.lower() for cell in pair} & set(tables.NO_VALUE)]
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs] or PAIRS
    text = table(rows, delimiter=delimiter, quoting=quoting, lineterminator=end)
    documents, _ = read(tmp_path_factory.mktemp("csv"), "x.csv", text)
    assert bare(documents) == [(None, row["prompt"], row["completion"], None) for row in rows]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5), st.sampled_from([None, 0, 1, 4]), st.booleans())
def test_what_a_json_writer_writes_is_read_back(tmp_path_factory, pairs, indent, ascii_only):
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    folder = tmp_path_factory.mktemp("json")
    ways = {
        "a.json": json.dumps(rows, indent=indent, ensure_ascii=ascii_only),
        "a.txt": json.dumps(rows, indent=indent, ensure_ascii=ascii_only),
        "a.jsonl": "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows),
        "b.json": "\n".join(json.dumps(row, indent=indent, ensure_ascii=ascii_only) for row in rows),
    }
    for name, text in ways.items():
        documents, _ = read(folder, name, text)
        assert bare(documents) == [(None, row["prompt"], row["completion"], None) for row in rows], name


TALK = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"})
TALKS = [  # a record, and its messages
    ({"messages": list(TALK)}, TALK),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "id": "a_0"}, TALK),
    ({"conversation": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Yo"}]}, TALK),
    ({"conversation": list(TALK), "language": "English"}, TALK),
    ({"messages": [dict(TALK[0], id=7, name=None), TALK[1]]}, TALK),
    ({"conversations": [{"from": "human", "value": "Hi", "weight": 0},
                        {"from": "gpt", "value": "Yo", "weight": 1}]}, TALK),
    ({"messages": [dict(TALK[0], content=[{"type": "text", "text": "Hi"}]), TALK[1]]}, TALK),
    ({"prompt": "Hi", "prompt_id": "x", "messages": list(TALK)}, TALK),
    ({"prompt": [TALK[0]], "completion": [TALK[1]]}, TALK),
    ({"text": None, "prompt": None, "completion": None, "messages": list(TALK)}, TALK),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "Be kind."},
        ({"role": "system", "content": "Be kind."}, *TALK),
    ),
    (
        {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"},
                           {"from": "gpt", "value": "Yo"}, {"from": "observation", "value": "42"}]},
        ({"role": "system", "content": "S"}, *TALK, {"role": "tool", "content": "42"}),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("record", "messages"), TALKS)
def test_conversations_of_every_shape_are_read(tmp_path, record, messages):
    (document,), _ = read(tmp_path, "x.jsonl", json.dumps(record))
    assert document == Document(messages=messages, where=f"{tmp_path}/x.jsonl, line 1")


ASKED = [  # a record, and the instruction and output that are read from it
    ({"instruction": "Q", "input": "I", "output": "A"}, ("Q\n\nI", "A")),
    ({"instruction": "Q", "input": "", "output": "A"}, ("Q", "A")),
    ({"instruction": "Q", "input": None, "output": "A"}, ("Q", "A")),
    ({"instruction": "Q", "input": float("nan"), "output": "A"}, ("Q", "A")),
    ({"instruction": "Q", "input": " \n", "output": " A\n"}, ("Q", " A\n")),
    ({"instruction": "Q", "input": "I", "output": "A", "text": "Below is an instruction ..."}, ("Q\n\nI", "A")),
    ({"instruction": "Q", "input": "I", "output": "A", "prompt": "Below is ..."}, ("Q\n\nI", "A")),
    ({"instruction": "Q", "context": "C", "response": "A", "category": "open_qa"}, ("Q\n\nC", "A")),
    ({"instruction": "Q", "response": "A"}, ("Q", "A")),
    ({"question": "Q", "answer": "A"}, ("Q", "A")),
    ({"Question": "Q", "Answer": "A"}, ("Q", "A")),
    ({"prompt": "Q", "response": "A", "source": "x"}, ("Q", "A")),
    ({"query": "Q", "response": "A", "type": "x", "original_question": "y"}, ("Q", "A")),
    ({"problem": "Q", "solution": "A", "level": "5"}, ("Q", "A")),
    ({"input": "Q", "output": "A"}, ("Q", "A")),
    ({"inputs": "Q", "targets": "A"}, ("Q", "A")),
    ({"instruction": "Q", "output": "A", "messages": None, "tools": [], "history": []}, ("Q", "A")),
    ({"instruction": "Q", "output": "None"}, ("Q", "None")),
]


@pytest.mark.parametrize(("record", "want"), ASKED)
def test_an_instruction_is_read_as_messages_and_as_plain_text(tmp_path, record, want):
    (document,), _ = read(tmp_path, "x.jsonl", json.dumps(record))
    assert document == plain(*want, where=f"{tmp_path}/x.jsonl, line 1")


def test_a_system_prompt_stands_in_front(tmp_path):
    record = {"id": 1, "system_prompt": "Be kind.", "question": "Q", "response": "A"}
    (document,), said = read(tmp_path, "x.jsonl", json.dumps(record))
    assert document == plain("Q", "A", f"{tmp_path}/x.jsonl, line 1", system="Be kind.")
    assert said[1] == f"{tmp_path}/x.jsonl: fields that are left alone: 'id'"
    (document,), _ = read(tmp_path, "x.jsonl", json.dumps(record | {"system_prompt": ""}))
    assert document == plain("Q", "A", f"{tmp_path}/x.jsonl, line 1")


def test_prompt_and_completion_are_taken_to_the_letter(tmp_path):
    for name, data in {"x.jsonl": "\n".join(map(json.dumps, PAIRS)), "x.csv": table(PAIRS)}.items():
        documents, _ = read(tmp_path, name, data)
        assert bare(documents) == [(None, row["prompt"], row["completion"], None) for row in PAIRS]


def test_a_cell_that_holds_a_book_and_a_conversation_in_a_cell_are_read(tmp_path):
    book = "word, " * 100_000
    limit = csv.field_size_limit()
    (document,), _ = read(tmp_path, "x.csv", table([{"text": book, "id": "7"}]))
    assert document.text == book and csv.field_size_limit() == limit
    (document,), _ = read(tmp_path, "y.csv", table([{"messages": json.dumps(TALK)}]))
    assert document.messages == TALK


def test_an_answer_that_is_missing_is_left_out_and_told(tmp_path):
    gaps = [ROWS[0], ROWS[1] | {"output": ""}, ROWS[2], ROWS[2] | {"output": None}, ROWS[2] | {"output": " \n"}]
    documents, said = read(tmp_path, "x.jsonl", "\n".join(map(json.dumps, gaps)))
    assert len(documents) == 2
    assert (
        said[-1]
        == f"{tmp_path}/x.jsonl: 3 records without an answer are left out, the first at {tmp_path}/x.jsonl, line 2"
    )
    nan = '{"instruction": "Q", "output": NaN}\n{"instruction": "Q", "output": "A"}'
    assert len(read(tmp_path, "y.jsonl", nan)[0]) == 1
    assert refusal(tmp_path, "z.json", json.dumps(gaps[1:2])) == (
        "z.json: no record has an answer: there is nothing to learn from"
    )


GIVE = records.GIVE
JSON_REFUSED = [  # a record, and the sentence behind its place
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences ('chosen', 'rejected') teach by comparing answers"),
    ({"chosen": [], "rejected": "c", "messages": list(TALK)}, "preferences ('rejected') teach by comparing answers"),
    ({"prompt": "a", "completion": "b", "label": False}, "preferences ('label') teach by comparing answers"),
    ({"text": "a", "prompt": "b", "completion": "c"}, f"fields 'text', 'prompt', 'completion': {GIVE}"),
    ({"prompt": "a", "completion": "b", "response": "c"}, "two answers, 'completion' and 'response': keep one"),
    ({"instruction": "a", "output": "b", "response": "c"}, "two answers, 'output' and 'response': keep one"),
    ({"problem": "a", "solution": "b", "answer": "c"}, "two answers, 'solution' and 'answer': keep one"),
    ({"messages": list(TALK), "conversations": list(TALK)}, "both 'messages' and 'conversations': keep one"),
    ({"text": "a", "Text": "b"}, "the field 'text' stands there twice: keep one"),
    ({"instruction": "a"}, f"fields 'instruction': {GIVE}"),
    ({"instruction": "", "output": "a"}, "'instruction' is empty"),
    ({"instruction": None, "output": "a"}, "'instruction' is a JSON null, not a string"),
    ({"question": "a", "answer": 4}, "'answer' is a JSON number, not a string"),
    ({"question": "a", "answer": True}, "'answer' is a JSON boolean, not a string"),
    ({"question": "a", "answers": {"text": ["b"]}}, f"fields 'question', 'answers': {GIVE}"),
    ({"question": "a", "answer": "B", "choices": ["b", "c"]}, "'choices', a multiple choice: write it out in"),
    ({"instruction": "a", "input": ["b"], "output": "c"}, "'input' is a JSON list, not a string"),
    ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "'history', earlier turns: write them as"),
    ({"messages": list(TALK), "tools": [{"name": "f"}]}, "'tools', what a model may call, is not read"),
    ({"text": ["a", "b"]}, "'text' is a JSON list, not a string"),
    ({"text": {"0": "a", "1": "b"}}, "'text' is a JSON object, not a string"),
    ({"text": "a", "role": "prompter", "parent_id": None}, "one message: put those of a conversation into one record"),
    ({"role": "user", "content": "a"}, "one message: put those of a conversation into one record, as 'messages'"),
    ({"from": "human", "value": "a"}, "one message: put those of a conversation into one record, as 'messages'"),
    ({"messages": None}, "'messages' is a JSON null, not a list"),
    ({"messages": [TALK[0], dict(TALK[1], tool_calls=[{}])]}, "'tool_calls' of message 2 is not read"),
    ({"messages": [TALK[0], dict(TALK[1], weight=0)]}, "'weight' of message 2 is 0: every answer is learned here"),
    ({"messages": [TALK[0], dict(TALK[1], content=None)]}, "'content of message 2' is a JSON null, not a string"),
    ({"conversations": [{"from": "gpt", "value": "a"}]}, "the first message has the role 'assistant': begin with"),
    ({"conversations": [["a", "b"]]}, "message 1 is not an object with 'role' and 'content', or 'from' and 'value'"),
    ({"system": "S", "messages": [{"role": "system", "content": "T"}, *TALK]}, "a system message in 'messages' and"),
    ({"prompt": list(TALK), "completion": [TALK[1]]}, "'prompt' holds an answer, which would be learned too"),
    ("a string", 'a JSON string, not an object such as {"text": "..."}'),
    (["a", "list"], 'a JSON list, not an object such as {"text": "..."}'),
    (None, 'a JSON null, not an object such as {"text": "..."}'),
]  # fmt: skip


@pytest.mark.parametrize(("record", "sentence"), JSON_REFUSED)
def test_a_record_that_cannot_be_right_is_refused_where_it_stands(tmp_path, record, sentence):
    said = refusal(tmp_path, "x.jsonl", json.dumps({"text": "fine"}) + "\n\n" + json.dumps(record))
    assert said.startswith(f"x.jsonl, line 3: {sentence}")
    said = refusal(tmp_path, "x.json", json.dumps([{"text": "fine"}, record], indent=1))
    assert said.startswith(f"x.json, record 2 (line 5): {sentence}")


FILES_REFUSED = {
    # what is structured and not read
    "a.parquet": (b"PAR1\x15\x04", "a.parquet: a Parquet file, which is not read: export it as JSON lines or CSV"),
    "b.txt": (b"PAR1\x15\x04", "b.txt: a Parquet file, which is not read: export it as JSON lines or CSV"),
    "a.arrow": (b"ARROW1\0\0", "a.arrow: an Arrow file, which is not read: export it as JSON lines or CSV"),
    "a.xlsx": (b"PK\x03\x04", "a.xlsx: a spreadsheet, which is not read: export it as JSON lines or CSV"),
    "old.csv": (b"\xd0\xcf\x11\xe0", "old.csv: a spreadsheet, which is not read: export it as JSON lines or CSV"),
    "new.csv": (b"PK\x03\x04\x14", "new.csv: an archive, which is not read: unpack it first"),
    "a.zip": (b"PK\x03\x04", "a.zip: an archive, which is not read: unpack it first"),
    "a.xml": ("<rows/>", "a.xml: an XML file, which is not read: export it as JSON lines or CSV"),
    "x.txt": ("<?xml version='1.0'?>", "x.txt: an XML file, which is not read: export it as JSON lines or CSV"),
    "a.html": ("<p>Hi", "a.html: a web page, which is not read: save its text as a .txt file"),
    "h.txt": ("\n <!DOCTYPE html><p>Hi", "h.txt: a web page, which is not read: save its text as a .txt file"),
    "a.yaml": ("- prompt: a", "a.yaml: a YAML file, which is not read: export it as JSON lines or CSV"),
    "a.ipynb": ("{}", "a.ipynb: a notebook, which is not read: save its text as a .txt file"),
    "a.pdf": ("%PDF-1.7", "a.pdf: a PDF, which is not read: save its text as a .txt file"),
    "p.txt": ("%PDF-1.7", "p.txt: a PDF, which is not read: save its text as a .txt file"),
    "a.pkl": (b"\x80\x04", "a.pkl: a pickle, which is not read: export it as JSON lines or CSV"),
    "a.json.xz": (b"\xfd7zXZ\0", "a.json.xz: a compressed file, which is not read: unpack it first"),
    "z.jsonl": (b"\x28\xb5\x2f\xfd", "z.jsonl: a compressed file, which is not read: unpack it first"),
    "two.txt.gz": (gzip.compress(gzip.compress(b"a")), "two.txt.gz: a compressed file, which is not read"),
    "cut.jsonl.gz": (gzip.compress(b"abc" * 99)[:-9], "cut.jsonl.gz: not a whole gzip file (Compressed file"),
    "t.tar.gz": (b"", "t.tar.gz: an archive, which is not read: unpack it first"),
    "a.toml": ("a = 1", "a.toml: no format that is read is named .toml: where it is prose, name it .txt"),
    "latin.csv": ("text\ncaf\xe9".encode("latin-1"), "latin.csv, line 2: not UTF-8 text: save it as UTF-8"),
    "half.txt": (b"\xff\xfea\0b", "half.txt, line 1: not UTF-16 text: save it as UTF-8"),
    "wide.txt": ("text".encode("utf-16-le"), "wide.txt, line 1: a NUL byte: this is a binary file, not text"),
    # JSON that is broken, or empty
    "empty.json": ("[]", "empty.json: no records: there is nothing to learn from"),
    "dict.json": ("{}", f"dict.json, line 1: fields none: {GIVE}"),
    "one.json": ('{"name": "x", "version": 1}', f"one.json, line 1: fields 'name', 'version': {GIVE}"),
    "two.json": (
        json.dumps({"train": ROWS, "test": ROWS}),
        "two.json, line 1: several lists, 'train', 'test': give each a file of its own",
    ),
    "comma.json": ('[\n{"text": "a"},\n]', "comma.json, line 3: not JSON (Expecting value, column 1)"),
    "none.json": ('[\n{"text": "a"}\n{"text": "b"}\n]', "none.json, line 3: not JSON (Expecting ',' delimiter"),
    "cut.json": ('[\n{"text": "a"},\n{"te', "cut.json, line 3: not JSON (Unterminated string starting at, column 2)"),
    "open.json": ('[\n{"text": "a"}\n', "open.json, line 3: not JSON (Expecting ',' delimiter, column 1)"),
    "more.json": ('[\n{"text": "a"}\n]\nand', "more.json, line 4: not JSON (Extra data, column 1)"),
    "python.jsonl": ("{'text': 'a'}", "python.jsonl, line 1: not JSON (Expecting property name enclosed in"),
    "python.txt": ("{'text': 'a'}", "python.txt, line 1: not JSON (Expecting property name enclosed in double quotes"),
    "cut.txt": ('[{"text": "a"},\n{"te', "cut.txt, line 2: not JSON (Unterminated string starting at, column 2)"),
    "deep.json": ("[" * 100_000, "deep.json, line 1: nested too deeply"),
    "twice.json": ('[{"text": "a", "text": "b"}]', "twice.json, line 1: the field 'text' stands there twice: keep one"),
    "digits.json": ('[{"text": ' + "9" * 5000 + "}]", "digits.json, line 1: "),
    "strings.json": ('["a", "b"]', 'strings.json, record 1 (line 1): a JSON string, not an object such as {"text"'),
    "strings.txt": ('["a", "b"]', 'strings.txt, record 1 (line 1): a JSON string, not an object such as {"text"'),
    "talk.json": (json.dumps(TALK), "talk.json, record 1 (line 1): one message: put those of a conversation into one"),
    "prose.jsonl": ("Once upon a time", "prose.jsonl, line 1: not JSON (Expecting value, column 1)"),
    # tables
    "head.csv": ("prompt,completion\n", "head.csv: no records: there is nothing to learn from"),
    "names.csv": (
        "Say 1,The fox\nSay 2,The hen",
        f"names.csv, line 1: the first line names the columns, and here 'Say 1', 'The fox': {GIVE}",
    ),
    "more.csv": ("prompt,completion\na,b\nc,d, e", "more.csv, line 3: 3 cells, and the first line names 2: a cell"),
    "less.csv": ("prompt,completion\n\na,b\nc", "less.csv, line 4: 1 cells, and the first line names 2: a cell"),
    "one.csv": ("text\na\nb, c", "one.csv, line 3: 2 cells, and the first line names 1: a cell"),
    "quote.csv": ('prompt,completion\na,"b\nc,d', "quote.csv, line 2: a cell that begins with a double quote and does"),
    "quotes.csv": ('prompt,completion\na,"b" c', "quotes.csv, line 2: a cell that begins with a double quote and does"),
    "same.csv": ("text,Text\na,b", "same.csv, line 1: two columns of the name 'text': keep one"),
    "blank.csv": ("prompt,completion\na,b\nc,", "blank.csv, line 3: 'completion' is empty"),
    "nan.csv": ("prompt,completion\na,nan", "nan.csv, line 2: 'completion' is 'nan', which a program wrote for"),
    "excel.csv": ("prompt;completion\na;#N/A", "excel.csv, line 2: 'completion' is '#N/A', which a program wrote for"),
    "prefer.csv": ("prompt,chosen,rejected\na,b,c", "prefer.csv, line 2: preferences ('chosen', 'rejected') teach by"),
    "cell.csv": ("messages\n\"[{'role': 'user'}]\"", "cell.csv, line 2, 'messages': not JSON ("),
    "commas.tsv": ("prompt,completion\na,b", "commas.tsv, line 1: the first line names the columns, and here 'prompt,"),
    "pairs.txt": ("Go.\tVa !\nHi.\tSalut !\nRun!\tCours !", "pairs.txt: every line has as many tabs, as in a table"),
    "ragged.txt": ("prompt,completion\na,b\nc,d, e", "ragged.txt, line 3: 3 cells, and the first line names 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES_REFUSED)
def test_a_file_that_is_no_data_and_no_prose_is_refused_by_name(tmp_path, name):
    data, sentence = FILES_REFUSED[name]
    if name == "t.tar.gz":
        import tarfile

        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a"))
        data = buffer.getvalue()
    said = refusal(tmp_path, name, data)
    assert said.startswith(sentence) and "\n" not in said


PROSE = {
    "a.txt": "Once upon a time,\nthere was a fox.",
    "verse.txt": "[Verse 1]\nOh, the fox",
    "note.txt": "[1]\nThe fox, by Bob",
    "brace.txt": "{ a brace to begin with\nand prose",
    "title.txt": "Question and answer, by Ann Lee: a story, told twice\nOnce",
    "asked.txt": "Text\nof a fox",
    "indented.txt": "\tOnce\nupon\n\ta time\n",
    "comma.txt": "The question, my friend, is the answer\nOnce",
    "page.md": "---\ntitle: x\n---\n# The fox\n",
    "program.py": "[1, 2]\n",
    "README": "Once",
    "book.txt": "word " * 60_000,
}


@pytest.mark.parametrize("name", PROSE)
def test_prose_stays_prose(tmp_path, name):
    (document,), said = read(tmp_path, name, PROSE[name])
    assert document == Document(text=PROSE[name], where=f"{tmp_path}/{name}")
    assert said == [f"{tmp_path}/{name}: 1 read as plain text"]


def test_text_in_other_encodings_is_the_same_text(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (document,), _ = read(tmp_path, "a.txt", "One\r\n\r\ntwo é 🦊\r\n".encode(encoding))
        assert document.text == "One\n\ntwo é 🦊\n"
    (document,), _ = read(tmp_path, "a.txt", b"\xfe\xff" + "é".encode("utf-16-be"))
    assert document.text == "é"


def test_of_a_folder_the_data_are_read_and_the_rest_is_named(tmp_path):
    (tmp_path / "deep" / ".cache").mkdir(parents=True)
    files = {"b.csv": table(PAIRS), "deep/a.jsonl": json.dumps(PAIRS[0]), "README.md": "# Data", "run.py": "x = 1",
             "deep/.cache/c.jsonl": "no", ".hidden": "no"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    said = []
    assert len(read_documents(tmp_path, said.append)) == 4
    assert said == [
        f"{tmp_path}: 4 by 'prompt' and 'completion'",
        f"{tmp_path}: files that are not read: README.md, picture.png, run.py",
    ]
    for name in ("x.parquet", "x.xlsx", "x.xml", "x.arrow"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match=rf"{name}: an? .* which is not read: export .* or move it elsewhere$"):
            read_documents(tmp_path)
        (tmp_path / name).unlink()


def test_a_folder_of_source_code_is_read_with_its_pages(tmp_path):
    for name in ("a.py", "README.md", "picture.png", "LICENSE"):
        (tmp_path / name).write_text("x = 1")
    said = []
    assert [Path(one.where).name for one in read_documents(tmp_path, said.append)] == ["README.md", "a.py"]
    assert said == [f"{tmp_path}: 2 read as plain text", f"{tmp_path}: files that are not read: LICENSE, picture.png"]


def test_a_folder_with_unknown_json_is_refused_and_not_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(PAIRS[0]))
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": 1}}')
    with pytest.raises(InputError, match=r"dataset_infos.json, line 1: fields 'default': give"):
        read_documents(tmp_path)


def test_the_page_shows_every_shape_and_its_examples_are_read(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    for shape in records.SHAPES:
        row = f"| `{shape.asks}` | {', '.join(f'`{name}`' for name in shape.answers)} |"
        assert row in page, row
    examples = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    kinds = [kind for kind, _ in examples]
    assert {"json", "jsonl", "csv", "text"} == set(kinds)
    for kind, text in examples:
        if kind != "text":
            assert read(tmp_path, f"x.{kind}", text)[0]
    first, *_ = read(tmp_path, "x.json", next(text for kind, text in examples if kind == "json"))[0]
    assert first.prompt == next(text for kind, text in examples if kind == "text")
