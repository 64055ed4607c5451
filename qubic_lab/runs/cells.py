"""The format of values and headings in a table, by rules that fit any study's table."""

import math
import re
from collections.abc import Sequence
from typing import Any

MISSING = "–"
UNITS = ("ms", "us", "s", "h", "bytes", "kib", "mib", "gib", "mb", "gb", "mflop", "gbps", "pct", "usd")
SPELLING = {"us": "µs", "kib": "KiB", "mib": "MiB", "gib": "GiB", "mb": "MB", "gb": "GB", "mflop": "MFLOP"}
SPELLING |= {"gbps": "Gbps", "pct": "%", "usd": "USD"}
SIGNIFICANT = 3
SMALLEST_PLAIN = 1e-4
"""Smaller numbers are written with a power of ten."""
WIDE_RANGE = 20
LONG_TEXT = 60
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def heading(column: str) -> str:
    """Return a column's name for readers, its unit apart: tokens_per_s → tokens/s, p95_s → p95 (s)."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", column):
        return column  # written for readers already
    name, _, last = column.rpartition("_")
    if name.endswith("_per"):
        return f"{in_words(name[:-4])}/{SPELLING.get(last, last)}"
    if name and last in UNITS:
        return f"{in_words(name)} ({SPELLING.get(last, last)})"
    return in_words(column)


def in_words(name: str) -> str:
    """Return a name that a program uses as a reader would: tokens_per_s_16_clients → tokens/s 16 clients."""
    return name.replace("_per_", "/").replace("_", " ")


def format_column(column: str, values: Sequence[Any]) -> list[str]:
    """Return the cells of a column: numbers of a column that only holds numbers have equally many decimals."""
    numbers = [value for value in values if value is not None]
    if is_numeric(values) and any(isinstance(value, float) for value in numbers):
        return _format_floats(values)
    return [format_value(column, value) for value in values]


def is_numeric(values: Sequence[Any]) -> bool:
    """Tell whether a column holds numbers alone, at least one."""
    given = [value for value in values if value is not None]
    return bool(given) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)


def is_prose(values: Sequence[Any]) -> bool:
    """Tell whether a column holds texts of more than a few words."""
    return any(isinstance(value, str) and len(value) > LONG_TEXT for value in values)


def format_value(column: str, value: Any) -> str:
    """Return one value as text; layers per rank are joined by +, other lists by commas."""
    match value:
        case None:
            return MISSING
        case bool():
            return "yes" if value else "no"
        case int():
            return _signed(f"{value:,}")
        case float():
            return format_number(value)
        case list() | tuple():
            joint = " + " if "layers" in column else ", "
            return joint.join(format_value(column, each) for each in value) or MISSING
        case dict():
            return ", ".join(f"{name}: {format_value(name, each)}" for name, each in value.items()) or MISSING
    return str(value)


def format_number(value: float) -> str:
    """Return a number with three significant digits, or as a whole number where it has more."""
    if value == 0:
        return "0"
    if abs(value) < SMALLEST_PLAIN:
        mantissa, _, exponent = f"{value:.{SIGNIFICANT - 2}e}".partition("e")
        return _signed(f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}")
    return _signed(f"{value:,.{_decimals(value)}f}")


def _signed(number: str) -> str:
    return number.replace("-", "−")


def _decimals(value: float) -> int:
    return max(0, SIGNIFICANT - 1 - math.floor(math.log10(abs(value))))


def _format_floats(values: Sequence[float | None]) -> list[str]:
    given = [abs(value) for value in values if value]
    if all(value == int(value) for value in given):
        return [MISSING if value is None else _signed(f"{value:,.0f}") for value in values]
    if max(given) > WIDE_RANGE * min(given) or max(given) < SMALLEST_PLAIN:  # no number of decimals serves both ends
        return [MISSING if value is None else format_number(value) for value in values]
    return [MISSING if value is None else _signed(f"{value:,.{_decimals(max(given))}f}") for value in values]
