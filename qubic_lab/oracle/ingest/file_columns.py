"""Columns of files: what each holds, by its name or as the user maps it, and its cells as numbers and instants.

Cells are read as people and exchanges write them, and refused if they are ambiguous.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_choice, did_you_mean
from qubic_lab.oracle.model.file_tables import FileTable
from qubic_lab.oracle.model.timestamps import SECOND_US, to_us

PRICE_TARGETS: dict[str, tuple[str, ...]] = {
    "opened": ("open time", "opentime", "time open", "timeopen", "candle begin time", "start time", "start"),
    "closed": ("close time", "closetime", "time close", "timeclose", "candle end time", "end time", "end"),
    "time": (
        *("timestamp", "unix", "unix timestamp", "unix time", "unixtime", "epoch", "time stamp"),
        *("datetime", "date time", "date utc", "time utc", "timestamp utc", "datetime utc", "utc", "utc time"),
        *("gmt time", "time gmt", "snapped at", "date", "day", "local time", "time", "ts", "t"),
        *("index level 0", "index", "unnamed 0", ""),
    ),
    "clock": ("clock", "hour"),
    "open": ("open", "o", "open price", "opening price", "price open", "first"),
    "high": ("high", "h", "high price", "price high", "max", "highest"),
    "low": ("low", "l", "low price", "price low", "min", "lowest"),
    "close": ("close", "c", "close price", "closing price", "price close", "close last", "last", "price", "last price"),
    "volume": ("volume", "v", "vol", "base volume", "volume base", "base asset volume"),
    "volume_currency": (
        *("quote volume", "quote asset volume", "volume quote", "quotevolume", "turnover", "volume currency"),
        *("total volume", "total volumes"),
    ),
    "market_cap": ("market cap", "marketcap", "market capitalization", "market caps"),
}
"""What a file of prices may have, and names of its columns; the first one found counts. `clock` goes with a date."""
TEXT_TARGETS: dict[str, tuple[str, ...]] = {
    "id": ("id", "external id", "guid", "object id", "objectid", "tweet id", "post id"),
    "title": ("title", "headline", "subject", "name"),
    "body": ("body", "text", "content", "summary", "description", "selftext", "message", "article"),
    "url": ("url", "link", "permalink"),
    "publisher": ("publisher", "site", "outlet", "source", "domain", "newspaper", "source name"),
    "published": (
        *("published", "published at", "publishedat", "published utc", "publish date", "pubdate", "pub date"),
        *("created at", "createdat", "created utc", "datetime", "date time", "timestamp", "date", "time"),
    ),
    "author": ("author", "user", "username", "by"),
    "language": ("language", "lang"),
    "score": ("score", "points", "likes", "upvotes"),
    "coins": ("coins", "coin", "currencies", "tickers", "symbols"),
    "kind": ("kind", "type"),
}
"""The same of a file of texts."""
BINANCE = (
    *("open time", "open", "high", "low", "close", "volume", "close time", "quote volume", "trades"),
    *("taker base volume", "taker quote volume", "ignore"),
)
"""The columns of Binance's dumps, which have no header before 2025; some omit the last one."""
COINGECKO_OHLC = ("close time", "open", "high", "low", "close")
"""The columns of CoinGecko's JSON: times are those of closes."""
DECIMAL_MARKS = ("auto", ".", ",")
DATE_ORDERS = ("auto", "dmy", "mdy")
_MISSING = frozenset(["", "null", "nan", "na", "n/a", "none", "-", "–", "—", "#n/a"])
_MAGNITUDES = {"k": 3, "m": 6, "b": 9, "t": 12}
_PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
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


T = TypeVar("T")
Found = TypeVar("Found")


class NeedsOption(InputError):
    """A file leaves something open that an option says; `guess` is a value to look for other such options with."""

    def __init__(self, message: str, option: str, guess: Any) -> None:
        super().__init__(message)
        self.option, self.guess = option, guess


def ask_once(read: Callable[[T], Found], options: T) -> Found:
    """Return what a function makes of a dataclass of options; one error asks for all that are missing.

    Raises:
        InputError: what `read` refuses.
    """
    missing: dict[str, NeedsOption] = {}
    while True:
        try:
            found = read(options)
        except NeedsOption as need:
            if need.option in missing:
                break
            missing[need.option] = need
            options = replace(options, **{need.option: need.guess})  # type: ignore[type-var]
        except InputError:
            if not missing:
                raise
            break
        else:
            if not missing:
                return found
            break
    first, *others = missing.values()
    raise first if not others else InputError("; ".join(map(str, missing.values())))


def normalise(name: str) -> str:
    """Return a column's name in small letters with single spaces, without punctuation and a number before it."""
    words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()).strip()
    return re.sub(r"^\d+[a-z]? (?=[a-z])", "", words)


def check_reading(
    columns: Mapping[str, str], targets: Mapping[str, Sequence[str]], zone: str | None, date_order: str
) -> None:
    """Refuse options with an unknown name on the left of a mapping, zone or order of dates with an InputError."""
    for target in columns:
        check_choice("column in the mapping", target, targets)
    check_choice("date order", date_order, DATE_ORDERS)
    if zone is not None:
        find_zone(zone)


def find_columns(table: FileTable, mapping: Mapping[str, str], targets: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the number, from 0, of each target's column that there is; an InputError if a mapped one is not."""
    found: dict[str, int] = {}
    shown = [name.strip().lower() for name in table.header]
    for target, wanted in mapping.items():
        if wanted.strip().lower() not in shown:
            raise InputError(f"{table.file}: no column {wanted!r} for {target}: {did_you_mean(wanted, table.header)}")
        found[target] = shown.index(wanted.strip().lower())
    names = [normalise(name) for name in table.header]
    for target, spellings in targets.items():
        for spelling in () if target in found else spellings:
            places = [place for place, name in enumerate(names) if name == spelling and place not in found.values()]
            if len(places) > 1:
                twice = table.header[places[0]]
                raise InputError(f"{table.file}: column {twice!r} comes twice: rename one, or map {target} to another")
            if places:
                found[target] = places[0]
                break
    return found


def is_header(
    names: Sequence[str],
    mapping: Mapping[str, str],
    targets: Mapping[str, Sequence[str]],
    needed: Sequence[Sequence[str]],
) -> bool:
    """Return whether a row names a column for one of each `needed`, by common spellings or as they are mapped."""
    shown, spelled = {name.strip().lower() for name in names}, {normalise(name) for name in names}
    known = {target for target, spellings in targets.items() if spelled & set(spellings)}
    known |= {target for target, name in mapping.items() if name.strip().lower() in shown}
    return all(known & set(each) for each in needed)


def find_volumes(header: Sequence[str], symbol: str, currency: str) -> dict[str, int]:
    """Return the numbers of columns such as "Volume BTC" (coins) and "Volume USD" or "Volume USDT" (currency)."""
    units = {symbol.lower(): "volume", currency.lower(): "volume_currency", f"{currency.lower()}t": "volume_currency"}
    found: dict[str, int] = {}
    for number, name in enumerate(header):
        words = normalise(name).split()
        if len(words) == 2 and "volume" in words:
            target = units.get(words[1 - words.index("volume")])
            if target is not None:
                found.setdefault(target, number)
    return found


def name_header(table: FileTable, mapping: Mapping[str, str]) -> FileTable:
    """Return a table without a header with the names of Binance's dumps, or of CoinGecko's bars if it is JSON.

    Other columns are refused, as their order differs between exchanges, unless they are mapped by their numbers.
    """
    if table.named or mapping:
        return table
    width = len(table.header)
    if width in (len(BINANCE) - 1, len(BINANCE)):
        return replace(table, header=BINANCE[:width], named=True)
    if width == len(COINGECKO_OHLC) and ".json" in table.file.lower():
        return replace(table, header=COINGECKO_OHLC, named=True)
    raise InputError(
        f"{table.file}:{table.lines[0]}: {width} columns without names: map their numbers, such as close=5"
    )


def is_missing(cell: Any) -> bool:
    """Return whether a cell stands for no value."""
    if isinstance(cell, str):
        return cell.strip().lower() in _MISSING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def decimal_mark(cells: Iterable[Any], what: str) -> str:
    """Return the decimal mark of these cells; an InputError if they have both, or could be read either way."""
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
        said = f"{what}: {unclear!r} may be thousands or have a decimal comma: give `decimal`, '.' or ','"
        raise NeedsOption(said, "decimal", ".")
    return "," if comma else "."


def read_number(cell: Any, mark: str = ".") -> float:
    """Return the double nearest to the number in a cell, such as $1,200.5 or 1.2M; NaN if it is missing.

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
    """Return the doubles of a column's cells, NaN for missing ones; an InputError that names the place of another."""
    numbers = []
    for cell, place in zip(cells, places, strict=True):
        try:
            numbers.append(read_number(cell, mark))
        except ValueError:
            raise InputError(f"{place}: {what} {str(cell)!r} is no number: correct it or leave the row out") from None
    return np.array(numbers, np.float64)


def find_zone(name: str) -> tzinfo:
    """Return a zone by its name in the IANA list, or by its offset; an InputError if there is none."""
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


def read_stamps(
    cells: Sequence[Any], places: Sequence[str], zone: str | None, date_order: str = "auto", *, ordered: bool = True
) -> list[int]:
    """Return the instant of each cell: a text, a number since 1970, or a date with or without time.

    Without a `zone`, times without one are refused. If the cells are `ordered` by time, forwards or backwards, that
    tells apart the two passes through an hour that a clock shows twice; else such a time is refused.

    Raises:
        InputError: a cell cannot be read, or could mean two instants; names its place.
    """
    day_first = _day_first(cells, places, date_order)
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
    if naive and zone is None:
        first = next(iter(naive))
        others = f", though {len(cells) - len(naive):,} others have one" if len(naive) < len(cells) else ""
        said = f"{places[first]}: time {_shown(cells[first])} has no zone{others}: give `zone`, such as UTC"
        raise NeedsOption(said, "zone", "UTC")
    if naive and zone is not None:
        localised = _localise(list(naive.values()), [places[number] for number in naive], zone, ordered)
        for number, instant in zip(naive, localised, strict=True):
            instants[number] = instant
    return instants


def _shown(cell: Any) -> str:
    return repr(cell if isinstance(cell, str | int | float) or cell is None else str(cell))


def _match(text: str) -> re.Match[str] | None:
    return next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)


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
    texts = [(place, cell) for place, cell in zip(places, cells, strict=True) if isinstance(cell, str)]
    dates = [(place, cell, match) for place, cell in texts if (match := _TWO_ORDERS.match(cell))]
    day_first = any(int(match[1]) > 12 for _, _, match in dates)
    if dates and not day_first and all(int(match[3]) <= 12 for _, _, match in dates):
        place, cell, _ = dates[0]
        said = f"{place}: date {cell!r} may have day or month first: give `date_order`, dmy or mdy"
        raise NeedsOption(said, "date_order", "dmy")
    return day_first


def _localise(naive: Sequence[datetime], places: Sequence[str], zone: str, ordered: bool) -> list[int]:
    """Return the instants of a zone's clock times; the file's order tells times apart that the clock shows twice."""
    stamps = pd.DatetimeIndex(np.array(naive, "datetime64[us]"))
    backwards = ordered and bool((np.diff(stamps.asi8) < 0).sum() > len(stamps) / 2)
    if backwards:
        stamps, places = stamps[::-1], places[::-1]
    clocks = find_zone(zone)
    try:
        instants = stamps.tz_localize(clocks, ambiguous="infer" if ordered else "raise", nonexistent="raise").asi8
    except ValueError as error:
        first = int(np.argmax(stamps.tz_localize(clocks, ambiguous="NaT", nonexistent="NaT").isna()))
        raise InputError(
            f"{places[first]}: the clocks of {zone} skip {stamps[first]}, or show it twice and the file does not: "
            "convert the times to UTC"
        ) from error
    return [int(at) for at in (instants[::-1] if backwards else instants)]
