"""What was written about a coin and how models scored it; several coins at a glance, with a rating and in words.

The sentences are made from the numbers by rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from qubic_lab.errors import NotFoundError, check_range
from qubic_lab.oracle.analysis.rating import MarketRating, Rating, SentimentFigures, price_figures, rate, rate_market
from qubic_lab.oracle.model.coins import COINS, Coin, find_coin
from qubic_lab.oracle.model.known import known_text
from qubic_lab.oracle.model.records import CURRENCY, is_sample
from qubic_lab.oracle.model.response import (
    WINDOW_S,
    AboutCoin,
    AgeS,
    CoinId,
    Direction,
    Instant,
    Missing,
    Money,
    OracleResponse,
    Part,
    Percent,
    Publisher,
    TextSource,
    TextUrl,
    Title,
    VolumeUnit,
    Window,
    age_s,
)
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, age_text, iso
from qubic_lab.oracle.sentiment.index import NO_TEXTS, WEIGHTING, Weighting
from qubic_lab.oracle.sentiment.index_report import (
    ModelScores,
    SentimentIndex,
    SentimentSummary,
    report_index,
    summarize_sentiment,
)
from qubic_lab.oracle.sentiment.keywords import Keyword, find_keywords
from qubic_lab.oracle.serving.prices import LastPrice, NextCursor, last_price, price_change, volume_24h
from qubic_lab.oracle.store.fetch_log import SourceHealth, read_source_health
from qubic_lab.oracle.store.price_store import PricedSeries
from qubic_lab.oracle.store.snapshot import Snapshot, reading
from qubic_lab.oracle.store.text_reader import MARKET, StoredText, TextCounts

RATED_BARS = 480
"""The number of hourly bars behind a rating: its slowest indicator has settled by then."""
OLDEST_BARS = 3
"""There is no rating if the last closed bar is older than this many bars."""
WHOLE_MARKET = Coin(MARKET, "", "the market", ())
MOST_COINS = 30
MOST_TEXTS = 500
"""Texts in a page of a history."""
NO_HEALTH = "the health of sources is known for the present only"
_UNITS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
_FLAT_PCT = 0.05
"""Smaller changes round to 0.0 %."""


@dataclass(frozen=True, kw_only=True)
class Headline(Part):
    """A text in short."""

    title: Title
    source: TextSource
    publisher: Publisher
    url: TextUrl
    published_us: Instant | None
    known_us: Instant
    age_s: AgeS


@dataclass(frozen=True, kw_only=True)
class SourceTexts(Part):
    """How many texts a source gave: distinct ones, duplicates, and the age of the newest."""

    source: TextSource
    texts: Annotated[int, Field(description="distinct ones")]
    duplicates: Annotated[int, Field(description="texts that repeat another one")]
    newest_age_s: AgeS


@dataclass(frozen=True, kw_only=True)
class Sentiment(AboutCoin, OracleResponse):
    """The texts about a coin, or about any (`market`), in a window that ends at `as_of`, and how models scored them.

    `sentiment_score` and `trend` are the index and its direction in other words, for clients that expect these names.
    `stale`: there is no text, or the newest is older than three of its source's intervals and its usual delay.
    `assumption`: how many of all these were not recorded by `as_of`, and when they are assumed to have been known.
    """

    window: Annotated[Window, Field(description="the time before as_of")]
    start_us: Instant
    as_of_us: Instant
    texts: Annotated[int, Field(description="distinct texts")]
    duplicates: Annotated[int, Field(description="texts that repeat one of these or an earlier one")]
    samples: Annotated[int, Field(description="invented texts, which count nowhere else")]
    by_source: tuple[SourceTexts, ...]
    by_kind: Annotated[dict[str, int], Field(description="number of texts by kind")]
    newest: Headline | None
    stale: bool
    assumption: str | None
    scores: tuple[ModelScores, ...] | Missing
    index: SentimentIndex | Missing
    sentiment_score: Annotated[float | None, Field(description="alias of index.index; null: there is none")]
    trend: Annotated[Direction, Field(description="alias of index.direction; neutral: also where there is no index")]
    keywords: Annotated[tuple[Keyword, ...], Field(description="words of headlines, those of most texts first")]


@dataclass(frozen=True, kw_only=True)
class TextHistory(OracleResponse):
    """Texts about a coin, the newest first, each in the newest version that was known at `as_of`."""

    coin: CoinId
    as_of_us: Instant
    texts: tuple[StoredText, ...]
    next_cursor: NextCursor


@dataclass(frozen=True, kw_only=True)
class CoinOverview(AboutCoin):
    """A coin at a glance; texts are the distinct ones of 24 hours, without invented samples."""

    last: LastPrice | Missing
    change_24h_pct: Percent
    market_cap: Money | None
    volume_24h: Annotated[float | None, Field(description="volume of 24 hours, in volume_unit; null: not known")]
    volume_unit: Annotated[VolumeUnit | None, Field(description="coin, or currency; null: the volume is not known")]
    texts_24h: Annotated[int, Field(description="distinct texts of 24 hours")]
    newest_text_age_s: Annotated[float | None, Field(description="seconds before as_of; null: none in 24 hours")]
    sentiment: SentimentSummary | Missing
    rating: Rating | Missing


@dataclass(frozen=True, kw_only=True)
class MarketOverview(OracleResponse):
    """Several coins at a glance, in plain words, and the health of the sources.

    `sentiment_score` and `trend` are aliases, for clients that expect these names; trend: bullish from positive on,
    bearish from negative on.
    """

    as_of_us: Instant
    summary: Annotated[tuple[str, ...], Field(description="sentences, made from the numbers by rules")]
    coins: tuple[CoinOverview, ...]
    sources: tuple[SourceHealth, ...] | Missing
    rating: MarketRating | Missing
    sentiment_score: Annotated[
        float | None,
        Field(description="the index of the texts of 24 hours about any coin, -1 to 1; null: there is none"),
    ]
    trend: Annotated[Direction, Field(description="the rating in one word")]


@reading()
def sentiment(
    snapshot: Snapshot, coin: str | None = None, window: Window = "24h", weighting: Weighting = WEIGHTING
) -> Sentiment:
    """Return what was written about a coin, or about any, and how models have scored it.

    Raises:
        NotFoundError: an unknown coin.
    """
    found = WHOLE_MARKET if coin is None else find_coin(coin)
    at, start = snapshot.at_us, snapshot.at_us - WINDOW_S[window] * SECOND_US
    every = snapshot.texts.counts(found.id, start, at + 1)
    counts = [each for each in every if not is_sample(each.source)]
    texts = sum(each.texts for each in counts)
    by_kind = {kind: sum(each.texts for each in counts if each.kind == kind) for kind in ("news", "social")}
    newest = snapshot.texts.page(found.id, start, at + 1, limit=1, duplicates=True, invented=False).texts
    late = not newest or snapshot.store.text_frequency(newest[0].source).is_late(age_s(newest[0].at_us, at))
    scores, index = report_index(snapshot, found.id, window, texts, weighting)
    headlines = snapshot.texts.headlines(found.id, start, at + 1)
    earlier = snapshot.texts.headlines(found.id, 2 * start - at, start)
    return Sentiment(
        **found.identity,
        window=window,
        start_us=start,
        as_of_us=at,
        texts=texts,
        duplicates=sum(each.duplicates for each in counts),
        samples=sum(each.texts + each.duplicates for each in every if is_sample(each.source)),
        by_source=_by_source(counts, at),
        by_kind={kind: number for kind, number in by_kind.items() if number},
        newest=_headline(newest[0], at) if newest else None,
        stale=late,
        assumption=_assumption(counts),
        scores=scores,
        index=index,
        sentiment_score=None if isinstance(index, Missing) else index.index,
        trend="neutral" if isinstance(index, Missing) else index.direction,
        keywords=find_keywords(headlines, earlier, (*found.terms, found.name, found.symbol)),
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
        NotFoundError: an unknown coin, or an empty range.
        InputError: a limit that is out of range, or a cursor that no page gave.
    """
    found = find_coin(coin)
    end = snapshot.at_us + 1 if end_us is None else end_us
    start = end - 7 * DAY_US if start_us is None else start_us
    page = snapshot.texts.page(found.id, start, end, limit=limit, cursor=cursor, duplicates=duplicates)
    return TextHistory(coin=found.id, as_of_us=snapshot.at_us, texts=page.texts, next_cursor=page.next_cursor)


@reading()
def market_overview(snapshot: Snapshot, coins: Sequence[str] = (), weighting: Weighting = WEIGHTING) -> MarketOverview:
    """Return several coins at a glance; without names all that have prices.

    Raises:
        NotFoundError: an unknown coin, or there are no prices at all.
        InputError: too many coins.
    """
    found = list(dict.fromkeys(map(find_coin, coins)))
    if not coins:
        found = [coin for coin in COINS.values() if coin.id in snapshot.series][:MOST_COINS]
    if not found:
        raise NotFoundError(
            "there are no prices yet: qubic-lab oracle collect gets some, qubic-lab oracle demo loads packaged ones"
        )
    check_range("number of coins", len(found), 1, MOST_COINS)
    overviews = tuple(_overview(snapshot, coin, weighting) for coin in found)
    health: tuple[SourceHealth, ...] | Missing = Missing(NO_HEALTH)
    if snapshot.known_us is None:
        health = read_source_health(snapshot.store.engine, snapshot.at_us)
    rating = rate_market({each.name: each.rating for each in overviews})
    mood = summarize_sentiment(snapshot, MARKET, weighting)
    return MarketOverview(
        as_of_us=snapshot.at_us,
        summary=summarize(overviews, rating),
        coins=overviews,
        sources=health,
        rating=rating,
        sentiment_score=None if isinstance(mood, Missing) else mood.index,
        trend=_direction(rating),
    )


def _direction(rating: MarketRating | Missing) -> Direction:
    if isinstance(rating, Missing) or rating.rating == "neutral":
        return "neutral"
    return "bullish" if "positive" in rating.rating else "bearish"


def _assumption(counts: Sequence[TextCounts]) -> str | None:
    """Return how many texts are only assumed to have been known, and when; None where all were recorded."""
    delays = [each.delay_us or 0 for each in counts if each.assumed]
    number, every = sum(each.assumed for each in counts), sum(each.texts + each.duplicates for each in counts)
    return f"{number} of {every} texts: {known_text(max(delays))}" if delays else None


def _by_source(counts: Sequence[TextCounts], at_us: int) -> tuple[SourceTexts, ...]:
    found = []
    for source in sorted({each.source for each in counts}):
        those = [each for each in counts if each.source == source]
        texts, duplicates = sum(each.texts for each in those), sum(each.duplicates for each in those)
        newest_age_s = age_s(max(each.newest_at_us for each in those), at_us)
        found.append(SourceTexts(source=source, texts=texts, duplicates=duplicates, newest_age_s=newest_age_s))
    return tuple(found)


def _headline(text: StoredText, at_us: int) -> Headline:
    return Headline(
        title=text.title,
        source=text.source,
        publisher=text.publisher,
        url=text.url,
        published_us=text.published_us,
        known_us=text.known_us,
        age_s=age_s(text.at_us, at_us),
    )


def _overview(snapshot: Snapshot, coin: Coin, weighting: Weighting) -> CoinOverview:
    start, at = snapshot.at_us - DAY_US, snapshot.at_us
    counts = [each for each in snapshot.texts.counts(coin.id, start, at + 1) if not is_sample(each.source)]
    newest = max((each.newest_at_us for each in counts), default=None)
    sentiment = summarize_sentiment(snapshot, coin.id, weighting) if counts else Missing(NO_TEXTS)
    last: LastPrice | Missing
    change = volume = unit = cap = None
    rating: Rating | Missing = Missing("no rating: no price is known")
    try:
        sources = snapshot.sources(coin.id)
    except NotFoundError as error:
        last = Missing(str(error))
    else:
        last, cap = last_price(sources[0], snapshot), sources[0].last.market_cap
        change = price_change(snapshot, sources[0], "24h", DAY_US).change_pct
        volume, unit = volume_24h(snapshot, sources[0])
        rating = _rate(snapshot, sources, sentiment)
    return CoinOverview(
        **coin.identity,
        last=last,
        change_24h_pct=change,
        market_cap=cap,
        volume_24h=volume,
        volume_unit=unit,
        texts_24h=sum(each.texts for each in counts),
        newest_text_age_s=None if newest is None else age_s(newest, at),
        sentiment=sentiment,
        rating=rating,
    )


def _rate(
    snapshot: Snapshot, sources: Sequence[PricedSeries], sentiment: SentimentSummary | Missing
) -> Rating | Missing:
    source = next((each for each in sources if each.series.makes(HOUR_US)), None)
    if source is None:
        return Missing("no rating: there are no prices for bars of an hour")
    if source.stale:
        return Missing(f"no rating: the newest price is {age_text(source.age_s)} old")
    bars = snapshot.bars(source, HOUR_US, RATED_BARS)
    prices = price_figures(bars)
    if isinstance(prices, Missing):
        return Missing(f"no rating: {prices.reason}")
    last_us = int(bars.closed_us[-1])
    if snapshot.at_us - last_us > OLDEST_BARS * HOUR_US + source.frequency.delay_s * SECOND_US:
        return Missing(f"no rating: the last closed bar of an hour is {age_text(age_s(last_us, snapshot.at_us))} old")
    missing = (last_us - int(bars.opened_us[0])) // HOUR_US - len(bars)
    gaps = f", {missing} are missing" if missing else ""
    basis = [f"{len(bars)} bars of 1h from {source.series.source} up to {iso(last_us)}{gaps}"]
    if isinstance(sentiment, Missing):
        return rate(prices, sentiment, basis)
    basis.append(f"{sentiment.texts} texts of 24 h, scored by {sentiment.model}")
    return rate(prices, SentimentFigures(sentiment.index, sentiment.confidence, sentiment.texts), basis)


def summarize(coins: Sequence[CoinOverview], rating: MarketRating | Missing) -> tuple[str, ...]:
    """Return a sentence about all coins if several have prices, one about each coin, and one about the rating."""
    moved = [
        each
        for each in coins
        if each.change_24h_pct is not None and isinstance(each.last, LastPrice) and not each.last.stale
    ]
    sentences = [_market(moved, len(coins))] if len(moved) > 1 else []
    sentences += map(_coin, coins)
    return tuple(sentences if isinstance(rating, Missing) else [*sentences, _rating(rating)])


def money(value: float) -> str:
    """Return an amount with two decimals, or with four significant digits below 1."""
    for size, name in _UNITS:
        if value >= size:
            return f"{value / size:.2f} {name}"
    if value >= 1:
        return f"{value:,.2f}"
    decimals = next((n for n in range(16) if round(value, n) >= 10 ** (3 - n)), 16)
    return f"{value:.{decimals}f}"


def _market(moved: Sequence[CoinOverview], all_coins: int) -> str:
    changes = {each.name: each.change_24h_pct or 0.0 for each in moved}
    rose = sum(change >= _FLAT_PCT for change in changes.values())
    fell = sum(change <= -_FLAT_PCT for change in changes.values())
    best, worst = max(changes, key=changes.__getitem__), min(changes, key=changes.__getitem__)
    known = "" if len(moved) == all_coins else f", of {all_coins} in all"
    return (
        f"Of {len(moved)} coins with prices on time{known}, {rose} rose and {fell} fell in 24 h: from "
        f"{_signed(changes[worst], 1)} % ({worst}) to {_signed(changes[best], 1)} % ({best})."
    )


def _coin(coin: CoinOverview) -> str:
    texts = f"{coin.texts_24h} text{'' if coin.texts_24h == 1 else 's'} in 24 h"
    if isinstance(coin.last, Missing):
        return f"{coin.name}: no price is known; {texts}."
    unit = CURRENCY.upper()
    span = "in the 24 h up to that" if coin.last.stale else "in 24 h"
    pct = coin.change_24h_pct
    change = f"change {span} not known" if pct is None else f"{_signed(pct, 1)} % {span}"
    cap = "" if coin.market_cap is None else f", market cap {money(coin.market_cap)} {unit}"
    stale = ", which is stale" if coin.last.stale else ""
    if isinstance(coin.sentiment, SentimentSummary):
        texts += f" with an index of {_signed(coin.sentiment.index, 2)} (confidence {coin.sentiment.confidence:.1f})"
    rated = f"; rated {coin.rating.rating}" if isinstance(coin.rating, Rating) else ""
    return (
        f"{coin.name} {money(coin.last.price)} {unit}, {change}{cap}; {texts}{rated}; "
        f"price {age_text(coin.last.age_s)} old from {coin.last.source}{stale}."
    )


def _rating(rating: MarketRating) -> str:
    without = f"; {len(rating.without)} have no rating" if rating.without else ""
    return (
        f"By simple rules, which are no advice, the market is rated {rating.rating}: mean vote "
        f"{_signed(rating.score, 2)} of {rating.coins} coins{without}."
    )


def _signed(value: float, decimals: int) -> str:
    """Return a number with its sign, a true minus and some decimals."""
    if abs(value) < 0.5 * 10**-decimals:
        return f"±{0.0:.{decimals}f}"
    return f"{'+' if value > 0 else '−'}{abs(value):,.{decimals}f}"
