"""Bars over a long time, quickly: whole days are kept in memory, hour by hour, until one of their prices changes.

What is told of an instant never depends on what is kept: a day that has a price which was known only later is read anew
as it was known then. Bars are made from hours in every case, so that sums come out the same to the last bit.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from sqlalchemy import Engine, select

from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.oracle.serving.price_parts import Candidate
from qubic_lab.oracle.store.frame_bars import FrameBars, after, frame_bars
from qubic_lab.oracle.store.price_store import PriceColumns, PriceStore
from qubic_lab.oracle.store.tables import MARKET_DATA, MARKET_SERIES

MOST_DAYS = 20_000
"""Days that are kept, of all series; one takes about 3 kB."""
_LAST_US = 1 << 62

_Key = tuple[Series, int, int]
"""A series, its step in microseconds, and a day since the epoch."""


@dataclass
class _Day:
    """The hours of a day; `known_us`: when the last of its prices was known; until `seen_us` there was no other."""

    hours: FrameBars
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
        recent: PriceColumns | None = None,
    ) -> FrameBars:
        """Return up to `count` frames that are closed at an instant and end with the last price, each of all prices.

        Args:
            candidate: a series that fits the frame, and its last price.
            frame_us: length of the bars.
            count: so many at most; those without a price are left out.
            at_us: no bar ends later.
            as_of_us: with the prices that were known then; None: by now.
            recent: the prices of the last price's day up to it, and perhaps earlier ones, where they are read already.
        """
        end = candidate.last.closed_us
        start = ((end - 1) // frame_us - count) * frame_us
        if HOUR_US % candidate.step_us or frame_us % HOUR_US:
            columns = self._prices.read(candidate.series, start + 1, end + 1, as_of_us=as_of_us, only=candidate.columns)
            found = frame_bars(columns, frame_us, candidate.step_us, at_us)
        else:
            found = longer_bars(self._hours(candidate, start, end, as_of_us, recent), frame_us, at_us)
        return rows(found, max(0, len(found) - count), len(found))

    def _hours(
        self, candidate: Candidate, start: int, end: int, as_of_us: int | None, recent: PriceColumns | None
    ) -> FrameBars:
        """Return the hours from `start` to that of `end`, which may not have closed."""
        first, today = start // DAY_US, (end - 1) // DAY_US
        with self._lock:
            lock = self._locks.setdefault(candidate.series, threading.Lock())
        with lock:  # who wants the same days waits for them
            parts = self._whole_days(candidate, range(first, today), as_of_us)
        if recent is None:
            parts += [hours for hours, _ in self._read(candidate, range(today, today + 1), end, as_of_us)]
        else:
            parts.append(frame_bars(after(recent, today * DAY_US), HOUR_US, candidate.step_us, _LAST_US))
        hours = joined(parts)
        return rows(hours, int(np.searchsorted(hours.opened_us, start)), len(hours))

    def _whole_days(self, candidate: Candidate, days: range, as_of_us: int | None) -> list[FrameBars]:
        series, step = candidate.series, candidate.step_us
        stamp = self._prices.stamp(series.coin)  # before anything is read
        self._forget_changed(series, step, days, stamp)
        for run in _runs(day for day in days if (series, step, day) not in self._days):
            for day, (hours, known_us) in zip(
                run, self._read(candidate, run, (run[-1] + 1) * DAY_US, None), strict=True
            ):
                self._keep((series, step, day), _Day(hours, known_us, stamp))
        found = {day: kept for day in days if (kept := self._days.get((series, step, day))) is not None}
        late = [day for day in days if day not in found or (as_of_us is not None and found[day].known_us > as_of_us)]
        parts = {day: each.hours for day, each in found.items()}
        for run in _runs(late):
            parts |= {
                day: hours
                for day, (hours, _) in zip(
                    run, self._read(candidate, run, (run[-1] + 1) * DAY_US, as_of_us), strict=True
                )
            }
        return [parts[day] for day in days]

    def _forget_changed(self, series: Series, step: int, days: range, stamp: int) -> None:
        """Drop the days that have prices which were not known when they were read."""
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

    def _read(
        self, candidate: Candidate, days: Sequence[int], end: int, as_of_us: int | None
    ) -> list[tuple[FrameBars, int]]:
        """Return the hours of each of some days without a gap, and when the last price of each was known."""
        start = days[0] * DAY_US
        columns = self._prices.read(candidate.series, start + 1, end + 1, as_of_us=as_of_us, only=candidate.columns)
        hours = frame_bars(columns, HOUR_US, candidate.step_us, _LAST_US)
        edges = [day * DAY_US for day in (*days, days[-1] + 1)]
        of_hours = np.searchsorted(hours.opened_us, edges).tolist()
        of_prices = np.searchsorted(columns.closed_us, edges, side="right").tolist()
        return [
            (
                rows(hours, of_hours[n], of_hours[n + 1]),
                int(columns.known_us[of_prices[n] : of_prices[n + 1]].max(initial=0)),
            )
            for n in range(len(days))
        ]

    def _keep(self, key: _Key, day: _Day) -> None:
        with self._lock:
            self._days[key] = day
            while len(self._days) > MOST_DAYS:
                self._days.popitem(last=False)


def longer_bars(hours: FrameBars, frame_us: int, until_us: int) -> FrameBars:
    """Return the bars of a longer frame that are closed at `until_us`, made from shorter ones that divide it."""
    frame_of = hours.opened_us // frame_us
    count = int(np.searchsorted((frame_of + 1) * frame_us, until_us, side="right"))
    if not count:
        return rows(hours, 0, 0)
    frame_of = frame_of[:count]
    starts = np.flatnonzero(np.diff(frame_of, prepend=frame_of[0] - 1))
    ends = np.append(starts[1:], count) - 1
    return FrameBars(
        opened_us=frame_of[starts] * frame_us,
        closed_us=(frame_of[starts] + 1) * frame_us,
        open=hours.open[starts],
        high=np.maximum.reduceat(hours.high[:count], starts),
        low=np.minimum.reduceat(hours.low[:count], starts),
        close=hours.close[ends],
        volume=np.add.reduceat(hours.volume[:count], starts),
        points=np.add.reduceat(hours.points[:count], starts),
        slots=np.add.reduceat(hours.slots[:count], starts),
        flagged=np.add.reduceat(hours.flagged[:count], starts),
    )


def rows(bars: FrameBars, start: int, end: int) -> FrameBars:
    """Return the bars from one place up to before another."""
    return FrameBars(*(getattr(bars, name)[start:end] for name in FrameBars.__dataclass_fields__))


def joined(parts: Sequence[FrameBars]) -> FrameBars:
    """Return bars one after the other; at least one part."""
    return FrameBars(
        *(np.concatenate([getattr(each, name) for each in parts]) for name in FrameBars.__dataclass_fields__)
    )


def _runs(days: "Iterator[int] | Sequence[int]") -> list[list[int]]:
    """Return rising numbers in lists of those that follow each other."""
    return [[day for _, day in run] for _, run in groupby(enumerate(days), key=lambda pair: pair[1] - pair[0])]
