"""The command line: `python -m lora_jax demo | train | pretrain | generate | merge | stories | plan |
measure | grade`.

Each command says in plain English what it does; `--json` prints what it found for a program. A user's mistake is one
sentence on standard error and exit status 2; nothing half-written is left behind. Ctrl-C ends it with status 130, and
SIGTERM with 143.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.adapters import DEFAULT, METHODS
from lora_jax.adapters.method import Option
from lora_jax.commands import ends, numbers
from lora_jax.errors import InputError
from lora_jax.files import compilation
from lora_jax.memory.setup import RANK
from lora_jax.tuning.jobs import FULL_RATE
from lora_jax.tuning.optimizers import ROUNDING
from lora_jax.tuning.pretraining import WARMUP
from lora_jax.untrusted.json_text import printable

OPTIONS = {name: option for row in METHODS.values() for name, option in row.options.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 for a user's mistake."""
    arguments = vars(_parser().parse_args(argv))
    home, name = arguments.pop("home"), arguments.pop("command")
    as_json = arguments.pop("json", False)
    if "options" in arguments:
        arguments["options"] = {option: arguments.pop(option) for option in OPTIONS if option in arguments}

    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that the terminal's encoding lacks stops nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    in_ascii = "utf" not in (sys.stdout.encoding or "").lower()

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    if hasattr(sys.stdout, "reconfigure"):  # a name of a file may hold what no terminal can show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with ends.terminating():
            numbers.check(arguments | arguments.get("options", {}))
            compilation.keep_compiled_programs()
            found = getattr(importlib.import_module(home), name)(say=say, **arguments)
    except InputError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # who reads it, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a name that is too long, or what may not be read
        said = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return _refuse(said)
    except KeyboardInterrupt:
        return _refuse(ends.stopped(name), 130)
    except ends.Terminated:
        return _refuse(ends.stopped(name), 143)
    except Exception as error:
        if (sentence := ends.out_of_memory(error, name)) is None:
            raise
        return _refuse(sentence)
    if as_json:
        print(json.dumps(found, ensure_ascii=in_ascii))
    return 0


def _refuse(sentence: str, status: int = 2) -> int:
    print(f"lora_jax: {printable(sentence)}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lora_jax",
        description="Fine-tune a language model with LoRA, in pure JAX, on a laptop or a GPU.",
        epilog="Start with `demo`: a model that writes stories learns to write verse, in minutes on two cores.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str, home: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=f"example: python -m lora_jax {name} {example}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(command=name, home=home or f"lora_jax.commands.{name}")
        sub.add_argument("--json", action="store_true", help="print the result as JSON, and all else on standard error")
        return sub

    def model(sub: argparse.ArgumentParser) -> None:
        text = "smollm2-135m (fetched once), a .gguf file, a Hugging Face model directory, or a hub id"
        sub.add_argument("--model", default="smollm2-135m", help=text)

    def method(sub: argparse.ArgumentParser, defaults: Mapping[str, Any]) -> None:
        sub.set_defaults(options={})
        sub.add_argument("--method", default=DEFAULT, help=f"full, or an adapter method: {', '.join(METHODS)}")
        for name, option in OPTIONS.items():
            has = [method for method, row in METHODS.items() if name in row.options]
            values = {method: defaults.get(name, METHODS[method].default(name)) for method in has}
            said = f"{option.help}; of {', '.join(has)}"
            if option.read and any(value is not None for value in values.values()):
                said += f" (where not given: {_said(values)})"
            how: dict[str, Any] = {"type": _reader(option)} if option.read else {"action": "store_true"}
            sub.add_argument(_flag(name), dest=name, default=argparse.SUPPRESS, help=said, **how)
        sub.add_argument("--quantize", choices=["nf4", "int8"], help="hold the frozen base in 4 or 8 bits (QLoRA)")
        sub.add_argument("--remat", action="store_true", help="keep only each block's input and compute the rest again")
        sub.add_argument("--rounding", choices=ROUNDING, help="how weights that train in bfloat16 take updates: a "
                         "float32 copy does (master, where not given), or they are rounded up or down by chance, or "
                         "to the nearest, which loses small ones")  # fmt: skip

    def accumulate(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--accumulate", type=_positive, default=1, help="parts that a batch goes through in, to save memory"
        )

    def schedule(
        sub: argparse.ArgumentParser, *, steps: int, batch_size: int, length: int | None, warmup: int | None
    ) -> None:
        sub.add_argument(
            "--out", type=Path, required=True, help="folder for the result; a run that was stopped goes on there"
        )
        sub.add_argument("--steps", type=_positive, default=steps, help="training steps")
        sub.add_argument("--batch-size", type=_positive, default=batch_size, help="sequences in a batch")
        text = "tokens in a sequence (where not given: the fewest of 128, 256, 512 and 1024 in which documents with "
        text += "prompts fit and sequences are 95 %% full)"
        sub.add_argument("--length", type=_positive, default=length, help=text)
        accumulate(sub)
        text = f"steps of linear warm-up{'' if warmup == 0 else f' (where not given: {WARMUP}, at most all)'}"
        sub.add_argument("--warmup", type=int, default=warmup, help=text)
        sub.add_argument("--clip-norm", type=float, default=1.0, help="bound on the gradient's norm")
        sub.add_argument(
            "--evaluate-every", type=_positive, help="steps between evaluations (else first and last only)"
        )
        sub.add_argument("--checkpoint-every", type=_positive, default=50, help="steps between checkpoints")
        sub.add_argument("--seed", type=int, default=0, help="of what is random at the start, batches and dropout")

    sub = add("demo", "tune SmolLM2-135M from stories to verse; print what it writes before and after", "--steps 80")
    sub.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for the adapter, the picture and the figures"
    )
    sub.add_argument("--steps", type=_positive, default=80, help="steps of 4 x 128 tokens")
    sub.add_argument("--seed", type=int, default=0, help="another seed is another run")

    data = "a file or a folder: text, JSON, JSON lines, CSV or TSV (docs/data.md), or a built-in text: poems, stories"
    sub = add(
        "pretrain", "train the small model from scratch, on stories", "--out runs/stories", "lora_jax.commands.train"
    )
    sub.add_argument("--data", default="stories", help=data)
    schedule(sub, steps=500, batch_size=4, length=256, warmup=None)
    sub.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    sub.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the model that is written")
    sub.set_defaults(decay=True)

    sub = add("train", "fine-tune a model on your own text", f"--data mine.jsonl --method {DEFAULT} --out runs/mine")
    model(sub)
    sub.add_argument("--data", required=True, help=data)
    sub.add_argument("--watch", action="append", default=[], metavar="DATA",
                     help="other data, whose held-out loss is taken before and after: what is forgotten")  # fmt: skip
    schedule(sub, steps=100, batch_size=4, length=None, warmup=0)
    method(sub, {})
    rates = ", ".join(f"{row.rate:g} {name}" for name, row in METHODS.items())
    sub.add_argument("--lr", type=float, help=f"learning rate (where not given: {FULL_RATE:g} full, {rates})")
    sub.add_argument("--decay", action="store_true", help="let the learning rate fall on a cosine to a tenth")
    sub.add_argument("--held-out", type=float, default=0.1, help="share of the data kept for evaluation")
    sub.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base model")

    sub = add("generate", "write on from a prompt", '"Once upon a time" --adapter runs/demo/adapter')
    model(sub)
    sub.add_argument("prompt", nargs="+", help="one or more texts to continue")
    sub.add_argument("--adapter", type=Path, help="folder of an adapter in PEFT's format")
    sub.add_argument("--chat", action="store_true", help="put the prompt to the model as a user's message")
    sub.add_argument("--new-tokens", type=_positive, default=100, help="tokens to write at most")
    sub.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time")
    sub.add_argument("--top-k", type=_positive, default=50, help="draw from the k likeliest tokens")
    sub.add_argument("--top-p", type=float, help="draw from the likeliest tokens that sum to this probability")
    sub.add_argument("--seed", type=int, default=0, help="the same seed writes the same text")

    sub = add("stories", "have SmolLM2 write the stories that the small model learns from",
              "--batches 30 --out runs/stories.jsonl.gz")  # fmt: skip
    sub.add_argument("--out", type=Path, required=True, help="a .jsonl.gz file, written anew after each batch")
    sub.add_argument("--batches", type=_positive, default=10, help="batches of 96 openings, of which about half stay")
    sub.add_argument("--first", type=int, default=0, help="the number of the first batch, to go on where others ended")
    sub.add_argument("--add", type=Path, nargs="*", default=[], help="other files, to be sifted together with these")
    sub.add_argument("--seed", type=int, default=0, help="the same seed writes the same stories on the same machine")

    sub = add("merge", "fold an adapter into its model: a model directory of its own, with no latency added",
              "--adapter runs/demo/adapter --out runs/poet")  # fmt: skip
    model(sub)
    sub.add_argument("--adapter", type=Path, required=True, help="folder of an adapter in PEFT's format")
    sub.add_argument("--out", type=Path, required=True, help="folder for the merged model")

    sub = add("plan", "estimate what a training step needs: which cards it fits on, and what it costs",
              f"llama3.1-8b --method {DEFAULT} --length 2048 --remat --for h100")  # fmt: skip
    sub.set_defaults(within_context=True)
    sub.add_argument("model", help="a built-in name (a wrong one lists them all), or a Hugging Face config.json")
    method(sub, {"rank": RANK})
    sub.add_argument("--batch-size", type=_positive, default=1, help="sequences in a batch")
    sub.add_argument("--length", type=_positive, default=1024, help="tokens in a sequence")
    sub.add_argument(
        "--attention", choices=["blockwise", "dense"], default="blockwise", help="block by block, or all scores at once"
    )
    sub.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the base model")
    sub.add_argument("--optimizer", choices=["adamw", "adafactor", "sgd", "momentum"], default="adamw",
                     help="whose state is held")  # fmt: skip
    sub.add_argument("--moments", choices=["float32", "bfloat16"],
                     help="dtype of the first moment (else of what the optimizer works on)")  # fmt: skip
    accumulate(sub)
    sub.add_argument("--single-quantization", dest="double_quantization", action="store_false",
                     help="NF4 with float32 constants, not quantized once more")  # fmt: skip
    sub.add_argument("--for", dest="card", metavar="CARD", help="one card only (a wrong one lists them all)")
    sub.add_argument("--compile", action="store_true", help="ask XLA too, for that card, which need not be there")
    sub.add_argument("--seconds-per-step", type=float, help="as you measured it on the card: what a run then costs")
    sub.add_argument("--steps", type=_positive, default=1000, help="steps of the run")

    sub = add("measure", "run training steps for real and record what the device used beside what was planned",
              "--device gpu", "lora_jax.memory.measured.device")  # fmt: skip
    sub.add_argument("--device", dest="kind", choices=["auto", "cpu", "gpu"], default="auto", help="where")
    sub.add_argument(
        "--model", dest="models", action="append", default=[], help="in place of the device's own grid; may be repeated"
    )
    grid = f"full, {DEFAULT}, and {DEFAULT} over nf4"
    sub.add_argument("--method", help=f"with --model: full, or an adapter method (where not given: {grid})")
    sub.add_argument("--quantize", choices=["nf4", "int8"], help="with --method: the frozen base in 4 or 8 bits")
    sub.add_argument("--batch-size", type=_positive, default=1, help="with --model: sequences in a batch")
    sub.add_argument("--length", type=_positive, default=512, help="with --model: tokens in a sequence")
    sub.add_argument("--remat", action="store_true", help="with --model: rematerialized blocks")
    sub.add_argument("--attention", choices=["blockwise", "dense"], default="blockwise", help="with --model")
    sub.add_argument("--dtype", choices=["float32", "bfloat16"], help="float32 on a CPU, else bfloat16, if not given")
    sub.add_argument("--out", type=Path, help="the record (figures/data/memory_DEVICE.json if not given)")

    sub = add("grade", "mark a class's notebooks, each in a process of its own", "submissions --csv marks.csv",
              "lora_jax.exercises.grading.grader")  # fmt: skip
    sub.add_argument("folder", type=Path, help="a folder with a folder or a file (.ipynb, .py) for each submission")
    sub.add_argument("--csv", type=Path, help="write the marks there, a row for each submission")
    sub.add_argument("--notebooks", type=int, nargs="+", metavar="N", help="mark the exercises of these alone: 3")
    sub.add_argument("--seconds", type=float, default=20.0, help="time for each exercise")
    sub.add_argument("--seed", type=int, default=1, help="of the cases; the notebooks' own checks use 0")
    sub.add_argument("--as-root", action="store_true", help="run submissions as root even where nothing shuts them in")
    return parser


def _reader(option: Option) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return option.read(text)  # type: ignore[misc]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not understood: {option.help}") from None

    return read


def _said(values: Mapping[str, Any]) -> str:
    """The value of the first, and those of the others that differ from it."""
    first, *others = values.items()
    words = [str(first[1]), *(f"{value} of {name}" for name, value in others if value != first[1])]
    return ", ".join(words)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return value
