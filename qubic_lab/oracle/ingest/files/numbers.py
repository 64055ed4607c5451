"""Numbers in files: with thousands separators, decimal commas, currency signs and magnitudes."""

import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from qubic_lab.errors import InputError

DECIMAL_MARKS = ("auto", ".", ",")
_MISSING = frozenset(["", "null", "nan", "na", "n/a", "none", "-", "–", "—", "#n/a"])
_MAGNITUDES = {"k": 3, "m": 6, "b": 9, "t": 12}
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_GROUPED = {
    ".": re.compile(r"[+-]?\d{1,3}(?P<group>[,'\u2019\u00a0\u202f ])\d{3}(?:(?P=group)\d{3})*(\.\d+)?"),
    ",": re.compile(r"[+-]?\d{1,3}(?P<group>[.'\u2019\u00a0\u202f ])\d{3}(?:(?P=group)\d{3})*(,\d+)?"),
}
_COMMA_DECIMAL = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)


def is_missing(cell: Any) -> bool:
    """Return whether a cell says that there is no number."""
    if isinstance(cell, str):
        return cell.strip().lower() in _MISSING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def decimal_mark(cells: Iterable[Any], what: str) -> str:
    """Return "." or ",", whichever parts the decimals in these cells.

    Raises:
        InputError: both do, or what there is could be read either way.
    """
    point = comma = unclear = ""
    for cell in cells:
        if not isinstance(cell, str) or "," not in cell:
            if isinstance(cell, str) and not point and re.search(r"\.(\d{1,2}|\d{4,})$", cell.strip()):
                point = cell.strip()
            continue
        text = cell.strip()
        if "." in text:
            last = "." if text.rindex(".") > text.rindex(",") else ","
            point, comma = (text, comma) if last == "." else (point, text)
        elif text.count(",") > 1:
            point = text
        elif re.search(r",\d{3}\D?$", text) and not re.match(r"[+-]?0,", text):
            unclear = text
        else:
            comma = text
    if point and comma:
        raise InputError(f"{what}: {point!r} has a decimal point, {comma!r} a decimal comma: make them alike")
    if unclear and not point and not comma:
        raise InputError(f"{what}: {unclear!r} may be thousands or have a decimal comma: give `decimal`, '.' or ','")
    return "," if comma else "."


def read_number(cell: Any, mark: str = ".") -> float:
    """Return the double of a cell, NaN where it says that there is none.

    The double is the nearest to the number that is written, as `float` gives it.

    Raises:
        ValueError: it is no number.
    """
    if is_missing(cell):
        return math.nan
    if not isinstance(cell, str):
        if isinstance(cell, bool) or not isinstance(cell, int | float | Decimal):
            raise ValueError("no number")
        return float(cell)
    text = cell.strip()
    if mark == "." and _PLAIN.fullmatch(text):
        return float(text)
    return _read_adorned(text, mark)


def _read_adorned(text: str, mark: str) -> float:
    bare = text.replace("\u2212", "-").strip("$€£₿ ")
    power = _MAGNITUDES.get(bare[-1:].lower(), 0)
    bare = bare[:-1].rstrip() if power else bare
    grouped = _GROUPED[mark].fullmatch(bare)
    if grouped:
        bare = bare.replace(grouped["group"], "")
    if mark == ",":
        bare = bare.replace(",", ".") if grouped or _COMMA_DECIMAL.fullmatch(bare) else bare
    if not _PLAIN.fullmatch(bare):
        raise ValueError("no number")
    if not power:
        return float(bare)
    try:
        return float(Decimal(bare).scaleb(power))
    except InvalidOperation as error:
        raise ValueError("no number") from error


def read_numbers(cells: Sequence[Any], places: Sequence[str], what: str, mark: str = ".") -> list[float]:
    """Return the doubles of a column's cells.

    Raises:
        InputError: one is no number; names its place.
    """
    numbers = []
    for cell, place in zip(cells, places, strict=True):
        try:
            numbers.append(read_number(cell, mark))
        except ValueError:
            raise InputError(f"{place}: {what} {str(cell)!r} is no number: correct it or leave the row out") from None
    return numbers
