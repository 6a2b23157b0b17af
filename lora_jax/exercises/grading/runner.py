"""The process that runs one submission: `python -m lora_jax.exercises.grading.runner QUESTIONS`, in its own folder.

It answers one question after the other, each into a file of its own, so that a question which never ends costs no
other; the grader starts it again behind that question. It knows the arguments, and not how answers are judged.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax

from lora_jax.exercises import plain
from lora_jax.exercises.grading.extract import Statement, answer_of, statements
from lora_jax.exercises.outcomes import Reply, ask, explain


def main(questions: str) -> None:
    """Answer each question of the file `questions`: `[{"id", "name", "is_function", "cases"}, ...]` as plain data."""
    jax.devices()  # JAX starts before the clock of the first question does
    asked = plain.loads(Path(questions).read_bytes())
    files = {int(path.name[:6]): read(path) for path in sorted(Path("submission").iterdir())}
    here = Path.cwd()  # an answer's code may go elsewhere
    Path("ready").touch()
    for question in asked:
        found = answer(files, question)
        beside = here / f"{question['id']}.part"
        beside.write_text(plain.dumps(found))
        target = here / f"{question['id']}.json"
        os.replace(beside, target)
        while target.exists():  # until the grader has it, so that the next answer's code cannot take it away
            time.sleep(0.005)


def read(path: Path) -> tuple[list[Statement], list[str]]:
    """`(statements, sentences about what is wrong)` of a file."""
    name = path.name[7:]  # behind its number
    try:
        found, wrong = statements(path)
        return found, [f"{name}: {sentence}" for sentence in wrong]
    except (ValueError, OSError) as error:
        return [], [f"{name} cannot be read ({error})"]


def answer(files: dict[int, tuple[list[Statement], list[str]]], question: dict[str, Any]) -> list[Reply]:
    """A reply a case, or the one reply that stands for all of them. The first file that holds an answer counts.

    Where others hold one too, the first reply says so: `"files"` are the numbers of all of them.
    """
    programs = {
        number: answer_of(found, question["name"], question["is_function"]) for number, (found, _) in files.items()
    }
    written = {number: program for number, program in programs.items() if program is not None}
    if not written:
        wrong = [sentence for _, sentences in files.values() for sentence in sentences]
        return [{"stub": True, "wrong": "; ".join(wrong)[:300]}]
    replies = run(next(iter(written.values())), question)
    if len(written) > 1:
        replies[0]["files"] = list(written)
    return replies


def run(program: ast.Module, question: dict[str, Any]) -> list[Reply]:
    space: dict[str, Any] = {"__name__": "submission", "__builtins__": builtins, "display": print}
    space["get_ipython"] = lambda: None  # as outside of a notebook
    try:
        # To run what a learner wrote is what this process is for; `isolation.py` says what it can reach. A notebook may
        # await something outside of any function.
        code = compile(program, "submission", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, space)
        if inspect.iscoroutine(waiting):
            asyncio.run(waiting)
        value = space[question["name"]]
    except (Exception, SystemExit) as error:
        return [{"error": explain(error)}]
    if not question["is_function"]:
        return [ask(lambda: value, ())]
    return [ask(value, arguments) for arguments in question["cases"]]


if __name__ == "__main__":
    main(sys.argv[1])
