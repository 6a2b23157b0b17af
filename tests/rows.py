"""The rows of the registry, as tests try them."""

from lora_jax.adapters import METHODS


def examples(row):
    """The options that a row is tried with: its defaults; then the first example of each option, the second, ..."""
    yield {}
    for i in range(max((len(option.examples) for option in row.options.values()), default=0)):
        yield {name: option.examples[i] for name, option in row.options.items() if len(option.examples) > i}


def describe(case):
    name, options = case
    return "-".join([name, *(f"{option}={value}" for option, value in options.items() if not isinstance(value, dict))])


CASES = [(name, options) for name, row in METHODS.items() for options in examples(row)]
