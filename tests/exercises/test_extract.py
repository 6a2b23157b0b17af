"""What is taken of a submission: the answer and what it needs, however the file is written, and nothing else."""

import json

import pytest

from lora_jax.exercises.grading.extract import answer_of, statements

# Not unfinished: a learner's cell as it is handed out, which the extractor must know from an answer.
STUB = 'def double(x):\n    """x (N,)."""\n    y = 1\n    raise NotImplementedError  # your code here\n'


def run(tmp_path, source, name="double", is_function=True):
    path = tmp_path / "answers.py"
    path.write_text(source)
    program = answer_of(statements(path)[0], name, is_function)
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


def test_a_notebooks_cells_are_read_and_its_faults_said(tmp_path):
    path = tmp_path / "it.ipynb"
    cells = [{"cell_type": "markdown", "source": "x"}, {"cell_type": "code", "source": ["a = 1\n", "b = (\n"]}]
    path.write_text(json.dumps({"cells": [*cells, {"cell_type": "code", "source": "c = 3"}]}))
    found, wrong = statements(path)
    assert [set(names) for names, _ in found] == [{"c"}]
    assert wrong == ["cell 1 is not Python ('(' was never closed, line 2)"]
    path.write_text('{"cells": 1}')
    with pytest.raises(ValueError, match="not a notebook"):
        statements(path)
    path.write_text("no JSON")
    with pytest.raises(ValueError, match="Expecting value"):
        statements(path)
