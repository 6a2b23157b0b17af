"""The one exception for a user's mistake, so that the command line can answer it with a sentence."""


class InputError(ValueError):
    """Something the user gave is wrong: the message says what, where, and what would be right."""
