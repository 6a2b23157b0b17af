import sys

from lora_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
