"""Checks that a signal does not use the future."""
