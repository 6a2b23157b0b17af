"""What lies in memory at a compiled step's peak, read from what XLA writes about its plan.

`--xla_dump_to` with `--xla_dump_hlo_as_text` leaves three texts of each program, alike for CPUs, GPUs and TPUs:

- `...buffer-assignment.txt`: every allocation, and for the temporary one the place and size of each value in it;
- `...live-range.txt`: when each value comes into being and when it is last needed, by place in the schedule;
- `...after_optimizations.txt`: the program, most instructions with JAX's path (`op_name`) to the operation they are of:
  `jit(step)/transpose(jvp(loss))/layers/while/body/mlp/dot_general`.

Values that share a place at one time are one buffer (what a loop carries, and what the loop's body calls it). The peak
is where the buffers alive at once are largest together. That file's own "peak" is another: it leaves loop bodies out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VALUE = re.compile(r" value: <\d+ (\S+?)(\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)")
RANGE = re.compile(r"^    (\S+\{[\d,]*\}):(\d+)-(\d+)$", re.MULTILINE)
ALLOCATION = re.compile(r"allocation \d+: size (\d+), (?:.*?\bparameter (\d+), )?(.*)")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = ")
OPERAND = re.compile(r" (?:[\w-]+)\((?:[^%)]*[ (])?%([\w.-]+)")
PARAMETER = re.compile(r" parameter\((\d+)\)")
PATH = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Buffer:
    """A buffer alive at the peak: XLA's name and shape for it, and JAX's paths to what is written there."""

    name: str
    shape: str  # "bf16[6,1536,2688]"
    bytes: int
    paths: tuple[str, ...]  # nearest in time first

    @property
    def dims(self) -> tuple[int, ...]:
        inner = re.search(r"\[([\d,]*)\]", self.shape)
        return tuple(int(n) for n in inner[1].split(",") if n) if inner else ()


@dataclass(frozen=True)
class Assignment:
    """The arguments by JAX's name for each, and the temporary memory's size and contents at its peak, in bytes."""

    arguments: tuple[tuple[str, int], ...]
    temporary: int
    peak: tuple[Buffer, ...]  # the largest first


@dataclass(frozen=True)
class _Value:
    name: str
    shape: str
    start: int
    end: int  # needed last: it is alive then too

    def away(self, time: int) -> int:
        """How far this value's life is from `time`: 0 where it is alive then."""
        return max(self.start - time, time - self.end, 0)


_Slots = dict[tuple[int, int, int], list[_Value]]  # (allocation, offset, bytes): what lies there, one after the other


def read(folder: Path, program: str) -> Assignment:
    """The assignment of the program called `program` whose dumps lie in `folder`.

    Raises FileNotFoundError where XLA wrote no such texts.
    """
    names, paths = _program(_only(folder, program, "after_optimizations.txt"))
    lives = {name: (int(a), int(b)) for name, a, b in RANGE.findall(_only(folder, program, "live-range.txt"))}
    arguments: list[tuple[str, int]] = []
    slots: _Slots = defaultdict(list)
    temporary, allocation, inside = 0, 0, False  # inside: among the values of temporary memory
    for line in _only(folder, program, "buffer-assignment.txt").splitlines():
        if found := ALLOCATION.match(line):
            allocation += 1
            # Memory of another color is a TPU's own, on the chip: none of it is the main memory.
            inside = "preallocated-temp" in found[3] and "color" not in found[3]
            temporary += int(found[1]) if inside else 0
            if found[2] is not None:
                arguments.append((names.get(int(found[2]), ""), int(found[1])))
        elif inside and (found := VALUE.match(line)):
            name, index, size, offset, shape = found.groups(default="{}")
            if name + index in lives:
                value = _Value(name, shape.split("{")[0], *lives[name + index])
                slots[allocation, int(offset), int(size)].append(value)
    return Assignment(tuple(arguments), temporary, tuple(_at_peak(slots, paths)))


def _only(folder: Path, program: str, ending: str) -> str:
    found = list(folder.glob(f"*.{program}.*{ending}"))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files of {program} end in {ending}")
    return found[0].read_text(encoding="utf-8")


def _at_peak(slots: _Slots, paths: dict[str, str]) -> Iterator[Buffer]:
    """The buffers alive when most is, the largest first."""
    values = [value for sharing in slots.values() for value in sharing]
    alive = np.zeros(1 + max((value.end for value in values), default=0), np.int64)  # bytes, by time
    for (_, _, size), sharing in slots.items():
        taken = np.zeros(len(alive), bool)
        for value in sharing:
            taken[value.start : value.end + 1] = True
        alive[taken] += size
    peak = int(alive.argmax())
    for (_, _, size), sharing in sorted(slots.items(), key=lambda slot: -slot[0][2]):
        if (now := min(sharing, key=lambda value: value.away(peak))).away(peak) == 0:
            # A loop's carried value has no path of its own; what is written to that place before or after it has.
            known = _paths((value for value in sharing if value.shape == now.shape), peak, paths)
            if not known:  # XLA's own, such as a fill with zeros: what else has this shape tells what it is for
                known = _paths((value for value in values if value.shape == now.shape), peak, paths)[:1]
            yield Buffer(now.name, now.shape, size, known)


def _paths(values: Iterator[_Value], time: int, paths: dict[str, str]) -> tuple[str, ...]:
    """The paths of those that have one, nearest in time first, each once."""
    near = sorted((value for value in values if value.name in paths), key=lambda value: value.away(time))
    return tuple(dict.fromkeys(paths[value.name] for value in near))


def _program(text: str) -> tuple[dict[int, str], dict[str, str]]:
    """Names of the entry's parameters by number, and JAX's path of each instruction that has one."""
    names: dict[int, str] = {}
    paths: dict[str, str] = {}
    entry = False
    for line in text.splitlines():
        if line and not line[0].isspace():
            entry = line.startswith("ENTRY")
        elif found := INSTRUCTION.match(line):
            path, operand = PATH.search(line), OPERAND.search(line)
            if entry and path and (parameter := PARAMETER.search(line)):
                names[int(parameter[1])] = path[1].replace("\\'", "'")
            elif path and "/" in path[1]:
                paths[found[1]] = path[1]
            elif operand and operand[1] in paths:  # XLA's own, a copy or a move: what it is made from stands above
                paths[found[1]] = paths[operand[1]]
    return names, paths
