"""Names of sources: which ones may be given, and which one marks texts that were invented."""

import re

from qubic_lab.errors import InputError

SAMPLE = "sample"
"""The source of sample texts, which nothing else may have."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def is_sample(source: str) -> bool:
    """Return whether texts of a source are invented; those must never be joined with prices."""
    return source == SAMPLE


def check_source(name: str) -> str:
    """Return a source's name if a user may give it.

    Raises:
        InputError: it is that of the sample texts, or no name.
    """
    if is_sample(name.strip().lower()):
        raise InputError(f"source {name!r} is that of the invented sample texts: give another name")
    if not _NAME.fullmatch(name):
        raise InputError(f"source {name!r} is no name: give small letters, digits, '-', '.' or '_', at most 64")
    return name
