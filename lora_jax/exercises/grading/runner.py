"""The process that runs one submission: `python -m lora_jax.exercises.grading.runner`, shut in by `isolation.py`.

It reads the questions and the files handed in from its standard input, and answers one question after the other on what
was its standard output. A question that never ends costs no other: the grader starts it again behind that one. It knows
the arguments, and not how answers are judged.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import os
import sys
from typing import Any, BinaryIO

import jax

from lora_jax.exercises import plain
from lora_jax.exercises.grading.extract import Statement, answer_of, statements
from lora_jax.exercises.outcomes import Reply, ask, explain


def main() -> None:
    """Answer each question of the first line, `{"questions": [{"name", "is_function", "cases"}, ...], "files": [...]}`.

    The files' bytes follow it, `"files"` having the name and size of each. Each answer is a frame: 8 bytes with its
    length, and plain data as JSON. Two frames of null come first: once JAX is there, and once the files are read.
    """
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    asked = plain.loads(sys.stdin.buffer.readline())
    handed_in = [(name, sys.stdin.buffer.read(size)) for name, size in asked["files"]]
    jax.devices()  # JAX starts before the clock of the first question does
    _send(replies, None)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what an answer prints goes nowhere
        os.dup2(nowhere, stream)
    files = [read(name, data) for name, data in handed_in]
    _send(replies, None)
    for question in asked["questions"]:
        _send(replies, answer(files, question))


def _send(replies: BinaryIO, found: Any) -> None:
    data = plain.dumps(found).encode()
    if len(data) > plain.MAX_REPLY:
        data = plain.dumps([{"error": f"its answers hold more than {plain.MAX_REPLY / 1e6:.0f} MB in all."}]).encode()
    waiting = memoryview(len(data).to_bytes(8, "big") + data)
    while waiting:
        waiting = waiting[replies.write(waiting) :]


def read(name: str, data: bytes) -> tuple[list[Statement], list[str]]:
    """`(statements, sentences about what is wrong)` of a file."""
    try:
        found, wrong = statements(name, data)
        return found, [f"{name}: {sentence}" for sentence in wrong]
    except ValueError as error:
        return [], [f"{name} cannot be read ({error})"]


def answer(files: list[tuple[list[Statement], list[str]]], question: dict[str, Any]) -> list[Reply]:
    """A reply a case, or the one reply that stands for all of them. The first file that holds an answer counts.

    Where others hold one too, the first reply says so: `"files"` are the numbers of all of them.
    """
    programs = [answer_of(found, question["name"], question["is_function"]) for found, _ in files]
    written = [number for number, program in enumerate(programs) if program is not None]
    if not written:
        wrong = [sentence for _, sentences in files for sentence in sentences]
        return [{"stub": True, "wrong": "; ".join(wrong)[:300]}]
    program = programs[written[0]]
    assert program is not None
    replies = run(program, question)
    if len(written) > 1:
        replies[0]["files"] = written
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
    main()
