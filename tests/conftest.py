"""Every test runs with the shapes in the package's signatures checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile hundreds of tiny programs and run each a few times: XLA's passes stay, LLVM's optimization does not pay.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from jaxtyping import install_import_hook

hook = install_import_hook("lora_jax", "typecheck.check")
