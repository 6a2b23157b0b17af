"""Rung 3: what XLA plans for the whole step, also for a card that is not there."""
