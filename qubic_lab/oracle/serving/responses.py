"""What the oracle answers, as clients read it: instants in ISO 8601 with Z, ages in seconds, shares between 0 and 1.

An age is that at `as_of`, the instant that an answer is about; how old the whole answer is stands in its `age_s`. What
is not computed is there as an object that says so, and why.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from qubic_lab.oracle.analysis.rating import MarketRating, Rating
from qubic_lab.oracle.analysis.results import (
    AnalysedBars,
    Anomalies,
    Breakout,
    IndicatorValue,
    PriceForecast,
    PriceLevel,
    SeenPattern,
    Trend,
)
from qubic_lab.oracle.model.response import AgeS, Currency, Frame, Missing, Money, Percent, Share, VolumeUnit, Window
from qubic_lab.oracle.model.timestamps import iso
from qubic_lab.oracle.sentiment.index_report import ModelScores, SentimentIndex, SentimentSummary

Instant = Annotated[str, Field(description="ISO 8601 in UTC, such as 2026-11-24T12:00:00Z")]


class Part(BaseModel):
    """A part of an answer: it cannot be changed, and has no other fields than these."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(Part):
    """A whole answer and where it came from.

    `age_s`: seconds since it was computed. `cache`: hit: it is fresh; stale: it is served while a newer one is
    computed; miss: it was computed for this request; wait: for one that came before; direct: for this one, without
    Redis.
    """

    age_s: Annotated[float, Field(description="seconds since it was computed")] = 0.0
    cache: Literal["hit", "stale", "miss", "wait", "direct"] = "miss"


class Origin(Part):
    """Which prices: whose, and bars of how many seconds or quotes (0)."""

    source: str
    interval_s: Annotated[int, Field(description="seconds of a bar; 0: quotes")]


class LastPrice(Origin):
    """The newest price of a source: when it was (`at`), and when it was known here (`known`).

    `stale`: it is older than three times the interval at which this source gives prices, with its usual delay.
    """

    price: Money
    currency: Currency
    at: Instant
    known: Instant
    age_s: AgeS
    expected_every_s: Annotated[float, Field(description="seconds between this source's prices")]
    stale: bool
    flags: Annotated[list[str], Field(description="what cleaning found about this price")]


class Change(Part):
    """How the price changed over a time that ends with the last price; the earlier price and when it was."""

    over: str
    change_pct: Percent
    from_price: Money | None
    from_at: Instant | None


class Bar(Part):
    """A closed bar, made from the prices after `opened` up to `closed`; volume in units of the coin, null for quotes.

    `completeness`: the share of its expected prices that are known. `flagged`: so many of them cleaning has flagged.
    """

    opened: Instant
    closed: Instant
    open: Money
    high: Money
    low: Money
    close: Money
    volume: Annotated[float | None, Field(description="in units of the coin; null for quotes")]
    prices: Annotated[int, Field(description="so many prices it is made from")]
    completeness: Share
    flagged: int


class Bars(Origin):
    """The last closed bars, in order of time; those without a single price are left out."""

    bars: list[Bar]


class DayRange(Part):
    """The 24 hours that end with the last price.

    `volume` is in units of the coin where `volume_unit` is coin, else in the answer's currency.
    """

    high: Money | None
    low: Money | None
    volume: float | None
    volume_unit: VolumeUnit | None
    completeness: Share
    flags: Annotated[dict[str, int], Field(description="how many prices cleaning has flagged, by flag")]


class PriceAnalysis(Answer):
    """A coin's price from one source, its changes, closed bars of one frame, and what they say.

    `fallback` says why another source's prices are used than the first one would be; null: it is the first one.
    Each figure depends on bars that were closed at `as_of` alone.
    """

    coin: str
    symbol: str
    name: str
    frame: Frame
    as_of: Instant
    last: LastPrice
    fallback: str | None
    others: Annotated[list[LastPrice], Field(description="other sources' last prices")]
    changes: list[Change]
    market_cap: Money | None
    day: DayRange
    bars: Bars | Missing
    analysed: AnalysedBars | Missing
    indicators: dict[str, IndicatorValue | Missing] | Missing
    patterns: Annotated[tuple[SeenPattern, ...] | Missing, Field(description="of the last 3 bars")]
    trend: Trend | Missing
    levels: Annotated[
        tuple[PriceLevel, ...] | Missing, Field(description="support and resistance, the strongest first")
    ]
    breakouts: Annotated[tuple[Breakout, ...] | Missing, Field(description="of the last 24 bars")]
    forecasts: dict[str, PriceForecast | Missing] | Missing
    anomalies: Anomalies | Missing


class Headline(Part):
    """A text in short."""

    title: str
    source: str
    publisher: str
    url: str
    published: Instant | None
    known: Instant
    age_s: AgeS


class TextCount(Part):
    """How many texts of a source: distinct ones, duplicates, and the age of the newest."""

    source: str
    texts: int
    duplicates: int
    newest_age_s: AgeS


class Sentiment(Answer):
    """The texts about a coin in a window that ends at `as_of`, and what models have scored them.

    `texts` are distinct; `duplicates` repeat one of these or an earlier one; invented `samples` count nowhere else.
    `stale`: there is none, or the newest is older than three times the interval at which its source gives texts, with
    its usual delay.
    """

    coin: str
    symbol: str
    name: str
    window: Window
    start: Instant
    as_of: Instant
    texts: int
    duplicates: int
    samples: int
    by_source: list[TextCount]
    by_kind: dict[str, int]
    newest: Headline | None
    stale: bool
    scores: tuple[ModelScores, ...] | Missing
    index: SentimentIndex | Missing


class CoinOverview(Part):
    """A coin at a glance; texts are the distinct ones of 24 hours, without invented samples."""

    coin: str
    symbol: str
    name: str
    last: LastPrice | Missing
    change_24h_pct: Percent
    market_cap: Money | None
    volume_24h: float | None
    volume_unit: VolumeUnit | None
    texts_24h: int
    newest_text_age_s: Annotated[float | None, Field(description="seconds before as_of; null: none in 24 hours")]
    sentiment: SentimentSummary | Missing
    rating: Rating | Missing


class SourceHealth(Part):
    """How the latest requests to a source went.

    `state`: ok: the last one gave what was asked for; failing: it did not.
    """

    source: str
    state: Literal["ok", "failing"]
    requests: Annotated[int, Field(description="the latest ones, of which `failed` failed")]
    failed: int
    last_success: Instant | None
    last_success_age_s: Annotated[float | None, Field(description="seconds before as_of")]
    last_error: Annotated[str | None, Field(description="of the last request, where it failed")]


class MarketOverview(Answer):
    """Several coins at a glance, in plain words, and how the sources do."""

    as_of: Instant
    summary: Annotated[list[str], Field(description="sentences, made from the numbers by rules")]
    coins: list[CoinOverview]
    sources: list[SourceHealth] | Missing
    rating: MarketRating | Missing


class HistoricPrice(Part):
    """A price of a history; numbers that the source does not give are null."""

    opened: Instant
    closed: Instant
    published: Instant | None
    known: Instant
    open: Money | None
    high: Money | None
    low: Money | None
    close: Money
    volume: Annotated[float | None, Field(description="of a bar, in units of the coin")]
    volume_24h: Annotated[float | None, Field(description="of a quote: in the 24 hours before, in the currency")]
    market_cap: Money | None
    flags: list[str]


class PriceHistory(Answer):
    """Prices of one source, the newest first, each in the newest version that was known at `as_of`."""

    coin: str
    source: str
    interval_s: Annotated[int, Field(description="seconds of a bar; 0: quotes")]
    currency: Currency
    as_of: Instant
    prices: list[HistoricPrice]
    next_cursor: Annotated[str | None, Field(description="give it as cursor for the next page; null: this is the last")]


class HistoricText(Part):
    """A text of a history; `duplicate_of` is the id of the one that it repeats."""

    id: int
    source: str
    publisher: str
    kind: str
    title: str
    body: str
    cut_characters: Annotated[int, Field(description="so many of the body's characters the source left out")]
    url: str
    author: str
    language: str
    coins: list[str]
    score: Annotated[int | None, Field(description="points or likes, where the source tells")]
    published: Instant | None
    known: Instant
    duplicate_of: int | None


class TextHistory(Answer):
    """Texts about a coin, the newest first, each in the newest version that was known at `as_of`."""

    coin: str
    as_of: Instant
    texts: list[HistoricText]
    next_cursor: Annotated[str | None, Field(description="give it as cursor for the next page; null: this is the last")]


class CacheCounts(Part):
    """How requests of one kind were served, over all processes: see `cache` of an answer for the words.

    `hit_rate`: the share that was served at once, fresh or stale; null before the first request.
    """

    kind: str
    fresh_s: float
    hit_rate: float | None
    hits: int
    stale: int
    misses: int
    waits: int
    direct: int
    computed: Annotated[int, Field(description="computations, of which `errors` failed")]
    errors: int


class QuotaState(Part):
    """How much of a source's allowance is used in the running period."""

    source: str
    period: str
    started: Instant
    ends: Instant
    used: int
    limit: Annotated[int | None, Field(description="null: not set here")]


class LeaseState(Part):
    """Who may collect: one process at a time."""

    name: str
    holder: str
    until: Instant
    held: bool


class OracleStatus(Part):
    """How the oracle does: its sources, quotas, the collector's lease, and the cache; null: Redis does not answer."""

    as_of: Instant
    sources: list[SourceHealth]
    quotas: list[QuotaState]
    leases: list[LeaseState]
    cache: list[CacheCounts] | None


def iso_or_none(us: int | None) -> str | None:
    """Return an instant as clients read it, where it is known."""
    return None if us is None else iso(us)
