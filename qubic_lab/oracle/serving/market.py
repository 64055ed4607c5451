"""The prices of the whole market: each coin in short, and how many rise, fall or are at risk."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

from pydantic import Field

from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.response import (
    CoinName,
    Direction,
    Frame,
    FrameName,
    Instant,
    Missing,
    Money,
    OracleResponse,
    Part,
)
from qubic_lab.oracle.risk.measures import LEVELS
from qubic_lab.oracle.risk.rules import RiskRule
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.oracle.sentiment.index_report import summarize_sentiment
from qubic_lab.oracle.serving.overview import MOST_COINS
from qubic_lab.oracle.serving.prices import LastPrice, PriceAnalysis, PriceChange, price_analysis
from qubic_lab.oracle.store.snapshot import Snapshot, reading
from qubic_lab.oracle.store.text_reader import MARKET


@dataclass(frozen=True, kw_only=True)
class CoinPrices(Part):
    """What the analysis of a coin says, in short. `risk`: its level; null where there is none."""

    name: CoinName
    last: LastPrice
    changes: tuple[PriceChange, ...]
    trend: Annotated[Direction, Field(description="the direction of the price in one word")]
    predictions: Annotated[dict[str, float], Field(description="the median of each forecast by hours ahead")]
    risk: str | None


@dataclass(frozen=True, kw_only=True)
class MarketChange(Part):
    """The changes of all coins whose price is on time, over a time that ends with each one's last price."""

    over: Annotated[str, Field(description="the time, such as 24h")]
    median_pct: Annotated[float, Field(description="the median change of all coins, in per cent")]
    rose: Annotated[int, Field(description="number of coins that rose")]
    fell: Annotated[int, Field(description="number of coins that fell")]
    coins: Annotated[int, Field(description="number of coins whose change is known")]


@dataclass(frozen=True, kw_only=True)
class MarketPrices(OracleResponse):
    """The prices of all coins that have any; those that are not on time count in `coins` alone.

    Attributes:
        market_cap: the sum of those that are known; None: none is.
        trend: bullish where more than half of the coins are, bearish likewise, else neutral.
        risk: how many coins have each level of risk.
        sentiment_score: the index of the texts of 24 hours about any coin; None: there is none.
        coins: by id.
    """

    coin: Annotated[str, Field(description="market")] = MARKET
    frame: FrameName
    as_of_us: Instant
    changes: tuple[MarketChange, ...]
    market_cap: Money | None
    trend: Direction
    risk: dict[str, int]
    sentiment_score: float | None
    coins: dict[str, CoinPrices]


@reading()
def market_prices(
    snapshot: Snapshot, frame: Frame = "1h", *, weighting: Weighting = WEIGHTING, rules: Sequence[RiskRule] = ()
) -> MarketPrices:
    """Return the prices of all coins in short, each as `price_analysis` gives it.

    Raises:
        NotFoundError: no price is known.
    """
    every: list[PriceAnalysis] = []
    for coin in [each for each in COINS if each in snapshot.series][:MOST_COINS]:
        with suppress(NotFoundError):  # its series began later, or are in another currency
            every.append(price_analysis(snapshot, coin, frame, weighting=weighting, rules=rules))
    if not every:
        raise NotFoundError("no price of any coin is known: qubic-lab oracle collect gets prices")
    fresh = [each for each in every if not each.last.stale]
    caps = [each.market_cap for each in fresh if each.market_cap is not None]
    ways, mood = [each.direction for each in fresh], summarize_sentiment(snapshot, MARKET, weighting)
    most = [way for way in set(ways) if ways.count(way) > len(ways) / 2.0]
    return MarketPrices(
        frame=frame,
        as_of_us=snapshot.at_us,
        changes=tuple(_changes(fresh)),
        market_cap=sum(caps) if caps else None,
        trend=most[0] if most else "neutral",
        risk={level: [_level(each) for each in fresh].count(level) for level in LEVELS},
        sentiment_score=None if isinstance(mood, Missing) else mood.index,
        coins={each.coin: _short(each) for each in every},
    )


def _short(coin: PriceAnalysis) -> CoinPrices:
    same: dict[str, Any] = {name: getattr(coin, name) for name in ("name", "last", "changes", "predictions")}
    return CoinPrices(**same, trend=coin.direction, risk=_level(coin))


def _level(coin: PriceAnalysis) -> str | None:
    return None if isinstance(coin.risk, Missing) else coin.risk.level


def _changes(coins: Sequence[PriceAnalysis]) -> Iterator[MarketChange]:
    for changes in zip(*(each.changes for each in coins), strict=True):
        moved = [each.change_pct for each in changes if each.change_pct is not None]
        rose, fell = sum(pct > 0.0 for pct in moved), sum(pct < 0.0 for pct in moved)
        if moved:
            yield MarketChange(over=changes[0].over, median_pct=median(moved), rose=rose, fell=fell, coins=len(moved))
