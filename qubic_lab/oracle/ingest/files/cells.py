"""Cells of files as numbers and instants: read as people and exchanges write them, refused if ambiguous."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.model.timestamps import SECOND_US, to_us

DECIMAL_MARKS = ("auto", ".", ",")
DATE_ORDERS = ("auto", "dmy", "mdy")
_MISSING = frozenset(["", "null", "nan", "na", "n/a", "none", "-", "–", "—", "#n/a"])
_MAGNITUDES = {"k": 3, "m": 6, "b": 9, "t": 12}
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_GROUPED = {
    ".": re.compile(r"[+-]?\d{1,3}(?P<group>[,'\u2019\u00a0\u202f ])\d{3}(?:(?P=group)\d{3})*(\.\d+)?"),
    ",": re.compile(r"[+-]?\d{1,3}(?P<group>[.'\u2019\u00a0\u202f ])\d{3}(?:(?P=group)\d{3})*(,\d+)?"),
}
_COMMA_DECIMAL = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CLOCK = (
    r"(?P<hour>\d{1,2})"
    r"(?::(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"|(?P<minute_2>\d{2})(?P<second_2>\d{2})?)?"
    r"(?:[\s-]*(?P<half>[ap])\.?m\.?)?"
)
_ZONE = r"(?P<zone>z|(?:utc|gmt)?[+-]\d{2}(?::?\d{2})?|utc|gmt)"
_DATES = (
    r"(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})",
    r"(?P<first>\d{1,2})(?P<mark>[-/.])(?P<other>\d{1,2})(?P=mark)(?P<year>\d{4}|\d{2})",
    r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})",
    r"(?P<day>\d{1,2})[ -](?P<name>[a-z]{3,9})\.?[ ,-]+(?P<year>\d{4}|\d{2})",
    r"(?P<name>[a-z]{3,9})\.? (?P<day>\d{1,2}),? (?P<year>\d{4})",
)
_FORMS = [
    re.compile(
        rf"(?:[a-z]{{3,9}},? )??{form}(?:[ t,]+{_CLOCK}\s*{_ZONE}?|\s*{_ZONE.replace('zone', 'zone_2')})?",
        re.IGNORECASE,
    )
    for form in _DATES
]
_CLOCK_ONLY = re.compile(rf"{_CLOCK}\s*{_ZONE}?", re.IGNORECASE)
_TWO_ORDERS = re.compile(r"\s*(?:[A-Za-z]{3,9},? )?(\d{1,2})([-/])(\d{1,2})\2(?:\d{4}|\d{2})\b")
_NUMBER = re.compile(r"\d+(\.\d*)?(?P<exponent>e\+?\d+)?", re.IGNORECASE)
_EPOCH_UNITS_US = ((10**11, SECOND_US), (10**14, 1_000), (10**17, 1))
"""Below each limit a number counts seconds, milliseconds, microseconds; above: nanoseconds. Right from 1973 to 5138."""
_LEAST_EPOCH = 100_000_000


def is_missing(cell: Any) -> bool:
    """Return whether a cell stands for no value."""
    if isinstance(cell, str):
        return cell.strip().lower() in _MISSING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def decimal_mark(cells: Iterable[Any], what: str) -> str:
    """Return the decimal mark of these cells, "." or ",".

    Raises:
        InputError: they have both, or could be read either way.
    """
    point = comma = unclear = ""
    for text in (cell.strip() for cell in cells if isinstance(cell, str)):
        if "," not in text:
            point = point or (text if re.search(r"\.(\d{1,2}|\d{4,})$", text) else "")
        elif "." in text and text.rindex(".") < text.rindex(","):
            comma = text
        elif "." in text or text.count(",") > 1:
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
    """Return the double nearest to the number in a cell, NaN if it is missing.

    Thousands separators, currency signs and magnitudes such as 1.2M are understood.

    Raises:
        ValueError: it is not a number.
    """
    if is_missing(cell):
        return math.nan
    if isinstance(cell, int | float | Decimal) and not isinstance(cell, bool):
        return float(cell)
    if not isinstance(cell, str):
        raise ValueError("no number")
    text = cell.strip()
    if mark == "." and _PLAIN.fullmatch(text):
        return float(text)
    bare = text.replace("\u2212", "-").strip("$€£₿ ")
    power = _MAGNITUDES.get(bare[-1:].lower(), 0)
    bare = bare[:-1].rstrip() if power else bare
    grouped = _GROUPED[mark].fullmatch(bare)
    if grouped:
        bare = bare.replace(grouped["group"], "")
    if mark == "," and (grouped or _COMMA_DECIMAL.fullmatch(bare)):
        bare = bare.replace(",", ".")
    if not _PLAIN.fullmatch(bare):
        raise ValueError("no number")
    try:
        return float(Decimal(bare).scaleb(power) if power else bare)
    except InvalidOperation as error:
        raise ValueError("no number") from error


def read_numbers(cells: Iterable[Any], places: Iterable[str], what: str, mark: str = ".") -> NDArray[np.float64]:
    """Return the doubles of a column's cells, NaN for missing ones.

    Raises:
        InputError: a cell is not a number; names its place.
    """
    numbers = []
    for cell, place in zip(cells, places, strict=True):
        try:
            numbers.append(read_number(cell, mark))
        except ValueError:
            raise InputError(f"{place}: {what} {str(cell)!r} is no number: correct it or leave the row out") from None
    return np.array(numbers, np.float64)


@dataclass(frozen=True)
class StampRules:
    """How times are read.

    Attributes:
        zone: of times without one: UTC, Europe/London, +01:00; None: such times are refused.
        date_order: dmy or mdy of dates such as 03/04/2021; auto: as the file's other dates show.
        ordered: whether rows are in order of time, forwards or backwards; else a time that the zone's clocks show twice
            is refused.
    """

    zone: str | None = None
    date_order: str = "auto"
    ordered: bool = True

    def __post_init__(self) -> None:
        check_choice("date order", self.date_order, DATE_ORDERS)
        if self.zone is not None:
            find_zone(self.zone)


def find_zone(name: str) -> tzinfo:
    """Return a zone by its name in the IANA list, or by its offset.

    Raises:
        InputError: there is none.
    """
    if name.upper() in ("UTC", "Z", "GMT"):
        return UTC
    if re.fullmatch(r"[+-]\d{2}(:?\d{2})?", name):
        return _offset(name)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(f"zone {name!r} is not known: give UTC, an offset such as +01:00, or Europe/London") from error


def is_clock(cell: Any) -> bool:
    """Return whether a cell is a time of day without a date, such as 03:15 PM."""
    return isinstance(cell, str) and ":" in cell and _CLOCK_ONLY.fullmatch(cell.strip()) is not None


def is_date_only(cell: Any) -> bool:
    """Return whether a cell is a date without a time of day."""
    if isinstance(cell, str):
        found = _match(cell.strip())
        return found is not None and found["hour"] is None
    return isinstance(cell, date) and not isinstance(cell, datetime)


def read_stamps(cells: Sequence[Any], places: Sequence[str], rules: StampRules) -> list[int]:
    """Return the instant of each cell: a text, a number since 1970, or a date with or without time.

    Args:
        cells: in the file's order, which tells apart the two passes through an hour that a clock shows twice.
        places: where each is, for errors.
        rules: what the file does not say.

    Raises:
        InputError: a cell cannot be read, or could mean two instants; names its place.
    """
    day_first = _day_first(cells, places, rules.date_order)
    instants: list[int] = [0] * len(cells)
    naive: dict[int, datetime] = {}
    for number, cell in enumerate(cells):
        try:
            stamp = _read(cell, day_first)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{places[number]}: time {_shown(cell)} cannot be read ({error})") from error
        if isinstance(stamp, int):
            instants[number] = stamp
        elif stamp.tzinfo is not None:
            instants[number] = to_us(stamp)
        else:
            naive[number] = stamp
    if not naive:
        return instants
    if rules.zone is None:
        first = next(iter(naive))
        others = f", though {len(cells) - len(naive):,} others have one" if len(naive) < len(cells) else ""
        raise InputError(f"{places[first]}: time {_shown(cells[first])} has no zone{others}: give `zone`, such as UTC")
    localised = _localise(list(naive.values()), [places[number] for number in naive], rules)
    for number, instant in zip(naive, localised, strict=True):
        instants[number] = instant
    return instants


def _shown(cell: Any) -> str:
    return repr(cell if isinstance(cell, str | int | float) or cell is None else str(cell))


def _match(text: str) -> re.Match[str] | None:
    return next((match for form in _FORMS if (match := form.fullmatch(text))), None)


def _read(cell: Any, day_first: bool) -> int | datetime:
    if isinstance(cell, datetime):
        return cell
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day)
    if cell is None or cell != cell or not str(cell).strip():
        raise ValueError("it is empty")
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        raise ValueError("it is no time")
    if not isinstance(cell, str):
        return _from_epoch(Decimal(repr(cell)))
    text = cell.strip()
    number = _NUMBER.fullmatch(text)
    if number is None or (text.isdecimal() and len(text) < 9):
        return _from_text(text, day_first)
    if number["exponent"]:
        raise ValueError("a spreadsheet has cut its digits off: export the file again with whole numbers")
    if text.isdecimal() and len(text) in (12, 14):  # as an epoch it would be before 2001 or after 2286
        return _from_text(f"{text[:8]} {text[8:]}", day_first)
    return _from_epoch(Decimal(text))


def _from_epoch(number: Decimal) -> int:
    if number < _LEAST_EPOCH or not number.is_finite():
        raise ValueError("as seconds since 1970 it is before 1973")
    for limit, unit_us in _EPOCH_UNITS_US:
        if number < limit:
            return int(number * unit_us)
    return int(number // 1_000)


def _from_text(text: str, day_first: bool) -> datetime:
    found = _match(text)
    if found is None:
        raise ValueError("give it as in 2021-09-27 14:45:00+01:00, or as seconds since 1970")
    parts = found.groupdict()
    if parts.get("name"):
        name = parts["name"][:3].lower()
        day, month = int(parts["day"]), _MONTHS.index(name) + 1 if name in _MONTHS else 0
    elif parts.get("first"):
        first, other = int(parts["first"]), int(parts["other"])
        day, month = (first, other) if day_first or parts["mark"] == "." else (other, first)
    else:
        day, month = int(parts["day"]), int(parts["month"])
    hour = int(parts["hour"] or 0)
    if parts["half"]:
        if not 1 <= hour <= 12:
            raise ValueError(f"hour {hour} on a clock of 12 hours")
        hour = hour % 12 + (12 if parts["half"].lower() == "p" else 0)
    zone = parts["zone"] or parts["zone_2"]
    return datetime(
        int(parts["year"]) + (2000 if len(parts["year"]) == 2 else 0),
        month,
        day,
        hour,
        int(parts["minute"] or parts["minute_2"] or 0),
        int(parts["second"] or parts["second_2"] or 0),
        int((parts["fraction"] or "0")[:6].ljust(6, "0")),
        tzinfo=_offset(zone) if zone else None,
    )


def _offset(text: str) -> tzinfo:
    digits = re.sub(r"[^\d]", "", text)
    if not digits:
        return UTC
    minutes = int(digits[:2]) * 60 + int(digits[2:] or 0)
    return timezone(timedelta(minutes=-minutes if "-" in text else minutes))


def _day_first(cells: Sequence[Any], places: Sequence[str], order: str) -> bool:
    """Return whether dates such as 03/04/2021 have the day first, as the others in the file show; with dots they do."""
    if order != "auto":
        return order == "dmy"
    matches = ((number, _TWO_ORDERS.match(cell)) for number, cell in enumerate(cells) if isinstance(cell, str))
    dates = {number: (int(match[1]), int(match[3])) for number, match in matches if match}
    day_first = next((number for number, (first, _) in dates.items() if first > 12), None)
    month_first = next((number for number, (_, other) in dates.items() if other > 12), None)
    if day_first is not None and month_first is not None:
        raise InputError(
            f"{places[day_first]}: date {cells[day_first]!r} has the day first, {cells[month_first]!r} of "
            f"{places[month_first]} the month: make them alike"
        )
    if dates and day_first is None and month_first is None:
        example = next(iter(dates))
        raise InputError(
            f"{places[example]}: date {cells[example]!r} may have day or month first: give `date_order`, dmy or mdy"
        )
    return day_first is not None


def _localise(naive: Sequence[datetime], places: Sequence[str], rules: StampRules) -> list[int]:
    """Return the instants of a zone's clock times; the file's order resolves times that the clock shows twice."""
    name = rules.zone or "UTC"
    stamps = pd.DatetimeIndex(np.array(naive, "datetime64[us]"))
    backwards = rules.ordered and bool((np.diff(stamps.asi8) < 0).sum() > len(stamps) / 2)
    if backwards:
        stamps, places = stamps[::-1], places[::-1]
    early, late = (
        stamps.tz_localize(find_zone(name), ambiguous=np.full(len(stamps), summer), nonexistent="NaT")
        for summer in (True, False)
    )
    for number in np.flatnonzero(early.isna())[:1]:
        raise InputError(f"{places[number]}: the clocks of {name} skip {stamps[number]}: is the file of another zone?")
    twice = np.flatnonzero(early != late)
    instants = early.asi8.copy()
    for run in np.split(twice, np.flatnonzero(np.diff(twice) > 1) + 1) if len(twice) else []:
        what = f"{places[run[0]]}: the clocks of {name} show {stamps[run[0]]} twice"
        if not rules.ordered:
            raise InputError(f"{what}: convert the times to UTC")
        second_pass = run[_second_pass(stamps.asi8, run, what) :]
        instants[second_pass] = late.asi8[second_pass]
    return [int(at) for at in (instants[::-1] if backwards else instants)]


def _second_pass(local_us: NDArray[np.int64], run: NDArray[np.intp], what: str) -> int:
    """Return where in a run of times that a clock shows twice its second pass begins."""
    falls = np.flatnonzero(np.diff(local_us[run]) <= 0) + 1
    if len(falls) == 1:
        return int(falls[0])
    steps, counts = np.unique(np.abs(np.diff(local_us)), return_counts=True)
    if len(falls) or not len(steps):
        raise InputError(f"{what}: convert the times to UTC")
    step, (first, last) = steps[np.argmax(counts)], run[[0, -1]]
    joins_before = first > 0 and local_us[first] - local_us[first - 1] == step
    joins_after = last + 1 < len(local_us) and local_us[last + 1] - local_us[last] == step
    if joins_before == joins_after:
        raise InputError(f"{what} and the file has it once: convert the times to UTC")
    return len(run) if joins_before else 0
