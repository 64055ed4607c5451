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
from qubic_lab.oracle.serving.price_parts import Candidate
from qubic_lab.oracle.store.price_store import PriceStore
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
        candidate: Candidate,
        frame_us: int,
        count: int,
        at_us: int,
        as_of_us: int | None,
        recent: Bars | None = None,
    ) -> Bars:
        """Return the last bars of a frame up to a series' last price.

        Args:
            candidate: a series that fits the frame, and its last price.
            frame_us: length of the bars.
            count: return at most this many; frames without a price have no bar.
            at_us: no bar ends later.
            as_of_us: use the prices that were known then; None: those that are known now.
            recent: prices that were read already: those of the last price's day up to it, and perhaps earlier ones.
        """
        end = candidate.last.closed_us
        start = ((end - 1) // frame_us - count) * frame_us
        if HOUR_US % candidate.step_us or frame_us % HOUR_US:
            prices = self._prices.read(candidate.series, start + 1, end + 1, as_of_us=as_of_us)
            return prices.resample(frame_us, at_us, candidate.step_us).tail(count)
        return self._hours(candidate, start, end, as_of_us, recent).resample(frame_us, at_us).tail(count)

    def _hours(self, candidate: Candidate, start: int, end: int, as_of_us: int | None, recent: Bars | None) -> Bars:
        """Return the hours from `start` to that of `end`, which may not have closed."""
        first, today = start // DAY_US, (end - 1) // DAY_US
        with self._lock:
            lock = self._locks.setdefault(candidate.series, threading.Lock())
        with lock:  # whoever wants the same days waits for them
            parts = self._whole_days(candidate, range(first, today), as_of_us)
        if recent is None:
            parts += self._read(candidate, range(today, today + 1), end, as_of_us)
        else:
            parts.append(recent.after(today * DAY_US).resample(HOUR_US, _LAST_US, candidate.step_us))
        hours = join_bars(parts)
        return hours.slice(int(np.searchsorted(hours.opened_us, start)), len(hours))

    def _whole_days(self, candidate: Candidate, days: range, as_of_us: int | None) -> list[Bars]:
        series, step = candidate.series, candidate.step_us
        stamp = self._prices.stamp(series.coin)  # before anything is read
        self._forget_changed(series, step, days, stamp)
        for run in _runs(day for day in days if (series, step, day) not in self._days):
            for day, hours in zip(run, self._read(candidate, run, (run[-1] + 1) * DAY_US, None), strict=True):
                self._keep((series, step, day), _Day(hours, int(hours.known_us.max(initial=0)), stamp))
        found = {day: kept for day in days if (kept := self._days.get((series, step, day))) is not None}
        late = [day for day in days if day not in found or (as_of_us is not None and found[day].known_us > as_of_us)]
        parts = {day: each.hours for day, each in found.items()}
        for run in _runs(late):
            parts |= zip(run, self._read(candidate, run, (run[-1] + 1) * DAY_US, as_of_us), strict=True)
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

    def _read(self, candidate: Candidate, days: Sequence[int], end: int, as_of_us: int | None) -> list[Bars]:
        """Return the hours of each of some consecutive days."""
        prices = self._prices.read(candidate.series, days[0] * DAY_US + 1, end + 1, as_of_us=as_of_us)
        hours = prices.resample(HOUR_US, _LAST_US, candidate.step_us)
        edges = np.searchsorted(hours.opened_us, [day * DAY_US for day in (*days, days[-1] + 1)]).tolist()
        return [hours.slice(start, stop) for start, stop in pairwise(edges)]

    def _keep(self, key: _Key, day: _Day) -> None:
        with self._lock:
            self._days[key] = day
            while len(self._days) > MOST_DAYS:
                self._days.popitem(last=False)


def _runs(days: Iterable[int]) -> list[list[int]]:
    """Return rising numbers, split into runs of consecutive ones."""
    return [[day for _, day in run] for _, run in groupby(enumerate(days), key=lambda pair: pair[1] - pair[0])]
