"""The oracle's answers, computed from what the database knows, now or at an earlier instant.

Nothing is filled in: a figure whose prices are not known is null, and what a later version will compute is absent.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from qubic_lab.errors import InputError, NotFoundError, QubicLabError, check_at_least, check_choice, check_range
from qubic_lab.oracle.answers import (
    FRAME_S,
    WINDOW_S,
    Absent,
    Bars,
    CoinOverview,
    Frame,
    LastPrice,
    MarketOverview,
    ModelScores,
    PriceAnalysis,
    PriceHistory,
    Sentiment,
    TextHistory,
    VolumeUnit,
    Window,
    age_s,
)
from qubic_lab.oracle.bars import change_pct, price_before
from qubic_lab.oracle.coins import COINS, Coin, find_coin
from qubic_lab.oracle.instants import DAY_US, MINUTE_US, SECOND_US, iso, now_us
from qubic_lab.oracle.price_parts import (
    BARS,
    QUOTES,
    TEXTS,
    Candidate,
    Frequency,
    change_over,
    closed_bars,
    day_range,
    fits,
    historic_price,
    volume_24h,
    why_fallback,
    why_no_bars,
)
from qubic_lab.oracle.price_store import PriceColumns, PriceStore, StoredPrice
from qubic_lab.oracle.records import Series
from qubic_lab.oracle.source_health import read_source_health
from qubic_lab.oracle.store import check_as_of
from qubic_lab.oracle.summary import summarize
from qubic_lab.oracle.tables import NEWS_COINS, SENTIMENT_SCORES
from qubic_lab.oracle.text_parts import by_kind, by_source, headline, historic_text
from qubic_lab.oracle.text_store import TextStore

AHEAD_US = MINUTE_US
"""A price that is stamped so much after now is taken for one of now."""
MOST_COINS = 30
MOST_PRICES, MOST_TEXTS = 1_000, 500
LATER, COME = (f"{verb} with the second part of the market oracle" for verb in ("comes", "come"))
NO_HEALTH = "requests are logged as they end: how sources did is told of the present alone"


class Views:
    """Computes answers; threads may share it.

    Args:
        engine: of a database that `open_database` opened.
        clock: gives the time in microseconds.
        frequencies: of each source, by its name; bars come at their own interval.
        currency: of all answers.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], int] = now_us,
        frequencies: Mapping[str, Frequency] | None = None,
        currency: str = "usd",
    ) -> None:
        self.prices, self.texts = PriceStore(engine, clock), TextStore(engine, clock)
        self.engine, self.clock, self.currency = engine, clock, currency
        self._frequencies = dict(frequencies or {})

    def sentiment(self, coin: str, window: Window = "24h", as_of_us: int | None = None) -> Sentiment:
        """Return what was written about a coin, and how models have scored it.

        Raises:
            NotFoundError: an unknown coin.
            InputError: another window, or an `as_of_us` that is not settled yet.
        """
        found = _coin(coin)
        check_choice("window", window, WINDOW_S)
        at = self.instant(as_of_us)
        start = at - WINDOW_S[window] * SECOND_US
        with reading():
            counts = self.texts.counts(found.id, start, at + 1, as_of_us=as_of_us)
            page = self.texts.page(found.id, start, at + 1, as_of_us=as_of_us, limit=1, duplicates=True)
            scores = self._scores(found.id, start, at + 1, as_of_us) if counts else []
        newest = page.texts[0] if page.texts else None
        return Sentiment(
            coin=found.id,
            symbol=found.symbol,
            name=found.name,
            window=window,
            start=iso(start),
            as_of=iso(at),
            texts=sum(each.texts for each in counts),
            duplicates=sum(each.duplicates for each in counts),
            by_source=by_source(counts, at),
            by_kind=by_kind(counts),
            newest=headline(newest, at) if newest else None,
            stale=newest is None or self._frequencies.get(newest.source, TEXTS).is_late(age_s(newest.at_us, at)),
            scores=scores or Absent(reason="no model has scored these texts" if counts else "there are no texts"),
            index=Absent(reason=f"the composite index {LATER}"),
        )

    def price_analysis(self, coin: str, frame: Frame = "1h", as_of_us: int | None = None) -> PriceAnalysis:
        """Return a coin's last price, its changes, and its last closed bars.

        Raises:
            NotFoundError: an unknown coin, or one whose price is not known.
            InputError: another frame, or an `as_of_us` that is not settled yet.
        """
        found = _coin(coin)
        check_choice("frame", frame, FRAME_S)
        at, frame_us = self.instant(as_of_us), FRAME_S[frame] * SECOND_US
        with reading():
            candidates = self._candidates(found, self.prices.series(found.id), at, as_of_us)
            best, fitting = candidates[0], next((each for each in candidates if fits(each.series, frame_us)), None)
            of_bars_us = (BARS[frame] + 1) * frame_us
            own_us = max(7 * DAY_US + best.tolerance_us, of_bars_us if fitting is best else 0)
            own = self._read_back(best, own_us, as_of_us)
            bars: Bars | Absent = why_no_bars(frame, candidates)
            if fitting is not None:
                columns = own if fitting is best else self._read_back(fitting, of_bars_us, as_of_us)
                bars = closed_bars(columns, fitting, frame, at)
        overs = {frame: frame_us, "24h": DAY_US, "7d": 7 * DAY_US}
        if frame == "1d":
            del overs["1d"]
        return PriceAnalysis(
            coin=found.id,
            symbol=found.symbol,
            name=found.name,
            frame=frame,
            as_of=iso(at),
            last=best.shown(),
            fallback=why_fallback(candidates),
            others=[each.shown() for each in candidates[1:]],
            changes=[change_over(own, best, name, over_us) for name, over_us in overs.items()],
            market_cap=best.last.market_cap,
            day=day_range(own, best),
            bars=bars,
            indicators=Absent(reason=f"indicators {COME}"),
            anomalies=Absent(reason=f"anomalies {COME}"),
            signals=Absent(reason=f"signals {COME}"),
        )

    def market_overview(self, coins: Sequence[str] = (), as_of_us: int | None = None) -> MarketOverview:
        """Return several coins at a glance; no coins: all that there are prices of.

        Raises:
            NotFoundError: an unknown coin, or there are no prices at all.
            InputError: too many coins, or an `as_of_us` that is not settled yet.
        """
        at = self.instant(as_of_us)
        with reading():
            found = list(dict.fromkeys(map(_coin, coins))) or self._coins_with_prices()
            check_range("number of coins", len(found), 1, MOST_COINS)
            by_coin: dict[str, list[Series]] = defaultdict(list)
            for series in self.prices.series():
                by_coin[series.coin].append(series)
            overviews = [self._overview(coin, by_coin[coin.id], at, as_of_us) for coin in found]
            health = read_source_health(self.engine, at) if as_of_us is None else None
        return MarketOverview(
            as_of=iso(at),
            summary=summarize(overviews, self.currency),
            coins=overviews,
            sources=Absent(reason=NO_HEALTH) if health is None else health,
            rating=Absent(reason=f"a rating {LATER}"),
        )

    def price_history(
        self,
        coin: str,
        start_us: int | None = None,
        end_us: int | None = None,
        *,
        source: str | None = None,
        interval_s: int | None = None,
        as_of_us: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> PriceHistory:
        """Return a page of a coin's prices, the newest first; a cursor goes on with the source that it came from.

        Without a range they are those of the last day that has any; without a source those of the freshest.

        Raises:
            NotFoundError: an unknown coin, or there are no such prices.
            InputError: an empty range, a limit or cursor that is none, or an `as_of_us` that is not settled yet.
        """
        found = _coin(coin)
        check_range("limit", limit, 1, MOST_PRICES)
        at = self.instant(as_of_us)
        with reading():
            if cursor is not None:
                series, cursor = self._read_cursor(found, cursor)
            else:
                series = self._series(found, source, interval_s, at, as_of_us)
            start, end = self._range(series, start_us, end_us, at, as_of_us)
            page = self.prices.page(series, start, end, as_of_us=as_of_us, limit=limit, cursor=cursor)
        return PriceHistory(
            coin=found.id,
            source=series.source,
            interval_s=series.interval_s,
            currency=series.currency,
            as_of=iso(at),
            prices=[historic_price(price) for price in page.prices],
            next_cursor=None if page.next_cursor is None else ":".join((*_named(series), page.next_cursor)),
        )

    def text_history(
        self,
        coin: str,
        start_us: int | None = None,
        end_us: int | None = None,
        *,
        duplicates: bool = False,
        as_of_us: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> TextHistory:
        """Return a page of the texts about a coin, the newest first; without a range those of the last week.

        Raises:
            NotFoundError: an unknown coin.
            InputError: an empty range, a limit or cursor that is none, or an `as_of_us` that is not settled yet.
        """
        found = _coin(coin)
        check_range("limit", limit, 1, MOST_TEXTS)
        at = self.instant(as_of_us)
        end = at + 1 if end_us is None else end_us
        start = end - 7 * DAY_US if start_us is None else start_us
        with reading():
            page = self.texts.page(
                found.id, start, end, as_of_us=as_of_us, limit=limit, cursor=cursor, duplicates=duplicates
            )
        texts = [historic_text(text) for text in page.texts]
        return TextHistory(coin=found.id, as_of=iso(at), texts=texts, next_cursor=page.next_cursor)

    def stamp(self, coin: str) -> int:
        """Return when a coin's prices, texts or scores last changed; 0 where there are none."""
        return max(self.prices.stamp(coin), self.texts.stamp(coin))

    def instant(self, as_of_us: int | None) -> int:
        """Return the instant that an answer is about.

        Raises:
            InputError: it is not settled yet, or there was no such time.
        """
        if as_of_us is None:
            return self.clock()
        check_at_least("as_of, in microseconds since 1970,", as_of_us, 0)
        return check_as_of(as_of_us, self.clock())

    def _scores(self, coin: str, start_us: int, end_us: int, as_of_us: int | None) -> list[ModelScores]:
        """Sum up the stored scores of each model."""
        query = select(SENTIMENT_SCORES.c.model).distinct().order_by(SENTIMENT_SCORES.c.model)
        query = query.join(NEWS_COINS, NEWS_COINS.c.news_id == SENTIMENT_SCORES.c.news_id)
        query = query.where(NEWS_COINS.c.coin == coin, NEWS_COINS.c.at_us >= start_us, NEWS_COINS.c.at_us < end_us)
        with self.engine.connect() as connection:
            models = list(connection.execute(query).scalars())
        found = []
        for model in models:
            columns = self.texts.scores(coin, start_us, end_us, model, as_of_us)
            if len(columns):
                deviation = float(columns.score.std(ddof=1)) if len(columns) > 1 else None
                found.append(
                    ModelScores(
                        model=model,
                        texts=len(columns),
                        mean=float(columns.score.mean()),
                        volatility=deviation,
                        newest_known=iso(int(columns.known_us.max())),
                    )
                )
        return found

    def _candidates(self, coin: Coin, known: Sequence[Series], at: int, as_of_us: int | None) -> list[Candidate]:
        """Return the series with a price, the one to use first: the freshest that is not late, else the freshest."""
        found = []
        for series in known:
            last = self._last(series, at, as_of_us) if series.currency == self.currency else None
            if last is not None:
                own = self._frequencies.get(series.source, QUOTES)
                frequency = Frequency(float(series.interval_s), own.delay_s) if series.interval_s else own
                found.append(Candidate(series, last, frequency, age_s(last.closed_us, at)))
        if not found:
            when = "" if as_of_us is None else f" at {iso(as_of_us)}"
            raise NotFoundError(
                f"no price of {coin.id} in {self.currency} is known{when}: qubic-lab oracle collect gets prices, "
                "qubic-lab oracle demo loads packaged ones"
            )
        return sorted(found, key=lambda each: (each.stale, each.age_s, each.series.interval_s, each.series))

    def _last(self, series: Series, at: int, as_of_us: int | None) -> StoredPrice | None:
        """Return the last price up to an instant; a source's clock may be ahead of ours by a little."""
        return self.prices.latest(series, as_of_us=as_of_us, until_us=at + AHEAD_US)

    def _read_back(self, candidate: Candidate, span_us: int, as_of_us: int | None) -> PriceColumns:
        """Return the prices of a time that ends with the last one."""
        end = candidate.last.closed_us
        return self.prices.read(candidate.series, end - span_us, end + 1, as_of_us=as_of_us, only=candidate.columns)

    def _overview(self, coin: Coin, known: Sequence[Series], at: int, as_of_us: int | None) -> CoinOverview:
        counts = self.texts.counts(coin.id, at - DAY_US, at + 1, as_of_us=as_of_us)
        newest = max((each.newest_at_us for each in counts), default=None)
        best: Candidate | None = None
        last: LastPrice | Absent
        change = volume = unit = None
        try:
            best = self._candidates(coin, known, at, as_of_us)[0]
        except NotFoundError as error:
            last = Absent(reason=str(error))
        else:
            last = best.shown()
            change, volume, unit = self._day_before(best, as_of_us)
        return CoinOverview(
            coin=coin.id,
            symbol=coin.symbol,
            name=coin.name,
            last=last,
            change_24h_pct=change,
            market_cap=None if best is None else best.last.market_cap,
            volume_24h=volume,
            volume_unit=unit,
            texts_24h=sum(each.texts for each in counts),
            newest_text_age_s=None if newest is None else age_s(newest, at),
        )

    def _day_before(
        self, best: Candidate, as_of_us: int | None
    ) -> tuple[float | None, float | None, VolumeUnit | None]:
        """Return the change over 24 hours in percent, and the volume: see `_volume`."""
        end, tolerance = best.last.closed_us, best.tolerance_us
        # Of quotes only the one of a day ago is needed; volumes of bars are added up.
        until = end + 1 if best.series.interval_s else end - DAY_US + 1
        columns = self.prices.read(
            best.series, end - DAY_US - tolerance, until, as_of_us=as_of_us, only=("close", "volume")
        )
        place = price_before(columns, end - DAY_US, tolerance)
        change = None if place is None else change_pct(float(columns.close[place]), best.last.close)
        return change, *volume_24h(columns, best)

    def _coins_with_prices(self) -> list[Coin]:
        ids = {series.coin for series in self.prices.series()}
        found = [coin for coin in COINS.values() if coin.id in ids]
        if not found:
            raise NotFoundError(
                "there are no prices yet: qubic-lab oracle collect gets some, qubic-lab oracle demo loads packaged ones"
            )
        return found[:MOST_COINS]

    def _series(self, coin: Coin, source: str | None, interval_s: int | None, at: int, as_of_us: int | None) -> Series:
        """Return the freshest series of those that are asked for."""
        candidates = self._candidates(coin, self.prices.series(coin.id), at, as_of_us)
        for each in candidates:
            if source in (None, each.series.source) and interval_s in (None, each.series.interval_s):
                return each.series
        there = ", ".join(sorted({f"{each.series.source} with {each.series.interval_s}" for each in candidates}))
        asked = " and ".join(
            f"{name} {value}" for name, value in (("source", source), ("interval_s", interval_s)) if value is not None
        )
        raise NotFoundError(f"no prices of {coin.id} with {asked}: there are {there} (interval_s; 0: quotes)")

    def _read_cursor(self, coin: Coin, cursor: str) -> tuple[Series, str]:
        """Return the series of the page that gave a cursor, and the store's own cursor."""
        for series in self.prices.series(coin.id):
            if cursor.startswith(head := ":".join((*_named(series), ""))):
                return series, cursor.removeprefix(head)
        raise InputError(f"cursor {cursor[:100]!r} is none that a page gave: leave it out for the first page")

    def _range(
        self, series: Series, start_us: int | None, end_us: int | None, at: int, as_of_us: int | None
    ) -> tuple[int, int]:
        if end_us is None:
            last = self._last(series, at, as_of_us)
            end_us = max(last.closed_us + 1 if last else 0, 0 if start_us is None else start_us + 1)
        return end_us - DAY_US if start_us is None else start_us, end_us


def _coin(text: str) -> Coin:
    try:
        return find_coin(text)
    except InputError as error:
        raise NotFoundError(str(error)) from None


@contextmanager
def reading() -> Iterator[None]:
    """Tell in one line that the database cannot be read."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise QubicLabError(f"the database cannot be read now: {reason}") from error


def _named(series: Series) -> tuple[str, ...]:
    """Return what tells a coin's series apart in a cursor."""
    return series.source, str(series.interval_s), series.currency
