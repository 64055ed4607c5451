"""The oracle's answers, computed from what the database knows, now or at an earlier instant.

Nothing is filled in: a figure whose prices are not known is null, and what cannot be computed is absent, with why.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from qubic_lab.errors import InputError, NotFoundError, QubicLabError, check_at_least, check_choice, check_range
from qubic_lab.oracle.analysis.rating import rate_market
from qubic_lab.oracle.analysis.summary import age, summarize
from qubic_lab.oracle.model import bars as model
from qubic_lab.oracle.model.coins import COINS, Coin, find_coin
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.response import FRAME_S, WINDOW_S, Frame, Missing, VolumeUnit, Window, age_s
from qubic_lab.oracle.model.source_names import is_sample
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso, now_us
from qubic_lab.oracle.risk.inputs import RiskMarkets
from qubic_lab.oracle.risk.report import RiskReport, prepare_models, report_risk
from qubic_lab.oracle.risk.rules import RiskRule, read_rules
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.oracle.serving.analysis_parts import (
    ANALYSED,
    RATED,
    RATED_BARS,
    analysis,
    no_analysis,
    prepare,
    rate_bars,
)
from qubic_lab.oracle.serving.price_parts import (
    QUOTES,
    TEXTS,
    Candidate,
    Frequency,
    change_from,
    change_over,
    change_pct,
    closed_bars,
    day_range,
    fits,
    historic_price,
    row_before,
    volume_24h,
    why_fallback,
    why_no_bars,
)
from qubic_lab.oracle.serving.responses import (
    Bars,
    Change,
    CoinOverview,
    LastPrice,
    MarketOverview,
    ModelScores,
    Mood,
    PriceAnalysis,
    PriceHistory,
    Rating,
    Sentiment,
    SentimentIndex,
    TextHistory,
)
from qubic_lab.oracle.serving.sentiment_parts import (
    NO_SCORES,
    NO_TEXTS,
    choose_model,
    index_part,
    mood,
    read_sources,
    sample_ids,
    scored_texts,
)
from qubic_lab.oracle.serving.text_parts import (
    by_kind,
    by_source,
    headline,
    historic_text,
    model_scores,
    score_summary,
    without_texts,
)
from qubic_lab.oracle.store.bar_history import BarHistory
from qubic_lab.oracle.store.price_store import PriceStore, StoredPrice
from qubic_lab.oracle.store.source_health import read_source_health
from qubic_lab.oracle.store.text_store import StoredText, TextStore
from qubic_lab.oracle.store.transactions import check_as_of

AHEAD_US = MINUTE_US
"""A price that is stamped so much after now is taken for one of now."""
WARM_US = 400 * DAY_US
WARM_UP_S = 3.0
"""So much of each series is read in advance, in so many seconds for all of them."""
MOST_COINS = 30
MOST_PRICES, MOST_TEXTS = 1_000, 500
NO_HEALTH = "requests are logged as they end: how sources did is told of the present alone"


class Queries:
    """Computes answers; threads may share it.

    Args:
        engine: of a database that `open_database` opened.
        clock: gives the time in microseconds.
        frequencies: of each source, by its name; bars come at their own interval.
        currency: of all answers.
        weighting: of texts in a sentiment index, by age and source.
        rules: of risk; None: those that come with the project.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], int] = now_us,
        frequencies: Mapping[str, Frequency] | None = None,
        currency: str = "usd",
        weighting: Weighting = WEIGHTING,
        rules: Sequence[RiskRule] | None = None,
    ) -> None:
        self.prices, self.texts = PriceStore(engine, clock), TextStore(engine, clock)
        self.engine, self.clock, self.currency = engine, clock, currency
        self._frequencies, self._weighting = dict(frequencies or {}), weighting
        self._history = BarHistory(engine, self.prices)
        self.rules = read_rules() if rules is None else tuple(rules)
        self.risk_markets = RiskMarkets(self._candidates_of, self._history, self.texts, engine, weighting)

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
            every = self.texts.counts(found.id, start, at + 1, as_of_us=as_of_us)
            counts = [each for each in every if not is_sample(each.source)]
            newest = self._newest_text(found.id, start, at + 1, as_of_us, len(counts) < len(every))
            texts = sum(each.texts for each in counts)
            scores, index = self._scored(found.id, window, at, as_of_us, texts)
        return Sentiment(
            coin=found.id,
            symbol=found.symbol,
            name=found.name,
            window=window,
            start=iso(start),
            as_of=iso(at),
            texts=texts,
            duplicates=sum(each.duplicates for each in counts),
            samples=sum(each.texts + each.duplicates for each in every) - sum(e.texts + e.duplicates for e in counts),
            by_source=by_source(counts, at),
            by_kind=by_kind(counts),
            newest=headline(newest, at) if newest else None,
            stale=newest is None or self._frequencies.get(newest.source, TEXTS).is_late(age_s(newest.at_us, at)),
            scores=scores,
            index=index,
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
            day = self._read_back(best, DAY_US + best.tolerance_us, as_of_us)
            flags = self._day_flags(day, best, as_of_us)
            overs = {frame: frame_us, "24h": DAY_US, "7d": 7 * DAY_US}
            if frame == "1d":
                del overs["1d"]
            changes = [self._change(day, best, name, over_us, as_of_us) for name, over_us in overs.items()]
            bars: Bars | Missing
            if fitting is None:
                bars = why_no_bars(frame, candidates)
                told = no_analysis(bars.reason)
            else:
                recent = day if fitting is best else None
                history = self._history.bars(fitting, frame_us, ANALYSED[frame], at, as_of_us, recent)
                bars = closed_bars(history, fitting, frame)
                told = analysis(history, at, fitting)
        return PriceAnalysis(
            coin=found.id,
            symbol=found.symbol,
            name=found.name,
            frame=frame,
            as_of=iso(at),
            last=best.shown(),
            fallback=why_fallback(candidates),
            others=[each.shown() for each in candidates[1:]],
            changes=changes,
            market_cap=best.last.market_cap,
            day=day_range(day, best, flags),
            bars=bars,
            **told,
        )

    def risk(self, coin: str, frame: Frame = "1h", as_of_us: int | None = None) -> RiskReport:
        """Return the level of a coin's risk with its evidence, and how good such warnings were in its past.

        Raises:
            NotFoundError: an unknown coin, or one whose price is not known.
            InputError: another frame, or an `as_of_us` that is not settled yet.
        """
        found = _coin(coin)
        check_choice("frame", frame, FRAME_S)
        at = self.instant(as_of_us)
        with reading():
            market = self.risk_markets.read(found.id, frame, at, as_of_us)
        return report_risk(found, market, frame, at, self.rules)

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
        rating = rate_market({each.name: each.rating for each in overviews})
        return MarketOverview(
            as_of=iso(at),
            summary=summarize(overviews, self.currency, rating),
            coins=overviews,
            sources=Missing(reason=NO_HEALTH) if health is None else health,
            rating=rating,
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

    def warm_up(self, seconds: float = WARM_UP_S) -> None:
        """Read the last months of all coins in advance, for so long at most; then the first answers are as quick."""
        prepare()
        prepare_models()
        at, end = self.clock(), time.monotonic() + seconds
        for series in self.prices.series():
            if time.monotonic() > end:
                break
            last = self._last(series, at, None) if series.coin in COINS and series.currency == self.currency else None
            if last is not None and fits(series, HOUR_US):
                self._history.bars(self._candidate(series, last, at), DAY_US, WARM_US // DAY_US, at, None)

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

    def _newest_text(
        self, coin: str, start_us: int, end_us: int, as_of_us: int | None, samples: bool
    ) -> StoredText | None:
        """Return the newest text of a range that is not invented, repetitions among them."""
        if samples:
            every = self.texts.read(coin, start_us, end_us, as_of_us=as_of_us, duplicates=True)
            return next((each for each in reversed(every) if not is_sample(each.source)), None)
        page = self.texts.page(coin, start_us, end_us, as_of_us=as_of_us, limit=1, duplicates=True)
        return page.texts[0] if page.texts else None

    def _scored(
        self, coin: str, window: Window, at: int, as_of_us: int | None, texts: int
    ) -> tuple[list[ModelScores] | Missing, SentimentIndex | Missing]:
        """Return each model's scores of the texts of a window, and the index of one of them."""
        if not texts:
            return Missing(reason=NO_TEXTS), Missing(reason=NO_TEXTS)
        length = WINDOW_S[window] * SECOND_US
        samples = sample_ids(self.engine, coin, at - 2 * length, at + 1)  # before the window, too
        every = self.texts.scores_by_model(coin, at - length, at + 1, as_of_us=as_of_us)
        kept = {model: without_texts(columns, samples) for model, columns in every.items()}
        found = {model: columns for model, columns in kept.items() if len(columns)}
        model = choose_model(score_summary(name, columns) for name, columns in found.items())
        if not found or model is None:
            return model_scores(found) or Missing(reason=NO_SCORES), Missing(reason=NO_SCORES)
        before = self.texts.scores(coin, at - 2 * length, at - length, model, as_of_us)
        both = without_texts(before, samples), found[model]
        ids = [int(id) for columns in both for id in columns.news_id]
        sources = read_sources(self.engine, ids, self._weighting)
        scored = [text for columns in both for text in scored_texts(columns, sources)]
        return model_scores(found), index_part(
            self.engine, scored, model, window, at, as_of_us, texts - len(found[model]), self._weighting
        )

    def _mood(self, coin: str, at: int, as_of_us: int | None, samples: bool) -> Mood | Missing:
        """Return the sentiment index of 24 hours in short."""
        start = at - DAY_US
        every = self.texts.scores_by_model(coin, start, at + 1, as_of_us=as_of_us)
        model = choose_model(score_summary(name, columns) for name, columns in every.items())
        if model is None:
            return Missing(reason=NO_SCORES)
        invented = sample_ids(self.engine, coin, start, at + 1) if samples else set()
        kept = without_texts(every[model], invented)
        sources = read_sources(self.engine, [int(id) for id in kept.news_id], self._weighting)
        return mood(scored_texts(kept, sources), model, at, self._weighting)

    def _change(self, day: model.Bars, candidate: Candidate, name: str, over_us: int, as_of_us: int | None) -> Change:
        """Return how the price changed; for a longer time than a day the earlier price is looked up alone."""
        if over_us <= DAY_US:
            return change_over(day, candidate, name, over_us)
        until = candidate.last.closed_us - over_us
        before = self.prices.latest(candidate.series, as_of_us=as_of_us, until_us=until)
        return change_from(before, candidate, name, over_us)

    def _candidates(self, coin: Coin, known: Sequence[Series], at: int, as_of_us: int | None) -> list[Candidate]:
        """Return the series with a price, the one to use first: the freshest that is not late, else the freshest."""
        found = []
        for series in known:
            last = self._last(series, at, as_of_us) if series.currency == self.currency else None
            if last is not None:
                found.append(self._candidate(series, last, at))
        if not found:
            when = "" if as_of_us is None else f" at {iso(as_of_us)}"
            raise NotFoundError(
                f"no price of {coin.id} in {self.currency} is known{when}: qubic-lab oracle collect gets prices, "
                "qubic-lab oracle demo loads packaged ones"
            )
        return sorted(found, key=lambda each: (each.stale, each.age_s, each.series.interval_s, each.series))

    def _candidates_of(self, coin: str, at: int, as_of_us: int | None) -> list[Candidate]:
        return self._candidates(_coin(coin), self.prices.series(coin), at, as_of_us)

    def _candidate(self, series: Series, last: StoredPrice, at: int) -> Candidate:
        own = self._frequencies.get(series.source, QUOTES)
        frequency = Frequency(float(series.interval_s), own.delay_s) if series.interval_s else own
        return Candidate(series, last, frequency, age_s(last.closed_us, at))

    def _last(self, series: Series, at: int, as_of_us: int | None) -> StoredPrice | None:
        """Return the last price up to an instant; a source's clock may be ahead of ours by a little."""
        return self.prices.latest(series, as_of_us=as_of_us, until_us=at + AHEAD_US)

    def _read_back(self, candidate: Candidate, span_us: int, as_of_us: int | None) -> model.Bars:
        """Return the prices of a time that ends with the last one."""
        end = candidate.last.closed_us
        return self.prices.read(candidate.series, end - span_us, end + 1, as_of_us=as_of_us)

    def _day_flags(self, day: model.Bars, candidate: Candidate, as_of_us: int | None) -> dict[str, int]:
        """Return how many prices of the last 24 hours have each flag."""
        if not day.flagged.any():
            return {}
        end = candidate.last.closed_us
        return self.prices.flags(candidate.series, end - DAY_US + 1, end + 1, as_of_us=as_of_us)

    def _overview(self, coin: Coin, known: Sequence[Series], at: int, as_of_us: int | None) -> CoinOverview:
        every = self.texts.counts(coin.id, at - DAY_US, at + 1, as_of_us=as_of_us)
        counts = [each for each in every if not is_sample(each.source)]
        newest = max((each.newest_at_us for each in counts), default=None)
        sentiment: Mood | Missing = Missing(reason=NO_TEXTS)
        if counts:
            sentiment = self._mood(coin.id, at, as_of_us, len(counts) < len(every))
        best: Candidate | None = None
        last: LastPrice | Missing
        change = volume = unit = None
        rating: Rating | Missing = Missing(reason="no rating: no price is known")
        try:
            candidates = self._candidates(coin, known, at, as_of_us)
        except NotFoundError as error:
            last = Missing(reason=str(error))
        else:
            best = candidates[0]
            last = best.shown()
            change, volume, unit = self._day_before(best, as_of_us)
            rating = self._rating(candidates, sentiment, at, as_of_us)
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
            sentiment=sentiment,
            rating=rating,
        )

    def _rating(
        self, candidates: Sequence[Candidate], sentiment: Mood | Missing, at: int, as_of_us: int | None
    ) -> Rating | Missing:
        """Return the rating of a coin whose prices are on time."""
        frame_us = FRAME_S[RATED] * SECOND_US
        chosen = next((each for each in candidates if fits(each.series, frame_us)), None)
        if chosen is None or chosen.stale:
            found = chosen or candidates[0]
            old = f"the newest price is {age(found.age_s)} old" if chosen else "there are no prices for bars of an hour"
            return Missing(reason=f"no rating: {old}")
        bars = self._history.bars(chosen, frame_us, RATED_BARS, at, as_of_us)
        return rate_bars(bars, chosen, sentiment, at)

    def _day_before(
        self, best: Candidate, as_of_us: int | None
    ) -> tuple[float | None, float | None, VolumeUnit | None]:
        """Return the change over 24 hours in percent, and the volume: see `_volume`."""
        end, tolerance = best.last.closed_us, best.tolerance_us
        # Of quotes only the one of a day ago is needed; volumes of bars are added up.
        until = end + 1 if best.series.interval_s else end - DAY_US + 1
        prices = self.prices.read(best.series, end - DAY_US - tolerance, until, as_of_us=as_of_us)
        row = row_before(prices, end - DAY_US, tolerance)
        change = None if row is None else change_pct(float(prices.close[row]), best.last.close)
        return change, *volume_24h(prices, best)

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
