"""Bytes, seconds and dollars for a person: the unit goes with the size."""

from __future__ import annotations

DECIMAL, BINARY = ("B", "kB", "MB", "GB", "TB", "PB"), ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# How many of the unit before make one, and from how many on it is used: 90 seconds are read more easily than 1.5 min.
TIMES = (("µs", 1e-6, 0.0), ("ms", 1e-3, 0.9995e-3), ("s", 1.0, 0.9995), ("min", 60.0, 120.0), ("h", 3600.0, 7200.0),
         ("days", 86_400.0, 172_800.0))  # fmt: skip


def size(number: float, form: str = ",.1f", binary: bool = False) -> str:
    """Bytes, from B to PB: a GB is 1e9 of them; with `binary` to PiB, a GiB is 2**30. Single bytes are never cut."""
    step, units = (1024, BINARY) if binary else (1000, DECIMAL)
    if abs(number) < step:
        return f"{number:,.0f} B"
    power = 1 + sum(abs(number) >= 0.99995 * step**n for n in (2, 3, 4, 5))  # what would be written as 1,000.0 is 1.0
    return f"{number / step**power:{form}} {units[power]}"


def duration(seconds: float) -> str:
    """A time, from microseconds to days: three digits or so."""
    name, of, _ = [unit for unit in TIMES if abs(seconds) >= unit[2]][-1]
    number = seconds / of
    return f"{number:,.1f} {name}" if abs(number) < 99.95 else f"{number:,.0f} {name}"


def dollars(amount: float) -> str:
    """An amount of US dollars: with cents; without from a thousand on; below a cent two digits of what there is."""
    if amount and abs(amount) < 0.01:
        return f"{amount:.2g}"
    return f"{amount:,.2f}" if abs(amount) < 1000 else f"{amount:,.0f}"
