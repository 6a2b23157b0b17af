"""Every test runs with the shapes in the package's signatures checked."""

import os

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile thousands of tiny programs and run each a few times: XLA's passes stay, but LLVM's optimization does not
# pay, nor do the newer emitters of fusions, which take four times as long to compile.
QUICK = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jaxlib.version.__version_info__ < (0, 11):  # a later XLA has no others, and stops at a flag that it does not know
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))

from jaxtyping import install_import_hook

hook = install_import_hook("lora_jax", "typecheck.check")
