"""Prices from files: bars and quotes as exchanges and people write them, read right or refused in one line.

Nothing is filled in: missing bars stay missing and are counted. What was left out is told in `notes`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.ingest.cleaning import flag_prices
from qubic_lab.oracle.ingest.files.bar_rows import (
    Gap,
    Rows,
    drop_forming,
    find_gaps,
    find_interval,
    in_order,
    whole_closes,
)
from qubic_lab.oracle.ingest.files.columns import (
    PRICE_TARGETS,
    check_targets,
    find_columns,
    find_volumes,
    is_price_header,
    name_header,
    normalise,
)
from qubic_lab.oracle.ingest.files.numbers import DECIMAL_MARKS, decimal_mark, is_missing, read_numbers
from qubic_lab.oracle.ingest.files.raw_tables import RawTable, read_table
from qubic_lab.oracle.ingest.files.stamps import StampRules, find_zone, is_clock, is_date_only, read_stamps
from qubic_lab.oracle.ingest.ingest import keep_prices
from qubic_lab.oracle.ingest.schemas import BARS, QUOTES, check_frame
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.coins import find_coin
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.source_names import check_source
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, now_us, read_iso, to_us
from qubic_lab.oracle.store.price_store import PriceStore

STAMPS = ("auto", "open", "close")
VOLUMES = ("coin", "currency")
DUPLICATES = ("refuse", "first", "last")
_PRICES = ("open", "high", "low", "close")
_TIMES = ("time", "opened", "closed")
_AMOUNTS = ("volume", "volume_currency", "market_cap")


@dataclass(frozen=True)
class BarOptions:
    """What a file of prices does not say about itself.

    Attributes:
        coin: id or symbol.
        source: the name that its prices get.
        currency: what they are in.
        interval_s: a bar's length; None: the commonest step between the times.
        stamp: whether times are a bar's open or close; auto: as the columns are called, else it is asked for. A date
            without a time of day as a close is the end of that day.
        zone: of times that do not say theirs.
        date_order: dmy or mdy; auto: as the file's dates show.
        decimal: the decimal mark, "." or ","; auto: as the file's numbers show.
        columns: our names to the file's, such as {"close": "Last"}; a column's number from 1 where it has no names.
        volume_in: whether a column "volume" counts coins or the currency.
        duplicates: of rows for one bar that contradict each other: refuse them, or take the first or last in the file.
        taken: when the file was made, as in 2026-11-24T12:00:00Z: what closes later had not closed then.
    """

    coin: str
    source: str = "file"
    currency: str = "usd"
    interval_s: int | None = None
    stamp: str = "auto"
    zone: str | None = None
    date_order: str = "auto"
    decimal: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    volume_in: str = "coin"
    duplicates: str = "refuse"
    taken: str | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        find_coin(self.coin)
        check_source(self.source)
        check_choice("stamp", self.stamp, STAMPS)
        check_choice("unit of volumes", self.volume_in, VOLUMES)
        check_choice("rule for duplicates", self.duplicates, DUPLICATES)
        check_choice("decimal mark", self.decimal, DECIMAL_MARKS)
        check_targets(self.columns, PRICE_TARGETS)
        StampRules(self.zone, self.date_order)
        if self.taken is not None:
            read_iso(self.taken)
        if self.interval_s is not None and self.interval_s < 1:
            raise InputError(f"interval is {self.interval_s} s: it must be at least 1")

    def _check_kinds(self) -> None:
        """Check that values are of their kind: those of a notebook's parameter may be of any."""
        if self.interval_s is not None and (isinstance(self.interval_s, bool) or not isinstance(self.interval_s, int)):
            raise InputError(f"interval_s is {self.interval_s!r}: give whole seconds, such as 3600")
        if not isinstance(self.columns, Mapping) or not all(isinstance(name, str) for name in self.columns.values()):
            raise InputError(f"columns are {self.columns!r}: give our names and the file's, as in {{'close': 'Last'}}")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("interval_s", "columns") and not (isinstance(value, str) or value is each.default):
                raise InputError(f"{each.name} is {value!r}: give a text")


@dataclass(frozen=True)
class BarFile:
    """A file's prices, by time, and what was found in it.

    Attributes:
        rows: below the header.
        empty: rows without any price, which are gaps.
        forming: bars left out because they had not closed when the file was made.
        duplicates: rows left out for another one of the same bar.
        gaps: where bars are missing, by time.
        notes: what was left out or reordered, to be told.
    """

    file: str
    series: Series
    prices: tuple[Price, ...]
    rows: int
    empty: int
    forming: int
    duplicates: int
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImportResult:
    """What became of a file: `added` rows are new in the database, `corrected` of them are later versions."""

    file: str
    series: Series
    rows: int
    prices: int
    added: int
    corrected: int
    from_us: int
    to_us: int
    gaps: int
    missing: int
    flags: Mapping[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, times in ISO 8601."""
        found = asdict(self)
        found["from"], found["to"] = iso(found.pop("from_us")), iso(found.pop("to_us"))
        return found | {"flags": dict(self.flags), "notes": list(self.notes)}


def import_bars(store: PriceStore, path: Path, options: BarOptions, clock: Callable[[], int] = now_us) -> ImportResult:
    """Read a file of prices, flag what is odd, and keep them.

    Raises:
        InputError: the file cannot be read right; nothing was kept.
    """
    return keep_bars(store, read_bars(path, options, clock()))


def keep_bars(store: PriceStore, file: BarFile) -> ImportResult:
    """Flag a file's prices, with those before them in view, and keep them."""
    kept = keep_prices(store, file.series, file.prices)
    return ImportResult(
        file=file.file,
        series=file.series,
        rows=file.rows,
        prices=len(file.prices),
        added=kept.added.added,
        corrected=kept.added.corrected,
        from_us=file.prices[0].opened_us,
        to_us=file.prices[-1].closed_us,
        gaps=len(file.gaps),
        missing=sum(gap.missing for gap in file.gaps),
        flags=dict(Counter(flag for price in kept.prices for flag in price.flags)),
        notes=file.notes,
    )


def flagged_bars(file: BarFile) -> tuple[Bars, dict[str, int]]:
    """Return a file's prices as bars of one asset, and how many have each flag; no database is needed.

    A volume of days that is known in the currency alone is divided by the close.
    """
    series, prices = file.series, flag_prices(file.prices)
    bars = Bars.of_prices(prices, series.coin, series.interval_s * SECOND_US)
    if series.interval_s * SECOND_US == DAY_US and np.isnan(bars.volume_BA).all():
        traded = np.array([price.volume_24h for price in prices], np.float64) / bars.close
        bars = replace(bars, volume_BA=traded.reshape(-1, 1))
    return bars, dict(Counter(flag for price in prices for flag in price.flags))


def read_bars(path: Path, options: BarOptions, now_us: int) -> BarFile:
    """Read a file of prices: bars, or quotes where it has one price a row.

    Args:
        path: CSV with any delimiter, JSON lines, a JSON list of lists or Parquet; all but the last also in .gz or .zip.
        options: what the file does not say.
        now_us: nothing that closes later is known.

    Raises:
        InputError: it cannot be read right; names file, line and remedy.
    """
    table = name_header(read_table(path, lambda names: is_price_header(names, options.columns)), options.columns)
    found = _columns(table, options)
    names = _prices_of(table, found)
    rows, told = _rows(table, found, options, names)
    notes = [*table.notes, *_unused(table, found), *told]
    empty = len(table.rows) - len(rows)
    if empty:
        notes.append(f"{empty} row(s) without prices left out as gaps")
    coin, currency = find_coin(options.coin).id, options.currency.lower()
    now_us = now_us if options.taken is None else min(now_us, read_iso(options.taken))
    if names == ("close",):
        prices, left_out, more = _read_quotes(rows, options, now_us)
        interval_us = forming = 0
    else:
        rows = rows.forwards()
        interval_us = find_interval(rows, options.interval_s)
        _check_clocks(rows, interval_us, options.zone)
        rows, lines = drop_forming(rows, interval_us, now_us, path.stat().st_mtime_ns // 1_000)
        prices, left_out, more = _read_bars(rows, options, interval_us)
        forming = len(lines)
        if forming:
            shown = ", ".join(map(str, lines[:5]))
            more = [f"{forming} row(s) left out because the bar had not closed: line {shown}", *more]
    series = Series(coin, options.source, interval_us // SECOND_US, currency)
    gaps = find_gaps(prices, interval_us) if interval_us else ()
    return BarFile(table.file, series, prices, len(table.rows), empty, forming, left_out, gaps, tuple(notes + more))


def _columns(table: RawTable, options: BarOptions) -> dict[str, int]:
    """Return the number of each column by our names."""
    try:
        found = find_columns(table.header, options.columns, PRICE_TARGETS)
    except InputError as error:
        raise InputError(f"{table.file}: {error}") from error
    if options.volume_in == "currency" and "volume" in found:
        found["volume_currency"] = found.pop("volume")
    found = find_volumes(table.header, find_coin(options.coin).symbol, options.currency) | found
    if not set(_TIMES) & set(found):
        raise InputError(f"{table.file}: no column of times among {_listed(table)}: map `time` to one")
    return found


def _prices_of(table: RawTable, found: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names of a row's prices: four for bars, one for quotes."""
    missing = [name for name in _PRICES if name not in found]
    if missing and missing != ["open", "high", "low"]:
        raise InputError(f"{table.file}: no column for {missing[0]} among {_listed(table)}: map it")
    return ("close",) if missing else _PRICES


def _listed(table: RawTable) -> str:
    return ", ".join(map(repr, table.header[:12]))


def _unused(table: RawTable, found: Mapping[str, int]) -> list[str]:
    dates = [found[name] for name in _TIMES if name in found]
    used = {*found.values(), *(_clock_of(table, found, date) for date in dates)}
    unused = [name for number, name in enumerate(table.header) if number not in used and name]
    return [f"columns not used: {', '.join(unused)}"] if unused else []


def _rows(
    table: RawTable, found: Mapping[str, int], options: BarOptions, names: Sequence[str]
) -> tuple[Rows, list[str]]:
    """Return the rows that have a price, as numbers, and notes on their times."""
    columns = {name: table.column(found[name]) for name in (*names, *_AMOUNTS) if name in found}
    prices = zip(*(columns[name] for name in names), strict=True)
    kept = [number for number, row in enumerate(prices) if not all(map(is_missing, row))]
    if not kept:
        raise InputError(f"{table.file}: no row has a price: check which columns they are in")
    lines = np.array([table.lines[number] for number in kept], np.int64)
    places = [f"{table.file}:{line}" for line in lines.tolist()]
    columns = {name: [cells[number] for number in kept] for name, cells in columns.items()}
    mark = options.decimal
    if mark == "auto":
        mark = decimal_mark((cell for cells in columns.values() for cell in cells), table.file)
    numbers = {name: np.array(read_numbers(cells, places, name, mark)) for name, cells in columns.items()}
    stamp, target = ("open", "time") if names == ("close",) else _stamp(table, found, options)
    stamps = _instants(table, found, target, kept, places, options)
    ends = None
    if target == "opened" and "closed" in found:
        ends = _instants(table, found, "closed", kept, places, options)
    notes = []
    if "close" in (stamp, options.stamp) and _are_days(table, found, target, kept):
        stamps = _days_later(stamps, options.zone)
        notes.append("dates without a time: taken as the end of that day")
    elif stamp == "close":
        stamps = whole_closes(stamps)
    return Rows(table.file, lines, stamps, ends, numbers, stamp == "open"), notes


def _are_days(table: RawTable, found: Mapping[str, int], target: str, kept: Sequence[int]) -> bool:
    """Return whether times are dates alone, in every row and without a column of times of day beside them."""
    date = _time_column(found, target)
    column = table.column(date)
    return _clock_of(table, found, date) is None and all(is_date_only(column[number]) for number in kept)


def _check_clocks(rows: Rows, interval_us: int, zone: str | None) -> None:
    """Check that bars which follow a zone's clocks are of one length all the same.

    Raises:
        InputError: clocks were changed within them, such as a day that has 23 hours.
    """
    away = np.flatnonzero((rows.stamps - rows.stamps[0]) % interval_us)
    if zone is None or not len(away):
        return
    clocks = find_zone(zone)
    shown = (datetime.fromtimestamp(at // SECOND_US, clocks).replace(tzinfo=UTC) for at in rows.stamps.tolist())
    if len({to_us(each) % interval_us for each in shown}) == 1:
        raise InputError(
            f"{rows.place(int(away[0]))}: the clocks of {zone} were changed, so not all bars are "
            f"{interval_us / HOUR_US:g} h long: give the `zone` of the bars' grid, such as UTC, or shorter bars"
        )


def _days_later(stamps: NDArray[np.int64], zone: str | None) -> NDArray[np.int64]:
    """Return the same time of the next day by a zone's clocks."""
    clocks = find_zone(zone or "UTC")
    days = (datetime.fromtimestamp(at // SECOND_US, clocks) for at in stamps.tolist())
    return np.array([to_us(day + timedelta(days=1)) for day in days], np.int64)


def _stamp(table: RawTable, found: Mapping[str, int], options: BarOptions) -> tuple[str, str]:
    """Return "open" or "close", and the column that says when bars do."""
    for stamp, target in (("open", "opened"), ("close", "closed")):
        if target in found and options.stamp in ("auto", stamp):
            return stamp, target
    if "time" not in found:
        raise InputError(f"{table.file}: `stamp` is {options.stamp}, and no column says when bars do: map `time` to it")
    if options.stamp == "auto":
        name = table.header[found["time"]]
        raise InputError(f"{table.file}: {name!r} may be when a bar opens or closes: give `stamp`, open or close")
    return options.stamp, "time"


def _instants(
    table: RawTable, found: Mapping[str, int], target: str, kept: list[int], places: list[str], options: BarOptions
) -> NDArray[np.int64]:
    """Return the instants in a column of times, with the column of times of day where the first has dates alone."""
    date = _time_column(found, target)
    column = table.column(date)
    cells = [column[number] for number in kept]
    clock = _clock_of(table, found, date)
    names = [table.header[date]]
    if clock is not None and is_date_only(cells[0]):
        times = table.column(clock)
        cells = [f"{cell} {times[number]}" for cell, number in zip(cells, kept, strict=True)]
        names.append(table.header[clock])
    zone = options.zone
    if zone is None and {"utc", "gmt"} & {word for name in names for word in normalise(name).split()}:
        zone = "UTC"
    return np.array(read_stamps(cells, places, StampRules(zone, options.date_order)), np.int64)


def _time_column(found: Mapping[str, int], target: str) -> int:
    """Return the number of a column of times, or of another one where there is no such."""
    return found[target if target in found else next(name for name in _TIMES if name in found)]


def _clock_of(table: RawTable, found: Mapping[str, int], date: int) -> int | None:
    """Return the column of times of day that stands beside one of dates; None where that has times itself."""
    if not is_date_only(table.rows[0][date]):
        return None
    if "clock" in found:
        return found["clock"]
    for number, name in enumerate(table.header):
        if number != date and {"time", "clock"} & set(normalise(name).split()) and is_clock(table.rows[0][number]):
            return number
    return None


def _frame(rows: Rows, interval_us: int) -> pd.DataFrame:
    opened, nothing = rows.opened_us(interval_us), np.full(len(rows), np.nan)
    columns = {name: rows.numbers[name] for name in _PRICES if name in rows.numbers}
    amounts = {"volume": "volume", "volume_24h": "volume_currency", "market_cap": "market_cap"}
    columns |= {ours: rows.numbers.get(name, nothing) for ours, name in amounts.items()}
    return pd.DataFrame({"opened_us": opened, "closed_us": opened + interval_us, **columns})


def _values(rows: Rows, name: str) -> list[float | None]:
    column = rows.numbers.get(name)
    if column is None:
        return [None] * len(rows)
    return [None if value != value else value for value in column.tolist()]


def _read_bars(rows: Rows, options: BarOptions, interval_us: int) -> tuple[tuple[Price, ...], int, list[str]]:
    """Return bars by time, how many rows were left out for another one, and notes.

    A day's volume in the currency is that of 24 hours; that of shorter bars has no place.
    """
    check_frame(BARS, _frame(rows, interval_us), rows.places())
    ordered, notes = in_order(rows, options.duplicates)
    in_currency: list[float | None] = [None] * len(ordered)
    if interval_us == DAY_US:
        in_currency = _values(ordered, "volume_currency")
    elif "volume_currency" in rows.numbers:
        notes.append("volumes in the currency left out: of bars only those of a day are kept")
    open_, high, low, close = (ordered.numbers[name].tolist() for name in _PRICES)
    volume, market_cap = _values(ordered, "volume"), _values(ordered, "market_cap")
    opened = ordered.opened_us(interval_us).tolist()
    closed = [at + interval_us for at in opened]
    columns = (opened, closed, close, open_, high, low, volume, in_currency, market_cap)
    return tuple(map(Price, *columns)), len(rows) - len(ordered), notes


def _read_quotes(rows: Rows, options: BarOptions, now_us: int) -> tuple[tuple[Price, ...], int, list[str]]:
    """Return quotes by time, how many rows were left out for another one, and notes."""
    future = np.flatnonzero(rows.stamps > now_us)
    if len(future):
        when = iso(int(rows.stamps[future[0]]))
        raise InputError(f"{rows.place(int(future[0]))}: {when} is still to come: is `zone` right?")
    check_frame(QUOTES, _frame(rows, 0), rows.places())
    ordered, notes = in_order(rows.forwards(), options.duplicates)
    if "volume" in rows.numbers:
        notes.append("volumes left out: of quotes only those of 24 hours in the currency are kept")
    nothing = [None] * len(ordered)
    at, close = ordered.stamps.tolist(), ordered.numbers["close"].tolist()
    volume_24h, market_cap = _values(ordered, "volume_currency"), _values(ordered, "market_cap")
    columns = (at, at, close, nothing, nothing, nothing, nothing, volume_24h, market_cap)
    return tuple(map(Price, *columns)), len(rows) - len(ordered), notes
