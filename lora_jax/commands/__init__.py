"""What each command does: `cli.py` says how it is called. Each has a function that takes what was said."""
