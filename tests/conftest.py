"""How every test runs: quick compilation, checked shapes. tests/README.md says where to begin."""

import os

import jaxlib.version

# Tests compile thousands of tiny programs and run each a few times: XLA's passes stay, but LLVM's optimization does not
# pay, nor do XLA's newer emitters of fusions, which take four times as long to compile. (A later XLA has no others, and
# stops at a flag that it does not know.)
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
OLDER_EMITTERS = " --xla_cpu_use_fusion_emitters=false" if jaxlib.version.__version_info__ < (0, 11) else ""
os.environ.setdefault("XLA_FLAGS", QUICK + OLDER_EMITTERS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook  # noqa: E402  (JAX reads the two when it is imported)

hook = install_import_hook("lora_jax", "typecheck.check")
