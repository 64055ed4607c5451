"""When the rows of an archive count as known: as they were recorded here, or at a time that is assumed, and told."""

import re

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US

_DELAY = re.compile(r"\+(\d{1,6}) ?(s|min|h|d)")
_UNITS_US = {"d": DAY_US, "h": HOUR_US, "min": MINUTE_US, "s": SECOND_US}


def read_known(text: str) -> int | None:
    """Return how long after its publication a row counts as known, in microseconds; None: once it is recorded here.

    Raises:
        InputError: it is not "now", "published" or a time after the publication, such as "+30min".
    """
    if text in ("now", "published"):
        return None if text == "now" else 0
    if (found := _DELAY.fullmatch(text)) is None:
        raise InputError(f"known is {text!r}: give now, published, or a time after it such as +30min or +1d")
    return int(found[1]) * _UNITS_US[found[2]]


def known_text(delay_us: int | None) -> str:
    """Return in words when rows count as known; the same for all that tell of it."""
    if delay_us is None:
        return "known when recorded here"
    if delay_us == 0:
        return "known when published (assumed)"
    unit = next(unit for unit, size in _UNITS_US.items() if delay_us % size == 0 or unit == "s")
    return f"known {delay_us // _UNITS_US[unit]} {unit} after publication (assumed)"
