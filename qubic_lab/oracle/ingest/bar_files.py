"""Prices from files: bars and quotes as exchanges and people write them, read exactly or refused in one line.

Nothing is filled in: missing bars stay missing and are counted. `notes` say what was left out.

Rows are data frames, indexed by their line in the file: `stamp` is a bar's open or close or a quote's instant, `end` a
bar's close if the file has both, in microseconds; the other columns are numbers.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.checked_yaml import STRICT
from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.ingest.file_columns import (
    DECIMAL_MARKS,
    PRICE_TARGETS,
    NeedsOption,
    ask_once,
    check_reading,
    decimal_mark,
    find_columns,
    find_volumes,
    find_zone,
    is_clock,
    is_date_only,
    is_header,
    is_missing,
    name_header,
    normalise,
    read_numbers,
    read_stamps,
)
from qubic_lab.oracle.ingest.validation import BARS, QUOTES, check_frame, keep_prices
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.coins import find_coin
from qubic_lab.oracle.model.file_tables import FileTable, read_table
from qubic_lab.oracle.model.known import known_text, read_known
from qubic_lab.oracle.model.records import Price, Series, bars_of_prices, check_source, flag_prices
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.timestamps import DAY_US, MINUTE_US, SECOND_US, iso, now_us, read_iso, to_us
from qubic_lab.oracle.store.price_store import PriceStore

STAMPS = ("auto", "open", "close")
DUPLICATES = ("refuse", "first", "last")
_PRICES = ("open", "high", "low", "close")
_TIMES = ("time", "opened", "closed")
_AMOUNTS = ("volume", "volume_24h", "market_cap")
_LEAST_SHARE = 0.5
"""The share of the steps between bars that the commonest one must have, to be their length."""
_CLOSE_MARGINS_US = (0, 1, 1_000, SECOND_US)
"""How far a file's close may be before the next open: 12:14:59.999 means 12:15."""


@dataclass(frozen=True)
class BarOptions:
    """What a file of prices does not say about itself.

    Attributes:
        interval_s: a bar's length; None: the commonest step between the times.
        stamp: whether times are a bar's open or close; auto: by the names of the columns, else the user must say. A
            date without a time of day as a close is the end of that day.
        zone: of times without one: UTC, Europe/London, +01:00.
        date_order: dmy or mdy; auto: as the file's dates show; `decimal`: the same of the decimal mark, "." or ",".
        columns: our names to the file's, such as {"close": "Last"}; a column's number from 1 where it has no names.
            A `volume` is in coins, a `volume_currency` in the currency.
        duplicates: rows for one bar that contradict each other: refuse them, or take the first or last in the file.
        taken: when the file was downloaded, as in 2026-11-24T12:00:00Z: bars that close later were forming.
        known: when prices count as known, see `read_known`: an assumption for archives.
    """

    __pydantic_config__ = STRICT

    coin: str
    source: str = "file"
    currency: str = "usd"
    interval_s: int | None = None
    stamp: str = "auto"
    zone: str | None = None
    date_order: str = "auto"
    decimal: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    duplicates: str = "refuse"
    taken: str | None = None
    known: str = "now"

    def __post_init__(self) -> None:
        find_coin(self.coin)
        check_source(self.source)
        check_choice("stamp", self.stamp, STAMPS)
        check_choice("rule for duplicates", self.duplicates, DUPLICATES)
        check_choice("decimal mark", self.decimal, DECIMAL_MARKS)
        check_reading(self.columns, PRICE_TARGETS, self.zone, self.date_order)
        read_known(self.known)
        if self.taken is not None:
            read_iso(self.taken)
        if self.interval_s is not None and self.interval_s < 1:
            raise InputError(f"interval is {self.interval_s} s: it must be at least 1")


@dataclass(frozen=True)
class BarFile:
    """A file's prices, by time, of its `rows`; in its `gaps` bars are `missing`; `notes` say what was left out."""

    file: str
    series: Series
    prices: tuple[Price, ...]
    rows: int
    gaps: int
    missing: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BarImport(Part):
    """The outcome of an import: `added` rows are new in the database, `corrected` of them are later versions."""

    file: str
    series: Series
    rows: int
    prices: int
    added: int
    corrected: int
    from_us: Instant
    to_us: Instant
    gaps: int
    missing: int
    flags: Mapping[str, int]
    known: str
    notes: tuple[str, ...]


def import_bars(store: PriceStore, path: Path, options: BarOptions, clock: Callable[[], int] = now_us) -> BarImport:
    """Read a file of prices, flag oddities and store them; nothing is stored if it cannot be read right."""
    file = read_bars(path, options, clock())
    kept, delay_us = keep_prices(store, file.series, file.prices), read_known(options.known)
    store.assume(file.series, file.prices[0].closed_us, file.prices[-1].closed_us + 1, delay_us)
    return BarImport(
        file=file.file,
        series=file.series,
        rows=file.rows,
        prices=len(file.prices),
        added=kept.added.added,
        corrected=kept.added.corrected,
        from_us=file.prices[0].opened_us,
        to_us=file.prices[-1].closed_us,
        gaps=file.gaps,
        missing=file.missing,
        flags=dict(Counter(flag for price in kept.prices for flag in price.flags)),
        known=known_text(delay_us),
        notes=(*file.notes, *_without_volume(file)),
    )


def _without_volume(file: BarFile) -> list[str]:
    """Return a note where prices have no volume of their own, and what that leaves out, if they have none."""
    if any(price.volume is not None for price in file.prices):
        return []
    what = "bars without" if file.series.interval_s else "quotes, which have no bars and no"
    return [f"{what} volumes of their own: no volume alerts and no hints of manipulation can be made of them"]


def flagged_bars(file: BarFile) -> tuple[Bars, dict[str, int]]:
    """Return a file's prices as bars of one asset, and how many have each flag; no database is needed.

    A volume of days that is known in the currency alone is divided by the close.
    """
    series, prices = file.series, flag_prices(file.prices)
    bars = bars_of_prices(prices, series.coin, series.interval_s * SECOND_US)
    if series.interval_s * SECOND_US == DAY_US and np.isnan(bars.volume_BA).all():
        traded = np.array([price.volume_24h for price in prices], np.float64) / bars.close
        bars = replace(bars, volume_BA=traded.reshape(-1, 1))
    return bars, dict(Counter(flag for price in prices for flag in price.flags))


def read_bars(path: Path, options: BarOptions, now_us: int) -> BarFile:
    """Read a file of prices: bars, or quotes if it has one price a row; what closes after `now_us` is not known.

    It is CSV with any delimiter, JSON lines, a JSON list of lists or Parquet; all but the last also in .gz or .zip.

    Raises:
        InputError: it cannot be read exactly; names file, line and remedy. If options are missing, it names all.
    """
    return ask_once(lambda given: _read_bars(path, given, now_us), options)


def _read_bars(path: Path, options: BarOptions, now_us: int) -> BarFile:
    needed = (_TIMES, ("close",))
    table = read_table(path, lambda names: is_header(names, options.columns, PRICE_TARGETS, needed))
    table = name_header(table, options.columns)
    found, names = _columns(table, options)
    rows, opens, time_notes = _rows(table, found, options, names)
    used = {*found.values(), *(_clock_of(table, found, found[name]) for name in _TIMES if name in found)}
    notes = [*table.notes, *table.unused(used), *time_notes]
    if len(rows) < len(table.rows):
        notes.append(f"{len(table.rows) - len(rows)} row(s) without prices left out as gaps")
    now_us = now_us if options.taken is None else min(now_us, read_iso(options.taken))
    interval_us = 0
    if names == _PRICES:
        rows = _forwards(rows)
        interval_us = _find_interval(table.file, rows["stamp"].to_numpy(), options.interval_s)
        written_us = path.stat().st_mtime_ns // 1_000
        forming = _is_forming(table.file, rows, interval_us, opens=opens, now_us=now_us, written_us=written_us)
        if forming.any():
            shown = ", ".join(map(str, rows.index[forming][:5]))
            notes.append(f"{forming.sum()} row(s) left out because the bar had not closed: line {shown}")
        rows = rows[~forming]
    else:
        for line, at in rows["stamp"][rows["stamp"] > now_us][:1].items():
            raise InputError(f"{table.file}:{line}: {iso(at)} is still to come: are `zone` and `taken` right?")
    prices, more = _prices(table.file, rows, options, interval_us, opens)
    series = Series(find_coin(options.coin).id, options.source, interval_us // SECOND_US, options.currency.lower())
    steps = ((earlier.closed_us, later.opened_us) for earlier, later in pairwise(prices) if interval_us)
    lost = [(opened_us - closed_us) // interval_us for closed_us, opened_us in steps if opened_us > closed_us]
    return BarFile(table.file, series, prices, len(table.rows), len(lost), sum(lost), (*notes, *more))


def _columns(table: FileTable, options: BarOptions) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of each column by our names, and the names of a row's prices: four for bars, one for quotes."""
    found = find_columns(table, options.columns, PRICE_TARGETS)
    found = find_volumes(table.header, find_coin(options.coin).symbol, options.currency) | found
    if "volume_currency" in found:
        found["volume_24h"] = found.pop("volume_currency")
    if not set(_TIMES) & set(found):
        raise InputError(f"{table.file}: no column of times among {table.listed()}: map `time` to one")
    missing = [name for name in _PRICES if name not in found]
    if missing and missing != ["open", "high", "low"]:
        raise InputError(f"{table.file}: no column for {missing[0]} among {table.listed()}: map it")
    return found, ("close",) if missing else _PRICES


def _rows(
    table: FileTable, found: Mapping[str, int], options: BarOptions, names: Sequence[str]
) -> tuple[pd.DataFrame, bool, list[str]]:
    """Return the rows that have a price, as numbers; whether their stamps are opens; and notes on their times."""
    cells = pd.DataFrame(
        {name: table.column(found[name]) for name in (*names, *_AMOUNTS) if name in found},
        index=table.lines,
        dtype=object,
    )
    kept = [not all(map(is_missing, prices)) for prices in zip(*(cells[name] for name in names), strict=True)]
    if not any(kept):
        raise InputError(f"{table.file}: no row has a price: check which columns they are in")
    cells, table = cells[kept], table.where(kept)
    mark = options.decimal
    if mark == "auto":
        mark = decimal_mark(cells.to_numpy().T.ravel(), table.file)
    rows = pd.DataFrame(
        {name: read_numbers(column, table.places(), name, mark) for name, column in cells.items()}, cells.index
    )
    stamp, target = ("open", "time") if tuple(names) == ("close",) else _stamp(table, found, options)
    date = found[target if target in found else next(name for name in _TIMES if name in found)]
    rows["stamp"] = _instants(table, found, date, options)
    if target == "opened" and "closed" in found:
        rows["end"] = _instants(table, found, found["closed"], options)
    only_days = _clock_of(table, found, date) is None and all(map(is_date_only, table.column(date)))
    if only_days and "close" in (stamp, options.stamp):
        rows["stamp"] = _days_later(rows["stamp"].tolist(), options.zone)
        return rows, stamp == "open", ["dates without a time: taken as the end of that day"]
    if stamp == "close":
        rows["stamp"] = _whole_closes(rows["stamp"].to_numpy())
    return rows, stamp == "open", []


def _stamp(table: FileTable, found: Mapping[str, int], options: BarOptions) -> tuple[str, str]:
    """Return whether stamps are "open" or "close", and our name of their column."""
    for stamp, target in (("open", "opened"), ("close", "closed")):
        if target in found and options.stamp in ("auto", stamp):
            return stamp, target
    if "time" not in found:
        raise InputError(f"{table.file}: `stamp` is {options.stamp}, and no column says when bars do: map `time` to it")
    if options.stamp == "auto":
        name = table.header[found["time"]]
        said = f"{table.file}: {name!r} may be when a bar opens or closes: give `stamp`, open or close"
        raise NeedsOption(said, "stamp", "open")
    return options.stamp, "time"


def _instants(table: FileTable, found: Mapping[str, int], date: int, options: BarOptions) -> NDArray[np.int64]:
    """Return the instants in a column of times, with the column of times of day if the first has dates alone."""
    cells, names = table.column(date), [table.header[date]]
    clock = _clock_of(table, found, date)
    if clock is not None:
        cells = [f"{day} {time}" for day, time in zip(cells, table.column(clock), strict=True)]
        names.append(table.header[clock])
    zone = options.zone
    if zone is None and {"utc", "gmt"} & {word for name in names for word in normalise(name).split()}:
        zone = "UTC"
    return np.array(read_stamps(cells, table.places(), zone, options.date_order), np.int64)


def _clock_of(table: FileTable, found: Mapping[str, int], date: int) -> int | None:
    """Return the column of times of day beside a column of dates; None if that has times itself."""
    if not is_date_only(table.rows[0][date]):
        return None
    if "clock" in found:
        return found["clock"]
    for number, name in enumerate(table.header):
        if number != date and {"time", "clock"} & set(normalise(name).split()) and is_clock(table.rows[0][number]):
            return number
    return None


def _days_later(stamps: Sequence[int], zone: str | None) -> list[int]:
    """Return the same time of the next day by a zone's clocks."""
    clocks = find_zone(zone or "UTC")
    return [to_us(datetime.fromtimestamp(at // SECOND_US, clocks) + timedelta(days=1)) for at in stamps]


def _whole_closes(stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return closes as the next bars' opens, if a file has the last moment before: 12:14:59.999 means 12:15."""
    for margin_us in _CLOSE_MARGINS_US[1:]:
        if ((stamps + margin_us) % MINUTE_US == 0).mean() > _LEAST_SHARE:
            return stamps + margin_us
    return stamps


def _forwards(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in reverse if most of them go back in time."""
    steps = np.diff(rows["stamp"])
    return rows[::-1] if (steps < 0).sum() > (steps > 0).sum() else rows


def _find_interval(file: str, stamps: NDArray[np.int64], given_s: int | None) -> int:
    """Return a bar's length in microseconds: the commonest step between times, which must be the given one, if any."""
    steps = np.diff(np.unique(stamps))
    if not len(steps):
        if given_s is None:
            said = f"{file}: one bar does not show how long bars are: give `interval`"
            raise NeedsOption(said, "interval_s", 3_600)
        return given_s * SECOND_US
    lengths, counts = np.unique(steps, return_counts=True)
    common, share = int(lengths[np.argmax(counts)]), float(counts.max()) / len(steps)
    found_s = f"{common / SECOND_US:g} s"
    if given_s is not None:
        if common != given_s * SECOND_US and len(steps) > 1:
            raise InputError(f"{file}: bars are mostly {found_s} apart, not {given_s} s: give the right `interval`")
        return given_s * SECOND_US
    if share < _LEAST_SHARE:
        said = f"{file}: only {share:.0%} of bars are {found_s} apart: give `interval`"
        raise NeedsOption(said, "interval_s", max(1, common // SECOND_US))
    if common % SECOND_US:
        raise InputError(f"{file}: bars are {found_s} apart: only whole seconds can be kept")
    return common


def _is_forming(
    file: str, rows: pd.DataFrame, interval_us: int, *, opens: bool, now_us: int, written_us: int
) -> NDArray[np.bool_]:
    """Return which bars had not closed when they were downloaded, [rows]; the rows are forwards in time.

    A row off the grid at the end of the file, or of a block in it, is the price at the instant of the download: it is
    not a bar, and the bar around it was forming. So was the newest bar if it ends after `now_us`, if the file was last
    written within it, or if it says itself that it ends early.

    Raises:
        InputError: a row is off the grid or of another length without such a reason, or opens after `now_us`.
    """
    stamps = rows["stamp"].to_numpy()
    opened = stamps if opens else stamps - interval_us
    forming = _downloaded_within(file, rows, interval_us, opens)
    for number in np.flatnonzero(opened > now_us)[:1]:
        when = iso(int(opened[number]))
        raise InputError(f"{file}:{rows.index[number]}: {when} is still to come: are `zone` and `taken` right?")
    closed = opened + interval_us
    newest = opened == opened[~forming].max(initial=0)
    forming |= newest & ((closed > now_us) | ((opened <= written_us) & (written_us < closed)))
    if "end" in rows:
        ends = rows["end"].to_numpy()
        forming |= newest & (ends - opened < interval_us - _CLOSE_MARGINS_US[-1])
        wrong = ~forming & ~np.isin(stamps + interval_us - ends, _CLOSE_MARGINS_US)
        for number in np.flatnonzero(wrong)[:1]:
            raise InputError(
                f"{file}:{rows.index[number]}: bar of {iso(int(stamps[number]))} closes {iso(int(ends[number]))}, not "
                f"{interval_us // SECOND_US} s later as others do: correct it or leave it out"
            )
    if forming.all():
        raise InputError(f"{file}:{rows.index[0]}: no bar in the file has closed yet: try again later")
    return forming


def _downloaded_within(file: str, rows: pd.DataFrame, interval_us: int, opens: bool) -> NDArray[np.bool_]:
    """Return which rows are not whole bars, by a row off the grid that ends a block."""
    stamps = rows["stamp"].to_numpy()
    phases, counts = np.unique(stamps % interval_us, return_counts=True)
    phase = int(phases[np.argmax(counts)])
    forming = np.zeros(len(rows), bool)
    for number in np.flatnonzero((stamps - phase) % interval_us).tolist():
        at = int(stamps[number])
        if not _ends_block(stamps, number, phase, interval_us):
            raise InputError(
                f"{file}:{rows.index[number]}: {iso(at)} is off the grid of {interval_us // SECOND_US} s that others "
                "are on: correct it or leave it out; if clocks were changed, give the `zone` of the grid, such as UTC"
            )
        forming[number] = True
        earlier = number - 1
        while opens and earlier >= 0 and stamps[earlier] <= at < stamps[earlier] + interval_us:
            forming[earlier] = True
            earlier -= 1
    return forming


def _ends_block(stamps: NDArray[np.int64], number: int, phase: int, interval_us: int) -> bool:
    """Return whether nothing follows a row directly: the file ends, goes back in time, or bars are missing."""
    if number + 1 == len(stamps):
        return True
    here, following = int(stamps[number]), int(stamps[number + 1])
    slot = here - (here - phase) % interval_us
    on_grid = (following - phase) % interval_us == 0
    return on_grid and (following < here or following >= slot + 2 * interval_us)


def _prices(
    file: str, rows: pd.DataFrame, options: BarOptions, interval_us: int, opens: bool
) -> tuple[tuple[Price, ...], list[str]]:
    """Return prices by time, and notes; `interval_us` is 0 for quotes.

    A day's volume in the currency is that of 24 hours; shorter bars have no field for it, quotes none for coins.
    """
    opened = rows["stamp"] if opens else rows["stamp"] - interval_us
    rows = rows.assign(opened_us=opened, closed_us=opened + interval_us)
    names = [name for name in (*_PRICES, *_AMOUNTS) if name in rows or name in _AMOUNTS]
    checked = rows.reindex(columns=["opened_us", "closed_us", *names]).astype(dict.fromkeys(names, float))
    check_frame(BARS if interval_us else QUOTES, checked, [f"{file}:{line}" for line in rows.index])
    ordered, notes = _in_order(file, rows if interval_us else _forwards(rows), options.duplicates)
    if interval_us not in (0, DAY_US) and "volume_24h" in rows:
        notes.append("volumes in the currency left out: of bars only those of a day are kept")
        names.remove("volume_24h")
    elif not interval_us and "volume" in rows:
        notes.append("volumes left out: of quotes only those of 24 hours in the currency are kept")
        names.remove("volume")
    values = ordered.reindex(columns=["opened_us", "closed_us", *names]).astype(object)
    return tuple(Price(**row) for row in values.where(values.notna(), None).to_dict("records")), notes


def _in_order(file: str, rows: pd.DataFrame, duplicates: str) -> tuple[pd.DataFrame, list[str]]:
    """Return one row for each time, in order, and notes on what was done.

    Raises:
        InputError: rows contradict each other, and `duplicates` says to refuse that; names both lines.
    """
    notes = ["rows were out of order: sorted"] * bool((np.diff(rows["stamp"]) < 0).any())
    keep: Literal["first", "last"] = "last" if duplicates == "last" else "first"
    ordered = rows.sort_index().sort_values("stamp", kind="stable")
    different = ordered.drop_duplicates([name for name in ordered if name != "end"], keep=keep)
    kept = different.drop_duplicates("stamp", keep=keep)
    contradicting = len(different) - len(kept)
    if contradicting and duplicates == "refuse":
        at = int(different["stamp"][different["stamp"].duplicated()].iloc[0])
        first, second = different.index[different["stamp"] == at][:2]
        said = (
            f"{file}:{first}: contradicts line {second} about {iso(at)}: correct one, or give `duplicates`, first or "
        )
        raise NeedsOption(f"{said}last", "duplicates", "last")
    if len(kept) < len(ordered):
        what = f", {contradicting} contradicting it: the {duplicates} counts" * bool(contradicting)
        notes.append(f"{len(ordered) - len(kept)} row(s) left out for another of the same time{what}")
    return kept, notes
