"""Accelerators, the ways a checkpoint takes, and prices: every number with where it is from and as of when.

The one place for facts about hardware that a plan quotes. Memory is in bytes; a datasheet's GB is taken for 1e9 bytes,
and what a program may have of it can be more or (a T4 that corrects errors) less. Speeds are bytes a second, one way.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_jax.errors import InputError

MB, GB, GIB = 10**6, 10**9, 2**30
# For what carries no date of its own: the page named was read on that day; or the number was taken over from a list on
# that day, and the source that the list names was not looked at.
READ, LISTED = "read 2026-11-24", "listed 2026-11-24"


@dataclass(frozen=True)
class Source:
    """Where a number is from, and the day of the measurement or the post; else READ or LISTED."""

    what: str
    date: str


@dataclass(frozen=True)
class Accelerator:
    """One card. `usable` is what a program was told it may have, where somebody showed it; else the datasheet's."""

    name: str
    memory: int
    bandwidth: int  # between the chip and its memory
    link: str | None  # a row of LINKS: how it is tied to its host; None where no source states it
    source: Source
    measured: int | None = None
    measured_by: Source | None = None

    @property
    def usable(self) -> int:
        return self.memory if self.measured is None else self.measured


@dataclass(frozen=True)
class Hop:
    """One stretch of a checkpoint's way."""

    name: str
    speed: int
    kind: str  # "measured" or "by specification"
    source: Source


@dataclass(frozen=True)
class Price:
    """US dollars for an hour of one card, rented."""

    dollars: float
    source: Source


def _seen(where: str, date: str) -> Source:
    return Source(f"capacity that CUDA reports, {where}", date)


_TPU = "docs.cloud.google.com/tpu/docs"
_COMPARISON = Source("acecloud.ai/blog/nvidia-b200-vs-h200-h100-a100, a third party's table", READ)
CARDS = {
    "t4": Accelerator(
        "T4", 16 * GB, 320 * GB, "pcie3", Source("T4 product brief, manualmachine.com/pny/tcst4mpb", READ),
        round(14.56 * GIB), _seen("github.com/Zheng-Chong/CatVTON/issues/133", "2025-11-25"),
    ),
    "l4": Accelerator("L4", 24 * GB, 300 * GB, "pcie4", Source("NVIDIA L4 datasheet", LISTED)),
    "rtx3090": Accelerator(
        "RTX 3090", 24 * GB, 936 * GB, "pcie4", Source("NVIDIA Ampere GA102 whitepaper", LISTED),
        round(23.54 * GIB), _seen("github.com/Tencent-Hunyuan/HY-Motion-1.0/issues/3", "2025-12-31"),
    ),
    "rtx4090": Accelerator(
        "RTX 4090", 24 * GB, 1_008 * GB, "pcie4", Source("NVIDIA Ada whitepaper", LISTED),
        round(23.52 * GIB), _seen("github.com/Soul-AILab/SoulX-FlashTalk/issues/5", "2026-01-09"),
    ),
    "a100-40": Accelerator(
        "A100 40GB", 40 * GB, 1_555 * GB, "pcie4", Source("NVIDIA A100 datasheet", LISTED),
        round(39.50 * GIB), _seen("github.com/TianheWu/CoSeR/issues/10", "2025-01-10"),
    ),
    "a100-80": Accelerator(
        "A100 80GB", 80 * GB, 2_039 * GB, "pcie4", _COMPARISON,
        round(79.25 * GIB), _seen("github.com/HiDream-ai/VAREdit/issues/6", "2025-12-18"),
    ),
    "h100": Accelerator(
        "H100 SXM", 80 * GB, 3_350 * GB, "pcie5", _COMPARISON,
        round(79.11 * GIB), _seen("github.com/vllm-project/vllm/issues/27508", "2025-10-25"),
    ),
    "h200": Accelerator("H200", 141 * GB, 4_800 * GB, "pcie5", _COMPARISON),
    "b200": Accelerator("B200", 180 * GB, 8_000 * GB, "pcie5", _COMPARISON),
    "tpu-v5e": Accelerator(
        "TPU v5e", 16 * GB, 819 * GB, None, Source(f"{_TPU}/v5e", READ),
        round(15.75 * GIB), Source("what libtpu calls available where a program does not fit", LISTED),
    ),
    "tpu-v5p": Accelerator("TPU v5p", 95 * GB, 2_765 * GB, None, Source(f"{_TPU}/v5p", READ)),
    "tpu-v6e": Accelerator("TPU v6e", 32 * GB, 1_638 * GB, None, Source(f"{_TPU}/v6e", READ)),
}  # fmt: skip

STATED = "by specification"
LINKS = {
    "pcie3": Hop("PCIe 3 x16", 15_750 * MB, STATED, Source("PCIe 3.0: 16 lanes, 8 GT/s, 128 bits of 130", LISTED)),
    "pcie4": Hop("PCIe 4 x16", 31 * GB, STATED, Source("PCI Express 4.0", LISTED)),
    "pcie5": Hop("PCIe 5 x16", 55_060 * MB, "measured", Source("on an H200, github.com/stas00/ml-engineering", LISTED)),
}
_TEST = Source("a third party's test of writing", "2023-12")
DISKS = {
    "980 PRO": Hop("Samsung 980 PRO, sustained", 2_040 * MB, "measured", _TEST),
    "gen 4": Hop("NVMe disk, Gen 4", 7 * GB, STATED, Source("makers' figures", LISTED)),
    "gen 5": Hop("NVMe disk, Gen 5", 14 * GB, STATED, Source("makers' figures", LISTED)),
}
NETWORKS = {
    "10 Gbit/s": Hop("10 Gbit/s network", 1_250 * MB, STATED, Source("10 Gbit/s, 8 bits to a byte", LISTED)),
}

# The estimate follows XLA's plans for NVIDIA cards. A TPU pads its buffers, and is asked by its own compiler.
NVIDIA = {name: card for name, card in CARDS.items() if not name.startswith("tpu")}

# Low confidence: one third party's listing of one day. Put your own here.
_LISTING = Source("a third party's listing of rental prices", "2026-03-21")
PRICES = {
    "rtx4090": Price(0.34, _LISTING),
    "a100-80": Price(1.39, _LISTING),
    "h100": Price(2.69, _LISTING),
    "h200": Price(3.59, _LISTING),
    "b200": Price(5.98, _LISTING),
}


def card(name: str) -> Accelerator:
    """The accelerator of that name. Raises InputError where there is none."""
    if name not in CARDS:
        raise InputError(f"there is no card {name!r}: choose {', '.join(CARDS)}")
    return CARDS[name]
