"""The oracle's responses, computed from a snapshot of what was known.

Nothing is filled in: a figure whose prices are not known is null, and what cannot be computed is `Missing`, with why.
"""

from collections.abc import Sequence
from typing import Any

from qubic_lab.errors import InputError, NotFoundError, check_choice, check_range
from qubic_lab.oracle.analysis.rating import Rating, rate_market
from qubic_lab.oracle.analysis.results import BarAnalysis
from qubic_lab.oracle.model import bars as model
from qubic_lab.oracle.model.coins import COINS, Coin, find_coin
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.response import FRAME_S, WINDOW_S, Frame, Missing, VolumeUnit, Window, age_s
from qubic_lab.oracle.model.source_names import is_sample
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US, age_text, iso
from qubic_lab.oracle.risk.inputs import read_risk_market
from qubic_lab.oracle.risk.report import RiskReport, report_risk
from qubic_lab.oracle.risk.rules import RiskRule, read_rules
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.oracle.sentiment.index_report import SentimentSummary, report_index, summarize_sentiment
from qubic_lab.oracle.sentiment.stored import NO_TEXTS
from qubic_lab.oracle.serving.analysis_parts import ANALYSED, RATED, RATED_BARS, analysis, rate_bars
from qubic_lab.oracle.serving.price_parts import (
    change_from,
    change_over,
    change_pct,
    closed_bars,
    day_range,
    historic_price,
    last_price,
    row_before,
    volume_24h,
    why_fallback,
)
from qubic_lab.oracle.serving.responses import (
    Change,
    CoinOverview,
    MarketOverview,
    PriceAnalysis,
    PriceHistory,
    Sentiment,
    TextHistory,
)
from qubic_lab.oracle.serving.summary import summarize
from qubic_lab.oracle.serving.text_parts import by_kind, by_source, headline, historic_text
from qubic_lab.oracle.store.freshness import PricedSeries, why_no_bars
from qubic_lab.oracle.store.snapshot import Snapshot, reading
from qubic_lab.oracle.store.source_health import read_source_health

MOST_COINS = 30
MOST_PRICES, MOST_TEXTS = 1_000, 500
NO_HEALTH = "requests are logged as they end: how sources did is told of the present alone"


@reading()
def sentiment(snapshot: Snapshot, coin: str, window: Window = "24h", weighting: Weighting = WEIGHTING) -> Sentiment:
    """Return what was written about a coin, and how models have scored it.

    Raises:
        NotFoundError: an unknown coin.
        InputError: another window.
    """
    found = named_coin(coin)
    check_choice("window", window, WINDOW_S)
    at, start = snapshot.at_us, snapshot.at_us - WINDOW_S[window] * SECOND_US
    every = snapshot.texts.counts(found.id, start, at + 1)
    counts = [each for each in every if not is_sample(each.source)]
    newest = snapshot.texts.page(found.id, start, at + 1, limit=1, duplicates=True, invented=False).texts
    texts = sum(each.texts for each in counts)
    scores, index = report_index(snapshot, found.id, window, texts, weighting)
    return Sentiment(
        coin=found.id,
        symbol=found.symbol,
        name=found.name,
        window=window,
        start=iso(start),
        as_of=iso(at),
        texts=texts,
        duplicates=sum(each.duplicates for each in counts),
        samples=sum(each.texts + each.duplicates for each in every if is_sample(each.source)),
        by_source=by_source(counts, at),
        by_kind=by_kind(counts),
        newest=headline(newest[0], at) if newest else None,
        stale=not newest or snapshot.store.text_frequency(newest[0].source).is_late(age_s(newest[0].at_us, at)),
        scores=scores,
        index=index,
    )


@reading()
def price_analysis(snapshot: Snapshot, coin: str, frame: Frame = "1h") -> PriceAnalysis:
    """Return a coin's last price, its changes, its last closed bars, and what they say.

    Raises:
        NotFoundError: an unknown coin, or one whose price is not known.
        InputError: another frame.
    """
    found = named_coin(coin)
    check_choice("frame", frame, FRAME_S)
    frame_us = FRAME_S[frame] * SECOND_US
    sources = snapshot.sources(found.id)
    best, fitting = sources[0], next((each for each in sources if each.makes(frame_us)), None)
    end = best.last.closed_us
    day = snapshot.prices.read(best.series, end - DAY_US - best.tolerance_us, end + 1)
    flags = snapshot.prices.flags(best.series, end - DAY_US + 1, end + 1) if day.flagged.any() else {}
    overs = {frame: frame_us, "24h": DAY_US, "7d": 7 * DAY_US}
    if frame == "1d":
        del overs["1d"]
    if fitting is None:
        bars: Any = why_no_bars(frame, sources)
        analysed = BarAnalysis.missing(bars.reason)
    else:
        history = snapshot.bars(fitting, frame_us, ANALYSED[frame], day if fitting is best else None)
        bars = closed_bars(history, fitting, frame)
        analysed = analysis(history, snapshot.at_us, fitting)
    return PriceAnalysis(
        coin=found.id,
        symbol=found.symbol,
        name=found.name,
        frame=frame,
        as_of=iso(snapshot.at_us),
        last=last_price(best),
        fallback=why_fallback(sources),
        others=[last_price(each) for each in sources[1:]],
        changes=[_change(snapshot, day, best, name, over_us) for name, over_us in overs.items()],
        market_cap=best.last.market_cap,
        day=day_range(day, best, flags),
        bars=bars,
        **vars(analysed),
    )


@reading()
def risk(
    snapshot: Snapshot,
    coin: str,
    frame: Frame = "1h",
    weighting: Weighting = WEIGHTING,
    rules: Sequence[RiskRule] | None = None,
) -> RiskReport:
    """Return the level of a coin's risk with its evidence, and how good such warnings were in its past.

    Raises:
        NotFoundError: an unknown coin, or one whose price is not known.
        InputError: another frame.
    """
    found = named_coin(coin)
    check_choice("frame", frame, FRAME_S)
    market = read_risk_market(snapshot, found.id, frame, weighting)
    return report_risk(found, market, frame, snapshot.at_us, rules or read_rules())


@reading()
def market_overview(snapshot: Snapshot, coins: Sequence[str] = (), weighting: Weighting = WEIGHTING) -> MarketOverview:
    """Return several coins at a glance; no coins: all that there are prices of.

    Raises:
        NotFoundError: an unknown coin, or there are no prices at all.
        InputError: too many coins.
    """
    found = list(dict.fromkeys(map(named_coin, coins)))
    if not found:
        found = [coin for coin in COINS.values() if coin.id in snapshot.series][:MOST_COINS]
    if not found:
        raise NotFoundError(
            "there are no prices yet: qubic-lab oracle collect gets some, qubic-lab oracle demo loads packaged ones"
        )
    check_range("number of coins", len(found), 1, MOST_COINS)
    overviews = [_overview(snapshot, coin, weighting) for coin in found]
    health = read_source_health(snapshot.store.engine, snapshot.at_us) if snapshot.known_us is None else None
    rating = rate_market({each.name: each.rating for each in overviews})
    return MarketOverview(
        as_of=iso(snapshot.at_us),
        summary=summarize(overviews, snapshot.store.currency, rating),
        coins=overviews,
        sources=Missing(reason=NO_HEALTH) if health is None else health,
        rating=rating,
    )


@reading()
def price_history(
    snapshot: Snapshot,
    coin: str,
    start_us: int | None = None,
    end_us: int | None = None,
    *,
    source: str | None = None,
    interval_s: int | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> PriceHistory:
    """Return a page of a coin's prices, the newest first; a cursor goes on with the source that it came from.

    Without a range they are those of the last day that has any; without a source those of the freshest.

    Raises:
        NotFoundError: an unknown coin, or there are no such prices.
        InputError: an empty range, or a limit or cursor that is none.
    """
    found = named_coin(coin)
    check_range("limit", limit, 1, MOST_PRICES)
    if cursor is not None:
        series, cursor = _read_cursor(snapshot, found, cursor)
    else:
        series = _choose_series(snapshot, found, source, interval_s)
    if end_us is None:
        last = snapshot.latest(series)
        end_us = max(last.closed_us + 1 if last else 0, 0 if start_us is None else start_us + 1)
    start_us = end_us - DAY_US if start_us is None else start_us
    page = snapshot.prices.page(series, start_us, end_us, limit=limit, cursor=cursor)
    return PriceHistory(
        coin=found.id,
        source=series.source,
        interval_s=series.interval_s,
        currency=series.currency,
        as_of=iso(snapshot.at_us),
        prices=[historic_price(price) for price in page.prices],
        next_cursor=None if page.next_cursor is None else _cursor_head(series) + page.next_cursor,
    )


@reading()
def text_history(
    snapshot: Snapshot,
    coin: str,
    start_us: int | None = None,
    end_us: int | None = None,
    *,
    duplicates: bool = False,
    limit: int = 100,
    cursor: str | None = None,
) -> TextHistory:
    """Return a page of the texts about a coin, the newest first; without a range those of the last week.

    Raises:
        NotFoundError: an unknown coin.
        InputError: an empty range, or a limit or cursor that is none.
    """
    found = named_coin(coin)
    check_range("limit", limit, 1, MOST_TEXTS)
    end = snapshot.at_us + 1 if end_us is None else end_us
    start = end - 7 * DAY_US if start_us is None else start_us
    page = snapshot.texts.page(found.id, start, end, limit=limit, cursor=cursor, duplicates=duplicates)
    texts = [historic_text(text) for text in page.texts]
    return TextHistory(coin=found.id, as_of=iso(snapshot.at_us), texts=texts, next_cursor=page.next_cursor)


def named_coin(text: str) -> Coin:
    """Return the coin of an id, a symbol or a name.

    Raises:
        NotFoundError: there is none.
    """
    try:
        return find_coin(text)
    except InputError as error:
        raise NotFoundError(str(error)) from None


def _change(snapshot: Snapshot, day: model.Bars, source: PricedSeries, name: str, over_us: int) -> Change:
    """Return how the price changed; for a longer time than a day the earlier price is looked up alone."""
    if over_us <= DAY_US:
        return change_over(day, source, name, over_us)
    return change_from(snapshot.prices.latest(source.series, source.last.closed_us - over_us), source, name, over_us)


def _overview(snapshot: Snapshot, coin: Coin, weighting: Weighting) -> CoinOverview:
    start, at = snapshot.at_us - DAY_US, snapshot.at_us
    counts = [each for each in snapshot.texts.counts(coin.id, start, at + 1) if not is_sample(each.source)]
    newest = max((each.newest_at_us for each in counts), default=None)
    summary = summarize_sentiment(snapshot, coin.id, weighting) if counts else Missing(NO_TEXTS)
    found = CoinOverview(
        coin=coin.id,
        symbol=coin.symbol,
        name=coin.name,
        last=Missing(reason=""),
        change_24h_pct=None,
        market_cap=None,
        volume_24h=None,
        volume_unit=None,
        texts_24h=sum(each.texts for each in counts),
        newest_text_age_s=None if newest is None else age_s(newest, at),
        sentiment=summary,
        rating=Missing(reason="no rating: no price is known"),
    )
    try:
        sources = snapshot.sources(coin.id)
    except NotFoundError as error:
        return found.model_copy(update={"last": Missing(reason=str(error))})
    change, volume, unit = _day_before(snapshot, sources[0])
    return found.model_copy(
        update={
            "last": last_price(sources[0]),
            "change_24h_pct": change,
            "market_cap": sources[0].last.market_cap,
            "volume_24h": volume,
            "volume_unit": unit,
            "rating": _rating(snapshot, sources, summary),
        }
    )


def _rating(
    snapshot: Snapshot, sources: Sequence[PricedSeries], summary: SentimentSummary | Missing
) -> Rating | Missing:
    """Return the rating of a coin whose prices are on time."""
    frame_us = FRAME_S[RATED] * SECOND_US
    chosen = next((each for each in sources if each.makes(frame_us)), None)
    if chosen is None:
        return Missing(reason="no rating: there are no prices for bars of an hour")
    if chosen.stale:
        return Missing(reason=f"no rating: the newest price is {age_text(chosen.age_s)} old")
    return rate_bars(snapshot.bars(chosen, frame_us, RATED_BARS), chosen, summary, snapshot.at_us)


def _day_before(snapshot: Snapshot, best: PricedSeries) -> tuple[float | None, float | None, VolumeUnit | None]:
    """Return the change over 24 hours in percent, the volume, and its unit."""
    end, tolerance = best.last.closed_us, best.tolerance_us
    # Of quotes only the one of a day ago is needed; volumes of bars are added up.
    until = end + 1 if best.series.interval_s else end - DAY_US + 1
    prices = snapshot.prices.read(best.series, end - DAY_US - tolerance, until)
    row = row_before(prices, end - DAY_US, tolerance)
    change = None if row is None else change_pct(float(prices.close[row]), best.last.close)
    return change, *volume_24h(prices, best)


def _choose_series(snapshot: Snapshot, coin: Coin, source: str | None, interval_s: int | None) -> Series:
    """Return the freshest series of those that are asked for."""
    sources = snapshot.sources(coin.id)
    for each in sources:
        if source in (None, each.series.source) and interval_s in (None, each.series.interval_s):
            return each.series
    there = ", ".join(sorted({f"{each.series.source} with {each.series.interval_s}" for each in sources}))
    asked = " and ".join(
        f"{name} {value}" for name, value in (("source", source), ("interval_s", interval_s)) if value is not None
    )
    raise NotFoundError(f"no prices of {coin.id} with {asked}: there are {there} (interval_s; 0: quotes)")


def _read_cursor(snapshot: Snapshot, coin: Coin, cursor: str) -> tuple[Series, str]:
    """Return the series of the page that gave a cursor, and the store's own cursor."""
    for series in snapshot.series.get(coin.id, ()):
        if cursor.startswith(head := _cursor_head(series)):
            return series, cursor.removeprefix(head)
    raise InputError(f"cursor {cursor[:100]!r} is none that a page gave: leave it out for the first page")


def _cursor_head(series: Series) -> str:
    """Return what tells a coin's series apart in a cursor."""
    return f"{series.source}:{series.interval_s}:{series.currency}:"
