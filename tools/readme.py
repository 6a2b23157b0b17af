"""Writes what the README and the docs say of measured things, from the records they are drawn from. `--check` compares.

The README's account of the demo comes from figures/data/demo.json, which `make demo` wrote; so does figures/demo.png.
The tables of docs/speed.md come from what benchmarks/step.py wrote, figures/growth.png from what benchmarks/growth.py.
docs/sixteen_bits.md has a table from what benchmarks/sixteen_bits.py wrote.
docs/small_model.md and figures/small_model.png come from what benchmarks/small_model.py wrote.
The table of licences in docs/downloads.md comes from the code that fetches.
The README's table of methods comes from the rows of the registry, its counts of lines from the files.
"""

import ast
import io
import itertools
import json
import re
import statistics
import sys
import textwrap
import tokenize
from functools import partial
from pathlib import Path

import jax

from lora_jax import plots, transformer
from lora_jax.adapters import METHODS
from lora_jax.adapters.base import count
from lora_jax.files import assets
from lora_jax.memory import zoo
from lora_jax.text import stories, story_writer

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lora_jax"
CORE = (  # all that a reader needs of the model, LoRA and training, in the order in which it is read
    "weights.py",
    "rope.py",
    "attention.py",
    "cross_entropy.py",
    "transformer.py",
    "adapters/base.py",
    "adapters/method.py",
    "adapters/placement.py",
    "adapters/lora.py",
    "training.py",
)
MODEL = "smollm2-135m"  # what the table of methods counts on
QUOTED = 1  # which of the prompts the README shows
RECORDS = ROOT / "figures" / "data"
RECORD = RECORDS / "demo.json"
SIDES = {
    "lora_jax full": "lora_jax, full",
    "lora_jax lora": "lora_jax, LoRA",
    "peft full": "PyTorch, full",
    "peft lora": "PEFT on PyTorch, LoRA",
    "peft lora compiled": "PEFT on PyTorch, LoRA, `torch.compile`",
}


def count_lines(path: Path) -> tuple[int, int]:
    """The lines of a file, and those that are code: without blank lines, comments and docstrings."""
    text = path.read_text()
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            code |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            code -= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    return len(text.splitlines()), len(code)


def core() -> tuple[str, str]:
    """The README's first sentence, and the one that names the files that it speaks of."""
    counts = {name: count_lines(PACKAGE / name) for name in CORE}
    lines, code = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    links = [f"[`{name}`](lora_jax/{name}) ({own})" for name, (_, own) in counts.items()]
    about = f"about {round(code, -2):,} lines of pure JAX"
    first = f"Fine-tune a real language model with LoRA, in {about}, written to be read.\n"
    said = (
        f"The model, LoRA and training are {len(CORE)} files, with their lines of code: {', '.join(links[:-1])} and "
        f"{links[-1]}. That is {code:,} lines of code, and {lines:,} lines with docstrings, comments and blank lines."
    )
    return first, textwrap.fill(said, 119, break_long_words=False, break_on_hyphens=False) + "\n"


def family() -> str:
    """A row a method: what it does, and what it trains with its defaults, counted from shapes."""
    config, key = zoo.config(MODEL), jax.random.key(0)
    params = jax.eval_shape(partial(transformer.init, config=config), key)
    lines = [
        f"| method | what it makes of `x @ W` | from | options of `init` | trains on {MODEL} | rate | in PEFT |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in METHODS.items():
        adapters, _ = jax.eval_shape(row.init, key, params)
        kind, *flags = row.peft.marks.items()
        marks = ", ".join([f"`{kind[1]}`", *(f"`{flag}`" for flag, _ in flags)])
        change = row.change.replace("|", "\\|")
        code = f"`{change}`" if "@" in change else change
        options = ", ".join(f"`{option}`" for option in row.options)
        cells = [f"{row.title}: `lj.{name}`", code, row.paper, options, f"{count(adapters):,}", f"{row.rate:g}", marks]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def demo() -> str:
    table = json.loads(RECORD.read_text())
    (_, first), (_, last) = table["evaluations"][0], table["evaluations"][-1]
    settings, sizes = table["settings"], table["bytes"]
    prompt, before, after = (table[name][QUOTED] for name in ("prompts", "before", "after"))
    full, lora = (sum(sizes[method].values()) / 1e9 for method in ("full", "lora"))
    size = f"{settings['steps']} steps of {settings['batch']} x {settings['length']} tokens of verse"
    said = (
        f"`make demo` took {table['seconds'] / 60:.1f} minutes on two cores without a GPU, the downloads aside. "
        f"It trains {settings['model']} for {size}, and the loss on {table['held_out']} held-out sequences falls from "
        f"{first:.2f} to {last:.2f} nats a token. Weights, gradients and optimizer state take {lora:.2f} GB, where "
        f"full fine-tuning takes {full:.2f} GB. It prints what the model writes to "
        f"{len(table['prompts'])} prompts, before and after. To one of them:"
    )
    texts = {"before": " ".join((prompt + before).split()), "after": prompt + after.rstrip()}
    columns = [text.replace("\n", "<br>") for text in texts.values()]
    table_rows = ["| before | after |", "|---|---|", f"| {columns[0]} | {columns[1]} |"]
    return textwrap.fill(said, 119) + "\n\n" + "\n".join(table_rows) + "\n"


def step(name: str) -> str:
    """The table of one record of benchmarks/step.py."""
    table = json.loads((RECORDS / f"{name}.json").read_text())
    job, said = table["job"], table["versions"]
    base = table["sides"]["peft lora"]["median"]
    lines = [
        f"{job['batch']} x {job['length']} tokens ({table['date']}; "
        + ", ".join(f"{name} {said[name]}" for name in ("jax", "torch", "transformers", "peft"))
        + "):",
        "",
        "| side | seconds a step | share of the floor's rate | tokens a second, PEFT's LoRA = 1 | peak memory |",
        "|---|---|---|---|---|",
    ]
    for side, row in table["sides"].items():
        floor = table["floor_seconds"]["full" if "full" in side else "lora"]
        times = row["seconds"]
        lines.append(
            f"| {SIDES[side]} | {row['median']:.2f} ({min(times):.2f} to {max(times):.2f}) "
            f"| {floor / row['median']:.0%} | {base / row['median']:.2f} | {row['peak_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines) + "\n"


def sixteen_bits() -> str:
    """Full fine-tuning in bfloat16 beside float32: a row for each model, learning rate and rounding."""
    table = json.loads((RECORDS / "sixteen_bits.json").read_text())
    runs = {(row["model"], row["rate"], row["way"], row["seed"]): row for row in table["rows"]}
    models, rates, ways, _ = (list(dict.fromkeys(key[i] for key in runs)) for i in range(4))
    said = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    lines = [
        f"{table['date']}, {table['machine']}; {said}:",
        "",
        "| weights at first | seeds | rate | in | loss | fall, of float32's | moved |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, rate, way in itertools.product(models, rates, ways):
        seeds = [seed for found, *_, seed in runs if (found, *_) == (model, rate, way)]
        rows = [runs[model, rate, way, seed] for seed in seeds]
        falls = [row["before"] - row["after"] for row in rows]
        exact = [runs[model, rate, "float32", seed] for seed in seeds]
        shares = [fall / (row["before"] - row["after"]) for fall, row in zip(falls, exact, strict=True)]
        before, after, moved = (statistics.mean(row[name] for row in rows) for name in ("before", "after", "moved"))
        name = way if way == "float32" else f"bfloat16, {way}"
        fall = "-" if way == "float32" else " to ".join(dict.fromkeys(f"{f(shares):.1%}" for f in (min, max)))
        lines.append(
            f"| {model} | {len(seeds)} | {rate:g} | {name} | {before:.3f} to {after:.3f} | {fall} | {moved:.0%} |"
        )
    return "\n".join(lines) + "\n"


def told() -> str:
    """How many stories came of how many openings."""
    records = stories.records(stories.STORIES)
    batches = {}
    for seed, batch, _ in (record["from"] for record in records):
        batches[seed] = max(batches.get(seed, 0), batch + 1)
    openings = sum(batches.values()) * story_writer.BATCH
    characters = sum(len(record["text"]) for record in records)
    size = f"{characters / len(records):.0f} characters on average"
    return f"{len(records):,} stories of {size} came of {openings:,} openings.\n"


def small_model() -> tuple[str, str, str]:
    """What is said of the small model, of its fine-tuning, and its samples, as they are."""
    table = json.loads((RECORDS / "small_model.json").read_text())
    runs, tokens = table["runs"], table["tokens"]
    short, about = runs["short"], table["pretrained"]["about"]
    size = f"{about['batch_size']} x {about['length']} tokens"
    lines = [
        f"{table['parameters']:,} parameters, {tokens['training']:,} tokens of stories to train on and "
        f"{tokens['held out']:,} held out ({table['date']}; {table['machine']}).",
        "",
        "| model | loss on held-out stories, nats a token |",
        "|---|---|",
        *(f"| {name} | {value:.3f} |" for name, value in table["ngrams"].items()),
        f"| the transformer, {len(short['losses'])} steps of {size}, {short['seconds'] / 60:.1f} minutes on two cores "
        f"| {short['evaluations'][-1][1]:.3f} |",
        f"| the transformer, {about['steps']} steps: the committed checkpoint | {table['held_out']:.3f} |",
    ]
    tuned = ["| after | held-out poems | held-out stories | minutes |", "|---|---|---|---|"]
    (_, poems), known = runs["full"]["evaluations"][0], runs["full"]["watched"]["stories"][0]
    tuned.append(f"| pre-training | {poems:.3f} | {known:.3f} | |")
    for name in ("full", "lora"):
        (_, poems), known = runs[name]["evaluations"][-1], runs[name]["watched"]["stories"][1]
        title = plots.TITLES[name]
        tuned.append(f"| {title} on poems | {poems:.3f} | {known:.3f} | {runs[name]['seconds'] / 60:.1f} |")
    commands = "".join(runs[name]["command"] + f" --out runs/{name}\n" for name in ("full", "lora"))
    tuned += ["", "```sh", commands.rstrip(), "```"]
    samples = [f"{i}. **{one['prompt']}**{one['text']}".rstrip() for i, one in enumerate(table["samples"], 1)]
    return "\n".join(lines) + "\n", "\n".join(tuned) + "\n", "\n".join(samples) + "\n"


def put(path: Path, **texts: str) -> str:
    """The file's text with each of `texts` between the marks of its name."""
    page = path.read_text()
    for mark, text in texts.items():
        between = rf"(<!-- {mark}: .*? -->\n).*?(<!-- /{mark} -->)"
        page, found = re.subn(between, lambda m, text=text: m[1] + text + m[2], page, flags=re.S)
        assert found == 1, f"{path.name} has {found} places marked {mark}"
    return page


def main() -> int:
    losses, tuned, samples = small_model()
    first, files = core()
    from fuzz_page import fuzzed  # which needs this file's names

    wanted = {
        ROOT / "README.md": put(ROOT / "README.md", first=first, demo=demo(), files=files, family=family()),
        ROOT / "docs" / "downloads.md": put(ROOT / "docs" / "downloads.md", licences=assets.licences() + "\n"),
        ROOT / "docs" / "guarded_files.md": put(ROOT / "docs" / "guarded_files.md", fuzzed=fuzzed()),
        ROOT / "docs" / "speed.md": put(
            ROOT / "docs" / "speed.md", step_128=step("step_128"), step_2048=step("step_2048")
        ),
        ROOT / "docs" / "sixteen_bits.md": put(ROOT / "docs" / "sixteen_bits.md", measured=sixteen_bits()),
        ROOT / "docs" / "small_model.md": put(
            ROOT / "docs" / "small_model.md", losses=losses, tuned=tuned, samples=samples, stories=told()
        ),
    }
    stale = [path for path, text in wanted.items() if path.read_text() != text]
    if "--check" in sys.argv:
        print(*(f"{path.relative_to(ROOT)} is stale: run tools/readme.py" for path in stale), sep="\n", end="")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    plots.demo(json.loads(RECORD.read_text()), ROOT / "figures" / "demo.png")
    plots.growth(json.loads((RECORDS / "growth.json").read_text()), ROOT / "figures" / "growth.png")
    plots.small_model(json.loads((RECORDS / "small_model.json").read_text()), ROOT / "figures" / "small_model.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
