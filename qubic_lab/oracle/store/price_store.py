"""Prices in the database: added once, corrected by later rows, read as they are known now or as they were known."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from sqlalchemy import Connection, Engine, Select, bindparam, exists, func, insert, select, update

from qubic_lab.errors import NotFoundError, check_range
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.records import STALE_AFTER, Frequency, Price, Series
from qubic_lab.oracle.model.response import Instant
from qubic_lab.oracle.model.timestamps import SECOND_US, now_us
from qubic_lab.oracle.store.tables import MARKET_DATA, MARKET_SERIES
from qubic_lab.oracle.store.transactions import (
    MOST_BATCH,
    NEWEST,
    Added,
    Clock,
    assumed_time,
    check_range_us,
    chunks,
    fetch_tuples,
    insert_rows,
    known_at,
    read_cursor,
    read_stamp,
    settle,
    was_known,
    writing,
)

MOST_PAGE = 1_000
_NUMBERS = ("open", "high", "low", "close", "volume", "volume_24h", "market_cap")
_numbers_of = attrgetter(*_NUMBERS)
_VALUES = ("opened_us", *_NUMBERS, "flags")
"""The values of a version: different ones for the same series and `closed_us` are a correction."""
_WRITTEN = ("closed_us", *_VALUES, "published_us", "series_id", "known_us", "fetch_id")
_TIMES = ("opened_us", "closed_us", "known_us")
_OF_QUOTES = (*_TIMES, "close", "flags")
_OF_BARS = (*_OF_QUOTES, "open", "high", "low", "volume")
Row = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class StoredPrice(Price):
    """A price, and when it was recorded here (transaction time), or is assumed to have been known."""

    known_us: Instant
    assumed_us: Annotated[int | None, Field(exclude=True)] = None


@dataclass(frozen=True)
class PricedSeries:
    """A series with its last price, how old that is, and how often the series should have one."""

    series: Series
    last: StoredPrice
    frequency: Frequency
    age_s: float

    @property
    def stale(self) -> bool:
        """Whether a newer price is overdue."""
        return self.frequency.is_late(self.age_s)

    @property
    def step_us(self) -> int:
        """The time between two prices, in microseconds."""
        return max(1, int(self.frequency.every_s * SECOND_US))

    @property
    def tolerance_us(self) -> int:
        """How much older than asked for an earlier price may be, in microseconds."""
        return int(STALE_AFTER * self.step_us)


@dataclass(frozen=True)
class PricePage:
    """A page of prices, the newest first, and the cursor of the next page, if any."""

    prices: tuple[StoredPrice, ...]
    next_cursor: str | None


class PriceReader:
    """Reads the prices of a database as they are known now, or as they were known; threads may share it.

    Attributes:
        known_us: transaction time: rows that were recorded later are not seen.
        assumed: whether rows of archives are seen from the time at which they are assumed to have been known.

    Raises:
        NotFoundError: of methods with a series: there is none.
        InputError: of methods with a range: it is empty.
    """

    def __init__(self, engine: Engine, known_us: int = NEWEST, assumed: bool = False) -> None:
        self._engine, self.known_us, self.assumed = engine, known_us, assumed
        self._ids: dict[Series, int] = {}

    def series(self, coin: str | None = None) -> list[Series]:
        """Return the series of one coin or of all, in order."""
        query = select(*(MARKET_SERIES.c[field.name] for field in fields(Series)))
        if coin is not None:
            query = query.where(MARKET_SERIES.c.coin == coin)
        with self._engine.connect() as connection:
            return sorted(Series(*row) for row in connection.execute(query))

    def read(self, series: Series, start_us: int, end_us: int) -> Bars:
        """Return the prices with start_us <= closed_us < end_us, each in its newest version, as bars of one asset."""
        names = _OF_BARS if series.interval_s else _OF_QUOTES
        return _bars(series, names, self._rows(names, series, start_us, end_us))

    def prices(self, series: Series, start_us: int, end_us: int) -> list[StoredPrice]:
        """Return the same prices row by row, with all that is stored of them, in order of time."""
        names = tuple(field.name for field in fields(StoredPrice))
        rows = self._rows(names, series, start_us, end_us)
        newest = {row[names.index("closed_us")]: row for row in rows}
        return [_price(dict(zip(names, row, strict=True))) for row in newest.values()]

    def latest(self, series: Series, until_us: int = NEWEST) -> StoredPrice | None:
        """Return the price with the last closed_us <= until_us, or None where there is none."""
        values = {"id": self.id_of(series), "until_us": until_us, **known_at(self.known_us, self.assumed)}
        with self._engine.connect() as connection:
            row = connection.execute(_LATEST, values).mappings().first()
        return None if row is None else _price(row)

    def page(
        self, series: Series, start_us: int, end_us: int, *, limit: int = 100, cursor: str | None = None
    ) -> PricePage:
        """Return the last prices of a range, or those before a page's cursor, each in its newest version.

        Read as they were known at an instant, all pages together never change.

        Raises:
            InputError: a limit that is out of range, or a cursor that no page gave.
        """
        check_range_us(start_us, end_us)
        check_range("limit", limit, 1, MOST_PAGE)
        if cursor is not None:
            end_us = min(end_us, read_cursor(cursor, 1)[0])
        query = _IN_RANGE.where(~exists().where(*_IS_LATER)).order_by(MARKET_DATA.c.closed_us.desc()).limit(limit + 1)
        with self._engine.connect() as connection:
            rows = connection.execute(query, self._values(series, start_us, end_us)).mappings()
            found = [_price(row) for row in rows]
        prices = tuple(found[:limit])
        return PricePage(prices, str(prices[-1].closed_us) if len(found) > limit else None)

    def stamp(self, coin: str) -> int:
        """Return when a coin's prices last changed, in microseconds since 1970; 0 if there are none."""
        return read_stamp(self._engine, _subject(coin))

    def _rows(self, names: tuple[str, ...], series: Series, start_us: int, end_us: int) -> list[Row]:
        """Return all versions in a range that are seen, in order of `closed_us` and then of `known_us`."""
        check_range_us(start_us, end_us)
        query, values = _versions(names), self._values(series, start_us, end_us)
        with self._engine.connect() as connection:
            return list(chain.from_iterable(fetch_tuples(connection, query, values)))

    def _values(self, series: Series, start_us: int, end_us: int) -> dict[str, int]:
        known = known_at(self.known_us, self.assumed)
        return {"id": self.id_of(series), "start_us": start_us, "end_us": end_us, **known}

    def id_of(self, series: Series) -> int:
        """Return the number of a series in the database."""
        if series not in self._ids:
            with self._engine.connect() as connection:
                id = connection.execute(_find(series)).scalar()
            if id is None:
                kind = f"bars of {series.interval_s} s" if series.interval_s else "quotes"
                there = f"{series.coin} from {series.source} ({kind} in {series.currency})"
                raise NotFoundError(f"no prices of {there} are in the database: collect or load some first")
            self._ids[series] = id
        return self._ids[series]


class PriceStore(PriceReader):
    """Adds prices to a database that `open_database` opened, and reads those that are known now."""

    def __init__(self, engine: Engine, clock: Clock = now_us) -> None:
        super().__init__(engine)
        self._clock = clock

    def as_of(self, known_us: int, assumed: bool = False) -> PriceReader:
        """Return a reader of the prices as they were known at an instant; what it reads never changes.

        With what is `assumed` of archives it changes once another archive is imported.

        Raises:
            InputError: the instant is not settled yet: it is too near, or still to come.
        """
        settle(self._engine, known_us, self._clock)
        reader = PriceReader(self._engine, known_us, assumed)
        reader._ids = self._ids
        return reader

    def add(self, series: Series, prices: Iterable[Price], *, fetch_id: int | None = None) -> Added:
        """Store prices that are new or differ from their newest version; equal ones add nothing.

        They are written 5,000 at a time; if two of these have the same `closed_us`, the later one counts.
        """
        rest, added = iter(prices), Added()
        while batch := list(islice(rest, MOST_BATCH)):
            rows = _rows(batch)
            with writing(self._engine, self._clock) as writer:
                id = self._find_or_make(writer.connection, series)
                newest = _newest(writer.connection, id, list(rows))
                new = [row for closed_us, row in rows.items() if newest.get(closed_us) != row[:-1]]
                if new:
                    ends = (id, writer.known_us, fetch_id)
                    insert_rows(writer.connection, MARKET_DATA, _WRITTEN, [row + ends for row in new])
                    writer.wrote(_subject(series.coin))
            self._ids[series] = id
            added += Added(len(batch), len(new), sum(row[0] in newest for row in new))
        return added

    def assume(self, series: Series, start_us: int, end_us: int, delay_us: int | None) -> None:
        """Take prices that were imported, start_us <= closed_us < end_us, as known some time after their close.

        None: from when they were recorded. Collected ones keep the times at which they were.
        """
        id, rows = self.id_of(series), MARKET_DATA.c
        which = (rows.series_id == id, rows.closed_us >= start_us, rows.closed_us < end_us, rows.fetch_id.is_(None))
        with writing(self._engine, self._clock) as writer:
            given = assumed_time(rows, rows.closed_us, delay_us)
            change = update(MARKET_DATA).where(*which, rows.assumed_us.is_distinct_from(given))
            if writer.connection.execute(change.values(assumed_us=given)).rowcount:
                writer.wrote(_subject(series.coin))

    def delay_us(self, series: Series, start_us: int, end_us: int) -> int | None:
        """Return how long after their close prices of a range are assumed to have been known; None: not assumed."""
        query = select(func.max(MARKET_DATA.c.assumed_us - MARKET_DATA.c.closed_us)).where(*_SEEN_IN_RANGE)
        with self._engine.connect() as connection:
            return connection.execute(query, self._values(series, start_us, end_us)).scalar()

    def _find_or_make(self, connection: Connection, series: Series) -> int:
        id = self._ids.get(series) or connection.execute(_find(series)).scalar()
        if id is None:
            values = {field.name: getattr(series, field.name) for field in fields(Series)}
            id = connection.execute(insert(MARKET_SERIES).values(values).returning(MARKET_SERIES.c.id)).scalar_one()
        return int(id)


def _subject(coin: str) -> str:
    return f"prices {coin}"


def _find(series: Series) -> Select[Any]:
    return select(MARKET_SERIES.c.id).where(
        *(MARKET_SERIES.c[field.name] == getattr(series, field.name) for field in fields(Series))
    )


_LATER = MARKET_DATA.alias("later")
_IS_LATER = (
    _LATER.c.series_id == MARKET_DATA.c.series_id,
    _LATER.c.closed_us == MARKET_DATA.c.closed_us,
    _LATER.c.known_us > MARKET_DATA.c.known_us,
    was_known(_LATER.c),
)
# Queries of responses are built once: building them takes longer than running them.
_SEEN = (MARKET_DATA.c.series_id == bindparam("id"), was_known(MARKET_DATA.c))
_SEEN_IN_RANGE = (
    *_SEEN,
    MARKET_DATA.c.closed_us >= bindparam("start_us"),
    MARKET_DATA.c.closed_us < bindparam("end_us"),
)
_STORED = select(*(MARKET_DATA.c[field.name] for field in fields(StoredPrice)))
_IN_RANGE = _STORED.where(*_SEEN_IN_RANGE)
_LATEST = _STORED.where(*_SEEN, MARKET_DATA.c.closed_us <= bindparam("until_us"))
_LATEST = _LATEST.order_by(MARKET_DATA.c.closed_us.desc(), MARKET_DATA.c.known_us.desc()).limit(1)


@lru_cache
def _versions(names: tuple[str, ...]) -> Select[Any]:
    query = select(*(MARKET_DATA.c[name] for name in names)).where(*_SEEN_IN_RANGE)
    return query.order_by(MARKET_DATA.c.closed_us, MARKET_DATA.c.known_us)


def _price(row: Mapping[Any, Any]) -> StoredPrice:
    return StoredPrice(**{**row, "flags": _split(row["flags"])})


def _rows(prices: list[Price]) -> dict[int, Row]:
    """Return the values to write for each `closed_us`, in order: `_WRITTEN` up to `published_us`."""
    found: dict[int, Row] = {}
    for each in prices:
        numbers = (value if value == value else None for value in _numbers_of(each))  # SQLite has no NaN
        found[each.closed_us] = (each.closed_us, each.opened_us, *numbers, ",".join(each.flags), each.published_us)
    return dict(sorted(found.items()))


@lru_cache(maxsize=1_000)
def _split(flags: str) -> tuple[str, ...]:
    return tuple(flags.split(",")) if flags else ()


def _newest(connection: Connection, series_id: int, closed_us: list[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    query = select(*(MARKET_DATA.c[name] for name in ("closed_us", *_VALUES))).order_by(MARKET_DATA.c.known_us)
    for some in chunks(closed_us):
        rows = query.where(MARKET_DATA.c.series_id == series_id, MARKET_DATA.c.closed_us.in_(some))
        found |= {row[0]: row for rows in fetch_tuples(connection, rows) for row in rows}
    return found


def _bars(series: Series, names: tuple[str, ...], rows: list[Row]) -> Bars:
    """Return the last row of each `closed_us` as bars; rows are in order of that and of `known_us`."""
    values = dict(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True))
    closed = np.array(values["closed_us"], np.int64)
    newest = np.append(closed[1:] != closed[:-1], True)[: len(closed)]
    columns: dict[str, Any] = {
        name: np.array(values[name], np.int64 if name in _TIMES else np.float64)[newest]
        for name in names
        if name != "flags"
    }
    columns["flagged"] = np.fromiter(map(bool, values["flags"]), np.int64, len(closed))[newest]
    return Bars.of(**columns, frame_us=series.interval_s * SECOND_US, assets=(series.coin,), check=False)
