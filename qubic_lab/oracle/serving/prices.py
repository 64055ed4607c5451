"""A coin's prices: the last one and where it is from, its changes, the day's range, closed bars and what they say."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated

import numpy as np
from pydantic import Field

from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.analysis.rating import NOT_INSTALLED
from qubic_lab.oracle.analysis.results import BarAnalysis
from qubic_lab.oracle.model.bars import PRICES, Bars
from qubic_lab.oracle.model.coins import Coin, find_coin
from qubic_lab.oracle.model.known import known_text
from qubic_lab.oracle.model.records import QUOTES, STALE_AFTER, Series
from qubic_lab.oracle.model.response import (
    FRAME_S,
    AboutCoin,
    AgeS,
    CoinId,
    Currency,
    Direction,
    Frame,
    FrameName,
    Instant,
    Missing,
    Money,
    OracleResponse,
    Part,
    Percent,
    PriceOrigin,
    Share,
    VolumeUnit,
)
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US
from qubic_lab.oracle.risk.report import RiskLevel, read_level
from qubic_lab.oracle.risk.rules import RiskRule
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.oracle.sentiment.index_report import summarize_sentiment
from qubic_lab.oracle.store.price_store import PricedSeries, StoredPrice
from qubic_lab.oracle.store.snapshot import Snapshot, reading, why_no_bars

SHOWN: dict[Frame, int] = {"1h": 48, "4h": 42, "1d": 30}
"""The number of last closed bars in a response."""
ANALYSED: dict[Frame, int] = {"1h": 720, "4h": 360, "1d": 250}
"""The number of last closed bars that are analysed: those of 30 days, 60 days and 250 days."""
NEAR, LEAST_NEAR = 0.75, 5
"""A price counts as that of an instant within this share of the step between prices; at least so many show the step."""
QUOTE_TOLERANCE_US = int(STALE_AFTER * QUOTES.every_s * SECOND_US)
"""How much older than an instant a quote may be that counts as that of the instant."""
MOST_PRICES = 1_000
"""Prices in a page of a history."""

NextCursor = Annotated[str | None, Field(description="give it as cursor for the next page; null: this is the last")]


@dataclass(frozen=True, kw_only=True)
class LastPrice(PriceOrigin):
    """The newest price of a source.

    `at`: the time of the price; `known`: when it was recorded here; `stale`: it is older than three of the source's
    intervals and its usual delay.
    """

    price: Money
    currency: Currency
    at_us: Instant
    known_us: Instant
    age_s: AgeS
    expected_every_s: Annotated[float, Field(description="seconds between this source's prices")]
    stale: bool
    flags: Annotated[tuple[str, ...], Field(description="what cleaning found about this price")]
    assumption: Annotated[str | None, Field(description="when it is assumed to have been known; null: it was recorded")]


@dataclass(frozen=True)
class PriceChange(Part):
    """The change of the price over a time that ends with the last price, and the earlier price.

    `volume_24h_pct`: the change of the volume of 24 hours over the same time.
    """

    over: Annotated[str, Field(description="the time, such as 24h")]
    change_pct: Percent
    from_price: Money | None
    from_at_us: Instant | None
    volume_24h_pct: Percent = None


@dataclass(frozen=True)
class ClosedBar(Part):
    """A closed bar, made from the prices after `opened` up to `closed`.

    `completeness`: the share of its expected prices that are known; `flagged`: how many of them cleaning has flagged.
    """

    opened_us: Instant
    closed_us: Instant
    open: Money
    high: Money
    low: Money
    close: Money
    volume: Annotated[float | None, Field(description="in units of the coin; null for quotes")]
    prices: Annotated[int, Field(description="how many prices it is made from")]
    completeness: Share
    flagged: int


@dataclass(frozen=True, kw_only=True)
class ClosedBars(PriceOrigin):
    """The last closed bars, in order of time; those without any price are left out."""

    bars: tuple[ClosedBar, ...]


@dataclass(frozen=True, kw_only=True)
class DayRange(Part):
    """The 24 hours that end with the last price. `volume` is in units of the coin or in the response's currency."""

    high: Money | None
    low: Money | None
    volume: Annotated[float | None, Field(description="in volume_unit; null: not known")]
    volume_unit: Annotated[VolumeUnit | None, Field(description="coin, or currency; null: the volume is not known")]
    completeness: Share
    flags: Annotated[dict[str, int], Field(description="how many prices cleaning has flagged, by flag")]


@dataclass(frozen=True, kw_only=True)
class PriceAnalysis(AboutCoin, BarAnalysis, OracleResponse):
    """A coin's price from one source, its changes, closed bars of one frame, and what they say.

    Every figure depends on bars alone that were closed at `as_of`. `trend`, `predictions` and `sentiment_score` say in
    short, for clients that expect these names, what `trend_details` and `forecasts` have in full, and the sentiment
    index of 24 hours.
    """

    frame: FrameName
    as_of_us: Instant
    last: LastPrice
    fallback: Annotated[
        str | None, Field(description="why the prices are not from the first choice of source; null: they are")
    ]
    others: Annotated[tuple[LastPrice, ...], Field(description="other sources' last prices")]
    changes: tuple[PriceChange, ...]
    market_cap: Money | None
    day: DayRange
    bars: ClosedBars | Missing
    risk: Annotated[RiskLevel | Missing, Field(description="the level now; /api/oracle/risk has its measures")]
    direction: Annotated[Direction, Field(alias="trend", description="bullish: rising, bearish: falling, else neutral")]
    predictions: Annotated[dict[str, float], Field(description="the median of each forecast; none: no forecast")]
    sentiment_score: Annotated[float | None, Field(description="-1 to 1; null: there is no index")]


@dataclass(frozen=True, kw_only=True)
class PriceHistory(OracleResponse):
    """Prices of one source, the newest first, each in the newest version that was known at `as_of`."""

    coin: CoinId
    source: Annotated[str, Field(description="the source's name, such as coingecko")]
    interval_s: Annotated[int, Field(description="seconds of a bar; 0: quotes")]
    currency: Currency
    as_of_us: Instant
    prices: tuple[StoredPrice, ...]
    next_cursor: NextCursor


@reading()
def price_analysis(
    snapshot: Snapshot,
    coin: str,
    frame: Frame = "1h",
    *,
    weighting: Weighting = WEIGHTING,
    rules: Sequence[RiskRule] = (),
) -> PriceAnalysis:
    """Return a coin's last price, its changes, its last closed bars, and what they say.

    Bars are of the first source on time that has volumes, else of the first. The level of risk is by the given rules or
    those of the project.

    Raises:
        NotFoundError: an unknown coin, or one whose price is not known.
    """
    found, frame_us = find_coin(coin), FRAME_S[frame] * SECOND_US
    sources, mood = snapshot.sources(found.id), summarize_sentiment(snapshot, found.id, weighting)
    best, fits = sources[0], [each for each in sources if each.series.makes(frame_us)]
    fitting = min(fits, key=lambda each: (each.stale, not each.stale and each.last.volume is None), default=None)
    overs = ({frame: frame_us} if frame != "1d" else {}) | {"24h": DAY_US, "7d": 7 * DAY_US}
    bars: ClosedBars | Missing
    if fitting is None:
        bars = why_no_bars(frame, sources)
        analysis = BarAnalysis.missing(bars.reason)
    else:
        history = snapshot.bars(fitting, frame_us, ANALYSED[frame])
        bars = _closed_bars(history.tail(SHOWN[frame]), fitting)
        analysis = _analyse(history, fitting, snapshot.at_us)
    return PriceAnalysis(
        **found.identity,
        frame=frame,
        as_of_us=snapshot.at_us,
        last=last_price(best, snapshot),
        fallback=_why_fallback(sources),
        others=tuple(last_price(each, snapshot) for each in sources[1:]),
        changes=tuple(price_change(snapshot, best, name, over_us) for name, over_us in overs.items()),
        market_cap=best.last.market_cap,
        day=_day_range(snapshot, best),
        bars=bars,
        risk=read_level(snapshot, found.id, frame, weighting, rules),
        direction=direction_of(analysis),
        predictions=predictions_of(analysis),
        sentiment_score=None if isinstance(mood, Missing) else mood.index,
        **vars(analysis),
    )


def direction_of(analysis: BarAnalysis) -> Direction:
    """Return the trend of bars in one word; neutral where none is known."""
    if isinstance(analysis.trend, Missing) or analysis.trend.direction == "none":
        return "neutral"
    return "bullish" if analysis.trend.direction == "rising" else "bearish"


def predictions_of(analysis: BarAnalysis) -> dict[str, float]:
    """Return the median of each forecast that there is, by hours ahead."""
    found = {} if isinstance(analysis.forecasts, Missing) else analysis.forecasts
    return {name: each.price for name, each in found.items() if not isinstance(each, Missing)}


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
        NotFoundError: an unknown coin, an empty range, or there are no such prices.
        InputError: a limit that is out of range, or a cursor that no page gave.
    """
    found = find_coin(coin)
    if cursor is None:
        series = _choose_series(snapshot, found, source, interval_s)
    else:
        series, cursor = _read_cursor(snapshot, found, cursor)
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
        as_of_us=snapshot.at_us,
        prices=page.prices,
        next_cursor=None if page.next_cursor is None else _cursor_head(series) + page.next_cursor,
    )


def last_price(source: PricedSeries, snapshot: Snapshot) -> LastPrice:
    """Return the last price of a series."""
    last, known_us = source.last, snapshot.known_us
    is_assumed = known_us is not None and last.known_us > known_us and last.assumed_us is not None
    return LastPrice(
        source=source.series.source,
        interval_s=source.series.interval_s,
        price=source.last.close,
        currency=source.series.currency,
        at_us=source.last.closed_us,
        known_us=source.last.known_us,
        age_s=source.age_s,
        expected_every_s=source.frequency.every_s,
        stale=source.stale,
        flags=source.last.flags,
        assumption=known_text(last.assumed_us - last.closed_us) if is_assumed and last.assumed_us else None,
    )


def _why_fallback(sources: Sequence[PricedSeries]) -> str | None:
    """Return why no source is on time, or which late one another has replaced; None for neither."""
    best, *others = sources
    if best.stale:
        return f"no source is on time: {best.series.source} has the newest price"
    late = [each.series.source for each in others if each.stale and each.series.source != best.series.source]
    return f"{best.series.source} in place of {', '.join(dict.fromkeys(late))}, which is late" if late else None


def price_change(snapshot: Snapshot, source: PricedSeries, over: str, over_us: int) -> PriceChange:
    """Return the change over some time up to a series' last price; not known where no price is near its start."""
    at_us = source.last.closed_us - over_us
    before = snapshot.prices.latest(source.series, at_us)
    # Where quotes are far apart, the next one may be much nearer to that time than the last one before it.
    most_us = source.tolerance_us if source.series.interval_s else min(source.tolerance_us, QUOTE_TOLERANCE_US)
    if before is None or at_us - before.closed_us > most_us:
        before = _nearest(snapshot, source, at_us)
    if before is None:
        return PriceChange(over, None, None, None)
    now, then = volume_24h(snapshot, source)[0], volume_24h(snapshot, replace(source, last=before))[0]
    return PriceChange(
        over,
        100.0 * (source.last.close / before.close - 1.0),
        before.close,
        before.closed_us,
        100.0 * (now / then - 1.0) if now is not None and then else None,
    )


def _nearest(snapshot: Snapshot, source: PricedSeries, at_us: int) -> StoredPrice | None:
    """Return the price nearest to an instant, if that is within the series' own steps there.

    A series may be coarser than its source is now: an imported history, or what a collector got of the time before it.
    """
    end_us = min(at_us + DAY_US, source.last.closed_us) + 1
    closed = snapshot.prices.read(source.series, at_us - DAY_US, end_us).closed_us
    if len(closed) < LEAST_NEAR:
        return None
    near = int(closed[np.abs(closed - at_us).argmin()])
    if abs(near - at_us) > NEAR * float(np.median(np.diff(closed))):
        return None
    return snapshot.prices.latest(source.series, near)


def volume_24h(snapshot: Snapshot, source: PricedSeries) -> tuple[float | None, VolumeUnit | None]:
    """Return the volume of the 24 hours up to the last price, and its unit: of bars the sum, if all have one."""
    if not source.series.interval_s:
        volume = source.last.volume_24h
        return (None, None) if volume is None else (volume, "currency")
    total = float(_read_day(snapshot, source).volume.sum())
    return (None, None) if math.isnan(total) else (total, "coin")


def _read_day(snapshot: Snapshot, source: PricedSeries) -> Bars:
    end = source.last.closed_us
    return snapshot.prices.read(source.series, end - DAY_US + 1, end + 1)


def _analyse(bars: Bars, source: PricedSeries, at_us: int) -> BarAnalysis:
    if find_spec("talib") is None:
        return BarAnalysis.missing(NOT_INSTALLED)
    from qubic_lab.oracle.analysis.price_analysis import analyse

    return analyse(bars, at_us, source.series.source, source.series.interval_s)


def _day_range(snapshot: Snapshot, source: PricedSeries) -> DayRange:
    day, end, step_us = _read_day(snapshot, source), source.last.closed_us, source.step_us  # has the last price
    flagged = snapshot.prices.prices(source.series, end - DAY_US + 1, end + 1) if day.flagged.any() else ()
    flags = Counter(flag for price in flagged for flag in price.flags)
    volume, unit = volume_24h(snapshot, source)
    return DayRange(
        high=float(day.high.max()),
        low=float(day.low.min()),
        volume=volume,
        volume_unit=unit,
        completeness=min(1.0, len(np.unique((day.closed_us - 1) // step_us)) / max(1, DAY_US // step_us)),
        flags=dict(sorted(flags.items())),
    )


def _closed_bars(bars: Bars, source: PricedSeries) -> ClosedBars:
    rows = zip(
        *(getattr(bars, name).tolist() for name in ("opened_us", "closed_us", *PRICES)),
        (None if math.isnan(volume) else volume for volume in bars.volume.tolist()),
        bars.points.tolist(),
        np.minimum(1.0, bars.slots / max(1, bars.frame_us // source.step_us)).tolist(),
        bars.flagged.tolist(),
        strict=True,
    )
    closed = tuple(ClosedBar(*row) for row in rows)
    return ClosedBars(source=source.series.source, interval_s=source.series.interval_s, bars=closed)


def _choose_series(snapshot: Snapshot, coin: Coin, source: str | None, interval_s: int | None) -> Series:
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
    raise NotFoundError(f"cursor {cursor[:100]!r} is none that a page gave: leave it out for the first page")


def _cursor_head(series: Series) -> str:
    return f"{series.source}:{series.interval_s}:{series.currency}:"
