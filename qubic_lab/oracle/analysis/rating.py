"""A rating of a coin by simple rules: each rule has its values and one vote.

It summarizes what prices and texts say now. It is not shown to predict later prices, and it is no advice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean
from typing import Annotated, Literal, get_args

from pydantic import Field

from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.response import Missing, Part

RatingStep = Literal["strongly negative", "negative", "neutral", "positive", "strongly positive"]
STEPS: tuple[RatingStep, ...] = get_args(RatingStep)
EDGES = (-0.6, -0.2, 0.2, 0.6)
"""A mean vote of 0.2 or more is positive, of 0.6 or more strongly positive, and the same below 0."""
NOTE = "A sum of simple rules that is not shown to predict prices; it is no advice to buy or to sell."
NOT_INSTALLED = 'indicators need TA-Lib, which is not installed: pip install "qubic-lab[oracle]"'
LEAST_RULES = 3
"""The least number of votes for a rating."""
LEAST_COINS = 2
"""The least number of rated coins for a rating of the market."""
DRIFT = 1.96
RSI_LOW, RSI_HIGH = 30.0, 70.0
MACD_RANGES = 0.1
GOOD_INDEX, SURE = 0.15, 0.25

Score = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True, kw_only=True)
class RuleVote(Part):
    """A rule of a rating."""

    name: Annotated[str, Field(description="the rule's name")]
    vote: Annotated[int, Field(description="-1: bad, 0: neither, 1: good")]
    values: Annotated[dict[str, float], Field(description="the numbers behind it, by name")]
    text: Annotated[str, Field(description="the same in words")]


@dataclass(frozen=True, kw_only=True)
class Rating(Part):
    """The rating of a coin in one of five steps, by rules with their numbers. It is no advice.

    `score`: the mean vote of the rules; `left_out`: rules that could not vote, and why; `basis`: the data.
    """

    rating: Annotated[RatingStep, Field(description="the step")]
    score: Score
    rules: tuple[RuleVote, ...]
    left_out: dict[str, str]
    basis: tuple[str, ...]
    note: Annotated[str, Field(description="what a rating is not")]


@dataclass(frozen=True, kw_only=True)
class MarketRating(Part):
    """The rating of all coins that have one: the mean of their scores, and the number of coins in each step."""

    rating: Annotated[RatingStep, Field(description="the step")]
    score: Annotated[Score, Field(description="mean score of the coins")]
    coins: Annotated[int, Field(description="number of coins that have a rating")]
    without: Annotated[tuple[str, ...], Field(description="coins that have no rating")]
    steps: Annotated[dict[str, int], Field(description="number of coins in each step")]
    note: Annotated[str, Field(description="what a rating is not")]


@dataclass(frozen=True)
class PriceFigures:
    """What the rules use of hourly bars, at the last one: see `INDICATORS` and `TRENDS`; NaN if not known."""

    bars: int
    close: float
    sma_50: float
    sma_200: float
    rsi_14: float
    macd_histogram: float
    atr_14: float
    drift_48: float


@dataclass(frozen=True)
class SentimentFigures:
    """What the rule uses of the sentiment index."""

    index: float
    confidence: float
    texts: int


def price_figures(bars: Bars) -> PriceFigures | Missing:
    """Return what the rules use of hourly bars, at the last of them; or why there is nothing."""
    if find_spec("talib") is None:
        return Missing(NOT_INSTALLED)
    if not len(bars):
        return Missing("no bar of one hour has closed yet")
    from qubic_lab.oracle.analysis.indicators import compute
    from qubic_lab.oracle.analysis.trend_and_levels import WINDOW, drift_scores

    values = compute(bars, ("sma_50", "sma_200", "rsi_14", "macd_histogram", "atr_14"))
    last = {name: float(each[-1]) for name, each in values.items()}
    drift = float(drift_scores(bars.tail(WINDOW + 1))[-1])
    return PriceFigures(bars=len(bars), close=float(bars.close[-1]), drift_48=drift, **last)


def rate(
    prices: PriceFigures | Missing, sentiment: SentimentFigures | Missing, basis: Sequence[str] = ()
) -> Rating | Missing:
    """Return the rating by hourly bars and the sentiment index of 24 hours, or why there is none.

    `basis` says what both were computed from.
    """
    if isinstance(prices, Missing):
        return Missing(f"no rating: {prices.reason}")
    votes = {name: rule(prices) for name, rule in _PRICE_RULES.items()}
    left_out = {name: f"not known from {prices.bars} hourly bars" for name, vote in votes.items() if vote is None}
    rules = [vote for vote in votes.values() if vote is not None]
    if isinstance(sentiment, Missing):
        left_out["sentiment"] = sentiment.reason
    else:
        rules.append(_of_sentiment(sentiment))
    if len(rules) < LEAST_RULES:
        missing = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        return Missing(f"no rating: {LEAST_RULES} rules must have their numbers, {len(rules)} have ({missing})")
    score = fmean(rule.vote for rule in rules)
    return Rating(
        rating=step_of(score), score=score, rules=tuple(rules), left_out=left_out, basis=tuple(basis), note=NOTE
    )


def rate_market(ratings: Mapping[str, Rating | Missing]) -> MarketRating | Missing:
    """Return the rating of several coins together, by their names; all coins count the same."""
    rated = {name: each for name, each in ratings.items() if isinstance(each, Rating)}
    if len(rated) < LEAST_COINS:
        return Missing(
            f"no rating of the market: {LEAST_COINS} coins must have one, {len(rated)} of {len(ratings)} have"
        )
    score = fmean(each.score for each in rated.values())
    return MarketRating(
        rating=step_of(score),
        score=score,
        coins=len(rated),
        without=tuple(name for name in ratings if name not in rated),
        steps={step: sum(each.rating == step for each in rated.values()) for step in STEPS},
        note=NOTE,
    )


def step_of(score: float) -> RatingStep:
    """Return the step of a mean vote of -1 to 1."""
    # An edge belongs to the step away from 0; 1e-9 absorbs the rounding of means such as 3/5.
    below = sum(score > edge + 1e-9 for edge in EDGES[:2])
    above = sum(score >= edge - 1e-9 for edge in EDGES[2:])
    return STEPS[below + above]


def _trend(prices: PriceFigures) -> RuleVote | None:
    drift = prices.drift_48
    if math.isnan(drift):
        return None
    vote = _sign(drift, DRIFT)
    direction = ("no trend beyond chance", "rising beyond chance", "falling beyond chance")[vote]
    move = f"the move over 48 h is {drift:+.1f} deviations of a random walk"
    text = f"{direction}: {move} (the rule votes from ±{DRIFT} on)"
    return RuleVote(name="trend", vote=vote, values={"drift_48": drift}, text=text)


def _averages(prices: PriceFigures) -> RuleVote | None:
    if math.isnan(prices.sma_200) or math.isnan(prices.sma_50):
        return None
    close, fast, slow = prices.close, prices.sma_50, prices.sma_200
    vote = 1 if close > max(fast, slow) else -1 if close < min(fast, slow) else 0
    where = ("between", "above both of", "below both of")[vote]
    text = f"the close is {where} the means of 50 and 200 closes"
    return RuleVote(name="averages", vote=vote, values={"close": close, "sma_50": fast, "sma_200": slow}, text=text)


def _momentum(prices: PriceFigures) -> RuleVote | None:
    histogram, size = prices.macd_histogram, prices.atr_14
    if math.isnan(histogram) or not size > 0.0:
        return None
    ratio = histogram / size
    text = f"MACD less its signal line is {ratio:+.2f} average true ranges (the rule votes from ±{MACD_RANGES} on)"
    return RuleVote(name="momentum", vote=_sign(ratio, MACD_RANGES), values={"macd_in_ranges": ratio}, text=text)


def _excess(prices: PriceFigures) -> RuleVote | None:
    rsi = prices.rsi_14
    if math.isnan(rsi):
        return None
    vote = -1 if rsi >= RSI_HIGH else 1 if rsi <= RSI_LOW else 0
    neither = f"neither oversold ({RSI_LOW:g} or less) nor overbought ({RSI_HIGH:g} or more)"
    state = (neither, "oversold, and books expect a rise", "overbought, and books expect a fall")[vote]
    return RuleVote(name="excess", vote=vote, values={"rsi_14": rsi}, text=f"RSI is {rsi:.0f}: {state}")


def _of_sentiment(found: SentimentFigures) -> RuleVote:
    unsure = found.confidence < SURE
    vote = 0 if unsure else _sign(found.index, GOOD_INDEX)
    why = f", too unsure to vote (below {SURE:g})" if unsure else f" (the rule votes from ±{GOOD_INDEX:g} on)"
    text = f"{found.texts} texts of 24 h: index {found.index:+.2f} with confidence {found.confidence:.2f}{why}"
    values = {"index": found.index, "confidence": found.confidence, "texts": float(found.texts)}
    return RuleVote(name="sentiment", vote=vote, values=values, text=text)


def _sign(value: float, least: float) -> int:
    return 1 if value >= least else -1 if value <= -least else 0


_PRICE_RULES: dict[str, Callable[[PriceFigures], RuleVote | None]] = {
    "trend": _trend,
    "averages": _averages,
    "momentum": _momentum,
    "excess": _excess,
}
