"""What was known of the market at an instant: the one way in which answers read prices, texts and scores."""

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from qubic_lab.errors import NotFoundError, QubicLabError
from qubic_lab.oracle.model.bars import Bars, join_bars
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.records import CURRENCY, QUOTES, TEXTS, Frequency, Series
from qubic_lab.oracle.model.response import Frame, Missing, age_s
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso, now_us
from qubic_lab.oracle.store.price_store import PricedSeries, PriceReader, PriceStore, StoredPrice
from qubic_lab.oracle.store.tables import MARKET_DATA
from qubic_lab.oracle.store.text_reader import ScoreColumns, TextReader
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.oracle.store.transactions import NEWEST, Clock, check_as_of

AHEAD_US = MINUTE_US
"""A price with a stamp this little after now counts as one of now: a source's clock may be ahead of ours."""
_SEEN_QUOTES, _FEWEST_GAPS = 25, 5
"""As many last quotes, of as many days at most, tell how often an unknown source has one; fewer gaps tell nothing."""
WARM_DAYS = 400
WARM_UP_S = 3.0
"""The days of each series that are read in advance, and the time limit for all series together."""
MOST_DAYS = 20_000
"""Days of hours that are kept in memory, of all series together; one takes about 3 kB."""


class MarketStore:
    """The prices in US dollars, the texts and the scores of one database; threads may share it.

    `frequencies` are those of each source, by its name; bars come at their own interval.
    """

    def __init__(
        self, engine: Engine, clock: Clock = now_us, frequencies: Mapping[str, Frequency] | None = None
    ) -> None:
        self.engine, self.clock = engine, clock
        self.prices, self.texts = PriceStore(engine, clock), TextStore(engine, clock)
        self.history = BarHistory(engine, self.prices)
        self._frequencies = dict(frequencies or {})

    def snapshot(self, as_of_us: int | None = None, assumed: bool = False) -> "Snapshot":
        """Return what is known now, or what was known at an instant, with what is `assumed` of archives if asked for.

        Raises:
            NotFoundError: the instant is not settled yet, or before 1970.
        """
        if as_of_us is None:
            return Snapshot(self, self.clock())
        if as_of_us < 0:
            raise NotFoundError(f"as_of {iso(as_of_us)} is before 1970, when nothing was known: give a later instant")
        return Snapshot(self, check_as_of(as_of_us, self.clock()), as_of_us, assumed)

    def stamp(self, coin: str) -> int:
        """Return when a coin's prices, texts or scores last changed; 0 where there are none."""
        return max(self.prices.stamp(coin), self.texts.stamp(coin))

    def frequency(self, series: Series) -> Frequency | None:
        """Return how often a series should have a price; None: only its prices tell."""
        own = self._frequencies.get(series.source)
        return Frequency(float(series.interval_s), own.delay_s if own else 0.0) if series.interval_s else own

    def text_frequency(self, source: str) -> Frequency:
        """Return how often a source should have a text."""
        return self._frequencies.get(source, TEXTS)

    def warm_up(self) -> None:
        """Read the last months of all coins in advance, within a time limit, so that first answers come as quickly."""
        now, end = self.snapshot(), time.monotonic() + WARM_UP_S
        for series in self.prices.series():
            if time.monotonic() > end:
                break
            if series.coin in COINS and series.makes(HOUR_US) and (source := now.priced(series)) is not None:
                now.bars(source, DAY_US, WARM_DAYS)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What was known of the market at an instant; not to be shared by threads.

    Attributes:
        store: where it is read from.
        at_us: the instant that is asked about; later prices and texts are not looked at.
        known_us: transaction time: rows that were recorded later are not seen; None: all rows are.
        assumed: whether imported rows count from the time at which they are assumed to have been known.
    """

    store: MarketStore
    at_us: int
    known_us: int | None = None
    assumed: bool = False

    @cached_property
    def prices(self) -> PriceReader:
        """The prices that were known."""
        return self.store.prices if self.known_us is None else self.store.prices.as_of(self.known_us, self.assumed)

    @cached_property
    def texts(self) -> TextReader:
        """The texts and scores that were known."""
        return self.store.texts if self.known_us is None else self.store.texts.as_of(self.known_us, self.assumed)

    @cached_property
    def series(self) -> dict[str, list[Series]]:
        """All series by their coin."""
        found: dict[str, list[Series]] = defaultdict(list)
        for series in self.store.prices.series():
            found[series.coin].append(series)
        return found

    def latest(self, series: Series) -> StoredPrice | None:
        """Return the last price of a series, or None where there was none yet."""
        return self.prices.latest(series, self.at_us + AHEAD_US)

    def priced(self, series: Series) -> PricedSeries | None:
        """Return a series with its last price; None where there was none yet, or it is in another currency."""
        last = self.latest(series) if series.currency == CURRENCY else None
        if last is None:
            return None
        frequency = self.store.frequency(series) or self._seen_frequency(series, last.closed_us)
        return PricedSeries(series, last, frequency, age_s(last.closed_us, self.at_us))

    def _seen_frequency(self, series: Series, last_us: int) -> Frequency:
        """Return how often quotes came from a source that no setting names, such as an archive."""
        first_us = last_us - _SEEN_QUOTES * DAY_US
        prices = self.prices.page(series, first_us, last_us + 1, limit=_SEEN_QUOTES).prices
        gaps = sorted((one.closed_us - two.closed_us) / SECOND_US for one, two in pairwise(prices))
        return Frequency(max(QUOTES.every_s, gaps[len(gaps) // 2])) if len(gaps) >= _FEWEST_GAPS else QUOTES

    def sources(self, coin: str) -> list[PricedSeries]:
        """Return the series that have a coin's price: the freshest that is not late first, else the freshest.

        Raises:
            NotFoundError: there is none.
        """
        found = [source for series in self.series.get(coin, ()) if (source := self.priced(series)) is not None]
        if not found:
            when = "" if self.known_us is None else f" at {iso(self.known_us)}"
            raise NotFoundError(
                f"no price of {coin} in {CURRENCY} is known{when}: qubic-lab oracle collect gets prices, "
                "qubic-lab oracle demo loads packaged ones"
            )
        return sorted(found, key=lambda each: (each.stale, each.age_s, each.series.interval_s, each.series))

    def bars(self, source: PricedSeries, frame_us: int, count: int) -> Bars:
        """Return the last closed bars of a frame, at most `count`; frames without a price have no bar."""
        return self.store.history.bars(self.prices, source, frame_us, count, self.at_us)

    def scores(self, coin: str, start_us: int) -> dict[str, ScoreColumns]:
        """Return each model's scores of a coin's texts from `start_us` on, without invented samples."""
        return self.texts.scores_by_model(coin, start_us, self.at_us + 1, invented=False)


def why_no_bars(frame: Frame, sources: Sequence[PricedSeries]) -> Missing:
    """Return the reason why no series makes bars of a frame."""
    lengths = sorted({each.series.interval_s for each in sources})
    return Missing(f"no bars of {frame} can be made from bars of {', '.join(map(str, lengths))} s")


@contextmanager
def reading() -> Iterator[None]:
    """Turn the errors of a database that cannot be read into one line.

    Raises:
        QubicLabError: the database cannot be read.
    """
    try:
        yield
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise QubicLabError(f"the database cannot be read now: {reason}") from error


@dataclass
class _Day:
    """The hours of a day; the newest of its prices was recorded at `known_us`, and none up to `seen_us` is newer."""

    hours: Bars
    known_us: int
    seen_us: int


class BarHistory:
    """Gives bars over a long time quickly: hours of whole days stay in memory until a price of them changes.

    That never changes a result: a day with a price that was known only later is read again as it was known then. Bars
    are always made from hours, so that sums are the same to the last bit. Threads may share it.
    """

    def __init__(self, engine: Engine, prices: PriceStore) -> None:
        self._engine, self._prices = engine, prices
        self._days: OrderedDict[tuple[Series, int, int], _Day] = OrderedDict()  # by series, its step, and day
        self._locks: dict[Series, threading.Lock] = {}
        self._lock = threading.Lock()

    def bars(self, prices: PriceReader, source: PricedSeries, frame_us: int, count: int, until_us: int) -> Bars:
        """Return the last bars of a frame up to a series' last price, at most `count`; none ends after `until_us`.

        `prices` reads the store's prices, as they are known now or as they were known.
        """
        series, end, step = source.series, source.last.closed_us, source.step_us
        start = ((end - 1) // frame_us - count) * frame_us
        if HOUR_US % step or frame_us % HOUR_US:
            return prices.read(series, start + 1, end + 1).resample(frame_us, until_us, step).tail(count)
        first, today = start // DAY_US, (end - 1) // DAY_US
        with self._lock:
            lock = self._locks.setdefault(series, threading.Lock())
        with lock:  # others that need the same days wait for them
            parts = self._whole_days(prices, series, step, range(first, today))
        hours = join_bars([*parts, *_read_hours(prices, series, step, [today], end)])
        hours = hours.slice(int(np.searchsorted(hours.opened_us, start)), len(hours))
        return hours.resample(frame_us, until_us).tail(count)

    def _whole_days(self, prices: PriceReader, series: Series, step: int, days: range) -> list[Bars]:
        stamp = self._prices.stamp(series.coin)  # before anything is read
        self._forget_changed(series, step, days, stamp)
        for run in _runs(day for day in days if (series, step, day) not in self._days):
            for day, hours in zip(run, _read_hours(self._prices, series, step, run), strict=True):
                self._keep((series, step, day), _Day(hours, int(hours.known_us.max(initial=0)), stamp))
        found = {day: kept for day in days if (kept := self._days.get((series, step, day))) is not None}
        late = [day for day in days if day not in found or found[day].known_us > prices.known_us]
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
        changed = (
            select((MARKET_DATA.c.closed_us - 1) // DAY_US)
            .distinct()
            .where(
                MARKET_DATA.c.series_id == self._prices.id_of(series),
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

    def _keep(self, key: tuple[Series, int, int], day: _Day) -> None:
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
    hours = read.resample(HOUR_US, NEWEST, step)
    rows = np.searchsorted(hours.opened_us, edges).tolist()
    return [hours.slice(start, stop) for start, stop in pairwise(rows)]


def _runs(days: Iterable[int]) -> list[list[int]]:
    """Return rising numbers, split into runs of consecutive ones."""
    return [[day for _, day in run] for _, run in groupby(enumerate(days), key=lambda pair: pair[1] - pair[0])]
