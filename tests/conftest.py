"""Every test runs with the shapes in the package's signatures checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

hook = install_import_hook("lora_jax", "typecheck.check")
