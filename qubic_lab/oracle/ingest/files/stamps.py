"""Times in files: from what people and exchanges write to instants; whatever could mean two instants is refused."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.model.timestamps import SECOND_US, to_us

DATE_ORDERS = ("auto", "dmy", "mdy")
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_CLOCK = (
    r"(?P<hour>\d{1,2})"
    r"(?::(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"|(?P<minute_2>\d{2})(?P<second_2>\d{2})?)?"
    r"(?:[\s-]*(?P<half>[ap])\.?m\.?)?"
)
_ZONE = r"(?P<zone>z|(?:utc|gmt)?[+-]\d{2}(?::?\d{2})?|utc|gmt)"
_DATES = (
    r"(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})",
    r"(?P<first>\d{1,2})(?P<mark>[-/.])(?P<second_field>\d{1,2})(?P=mark)(?P<year>\d{4}|\d{2})",
    r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})",
    r"(?P<day>\d{1,2})[ -](?P<name>[a-z]{3,9})\.?[ ,-]+(?P<year>\d{4}|\d{2})",
    r"(?P<name>[a-z]{3,9})\.? (?P<day>\d{1,2}),? (?P<year>\d{4})",
)
_ZONE_AFTER_DATE = _ZONE.replace("zone", "zone_2")
_FORMS = [
    re.compile(rf"(?:[a-z]{{3,9}},? )??{form}(?:[ t,]+{_CLOCK}\s*{_ZONE}?|\s*{_ZONE_AFTER_DATE})?", re.IGNORECASE)
    for form in _DATES
]
_CLOCK_ONLY = re.compile(rf"{_CLOCK}\s*{_ZONE}?", re.IGNORECASE)
_FIELDS = re.compile(r"\s*(?:[A-Za-z]{3,9},? )?(\d{1,2})([-/.])(\d{1,2})\2(?:\d{4}|\d{2})\b")
_EPOCH_UNITS_US = ((100_000_000_000, SECOND_US), (10**14, 1_000), (10**17, 1))
"""Below each limit a number counts seconds, milliseconds, microseconds; above: nanoseconds. Right from 1973 to 5138."""
_LEAST_EPOCH = 100_000_000


@dataclass(frozen=True)
class StampRules:
    """How times are to be read.

    Attributes:
        zone: where times without a zone are from: UTC, Europe/London, +01:00; None: they are refused.
        date_order: dmy or mdy of dates such as 03/04/2021; auto: as the file's other dates show.
        ordered: whether rows follow each other in time, forwards or backwards; else an hour that the zone's clocks show
            twice is refused.
    """

    zone: str | None = None
    date_order: str = "auto"
    ordered: bool = True

    def __post_init__(self) -> None:
        check_choice("date order", self.date_order, DATE_ORDERS)
        if self.zone is not None:
            find_zone(self.zone)


def find_zone(name: str) -> tzinfo:
    """Return a zone by its name in the IANA list, or as an offset.

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
        found = next((match for form in _FORMS if (match := form.fullmatch(cell.strip()))), None)
        return found is not None and found["hour"] is None
    return isinstance(cell, date) and not isinstance(cell, datetime)


def read_stamps(cells: Sequence[Any], places: Sequence[str], rules: StampRules) -> list[int]:
    """Return the instant of each cell: a text, a number since 1970, or a date with or without time.

    Args:
        cells: in the file's order, which tells the two passes through an hour that a clock shows twice apart.
        places: where each is, for errors.
        rules: what the file itself does not say.

    Raises:
        InputError: one cannot be read, or could mean two instants; names its place.
    """
    day_first = _day_first(cells, places, rules.date_order)
    instants: list[int] = [0] * len(cells)
    naive: list[tuple[int, datetime]] = []
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
            naive.append((number, stamp))
    if not naive:
        return instants
    if rules.zone is None:
        raise InputError(_without_zone(cells, places, [number for number, _ in naive]))
    for (number, _), instant in zip(naive, _localise(naive, rules, places), strict=True):
        instants[number] = instant
    return instants


def _without_zone(cells: Sequence[Any], places: Sequence[str], naive: list[int]) -> str:
    first = naive[0]
    others = f", though {len(cells) - len(naive):,} others have one" if len(naive) < len(cells) else ""
    return f"{places[first]}: time {_shown(cells[first])} has no zone{others}: give `zone`, such as UTC"


def _shown(cell: Any) -> str:
    return repr(cell if isinstance(cell, str | int | float) or cell is None else str(cell))


def _read(cell: Any, day_first: bool) -> int | datetime:
    if isinstance(cell, datetime):
        return cell
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day)
    if isinstance(cell, bool) or cell is None:
        raise ValueError("it is empty" if cell is None else "it is no time")
    if isinstance(cell, int):
        return _from_epoch(cell)
    if isinstance(cell, float):
        return _from_epoch(Decimal(repr(cell)))
    text = cell.strip()
    if not text:
        raise ValueError("it is empty")
    if text.isdecimal() and (len(text) in (9, 10, 11, 13) or len(text) > 14):
        return _from_epoch(int(text))
    if text.isdecimal() and len(text) in (12, 14):  # as an epoch it would be before 2001 or after 2286
        text = f"{text[:8]} {text[8:]}"
    if re.fullmatch(r"\d+\.\d*", text):
        return _from_epoch(Decimal(text))
    if re.fullmatch(r"\d+(\.\d*)?e\+?\d+", text, re.IGNORECASE):
        raise ValueError("a spreadsheet has cut its digits off: export the file again with whole numbers")
    return _from_text(text, day_first)


def _from_epoch(number: int | Decimal) -> int:
    if not number >= _LEAST_EPOCH:
        raise ValueError("as seconds since 1970 it is before 1973")
    for limit, unit_us in _EPOCH_UNITS_US:
        if number < limit:
            return int(number * unit_us)
    return int(number // 1_000)


def _from_text(text: str, day_first: bool) -> datetime:
    found = next((match for form in _FORMS if (match := form.fullmatch(text))), None)
    if found is None:
        raise ValueError("give it as in 2021-09-27 14:45:00+01:00, or as seconds since 1970")
    parts = found.groupdict()
    year = int(parts["year"]) + (2000 if len(parts["year"]) == 2 else 0)
    if parts.get("name"):
        month = _MONTHS.get(parts["name"][:3].lower(), 0)
        day = int(parts["day"])
    elif parts.get("first"):
        first, second = int(parts["first"]), int(parts["second_field"])
        day, month = (first, second) if day_first or parts["mark"] == "." else (second, first)
    else:
        month, day = int(parts["month"]), int(parts["day"])
    zone = parts["zone"] or parts["zone_2"]
    return datetime(
        year,
        month,
        day,
        _hour(parts["hour"], parts["half"]),
        int(parts["minute"] or parts["minute_2"] or 0),
        int(parts["second"] or parts["second_2"] or 0),
        int((parts["fraction"] or "0")[:6].ljust(6, "0")),
        tzinfo=_offset(zone) if zone else None,
    )


def _hour(text: str | None, half: str | None) -> int:
    hour = int(text or 0)
    if half is None:
        return hour
    if not 1 <= hour <= 12:
        raise ValueError(f"hour {hour} on a clock of 12 hours")
    return hour % 12 + (12 if half.lower() == "p" else 0)


def _offset(text: str) -> tzinfo:
    digits = re.sub(r"[^\d]", "", text)
    if not digits:
        return UTC
    minutes = int(digits[:2]) * 60 + int(digits[2:] or 0)
    return timezone(timedelta(minutes=-minutes if "-" in text else minutes))


def _day_first(cells: Sequence[Any], places: Sequence[str], order: str) -> bool:
    """Return whether dates such as 03/04/2021 have the day first, as the others in the file show."""
    if order != "auto":
        return order == "dmy"
    first_seen = second_seen = example = None
    for number, cell in enumerate(cells):
        found = _FIELDS.match(cell) if isinstance(cell, str) else None
        if found is None or found[2] == ".":  # with points the day is first
            continue
        example = number if example is None else example
        first_seen = number if int(found[1]) > 12 else first_seen
        second_seen = number if int(found[3]) > 12 else second_seen
    if first_seen is not None and second_seen is not None:
        raise InputError(
            f"{places[first_seen]}: date {cells[first_seen]!r} has the day first, {cells[second_seen]!r} of "
            f"{places[second_seen]} the month: make them alike"
        )
    if example is not None and first_seen is None and second_seen is None:
        raise InputError(
            f"{places[example]}: date {cells[example]!r} may have day or month first: give `date_order`, dmy or mdy"
        )
    return first_seen is not None


def _localise(naive: Sequence[tuple[int, datetime]], rules: StampRules, places: Sequence[str]) -> list[int]:
    """Return the instants of a zone's clock times; an hour that it shows twice is told apart by the file's order."""
    name = rules.zone or "UTC"
    zone = find_zone(name)
    instants: list[int] = []
    twice: list[int] = []
    for position, (number, stamp) in enumerate(naive):
        early, late = (stamp.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        if early.utcoffset() != late.utcoffset():
            if to_us(early) > to_us(late):
                raise InputError(f"{places[number]}: the clocks of {name} skip {stamp}: is the file of another zone?")
            twice.append(position)
        instants.append(to_us(early))
    if not twice:
        return instants
    if not rules.ordered:
        number, stamp = naive[twice[0]]
        raise InputError(f"{places[number]}: the clocks of {name} show {stamp} twice: convert the times to UTC")
    falling = sum(a[1] > b[1] for a, b in pairwise(naive))
    backwards = falling > len(naive) / 2
    for run in _runs(twice):
        ordered = run[::-1] if backwards else run
        for position, fold in zip(ordered, _folds(ordered, naive, backwards, name, places), strict=True):
            instants[position] = to_us(naive[position][1].replace(tzinfo=zone, fold=fold))
    return instants


def _runs(positions: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def _folds(
    run: Sequence[int], naive: Sequence[tuple[int, datetime]], backwards: bool, name: str, places: Sequence[str]
) -> list[int]:
    """Return 0 or 1, the first or second pass, for each time of a stretch that the clock showed twice."""
    stamps = [naive[position][1] for position in run]
    turns = [number for number in range(1, len(stamps)) if stamps[number] <= stamps[number - 1]]
    place = places[naive[run[0]][0]]
    if len(turns) == 1:
        return [0] * turns[0] + [1] * (len(stamps) - turns[0])
    step = Counter(abs(b[1] - a[1]) for a, b in pairwise(naive)).most_common(1)
    if turns or not step:
        raise InputError(f"{place}: the clocks of {name} show {stamps[0]} twice: convert the times to UTC")
    ahead = -1 if backwards else 1
    before, after = run[0] - ahead, run[-1] + ahead
    joins_before = 0 <= before < len(naive) and stamps[0] - naive[before][1] == step[0][0]
    joins_after = 0 <= after < len(naive) and naive[after][1] - stamps[-1] == step[0][0]
    if joins_before == joins_after:
        raise InputError(
            f"{place}: the clocks of {name} show {stamps[0]} twice and the file has it once: convert the times to UTC"
        )
    return [0 if joins_before else 1] * len(stamps)
