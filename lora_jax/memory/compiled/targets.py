"""What a step can be compiled for without the hardware: NVIDIA cards, as XLA wants them described, and a TPU.

Facts are from NVIDIA (the CUDA programming guide's table of compute capabilities, the datasheets) and, for those it
has, those of openxla/xla under `xla/backends/gpu/target_config/specs`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_jax.errors import InputError

KIB, MIB = 2**10, 2**20
# Where a program does not fit the memory it is told of, XLA works values out again until it does, or gives up: what the
# step needs would then depend on what there is. So every card is described with more memory than any step needs.
AMPLE = 2**50


@dataclass(frozen=True)
class Card:
    """An NVIDIA card: its name, compute capability, and what its multiprocessors and memory are like."""

    name: str
    capability: tuple[int, int]
    cores: int  # multiprocessors
    fpus: int  # float32 units in each
    threads: int  # at once in each
    shared: int  # bytes of shared memory in each
    l2: int  # bytes
    bandwidth: int  # bytes a second
    clock: float  # GHz

    def text(self) -> str:
        """The card as the text form of XLA's `stream_executor.GpuTargetConfigProto`."""
        major, minor = self.capability
        # From Hopper on there are instructions of one generation only ("sm_90a"), which XLA uses where it may.
        features = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
        # A block gets what a multiprocessor has but for a kibibyte that the driver keeps; on Turing, all of it.
        optin = self.shared - (KIB if major >= 8 else 0)
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_core: {self.shared}
  threads_per_core_limit: {self.threads}
  core_count: {self.cores}
  fpus_per_core: {self.fpus}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  memory_bandwidth: {self.bandwidth}
  l2_cache_size: {self.l2}
  clock_rate_ghz: {self.clock}
  device_memory_size: {AMPLE}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{self.name}"
"""


CARDS = {
    "t4": Card("Tesla T4", (7, 5), 40, 64, 1024, 64 * KIB, 4 * MIB, 320_000_000_000, 1.59),
    "l4": Card("NVIDIA L4", (8, 9), 58, 128, 1536, 100 * KIB, 48 * MIB, 300_000_000_000, 2.04),
    "rtx3090": Card("NVIDIA GeForce RTX 3090", (8, 6), 82, 128, 1536, 100 * KIB, 6 * MIB, 936_000_000_000, 1.695),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 1536, 100 * KIB, 72 * MIB, 1_008_000_000_000, 2.52),
    "a100-40": Card("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 2048, 164 * KIB, 40 * MIB, 1_555_200_000_000, 1.41),
    "a100-80": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 164 * KIB, 40 * MIB, 2_039_040_000_000, 1.41),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 228 * KIB, 50 * MIB, 3_352_320_000_000, 1.98),
    "h200": Card("NVIDIA H200 141GB HBM3e", (9, 0), 132, 128, 2048, 228 * KIB, 50 * MIB, 4_800_000_000_000, 1.98),
    "b200": Card("NVIDIA B200", (10, 0), 148, 128, 2048, 228 * KIB, 132_644_864, 7_672_320_000_000, 1.965),
}
# libtpu knows its chips by name; a topology has at least the chips of one host, and the step is put on the first.
TPUS = {"tpu-v5e": "v5e:2x2"}
TARGETS = ("cpu", *CARDS, *TPUS)


def check(target: str) -> None:
    """Raise InputError where there is no such target."""
    if target not in TARGETS:
        raise InputError(f"there is no target {target!r} to compile for: choose {', '.join(TARGETS)}")
