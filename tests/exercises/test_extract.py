"""What is taken of a submission: the answer and what it needs, however the file is written, and nothing else."""

import json

import pytest

from lora_jax.exercises.grading.extract import answer_of, statements

# Not unfinished: a learner's cell as it is handed out, which the extractor must know from an answer.
STUB = 'def double(x):\n    """x (N,)."""\n    y = 1\n    raise NotImplementedError  # your code here\n'


def run(tmp_path, source, name="double", is_function=True):
    """The answer in a .py file."""
    path = tmp_path / "answers.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return value(path, name, is_function)


def run_cell(tmp_path, source, name="double", is_function=True):
    """The answer in a notebook of one cell."""
    path = tmp_path / "answers.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": source}]}))
    return value(path, name, is_function)


def value(path, name="double", is_function=True):
    program = answer_of(statements(path.name, path.read_bytes())[0], name, is_function)
    if program is None:
        return None
    space = {}
    exec(compile(program, "answers", "exec"), space)
    return space[name]


@pytest.mark.parametrize(
    "source",
    [
        "def double(x):\n    return 2 * x",
        "import numpy as np\ntwo = np.add(1, 1)\ndef double(x):\n    return two * x",
        "def double(x):\n    return times(x)\ndef times(x):\n    return 2 * x",  # a helper may come later
        "double = lambda x: 2 * x",
        "from operator import *\ndef double(x):\n    return add(x, x)",
        "two = 1\ntwo += 1\ndef double(x):\n    return two * x",
        "def double(x, two=2):\n    def inner():\n        return two * x\n    return inner()",
        f"{STUB}\n# %%\ndef double(x):\n    return 2 * x",  # written in another cell
        f"def double(x):\n    return 2 * x\n# %%\n{STUB}",
        "def double(x):\n    return x\ndef double(x):\n    return 2 * x",  # the last counts
        "def double(x):\n    return 2 * x\nfrom math import sqrt as double",  # the notebook goes on with another
        "params = 1 / 0\ndef double(params):\n    return 2 * params",  # an argument is not the notebook's variable
        "def double(x):\n    return 2 * x\nraise SystemExit\nprint(1 / 0)",
        "# %%\n%matplotlib inline\n!ls\ndef double(x):\n    return 2 * x",
        "# %%\ndef broken(:\n# %%\ndef double(x):\n    return 2 * x",
        "def double(x):\n    return 2 * x\n    raise NotImplementedError  # your code here",  # left below
    ],
)
def test_an_answer_is_found(source, tmp_path):
    assert run(tmp_path, source)(4) == 8


def test_what_is_not_written_is_not_found(tmp_path):
    assert run(tmp_path, STUB) is None
    assert run(tmp_path, "other = 1") is None
    assert run(tmp_path, f"{STUB}\ndouble = abs") is None  # the package's, not the learner's
    assert run(tmp_path, "guess = None  # your prediction", "guess", False) is None
    assert run(tmp_path, "guess = None\nguess = 2 * 4", "guess", False) == 8
    assert run(tmp_path, "n = 4\nguess = 2 * n\nn = 0", "guess", False) == 8


DOUBLE = "def double(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    "source",
    [
        "def double(x):\n    %time y = 2 * x\n    return y",
        "def double(x):\n\t%time y = 2 * x\n\treturn y",
        "def double(x):\n    y = %time 2 * x\n    return y",
        "def double(x):\n    %prun -q y = 2 * x\n    return y",
        "def double(x):\n    %timeit -n 1 -r1 y = 2 * x\n    return y",  # no name of IPython's, but the answer is there
        "def double(x):\n    y = 2 * x\n    %timeit y = 3 * x\n    return y",  # %timeit binds nothing
        "def double(x):\n    %timeit z = x / 0\n    return 2 * x",
        "def double(x):\n    y = []\n    for i in range(2):\n        %time y.append(x)\n    return sum(y)",
        "def double(x):\n    !ls\n    lines = !ls {x}\n    for line in lines:\n        print(line)\n    return 2 * x",
        "def double(x):\n    if x > 100:\n        %debug\n    return 2 * x",  # nothing else in a block
        "def double(x):\n    x?\n    %matplotlib inline\n    return 2 * x",
        "class Two:\n    %time two = 2\n\ndef double(x):\n    return Two.two * x",
        "%time two = 2\n%timeit two = 3\ndef double(x):\n    return two * x",
        "import contextlib\nwith contextlib.nullcontext():\n    %time two = 2\ndef double(x):\n    return two * x",
        f"{DOUBLE}double?\ndouble??\n?double\n??double\nmath.*sin*?\nx = jnp.sum?\n?",
        f"x = !ls\na, b = !ls\n!!ls\n!ls \\\n  -l\nhome = %env HOME\n{DOUBLE}",
        f"%time double(\\\n 3)\n{DOUBLE}/double 3\n,double a b\n;double a b\n",
        f"%%time\n{DOUBLE}",
        f"%%timeit -n 1 -r 2\n{DOUBLE}",
        f"%%capture out --no-stderr\n%%time\n!ls\n{DOUBLE}",
        f"%%prun -q -l 5\n{DOUBLE}",
        f"%%memit\n{DOUBLE}",  # an extension's
        f"\n\n# mine\n\n%%time\n{DOUBLE}",
        "\n  %%time\n  def double(x):\n      return 2 * x",
        ">>> def double(x):\n...     return 2 * x\n...\n>>> double(3)",
        "In [12]: def double(x):\n    ...:     return 2 * x\n    ...:",
        f"get_ipython().run_cell_magic('time', '', {DOUBLE!r})",
        "get_ipython().magic('time two = 2')\ndef double(x):\n    return two * x",
        "%pylab inline\ndef double(x):\n    return np.add(x, x) + zeros(1)[0]",
        # What looks like a magic and is none.
        'text = """\n%time 1\n!ls\n"""\ndef double(x):\n    return 2 * x if text == "\\n%time 1\\n!ls\\n" else None',
        "n = (6\n  %4)\ndef double(x):\n    return x * n",
        "def double(x):\n    return x * (x \\\n    % 2 + 2)",
        f"import asyncio\nawait asyncio.sleep(0)\n{DOUBLE}",
        "double = lambda x: 2 * x;",
        f"r = '\\d'\n!ls\n{DOUBLE}",
        f"s = '\ud800'\n{DOUBLE}",
        DOUBLE.replace("\n", "\r\n") + "!ls\r\n",
        f"{DOUBLE}\n[double for double in range(3)]",
        f"two = 2\nif __name__ == '__main__':\n    import sys\n    two = int(sys.argv[99])\n{DOUBLE}".replace(
            "2 *", "two *"
        ),
    ],
)
def test_an_answer_is_found_beside_what_only_ipython_reads(source, tmp_path):
    assert run_cell(tmp_path, source)(4) == 8


@pytest.mark.parametrize(
    "source",
    [
        "%time guess = 8",
        "guess = %time 4 * 2",
        "%prun guess = 8",
        "time guess = 8",  # alone in its cell it needs no %
        "%%time\nguess = 8;",
        "%%timeit\nguess = 8",
        "guess = 8\n%timeit guess = 3",
        "guess = 8\nguess?\nother = guess?",
        "guess = None\n%time guess = 8",
        "if __name__ == '__main__':\n    n = 4\n    guess = 2 * n",
    ],
)
def test_a_value_is_found_beside_what_only_ipython_reads(source, tmp_path):
    assert run_cell(tmp_path, source, "guess", False) == 8


@pytest.mark.parametrize("magic", ["bash", "html", "writefile answers.py", "script python", "sh", "python3", "!", "js"])
def test_a_cell_of_another_program_is_left_alone(magic, tmp_path):
    path = tmp_path / "it.ipynb"
    other = {"cell_type": "code", "source": f"%%{magic}\n{DOUBLE.replace('2', '3')}"}
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": DOUBLE}, other]}))
    assert value(path)(4) == 8
    other["source"] = f"%%{magic}\nif [ -f x ]; then <b>"
    path.write_text(json.dumps({"cells": [other]}))
    found, wrong = statements(path.name, path.read_bytes())
    assert not wrong
    assert not any(names for names, _ in found)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("%%time\na = 1\nb = (", "'(' was never closed, line 3"),
        ("\n\na = 1\n!ls \\\n -l\nb = )", "unmatched ')', line 6"),  # where the learner sees it
        ('print "x"', "Missing parentheses"),
        ("for i in x: %time f(i)", "invalid syntax, line 1"),  # IPython does not read it either
        ("x = %", "invalid syntax"),
        ("\0", "null bytes"),
        ("!ls\n" * 4, "IPython cannot read it"),  # it stops after so many, 500 where no test says otherwise
    ],
)
def test_a_cell_that_is_not_python_is_named_and_costs_no_other(source, says, tmp_path, monkeypatch):
    monkeypatch.setattr("IPython.core.inputtransformer2.TRANSFORM_LOOP_LIMIT", 4)
    path = tmp_path / "it.ipynb"
    cells = [{"cell_type": "code", "source": one} for one in ("a = 1", source, DOUBLE)]
    path.write_text(json.dumps({"cells": cells}))
    found, wrong = statements(path.name, path.read_bytes())
    assert [set(names) for names, _ in found] == [{"a"}, {"double"}]
    assert len(wrong) == 1
    assert wrong[0].startswith("cell 2 is not Python (")
    assert says in wrong[0]


# A right answer, and beside it what the interpreter's own limits are for. The depths are beyond Python's recursion.
DEEP = {
    "parentheses": "x = " + "(" * 10_000 + ")" * 10_000,
    "signs": "x = " + "-" * 10_000 + "1",
    "fields": "x = a" + ".b" * 50_000,
    "calls": "x = a" + "()" * 50_000,
    "items": "x = a" + "[0]" * 50_000,
    "elifs": "if a: b = 1\n" + "elif a: b = 1\n" * 100_000,
    "sums": "x = 1" + "+1" * 100_000,
    "powers": "x = 1" + "**1" * 50_000,
    "nots": "x = " + "not " * 50_000 + "1",
    "lambdas": "x = " + "lambda: " * 50_000 + "1",
    "choices": "x = " + "1 if 1 else " * 50_000 + "1",
    "blocks": "".join(" " * n + "if 1:\n" for n in range(150)) + " " * 150 + "x = 1",
    "formats": "x = f'{x:{x:{x:{x}}}}'",
    "digits": "x = " + "1" * 5_000,
    "zeros": "\0" * 1_000,
    "timed": "%%timeit\nx = 1" + "+1" * 100_000,
    "guarded": "if __name__ == '__main__'" + " + 1" * 100_000 + ":\n    x = 1",
}
# Python reads these; what Python can do with them, the extractor must be able to do too.
LONG = {
    "sums": "x = 1" + "+1" * 900,
    "signs": "x = " + "-" * 900 + "1",
    "fields": "x = a" + ".b" * 2_500,
    "elifs": "if a: b = 1\n" + "elif a: b = 1\n" * 900,
    "hexadecimal": "x = 0x" + "f" * 500_000,
    "strings": "x = " + "'a' " * 100_000,
    "line": "x = '" + "a" * 5_000_000 + "'",
    "decorators": "@a\n" * 5_000 + "def f(): pass",
    "timed": "%timeit x = 1" + "+1" * 900,
    "guarded": "if __name__ == '__main__':\n    x = 1" + "+1" * 900,
    "half a character": "x = '\\ud800'",
    "raised": "def f():\n    raise E" + "+1" * 900,
}


def beside(other, *cells):
    cells = [{"cell_type": "code", "source": one} for one in (DOUBLE, "%timeit double(1)", other, *cells)]
    return statements("it.ipynb", json.dumps({"cells": cells}).encode())


@pytest.mark.parametrize("kind", DEEP)
def test_what_is_nested_too_deep_costs_its_own_cell(kind):
    found, (said,) = beside(DEEP[kind])
    assert said.startswith("cell 3 is not Python (")
    assert len(said) < 250
    assert "()" not in said
    assert answer_of(found, "double", True) is not None
    assert answer_of(found, "x", False) is None


@pytest.mark.parametrize("kind", LONG)
def test_what_is_long_and_can_be_read_is_no_fault(kind):
    found, wrong = beside(LONG[kind])
    assert wrong == []
    assert answer_of(found, "double", True) is not None
    for name, is_function in (("x", False), ("f", True)):
        answer_of(found, name, is_function)  # whatever it says


@pytest.mark.parametrize("times", [400, 900])
def test_a_right_answer_may_be_long(times, tmp_path):
    zeros = " + 0" * times
    assert run_cell(tmp_path, f"two = 2{zeros}\ndef double(x):\n    return two * x{zeros}")(4) == 8
    assert run_cell(tmp_path, f"%timeit 1\nbig = 0x{'f' * 5_000}\ndef double(x):\n    return 2 * x % big")(4) == 8
    fields = ".real" * times
    assert run_cell(tmp_path, f"def double(x):\n    return (2 * x){fields}")(4) == 8


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 100_000, "it is not a notebook"),
        (b'{"cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it is not a notebook"),
        (b'{"a":' * 100_000, "it is not a notebook"),
        (b'{"cells": [1' + b"0" * 5_000 + b"]}", "Exceeds the limit"),
        (b'{"cells": "abc"}', "it is not a notebook"),
        (b'{"cells": {"a": 1}}', "it is not a notebook"),
        (b'{"cells": 12}', "it is not a notebook"),
        (b'{"worksheets": [{"cells": 1}]}', "it is not a notebook"),
        (b'"cells"', "it is not a notebook"),
        (b'["cells"]', "it is not a notebook"),
        (b"12", "it is not a notebook"),
        (b"null", "it is not a notebook"),
        (b"\0" * 100, "it is empty"),
        ("\ufeff".encode("utf-16"), "it is empty"),
        (b'{"cells": [{"cell_type": "code", "sou', "save it again and hand it in"),
        (b"\xff\xfe{\0", "save it again"),
        (b"def double(x):\n    return 2 * x", "it is a program whose name ends in .ipynb: rename it to end in .py"),
        (b'<<<<<<< HEAD\n{"cells": []}\n=======\n>>>>>>> other', "both sides of a conflict in it: keep one"),
        (b'{"cells": [\n<<<<<<< HEAD\n=======\n>>>>>>> other\n]}', "both sides of a conflict in it: keep one"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
    ],
)
def test_what_is_no_notebook_is_told(data, says):
    with pytest.raises(ValueError) as caught:
        statements("it.ipynb", data)
    assert says in str(caught.value)


def test_a_notebook_has_so_many_cells(monkeypatch):
    cell = b'{"cell_type": "code", "source": "x = 1"}'
    for number in (9, 10):
        found, _ = statements("it.ipynb", b'{"cells": [' + b",".join([cell] * number) + b"]}")
        assert len(found) == number
        monkeypatch.setattr("lora_jax.exercises.grading.cells.MAX_CELLS", 10)
    with pytest.raises(ValueError, match="it has 11 code cells, and more than 10 are not read"):
        statements("it.ipynb", b'{"cells": [' + b",".join([cell] * 11) + b"]}")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"kernelspec": {"name": "ir", "language": "R"}}, "it is a notebook in R: hand in one in Python"),
        ({"language_info": {"name": "julia"}}, "it is a notebook in julia: hand in one in Python"),
        ({"language_info": {"name": "C#"}, "kernelspec": {"language": "python"}}, "it is a notebook in C#"),
        ({"kernelspec": {"name": "python3", "language": "python"}}, ""),
        ({"kernelspec": {"name": "x", "language": "ipython"}}, ""),
        ({"kernelspec": {"name": "python3"}, "colab": {}}, ""),
        ({"kernelspec": None, "language_info": 3}, ""),
        ([], ""),
        (None, ""),
    ],
)
def test_a_notebook_in_another_language_says_so_and_is_read_all_the_same(metadata, says):
    cells = [{"cell_type": "code", "source": DOUBLE}]
    found, wrong = statements("it.ipynb", json.dumps({"cells": cells, "metadata": metadata}).encode())
    assert wrong == [says] * bool(says) or (wrong and wrong[0].startswith(says))
    assert answer_of(found, "double", True) is not None


@pytest.mark.parametrize(
    "name", ["rot13", "hex", "zlib", "undefined", "idna", "punycode", "utf-7", "no such", "x" * 500]
)
def test_a_script_may_say_that_it_is_in_any_encoding(name):
    found, _ = statements("it.py", f"# coding: {name}\n{DOUBLE}\n# é\n".encode())
    assert isinstance(found, list)


def test_a_name_is_what_python_makes_of_it():
    """Full-width letters are the same name to Python: NFKC."""
    wide = "".join(chr(ord(letter) - ord("a") + 0xFF41) for letter in "double")
    found, _ = statements("it.py", DOUBLE.replace("double", wide).encode())
    assert answer_of(found, "double", True) is not None


def test_reading_takes_no_longer_than_the_file_is_long():
    """What looks like a header, over and over, is looked for once."""
    found, _ = statements("it.py", b"# ---\n" * 200_000 + DOUBLE.encode())
    assert answer_of(found, "double", True) is not None


def test_a_cell_too_long_for_ipython_is_told():
    found, (said,) = beside("x = 1\n" * 20_000 + "!ls")
    assert "IPython does not read" in said
    assert answer_of(found, "double", True) is not None


HEADER = "# ---\n# jupyter:\n#   jupytext:\n#     text_representation:\n#       format_name: percent\n# ---\n\n"


@pytest.mark.parametrize(
    "source",
    [
        f"# %%\n# %time\n{DOUBLE}",
        f"#%%\n# %%time\n{DOUBLE}",
        f"# %%\n%%time\n{DOUBLE}",
        f"# %%\n%%bash\nls -l foo\n# %% [markdown]\n# words\n#%% a title\n{DOUBLE}",
        "# %%\ndef double(x):\n    # %time y = 2 * x\n    return y",  # a magic that Jupytext wrote as a comment
        "# %%\ndef double(x):\n    y = 2 * x\n    # %time y = 3 * x\n    return y",  # commented out by hand
        "# %%\ndef double(x):\n    # %time z = x / 0\n    return 2 * x",
        f"{HEADER}# %%\ndef double(x):\n    y = 0\n    # y = %time 2 * x\n    return y",
        f'{HEADER}# %% language="bash"\n# ls -l\n\n# %%\n# %time two = 2\n# !ls\ndef double(x):\n    return two * x',
        f"{HEADER}# + tags=[]\nx = (\n# -\n\n# +\n{DOUBLE}",
        f"#!/usr/bin/env python\n\n# In[1]:\n\nget_ipython().run_line_magic('time', 'x')\n\n# In[ ]:\n\n{DOUBLE}",
        f"# COMMAND ----------\n%md\n# words, and more\n# COMMAND ----------\n{DOUBLE}",
        f's = """\n# %%\n"""\n{DOUBLE}',  # no cell begins inside a string
        "def double(x):\n# %%\n    return 2 * x",  # nor inside a function
        f"%matplotlib inline\n{DOUBLE}",
        f"{DOUBLE}\nif __name__ == '__main__':\n    print(double(3))\n",
        "if __name__ == '__main__':\n    def double(x):\n        return 2 * x\n",
        f"# é\n{DOUBLE}".encode("latin-1"),
        f"# -*- coding: cp1252 -*-\n# “é”\n{DOUBLE}".encode("cp1252"),
        f"# é\n{DOUBLE}".encode("utf-16"),
        f"# é\n{DOUBLE}".encode("utf-8-sig"),
        DOUBLE.replace("\n", "\r").encode(),
    ],
)
def test_an_answer_is_found_in_any_script(source, tmp_path):
    assert run(tmp_path, source)(4) == 8


def test_a_fault_in_a_script_is_named_by_its_line_in_the_file(tmp_path):
    path = tmp_path / "it.py"
    path.write_text("# %%\na = 1\n\n# %% [markdown]\n# words\n\n# %%\nb = (\n\n# %%\nc = 1\n")
    found, wrong = statements(path.name, path.read_bytes())
    assert [set(names) for names, _ in found] == [{"a"}, {"c"}]
    assert wrong == ["cell 2 is not Python ('(' was never closed, line 8 of the file)"]


@pytest.mark.parametrize(
    "notebook",
    [
        {"cells": [{"cell_type": "code", "source": DOUBLE}]},
        {"cells": [{"cell_type": "code", "source": DOUBLE.splitlines(keepends=True)}]},
        {"worksheets": [{"cells": [{"cell_type": "code", "input": DOUBLE, "language": "python"}]}], "nbformat": 3},
        {"worksheets": [{"cells": []}, {"cells": [{"cell_type": "code", "input": DOUBLE.splitlines(True)}]}]},
        {"cells": [{"cell_type": "code", "code": DOUBLE}], "nbformat": 1},
        {"cells": [{"cell_type": "raw", "source": "x = ("}, {"cell_type": "code", "source": DOUBLE}]},
        {"cells": [{"cell_type": "code"}, None, {"cell_type": "code", "source": DOUBLE}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_notebook_of_any_version_is_read(notebook, encoding, tmp_path):
    path = tmp_path / "IT.IPYNB"
    path.write_bytes(json.dumps(notebook).encode(encoding))
    assert value(path)(4) == 8


def test_a_cell_without_text_is_named(tmp_path):
    path = tmp_path / "it.ipynb"
    cells = [
        {"cell_type": "markdown"},
        {"cell_type": "code"},
        None,
        "source",
        {"cell_type": "code", "source": ["a", 2]},
    ]
    path.write_text(json.dumps({"cells": cells}))
    assert statements(path.name, path.read_bytes()) == ([], [f"cell {number} holds no text" for number in (1, 2, 3, 4)])
    path.write_text(" \n")
    with pytest.raises(ValueError, match="it is empty"):
        statements(path.name, path.read_bytes())


def test_a_notebooks_cells_are_read_and_its_faults_said(tmp_path):
    path = tmp_path / "it.ipynb"
    cells = [{"cell_type": "markdown", "source": "x"}, {"cell_type": "code", "source": ["a = 1\n", "b = (\n"]}]
    path.write_text(json.dumps({"cells": [*cells, {"cell_type": "code", "source": "c = 3"}]}))
    found, wrong = statements(path.name, path.read_bytes())
    assert [set(names) for names, _ in found] == [{"c"}]
    assert wrong == ["cell 1 is not Python ('(' was never closed, line 2)"]
    path.write_text('{"cells": 1}')
    with pytest.raises(ValueError, match="not a notebook"):
        statements(path.name, path.read_bytes())
    path.write_text("no JSON")
    with pytest.raises(ValueError, match="Expecting value"):
        statements(path.name, path.read_bytes())


@pytest.fixture(scope="module")
def ipython(tmp_path_factory):
    """IPython itself, with nothing of the user's and nothing written."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config, ipython_dir=str(tmp_path_factory.mktemp("ipython")))
    yield shell
    shell.restore_sys_module_state()


@pytest.mark.parametrize(
    "source",
    [
        "%time guess = 8",
        "guess = %time 4 * 2",
        "%prun -q guess = 8",
        "time guess = 8",
        "%%time\nguess = 8;",
        "%%time\n%time guess = 4\nguess += 4",
        "%%capture\nguess = 8\nprint(guess)",
        "%%prun -q\nguess = 8",
        "guess = 8\n%timeit -n1 -r1 guess = 3",
        "guess = 8\nother = %timeit -n1 -r1 -q -o guess + 1",
        "%%timeit -n1 -r1\nguess = 3",
        "def f():\n    y = %time 2 * 4\n    return y\nguess = f()",
        "def f():\n    y = []\n    for i in range(2):\n        %time y.append(4)\n    return sum(y)\nguess = f()",
        "def f():\n    y = 8\n    %timeit -n1 -r1 y = 3\n    return y\nguess = f()",
        "lines = !true\nguess = 8 + len(lines)",
        ">>> def f():\n...     return 8\n...\n>>> guess = f()",
        "In [2]: guess = 4\n   ...: guess *= 2",
        'text = """\n%time 1\n"""\nguess = len(text)',
        "n = (6\n  %4)\nguess = 4 * n",
        "import asyncio\nawait asyncio.sleep(0)\nguess = 8",
        "%%bash\nguess=3",
        "%%writefile /dev/null\nguess = 3",
        "  guess = 4\n  guess += 4",
    ],
)  # fmt: skip
def test_a_cell_gives_what_it_gives_in_ipython(source, ipython, tmp_path):
    """The same value, or none where it gives none; only what `%timeit` alone binds is taken for an answer as well."""
    ipython.user_ns.pop("guess", None)
    ipython.user_ns["__name__"] = "__main__"
    ipython.run_cell(source)
    expected = ipython.user_ns.get("guess")
    found = run_cell(tmp_path, source, "guess", False)
    assert found == (3 if source.startswith("%%timeit") else expected)
    assert (expected is None) == source.startswith(("%%timeit", "%%bash", "%%writefile"))
