"""What was known of the market at an instant: the one way in which answers read prices, texts and scores."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from qubic_lab.errors import NotFoundError, QubicLabError, check_at_least
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.records import QUOTES, TEXTS, Frequency, Series
from qubic_lab.oracle.model.response import Frame, Missing, age_s
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, iso, now_us
from qubic_lab.oracle.store.bar_history import BarHistory
from qubic_lab.oracle.store.price_store import PricedSeries, PriceReader, PriceStore, StoredPrice
from qubic_lab.oracle.store.text_reader import ScoreColumns, TextReader
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.oracle.store.transactions import Clock, check_as_of

AHEAD_US = MINUTE_US
"""A price with a stamp this little after now counts as one of now: a source's clock may be ahead of ours."""
WARM_DAYS = 400
WARM_UP_S = 3.0
"""The days of each series that are read in advance, and the time limit for all series together."""


class MarketStore:
    """The prices, texts and scores of one database; threads may share it.

    Args:
        engine: of a database that `open_database` opened.
        clock: gives the time in microseconds.
        frequencies: of each source, by its name; bars come at their own interval.
        currency: series in other currencies are left out.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock = now_us,
        frequencies: Mapping[str, Frequency] | None = None,
        currency: str = "usd",
    ) -> None:
        self.engine, self.clock, self.currency = engine, clock, currency
        self.prices, self.texts = PriceStore(engine, clock), TextStore(engine, clock)
        self.history = BarHistory(engine, self.prices)
        self._frequencies = dict(frequencies or {})

    def snapshot(self, as_of_us: int | None = None) -> "Snapshot":
        """Return what is known now, or what was known at an instant.

        Raises:
            InputError: the instant is not settled yet, or before 1970.
        """
        if as_of_us is None:
            return Snapshot(self, self.clock())
        check_at_least("as_of, in microseconds since 1970,", as_of_us, 0)
        return Snapshot(self, check_as_of(as_of_us, self.clock()), as_of_us)

    def stamp(self, coin: str) -> int:
        """Return when a coin's prices, texts or scores last changed; 0 where there are none."""
        return max(self.prices.stamp(coin), self.texts.stamp(coin))

    def frequency(self, series: Series) -> Frequency:
        """Return how often a series should have a price."""
        own = self._frequencies.get(series.source, QUOTES)
        return Frequency(float(series.interval_s), own.delay_s) if series.interval_s else own

    def text_frequency(self, source: str) -> Frequency:
        """Return how often a source should have a text."""
        return self._frequencies.get(source, TEXTS)

    def warm_up(self, seconds: float = WARM_UP_S) -> None:
        """Read the last months of all coins in advance, within a time limit, so that first answers come as quickly."""
        now, end = self.snapshot(), time.monotonic() + seconds
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
    """

    store: MarketStore
    at_us: int
    known_us: int | None = None

    @cached_property
    def prices(self) -> PriceReader:
        """The prices that were known."""
        return self.store.prices if self.known_us is None else self.store.prices.as_of(self.known_us)

    @cached_property
    def texts(self) -> TextReader:
        """The texts and scores that were known."""
        return self.store.texts if self.known_us is None else self.store.texts.as_of(self.known_us)

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
        last = self.latest(series) if series.currency == self.store.currency else None
        if last is None:
            return None
        return PricedSeries(series, last, self.store.frequency(series), age_s(last.closed_us, self.at_us))

    def sources(self, coin: str) -> list[PricedSeries]:
        """Return the series that have a coin's price: the freshest that is not late first, else the freshest.

        Raises:
            NotFoundError: there is none.
        """
        found = [source for series in self.series.get(coin, ()) if (source := self.priced(series)) is not None]
        if not found:
            when = "" if self.known_us is None else f" at {iso(self.known_us)}"
            raise NotFoundError(
                f"no price of {coin} in {self.store.currency} is known{when}: qubic-lab oracle collect gets prices, "
                "qubic-lab oracle demo loads packaged ones"
            )
        return sorted(found, key=lambda each: (each.stale, each.age_s, each.series.interval_s, each.series))

    def bars(self, source: PricedSeries, frame_us: int, count: int, recent: Bars | None = None) -> Bars:
        """Return the last closed bars of a frame, at most `count`; see `BarHistory.bars` for `recent`."""
        return self.store.history.bars(self.prices, source, frame_us, count, self.at_us, recent)

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
