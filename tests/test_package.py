"""The house itself: what an import costs and does, which way imports run, and how long a file is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import lora_jax

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
# Each room, and the rooms below it that it may import from.
BELOW = {
    "errors": set(),
    "weights": {"errors"},
    "attention": {"errors", "weights"},
    "cross_entropy": set(),
    "rope": set(),
    "transformer": {"weights", "attention", "cross_entropy", "rope", "errors"},
    "adapters": {"weights", "errors"},
    "training": {"transformer", "errors"},
    "files": {"transformer", "rope", "adapters", "tokenizer", "weights", "errors"},
}


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


def imports(path: Path) -> set[str]:
    """The rooms of the package that a file imports from, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("lora_jax.")}
    return found


def test_imports_run_downward_only():
    for room, allowed in BELOW.items():
        files = list((PACKAGE / room).glob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]
        assert files
        for file in files:
            assert imports(file) <= allowed | {room}, f"{file.name} imports {imports(file) - allowed - {room}}"


def test_a_file_reads_in_one_sitting():
    lines = {path.relative_to(PACKAGE): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert max(lines.values()) <= 300, {name: n for name, n in lines.items() if n > 300}
    core = ("transformer.py", "adapters/lora.py", "training.py")
    assert sum(lines[Path(name)] for name in core) <= 500


def test_the_transformer_knows_no_method():
    text = (PACKAGE / "transformer.py").read_text().lower().replace("lora_jax", "")
    assert not re.search(r"\b(lora|adapters?|rank)\b", text)
