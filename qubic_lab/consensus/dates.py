"""Dates in a text, in English and Chinese, in one spelling: ISO 8601, shortened where a part is not said.

`2021-03-03`, `2021-03` and `--03-03` (no year). A date that can be read in two ways keeps both readings, month first:
`2021-03-04|2021-04-03` for 03/04/2021. Years before our era begin with `-`: `-0044` is 44 BC.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

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
"""What every date has; most texts have none, and this is looked for faster."""


@dataclass(frozen=True)
class FoundDate:
    """A date and where it stands in its text, from `start` to before `end`."""

    value: str
    start: int
    end: int


def find_dates(text: str) -> list[FoundDate]:
    """Return the dates of a text in order; what looks like one but is none (30 February) is left out."""
    if not _HINT.search(text):
        return []
    return [FoundDate(value, found.start(), found.end()) for found in _DATE.finditer(text) if (value := _read(found))]


def year_of(value: str) -> str:
    """Return a date's year, or "" where it says none."""
    return "" if value.startswith("--") else value.split("|")[0][: 5 if value.startswith("-") else 4]


def may_agree(a: str, b: str) -> bool:
    """Tell whether two dates can be one day: a part that one of them leaves out, or a reading, may be the same."""
    return any(all(map(_parts_agree, _parts(left), _parts(right))) for left in a.split("|") for right in b.split("|"))


def _parts_agree(a: str, b: str) -> bool:
    return not a or not b or a == b


def _parts(value: str) -> tuple[str, str, str]:
    """Return year, month and day; "" where one is not said."""
    year = year_of(value)
    month, _, day = value.removeprefix(year).strip("-").partition("-")
    return year, month, day


def _read(found: re.Match[str]) -> str:
    """Return the one spelling of a match, or "" if the calendar has no such day."""
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
    """Yield the date if there is such a day."""
    try:
        date(int(year or 2000), month or 1, day or 1)  # 2000: a leap year
    except ValueError:
        return
    yield "-".join([year or "-", *(f"{part:02}" for part in (month, day) if part)])
