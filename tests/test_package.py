"""The house: what an import costs and does, which way imports run, how long a file is, and who names a method."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import lora_jax
from lora_jax.adapters import METHODS

PACKAGE = Path(lora_jax.__file__).parent
ROOT = PACKAGE.parent
HEAVY = {
    "matplotlib",
    "tokenizers",
    "gguf",
    "huggingface_hub",
    "safetensors",
    "jinja2",
    "tqdm",
    "torch",
    "transformers",
}
# Every room, and the rooms that it imports from: each of them stands above it in this list. A module at the root is a
# room; `__init__` is the public face.
BELOW = {
    "errors": "",
    "untrusted": "errors",
    "weights": "",
    "rope": "",
    "attention": "errors weights",
    "cross_entropy": "",
    "transformer": "errors weights rope attention cross_entropy",
    "training": "errors transformer",
    "generation": "errors weights transformer",
    "quantize": "errors weights",
    "adapters": "errors untrusted weights",
    "files": "errors untrusted weights rope transformer adapters",
    "text": "errors untrusted transformer generation files",
    "tuning": "errors transformer training adapters files",
    "__init__": "errors weights rope transformer training generation adapters files tuning",
    "plots": "adapters",
    "memory": "errors untrusted rope attention transformer training quantize adapters files tuning plots",
    "memory.compiled": "errors untrusted weights rope transformer memory",
    "memory.measured": "errors untrusted adapters files memory memory.compiled",
    "exercises": "errors untrusted adapters memory",
    "exercises.grading": "errors files exercises",
    "commands": "errors untrusted transformer training generation quantize adapters files text tuning plots"
    " memory memory.compiled memory.measured exercises.grading",
    "__main__": "commands",
}
# Two rooms ask the face where the package lies, to tell it to a process that they start; they use nothing of it.
WHERE_IT_LIES = {"memory.compiled", "memory.measured"}
CODE = "def code():\n    pass\n"


def sources() -> dict[str, str]:
    """Every file of the package by its path inside it."""
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def test_importing_does_no_work_and_loads_nothing_heavy():
    """Beside jax and optax it brings only its own modules, and no backend is started, no file opened for writing."""
    program = (
        "import sys, jax, optax; before = set(sys.modules); import lora_jax; "
        "from jax._src import xla_bridge; assert not xla_bridge._backends, 'a backend was started'; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    brought = set(done.stdout.split())
    assert "lora_jax" in brought
    assert not brought & HEAVY, f"import lora_jax also imports {brought & HEAVY}"


# Which way imports run.


def room_of(parts: tuple[str, ...]) -> str:
    """The room of what a dotted name leads to, without the leading "lora_jax"."""
    folders = [".".join(parts[:n]) for n in range(1, len(parts) + 1) if PACKAGE.joinpath(*parts[:n]).is_dir()]
    return folders[-1] if folders else parts[0] if parts and (PACKAGE / f"{parts[0]}.py").exists() else "__init__"


def imports(text: str) -> set[str]:
    """The rooms that a file imports from."""
    return {room_of(parts) for parts in imported(text)}


def imported(text: str) -> list[tuple[str, ...]]:
    """What a file imports from the package: at its top, inside a function, or by a module's name in a string."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"lora_jax(\.\w+)+", str(node.value)):
            names.append(node.value)
    return [tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "lora_jax"]


def arrows() -> dict[str, set[str]]:
    """The rooms that each room of the package imports from."""
    found: dict[str, set[str]] = {}
    for path, text in sources().items():
        *folders, file = Path(path).with_suffix("").parts
        room = ".".join(folders) or file
        found.setdefault(room, set()).update(imports(text) - {room})
    return found


def test_the_map_of_imports_is_whole_and_true():
    for room, to in arrows().items():
        assert room in BELOW, f"{room} is not on the map"
        to -= {"__init__"} if room in WHERE_IT_LIES else set()
        assert to == set(BELOW[room].split()), f"{room} imports from {sorted(to)}"
    assert arrows().keys() == BELOW.keys()
    for room in WHERE_IT_LIES:
        text = "".join(text for path, text in sources().items() if path.startswith(room.replace(".", "/")))
        assert set(re.findall(r"\blora_jax\.(__\w+__)", text)) == {"__file__"}
        assert not re.search(r"from lora_jax import|import lora_jax as", text)


def test_imports_run_downward_only():
    rooms = list(BELOW)
    for i, room in enumerate(rooms):
        assert set(BELOW[room].split()) <= set(rooms[:i]), f"{room} imports from {BELOW[room]}"


@pytest.mark.parametrize(
    ("line", "room"),
    [
        ("import lora_jax", "__init__"),
        ("import lora_jax.files.peft", "files"),
        ("from lora_jax import merge", "__init__"),
        ("from lora_jax import quantize as q", "quantize"),
        ("from lora_jax.memory import planner", "memory"),
        ("from lora_jax.memory.compiled import compiler", "memory.compiled"),
        ("from lora_jax.adapters.base import attach", "adapters"),
        ("def late():\n    from lora_jax.commands.cli import main", "commands"),
        ('home = "lora_jax.exercises.grading.grader"', "exercises.grading"),
    ],
)
def test_an_import_is_seen_wherever_it_stands(line, room):
    assert imports(line) == {room}


# Who reads what anybody may have written.

READS_JSON = {  # and why each of the others may
    "untrusted/json_text.py": "it is the gate",
    "untrusted/child.py": "the answers of its own programs, whose length it has checked",
    "files/try_tokenizer.py": "runs in a child, on what the library wrote out",
    "tuning/loop.py": "its own writing, read back in the same breath",
    "memory/measured/device.py": "its own writing, read back in the same breath",
    "exercises/grading/sandbox.py": "its own argument, which `isolation.py` wrote",
    "exercises/grading/cells.py": "a notebook, of which control characters are taken as Jupyter takes them",
}
READS_PATTERNS = {"untrusted/patterns.py", "untrusted/match_patterns.py"}
TEMPLATES, TOKENIZERS = {"files/rendering.py"}, {"files/tokenizer_file.py", "files/try_tokenizer.py"}


def reads_json(text: str) -> bool:
    """Whether a file parses JSON itself."""
    return bool(re.search(r"\bjson\.(load|loads|JSONDecoder)\b|from json import", text))


def test_json_is_read_through_the_gate():
    assert {path for path, text in sources().items() if reads_json(text)} == READS_JSON.keys()
    for path in ("tuning/loop.py", "memory/measured/device.py"):
        found = re.findall(r"json\.loads?\(.*", (PACKAGE / path).read_text())
        assert all(one.startswith("json.loads(json.dumps(") for one in found), path


@pytest.mark.parametrize(
    "line", ["json.load(file)", "x = json.loads(text)", "json.JSONDecoder()", "from json import loads"]
)
def test_a_reader_of_json_is_seen(line):
    assert reads_json(line) and not reads_json("json_text.loads(text)\njson.dumps({})\n")


def test_patterns_templates_and_tokenizers_have_one_gate_each():
    """A pattern that is no text in the program itself, a template, a tokenizer: each is handed over in one place."""
    for path, text in sources().items():
        for call in re.findall(
            r"\bre\.(?:compile|match|search|fullmatch|sub|split|findall|finditer)\(\s*([^,)]*)", text
        ):
            known = re.match(r"""[rbf]*["']""", call) or path in READS_PATTERNS
            assert known, f"{path}: {call} as a pattern"
        assert "from_string" not in text or path in TEMPLATES, path
        assert ".from_str(" not in text or path in TOKENIZERS | {"files/tokenizer.py"}, path  # a copy of what was read


# How long a file is.


def test_a_file_reads_in_one_sitting():
    lines = {path: len(text.splitlines()) for path, text in sources().items()}
    assert max(lines.values()) <= 300, {name: n for name, n in lines.items() if n > 300}


def test_the_model_lora_and_training_are_about_a_thousand_lines():
    readme = runpy.run_path(str(ROOT / "tools" / "readme.py"))
    counts = [readme["count_lines"](PACKAGE / name) for name in readme["CORE"]]
    assert sum(code for _, code in counts) <= 1_000
    # They use each other and no other file, but for a user's mistake and for what a user's patterns and JSON say.
    parts = {parts[:n] for name in readme["CORE"] for parts in imported((PACKAGE / name).read_text()) for n in (1, 2)}
    needed = {"/".join(one) + ".py" for one in parts} & sources().keys()
    assert needed - {*readme["CORE"]} == {
        "errors.py",
        "untrusted/fields.py",
        "untrusted/json_text.py",
        "untrusted/patterns.py",
    }


def test_lines_of_code_are_those_without_blank_ones_comments_and_docstrings(tmp_path):
    text = '"""A docstring\nof two lines."""\n\n# a comment\nx = """two\nlines"""  # and more\n\n\n' + CODE
    (tmp_path / "some.py").write_text(text)
    readme = runpy.run_path(str(ROOT / "tools" / "readme.py"))
    assert readme["count_lines"](tmp_path / "some.py") == (len(text.splitlines()), 4)


# Who names a method: its own file, the registry, and a method that is built on it.

NAMES = {name: row.adapter.__name__ for name, row in METHODS.items()}  # lora: LoRA
HOMES = {name: row.adapter.__module__ for name, row in METHODS.items()}  # lora: lora_jax.adapters.lora
REGISTRY = "adapters/__init__.py"


def allowed(path: str, tree: ast.AST) -> set[str]:
    """The methods that a file may name: its own, and in a method's file those whose module it imports."""
    module = ".".join(("lora_jax", *Path(path).with_suffix("").parts))
    if module not in HOMES.values():
        return set()
    imported = {
        f"{node.module}.{alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    return {name for name, home in HOMES.items() if home in imported | {module}}


def not_code(tree: ast.AST) -> set[ast.AST]:
    """Strings that are prose or a learner's: docstrings, and the text of an exercise's solution."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            found.add(body[0].value)
        if isinstance(node, ast.keyword) and node.arg == "solution":
            found.add(node.value)
    return found


def who_names_a_method(path: str, text: str) -> list[str]:
    """Each place where a file names a method: `line: what`.

    An identifier names one where it is the name of a row or of its adapter's class; a string where a row's name stands
    in it as a word ("lora" and "--method lora"; "LoRA" is prose, and `lora_jax` another word). An `isinstance` of what
    a row gives as its `adapter` names one too.
    """
    tree = ast.parse(text)
    prose, free = not_code(tree), allowed(path, tree)
    words = set(METHODS) - free
    identifiers = words | {NAMES[name] for name in words}
    found = []
    for node in ast.walk(tree):
        parts: set[str] = set()
        for field, value in ast.iter_fields(node):
            if isinstance(node, ast.Constant):
                if field == "value" and isinstance(value, str) and node not in prose:
                    parts |= words & set(re.findall(r"\w+", value))
            else:
                for one in value if isinstance(value, list) else [value]:
                    parts |= identifiers & set(one.split(".")) if isinstance(one, str) else set()
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            kinds = {getattr(one, "attr", "") for one in ast.walk(node.args[1])}
            parts |= {"isinstance of an adapter's class"} if "adapter" in kinds else set()
        found += [f"{getattr(node, 'lineno', 0)}: {part}" for part in sorted(parts)]
    return found


def test_nothing_names_a_method_but_its_own_file_and_the_registry():
    found = {path: who_names_a_method(path, text) for path, text in sources().items() if path != REGISTRY}
    assert not {path: places for path, places in found.items() if places}


@pytest.mark.parametrize("name", METHODS)
def test_the_search_for_names_finds_them(name):
    kind, home = NAMES[name], HOMES[name].rsplit(".", 1)[-1]
    planted = (
        f"{name} = 1",
        f"def {name}(): pass",
        f"def f({name}): pass",
        f"f({name}=1)",
        f"x.{name}",
        f"class {kind}: pass",
        f"isinstance(x, {kind})",
        f"from lora_jax.adapters import {home} as other",
        f"from lora_jax.adapters.{home} import init",
        f"import lora_jax.adapters.{home}",
        f'METHODS["{name}"]',
        f'f"train --method {name} --out {{x}}"',
        "match x:\n    case " + kind + "(): pass",
    )
    for text in planted:
        assert who_names_a_method("memory/steps.py", text), text


@pytest.mark.parametrize("how", ["isinstance(x, row.adapter)", "issubclass(type(x), (int, METHODS[name].adapter))"])
def test_the_search_for_names_finds_an_isinstance_of_what_a_row_gives(how):
    assert who_names_a_method("files/peft.py", how) == ["1: isinstance of an adapter's class"]


def test_the_search_for_names_leaves_prose_and_other_words_alone():
    for text in (
        '"""How lora and prompt_tuning differ."""',
        'import lora_jax\nprint("LoRA saves no activation memory", lora_jax.merge)',
        "def f(prompt):\n    return isinstance(prompt, str), lora_product, adapter",
        'Exercise(solution="lora = 2 * P")',
    ):
        assert not who_names_a_method("memory/steps.py", text), text
    built_on = "from lora_jax.adapters import lora\nlora.init(), lora.LoRA"
    assert not who_names_a_method("adapters/dora.py", built_on)
    assert who_names_a_method("adapters/base.py", built_on)
    assert who_names_a_method("adapters/dora.py", "lora.init()")


def test_the_transformer_knows_no_method():
    text = (PACKAGE / "transformer.py").read_text().lower().replace("lora_jax", "")
    assert not re.search(r"\b(lora|adapters?|rank)\b", text)
