"""Dates in a text, in English and Chinese, in ISO 8601, shortened if a part is missing.

`2021-03-03`, `2021-03` and `--03-03` (no year). An ambiguous date keeps both readings, month first:
`2021-03-04|2021-04-03` for 03/04/2021. Years before the common era are negative: `-0044` is 44 BC.
"""

import re
from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = (
    r"(?P<{name}>Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_DAY = r"(?<!\d)(?P<{name}>\d{{1,2}})(?:st|nd|rd|th)?"
_DATE = re.compile(
    "|".join(
        (
            r"(?<![\d.-])(?P<iso_y>\d{4})(?P<iso_s>[-/.])(?P<iso_m>\d{1,2})(?P=iso_s)(?P<iso_d>\d{1,2})(?!\d)",
            r"(?<![\d.-])(?P<ym_y>[12]\d{3})-(?P<ym_m>0[1-9]|1[0-2])(?![\d-])",
            r"(?<!\d)(?P<zh_y>1\d{3}|2[01]\d\d)\s?年"
            r"(?:\s?(?P<zh_m>\d{1,2})\s?月(?:份|\s?(?P<zh_d>\d{1,2})\s?[日号])?|(?!\s?[前后]))",
            r"(?<!\d)(?P<zh_bc>公元前)\s?(?P<zh_by>\d{1,4})\s?年",
            r"(?<!\d)(?P<zh_om>\d{1,2})\s?月\s?(?P<zh_od>\d{1,2})\s?[日号]",
            _DAY.format(name="dmy_d")
            + r"\s(?:of\s)?"
            + _MONTH.format(name="dmy_m")
            + r"(?:,?\s(?P<dmy_y>\d{4})\b|(?=[\s,.;:!?)]|$))",
            _MONTH.format(name="mdy_m") + r"\s(?P<mdy_d>\d{1,2})(?:st|nd|rd|th)?,?\s(?P<mdy_y>\d{4})\b",
            _MONTH.format(name="md_m") + r"\s(?P<md_d>\d{1,2})(?:(?:st|nd|rd|th)\b|(?=[,.;:!?)](?!\d)|$))",
            _MONTH.format(name="my_m") + r",?\s(?:of\s)?(?P<my_y>\d{4})\b",
            r"(?<![\d/])(?P<two_a>\d{1,2})/(?P<two_b>\d{1,2})/(?P<two_y>\d{4})(?![\d/])",
            r"(?<![\d.])(?P<dot_d>\d{1,2})\.\s?(?P<dot_m>\d{1,2})\.\s?(?P<dot_y>\d{4})(?!\d)",
            r"(?<!\d)(?P<bc_y>\d{1,4})\s?(?:BCE?|B\.C\.(?:E\.)?)(?!\w)",
            r"\bAD\s(?P<ad_y>\d{1,4})\b|(?<!\d)(?P<ce_y>\d{1,4})\s(?:AD|CE)\b",
        )
    )
)

_HINT = re.compile(r"\d{4}|[月年]|\d ?(?:BC|AD|CE|B\.C)|\bAD |" + "|".join(_MONTHS))
"""Matches every date: a fast test, since most texts have none."""


class FoundDate(NamedTuple):
    """A date and its place in the text, from `start` up to but not including `end`."""

    value: str
    start: int
    end: int


def find_dates(text: str) -> list[FoundDate]:
    """Return the dates of a text in order; impossible ones such as 30 February are left out."""
    if not _HINT.search(text):
        return []
    return [FoundDate(value, found.start(), found.end()) for found in _DATE.finditer(text) if (value := _read(found))]


def year_of(value: str) -> str:
    """Return a date's year, or "" if it has none."""
    return "" if value.startswith("--") else value.split("|")[0][: 5 if value.startswith("-") else 4]


def may_agree(a: str, b: str) -> bool:
    """Return whether two dates can be the same day, considering missing parts and ambiguous readings."""
    return any(
        all(not x or not y or x == y for x, y in zip(_parts(left), _parts(right), strict=True))
        for left in a.split("|")
        for right in b.split("|")
    )


def _parts(value: str) -> tuple[str, str, str]:
    """Return year, month and day, each "" if missing."""
    year = year_of(value)
    month, _, day = value.removeprefix(year).strip("-").partition("-")
    return year, month, day


def _read(found: re.Match[str]) -> str:
    """Return the normal form of a match, or "" if the calendar has no such day."""
    part = {name.partition("_")[2]: value for name, value in found.groupdict().items() if value is not None}
    form = str(found.lastgroup).partition("_")[0]
    if form == "two":
        first, second = int(part["a"]), int(part["b"])
        readings = dict.fromkeys([*_iso(part["y"], first, second), *_iso(part["y"], second, first)])
        return "|".join(readings)
    if form in ("bc", "ad", "ce"):
        return f"{'-' if form == 'bc' else ''}{int(part['y']):04}"
    if "by" in part:
        return f"-{int(part['by']):04}"
    year = part.get("y", "")
    month = part.get("m") or part.get("om")
    day = part.get("d") or part.get("od")
    return next(_iso(year, _month(month), int(day) if day else None), "")


def _month(name: str | None) -> int | None:
    if name is None or name.isdecimal():
        return int(name) if name else None
    return 1 + _MONTHS.index(name[:3])


def _iso(year: str, month: int | None, day: int | None) -> Iterator[str]:
    try:
        date(int(year or 2000), month or 1, day or 1)  # 2000: a leap year
    except ValueError:
        return
    yield "-".join([year or "-", *(f"{part:02}" for part in (month, day) if part)])
