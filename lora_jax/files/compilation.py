"""Compiled programs kept on disk, so that the same step of the same shape does not compile again the next day."""

from __future__ import annotations

import os

SECONDS = 1.0  # programs that compile faster are not worth a file


def keep_compiled_programs() -> None:
    """Turn on JAX's persistent cache, in this package's cache folder, unless the user has named another."""
    import jax

    from lora_jax.files.assets import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
