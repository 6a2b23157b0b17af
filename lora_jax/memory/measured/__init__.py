"""Rung 4: what a device used."""
