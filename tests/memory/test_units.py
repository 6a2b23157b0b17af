"""Numbers for a person: the unit goes with the size, at every boundary and on both sides of zero."""

import pytest

from lora_jax.commands import plan as command
from lora_jax.memory.units import dollars, duration, size


def test_bytes():
    """The article's ten checkpoints of 200 GB are 2.0 TB."""
    written = {
        10 * 200 * 10**9: "2.0 TB",
        200 * 10**9: "200.0 GB",
        -3 * 10**9: "-3.0 GB",
        2_500_000: "2.5 MB",
        0: "0 B",
        24: "24 B",
        999: "999 B",
        -999: "-999 B",
        1000: "1.0 kB",
        999_940: "999.9 kB",
        999_950: "1.0 MB",
        999_940_000: "999.9 MB",
        999_950_000: "1.0 GB",
        999_950 * 10**6: "1.0 TB",
        999_940 * 10**9: "999.9 TB",
        1_400 * 10**12: "1.4 PB",
    }
    assert {number: size(number) for number in written} == written
    powers = [size(2**n, ".2f", binary=True) for n in (9, 10, 20, 30, 40, 50)]
    assert powers == ["512 B", "1.00 KiB", "1.00 MiB", "1.00 GiB", "1.00 TiB", "1.00 PiB"]
    assert size(300_000, "g") == "300 kB"
    assert size(24, ",.3f") == "24 B"


@pytest.mark.parametrize("digits", [",.1f", ",.3f", ".2f"])
@pytest.mark.parametrize("binary", [False, True])
def test_no_number_of_bytes_reaches_the_next_unit(digits, binary):
    for power in range(5, 50):
        for near in range(-3, 4):
            number = size(2**power + near, digits, binary).split()[0]
            assert float(number.replace(",", "")) < (1024 if binary else 1000)


def test_times():
    written = {
        0: "0.0 µs",
        3.6e-6: "3.6 µs",
        0.0036: "3.6 ms",
        0.0999: "99.9 ms",
        0.1: "100 ms",
        0.9996: "1.0 s",
        3.63: "3.6 s",
        98: "98.0 s",
        119: "119 s",
        120: "2.0 min",
        981.2: "16.4 min",
        7199: "120 min",
        7200: "2.0 h",
        1.5 * 86_400: "36.0 h",
        2 * 86_400: "2.0 days",
        400 * 86_400: "400 days",
        -3.63: "-3.6 s",
    }
    assert {number: duration(number) for number in written} == written


def test_money():
    written = {0: "0.00", 0.004: "0.004", 0.00012: "0.00012", 0.01: "0.01", 29.59: "29.59", 999.99: "999.99"}
    written |= {1234.5: "1,234", 1_234_567: "1,234,567", -0.5: "-0.50"}
    assert {amount: dollars(amount) for amount in written} == written


def test_the_command_plan_writes_each_number_in_its_unit():
    """Ten checkpoints of a hundred billion parameters, their way over a network, and a run of many steps."""
    said = []
    words = {"length": 2048, "remat": True, "dtype": "bfloat16"}
    command.plan(
        say=said.append, model="100b", method="full", options={}, batch_size=1, card="h100", compile=False,
        seconds_per_step=90.0, steps=10_000, **words,
    )  # fmt: skip
    text = "\n".join(said)
    ends = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert ends["the model"][-4:] == ["200.0", "GB", "2.0", "TB"]
    assert ends["memory to network, 10 Gbit/s network"][-6:-2] == ["2.7", "min", "26.7", "min"]
    assert "10,000 steps 10.4 days and 14," in text
