"""Names of sources: valid ones, and the one of invented texts."""

import re

from qubic_lab.errors import InputError

SAMPLE = "sample"
"""The source of sample texts, and of nothing else."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def is_sample(source: str) -> bool:
    """Return whether the texts of a source are invented; they must never be joined with prices."""
    return source == SAMPLE


def check_source(name: str) -> str:
    """Return the name of a source if users may choose it.

    Raises:
        InputError: it is that of the sample texts, or not a valid name.
    """
    if is_sample(name.strip().lower()):
        raise InputError(f"source {name!r} is that of the invented sample texts: give another name")
    if not _NAME.fullmatch(name):
        raise InputError(f"source {name!r} is no name: give small letters, digits, '-', '.' or '_', at most 64")
    return name
