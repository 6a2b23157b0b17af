"""What lies in memory at a compiled step's peak, read from what XLA writes about its plan.

`--xla_dump_to` with `--xla_dump_hlo_as_text` leaves three texts of each program, alike for CPUs, GPUs and TPUs:

- `...buffer-assignment.txt`: every allocation, and for the temporary one the place and size of each value in it;
- `...live-range.txt`: when each value comes into being and when it is last needed, by place in the schedule;
- `...after_optimizations.txt`: the program, each instruction with the functions and lines of Python it came from.

Values that share a place at one time are one buffer (what a loop carries, and what the loop's body calls it). The peak
is where the buffers alive at once are largest together. That file's own "peak" is another: it leaves loop bodies out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VALUE = re.compile(r" value: <\d+ (\S+?)(\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)")
RANGE = re.compile(r"    (\S+?)(\{[\d,]*\}):(\d+)-(\d+)$")
ALLOCATION = re.compile(r"allocation \d+: size (\d+), (?:.*?\bparameter (\d+), )?(.*)")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = ")
OPERAND = re.compile(r" (?:[\w-]+)\((?:[^%)]*[ (])?%([\w.-]+)")
PARAMETER = re.compile(r" parameter\((\d+)\)")
LOCATION = re.compile(r"(\d+) \{(?:file_name_id=(\d+) )?(?:function_name_id=(\d+) )?(?:line=(\d+))?")
FRAME = re.compile(r"(\d+) \{(?:file_location_id=(\d+))?(?: ?parent_frame_id=(\d+))?")


@dataclass(frozen=True)
class Frame:
    """A place in the Python that was traced."""

    file: str
    function: str
    line: int


@dataclass(frozen=True)
class Origin:
    """Where an instruction comes from: JAX's path of transformations, and the Python frames, innermost first."""

    path: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Buffer:
    """A buffer alive at the peak: XLA's name and shape for it, and all that is known of where its values come from."""

    name: str
    shape: str  # "bf16[6,1536,2688]"
    bytes: int
    origins: tuple[Origin, ...]  # nearest in time first

    @property
    def dims(self) -> tuple[int, ...]:
        inner = re.search(r"\[([\d,]*)\]", self.shape)
        return tuple(int(n) for n in inner[1].split(",") if n) if inner else ()


@dataclass(frozen=True)
class Assignment:
    """The arguments by JAX's name for each, and the temporary memory's size and contents at its peak, in bytes."""

    arguments: tuple[tuple[str, int], ...]
    temporary: int
    peak: tuple[Buffer, ...]


@dataclass(frozen=True)
class _Value:
    name: str
    shape: str
    bytes: int
    place: tuple[int, int]  # (allocation, offset)
    start: int
    end: int


def read(folder: Path, program: str) -> Assignment:
    """The assignment of the program called `program` whose dumps lie in `folder`.

    Raises FileNotFoundError where XLA wrote no such texts.
    """
    names, origins = _program(_only(folder, program, "after_optimizations.txt"))
    ranges = dict(_ranges(_only(folder, program, "live-range.txt")))
    arguments, values = [], []
    temporary, allocation, inside = 0, 0, False
    for number, line in enumerate(_only(folder, program, "buffer-assignment.txt").splitlines()):
        if line.startswith("allocation"):
            allocation, found = number, ALLOCATION.match(line)
            # Memory of another color is a TPU's own, on the chip: none of it is the main memory.
            inside = found is not None and "preallocated-temp" in found[3] and "color" not in found[3]
            if found and inside:
                temporary += int(found[1])
            if found and found[2] is not None:
                arguments.append((names.get(int(found[2]), ""), int(found[1])))
        elif inside and (found := VALUE.match(line)):
            name, index = found[1], found[2] or "{}"
            if (name + index) in ranges:
                place = (allocation, int(found[4]))
                values.append(_Value(name, found[5].split("{")[0], int(found[3]), place, *ranges[name + index]))
    return Assignment(tuple(arguments), temporary, tuple(_at_peak(values, origins)))


def _only(folder: Path, program: str, ending: str) -> str:
    found = [path for path in folder.glob(f"*.{program}.*{ending}") if path.name.endswith(ending)]
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files of {program} end in {ending}")
    return found[0].read_text(encoding="utf-8")


def _ranges(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    for line in text.splitlines():
        if found := RANGE.match(line):
            yield found[1] + found[2], (int(found[3]), int(found[4]))


def _at_peak(values: list[_Value], origins: dict[str, Origin]) -> Iterator[Buffer]:
    """The buffers alive when most is, the largest first."""
    events = sorted(
        [(value.start, 0, i) for i, value in enumerate(values)] + [(value.end, 1, i) for i, value in enumerate(values)]
    )
    alive: dict[tuple[tuple[int, int], int], int] = {}  # (place, bytes): how many values lie there
    now = most = when = 0
    for time, ends, i in events:  # at one time, starts come before ends: both are alive then
        slot = (values[i].place, values[i].bytes)
        alive[slot] = alive.get(slot, 0) + (-1 if ends else 1)
        if ends:
            now -= slot[1] if alive[slot] == 0 else 0
        elif alive[slot] == 1:
            now += slot[1]
            if now > most:
                most, when = now, time
    slots: dict[tuple[tuple[int, int], int], list[_Value]] = {}
    for value in values:
        slots.setdefault((value.place, value.bytes), []).append(value)
    held = [(slot, vs) for slot, vs in slots.items() if any(v.start <= when <= v.end for v in vs)]
    for (_, size), sharing in sorted(held, key=lambda pair: -pair[0][1]):
        alive_now = next(v for v in sharing if v.start <= when <= v.end)
        # A loop's carried value has no origin of its own; what is written to that place before or after it has.
        near = sorted(
            (v for v in sharing if v.shape == alive_now.shape),
            key=lambda v: 0 if v.start <= when <= v.end else min(abs(v.start - when), abs(v.end - when)),
        )
        known = tuple(dict.fromkeys(origins[v.name] for v in near if v.name in origins))
        if not known:  # XLA's own, such as a fill with zeros: what else has this shape tells what it is for
            alike = [v for v in values if v.shape == alive_now.shape and v.name in origins]
            known = tuple(origins[v.name] for v in sorted(alike, key=lambda v: abs(v.start - when))[:1])
        yield Buffer(alive_now.name, alive_now.shape, size, known)


def _program(text: str) -> tuple[dict[int, str], dict[str, Origin]]:
    """Names of the entry's parameters by number, and the origin of each instruction that has one."""
    frames = _frames(text)
    names: dict[int, str] = {}
    origins: dict[str, Origin] = {}
    copied: dict[str, str] = {}  # XLA's own instructions (copies, moves between memories): what each is made from
    entry = False
    for line in text.splitlines():
        if line and not line[0].isspace():
            entry = line.startswith("ENTRY")
        elif found := INSTRUCTION.match(line):
            path, stack = re.search(r'op_name="([^"]*)"', line), re.search(r"stack_frame_id=(\d+)", line)
            if entry and path and (parameter := PARAMETER.search(line)):
                names[int(parameter[1])] = path[1].replace("\\'", "'")
            elif path and (stack or "/" in path[1]):
                origins[found[1]] = Origin(path[1], frames.get(int(stack[1]), ()) if stack else ())
            elif operand := OPERAND.search(line):
                copied[found[1]] = operand[1]
    for name in copied:
        source, steps = name, 0
        while source in copied and steps < len(copied):
            source, steps = copied[source], steps + 1
        if source in origins:
            origins[name] = origins[source]
    return names, origins


def _frames(text: str) -> dict[int, tuple[Frame, ...]]:
    """Each stack of frames by its number, innermost first, from the tables at the head of a program."""

    def table(title: str) -> list[str]:
        found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        return found[1].splitlines() if found else []

    def quoted(title: str) -> dict[int, str]:
        return {int(number): name.strip('"') for number, name in (line.split(" ", 1) for line in table(title))}

    files, functions = quoted("FileNames"), quoted("FunctionNames")
    locations = {}
    for line in table("FileLocations"):
        if found := LOCATION.match(line):
            number, file, function, at = (int(group or 0) for group in found.groups())
            locations[number] = Frame(files.get(file, ""), functions.get(function, ""), at)
    above = {int(f[1]): (int(f[2] or 0), int(f[3] or 0)) for line in table("StackFrames") if (f := FRAME.match(line))}
    # XLA writes a parent's number plus one here (so that the outermost frame of all seems to be its own parent).
    shift = 1 if any(parent == number for number, (_, parent) in above.items()) else 0

    def climb(number: int) -> Iterator[Frame]:
        while number in above:
            location, parent = above[number]
            if location in locations:
                yield locations[location]
            number = parent - shift

    return {number: tuple(climb(number)) for number in above}
