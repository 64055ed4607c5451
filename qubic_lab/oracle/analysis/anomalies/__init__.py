"""Unusual returns and volumes, and shapes that manipulation leaves."""
