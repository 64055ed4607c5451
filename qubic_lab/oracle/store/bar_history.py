"""Bars over a long time, quickly: the hours of whole days stay in memory until one of their prices changes.

The cache never changes a result: a day with a price that was known only later is read again as it was known then. Bars
are always made from hours, so that sums are the same to the last bit.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from sqlalchemy import Engine, select

from qubic_lab.oracle.model.bars import Bars, join_bars
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.oracle.store.price_store import PricedSeries, PriceReader, PriceStore
from qubic_lab.oracle.store.tables import MARKET_DATA, MARKET_SERIES

MOST_DAYS = 20_000
"""Days that are kept of all series together; one takes about 3 kB."""
_LAST_US = 1 << 62

_Key = tuple[Series, int, int]
"""A series, its step in microseconds, and a day since the epoch."""


@dataclass
class _Day:
    """The hours of a day.

    Attributes:
        known_us: when the newest of its prices was recorded.
        seen_us: there are no newer prices up to this stamp.
    """

    hours: Bars
    known_us: int
    seen_us: int


class BarHistory:
    """Gives bars of a store; threads may share it."""

    def __init__(self, engine: Engine, prices: PriceStore) -> None:
        self._engine, self._prices = engine, prices
        self._days: OrderedDict[_Key, _Day] = OrderedDict()
        self._locks: dict[Series, threading.Lock] = {}
        self._lock = threading.Lock()

    def bars(
        self,
        prices: PriceReader,
        source: PricedSeries,
        frame_us: int,
        count: int,
        until_us: int,
        recent: Bars | None = None,
    ) -> Bars:
        """Return the last bars of a frame up to a series' last price.

        Args:
            prices: a reader of the store's prices, as they are known now or as they were known.
            source: a series that makes the frame, and its last price.
            frame_us: length of the bars.
            count: return at most this many; frames without a price have no bar.
            until_us: no bar ends later.
            recent: prices that were read already: those of the last price's day up to it, and perhaps earlier ones.
        """
        end, step = source.last.closed_us, source.step_us
        start = ((end - 1) // frame_us - count) * frame_us
        if HOUR_US % step or frame_us % HOUR_US:
            return prices.read(source.series, start + 1, end + 1).resample(frame_us, until_us, step).tail(count)
        first, today = start // DAY_US, (end - 1) // DAY_US
        with self._lock:
            lock = self._locks.setdefault(source.series, threading.Lock())
        with lock:  # others that need the same days wait for them
            parts = self._whole_days(prices, source.series, step, range(first, today))
        if recent is None:
            parts += _read_hours(prices, source.series, step, range(today, today + 1), end)
        else:
            parts.append(recent.after(today * DAY_US).resample(HOUR_US, _LAST_US, step))
        hours = join_bars(parts)
        hours = hours.slice(int(np.searchsorted(hours.opened_us, start)), len(hours))
        return hours.resample(frame_us, until_us).tail(count)

    def _whole_days(self, prices: PriceReader, series: Series, step: int, days: range) -> list[Bars]:
        stamp = self._prices.stamp(series.coin)  # before anything is read
        self._forget_changed(series, step, days, stamp)
        for run in _runs(day for day in days if (series, step, day) not in self._days):
            for day, hours in zip(run, _read_hours(self._prices, series, step, run), strict=True):
                self._keep((series, step, day), _Day(hours, int(hours.known_us.max(initial=0)), stamp))
        found = {day: kept for day in days if (kept := self._days.get((series, step, day))) is not None}
        known_us = _LAST_US if prices.known_us is None else prices.known_us
        late = [day for day in days if day not in found or found[day].known_us > known_us]
        parts = {day: each.hours for day, each in found.items()}
        for run in _runs(late):
            parts |= zip(run, _read_hours(prices, series, step, run), strict=True)
        return [parts[day] for day in days]

    def _forget_changed(self, series: Series, step: int, days: range, stamp: int) -> None:
        """Drop the days that have got prices since they were read."""
        kept = [each for day in days if (each := self._days.get((series, step, day))) is not None]
        seen = min((each.seen_us for each in kept), default=stamp)
        if seen == stamp:
            return
        day = (MARKET_DATA.c.closed_us - 1) // DAY_US
        id = select(MARKET_SERIES.c.id).where(
            *(MARKET_SERIES.c[name] == getattr(series, name) for name in Series.__dataclass_fields__)
        )
        changed = (
            select(day)
            .distinct()
            .where(
                MARKET_DATA.c.series_id == id.scalar_subquery(),
                MARKET_DATA.c.closed_us > days.start * DAY_US,
                MARKET_DATA.c.closed_us <= days.stop * DAY_US,
                MARKET_DATA.c.known_us > seen,
            )
        )
        with self._engine.connect() as connection:
            for number in connection.execute(changed).scalars():
                self._days.pop((series, step, int(number)), None)
        for each in kept:
            each.seen_us = stamp

    def _keep(self, key: _Key, day: _Day) -> None:
        with self._lock:
            self._days[key] = day
            while len(self._days) > MOST_DAYS:
                self._days.popitem(last=False)


def _read_hours(
    prices: PriceReader, series: Series, step: int, days: Sequence[int], end_us: int | None = None
) -> list[Bars]:
    """Return the hours of each of some consecutive days, from prices up to `end_us`, or to the end of the last day."""
    edges = [day * DAY_US for day in (*days, days[-1] + 1)]
    read = prices.read(series, edges[0] + 1, (edges[-1] if end_us is None else end_us) + 1)
    hours = read.resample(HOUR_US, _LAST_US, step)
    rows = np.searchsorted(hours.opened_us, edges).tolist()
    return [hours.slice(start, stop) for start, stop in pairwise(rows)]


def _runs(days: Iterable[int]) -> list[list[int]]:
    """Return rising numbers, split into runs of consecutive ones."""
    return [[day for _, day in run] for _, run in groupby(enumerate(days), key=lambda pair: pair[1] - pair[0])]
