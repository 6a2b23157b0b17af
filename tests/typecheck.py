"""The checker of signatures: beartype, with an int allowed where a float is, as Python's typing has it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
