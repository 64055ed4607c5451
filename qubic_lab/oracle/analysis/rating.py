"""A rating of a coin by rules that anyone can follow: each has its numbers, and one vote.

It sums up what prices and texts say now. That it tells anything of later prices is not shown; it is no advice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.serving.responses import MarketRating, Rating, Rule

Step = Literal["strongly negative", "negative", "neutral", "positive", "strongly positive"]
STEPS: tuple[Step, ...] = get_args(Step)
EDGES = (-0.6, -0.2, 0.2, 0.6)
"""A mean vote of 0.2 or more is positive, of 0.6 or more strongly so, and the same below 0."""
NOTE = "A sum of simple rules, not shown to foretell prices; it is no advice to buy or to sell."
LEAST_RULES = 3
"""With fewer votes there is no rating."""
LEAST_COINS = 2
"""With fewer rated coins there is no rating of the market."""
DRIFT = 1.96
RSI_LOW, RSI_HIGH = 30.0, 70.0
MACD_RANGES = 0.1
MOOD, SURE = 0.15, 0.25


@dataclass(frozen=True)
class PriceFigures:
    """What the rules take from hourly bars: see `indicators.INDICATORS` and `trend.TRENDS`; NaN where not known."""

    bars: int
    close: float
    sma_50: float
    sma_200: float
    rsi_14: float
    macd_histogram: float
    atr_14: float
    drift_48: float


@dataclass(frozen=True)
class MoodFigures:
    """What the rule takes from the sentiment index."""

    index: float
    confidence: float
    texts: int


def rate(prices: PriceFigures | Missing, mood: MoodFigures | Missing, basis: Sequence[str] = ()) -> Rating | Missing:
    """Return the rating, or why there is none.

    Args:
        prices: figures of hourly bars, or why there are none.
        mood: the sentiment index of 24 hours, or why there is none.
        basis: what both were made from, in words.
    """
    if isinstance(prices, Missing):
        return Missing(reason=f"no rating: {prices.reason}")
    rules: list[Rule] = []
    left_out: dict[str, str] = {}
    for name, rule in _PRICE_RULES.items():
        _add(name, rule(prices), rules, left_out, prices.bars)
    if isinstance(mood, Missing):
        left_out["sentiment"] = mood.reason
    else:
        rules.append(_of_mood(mood))
    if len(rules) < LEAST_RULES:
        missing = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        return Missing(reason=f"no rating: {LEAST_RULES} rules must have their numbers, {len(rules)} have ({missing})")
    score = fmean(rule.vote for rule in rules)
    return Rating(rating=step_of(score), score=score, rules=rules, left_out=left_out, basis=list(basis), note=NOTE)


def rate_market(ratings: Mapping[str, Rating | Missing]) -> MarketRating | Missing:
    """Return the rating of several coins together, by their names; each counts the same."""
    rated = {name: each for name, each in ratings.items() if isinstance(each, Rating)}
    if len(rated) < LEAST_COINS:
        return Missing(
            reason=f"no rating of the market: {LEAST_COINS} coins must have one, {len(rated)} of {len(ratings)} have"
        )
    score = fmean(each.score for each in rated.values())
    steps: dict[str, int] = {step: sum(each.rating == step for each in rated.values()) for step in STEPS}
    without = [name for name in ratings if name not in rated]
    return MarketRating(rating=step_of(score), score=score, coins=len(rated), without=without, steps=steps, note=NOTE)


def step_of(score: float) -> Step:
    """Return the step that a mean vote of -1 to 1 is in."""
    # The edges are in it on the side away from 0; 1e-9 takes up rounding of means such as 3/5.
    below = sum(score > edge + 1e-9 for edge in EDGES[:2])
    above = sum(score >= edge - 1e-9 for edge in EDGES[2:])
    return STEPS[below + above]


def _add(name: str, rule: Rule | None, rules: list[Rule], left_out: dict[str, str], bars: int) -> None:
    if rule is None:
        left_out[name] = f"not known from {bars} hourly bars"
    else:
        rules.append(rule)


def _trend(prices: PriceFigures) -> Rule | None:
    drift = prices.drift_48
    if math.isnan(drift):
        return None
    vote = _sign(drift, DRIFT)
    said = ("no trend beyond chance", "rising beyond chance", "falling beyond chance")[vote]
    text = f"{said}: the move over 48 h is {drift:+.1f} deviations of a random walk (beyond ±{DRIFT} it votes)"
    return Rule(name="trend", vote=vote, values={"drift_48": drift}, text=text)


def _averages(prices: PriceFigures) -> Rule | None:
    if math.isnan(prices.sma_200) or math.isnan(prices.sma_50):
        return None
    close, fast, slow = prices.close, prices.sma_50, prices.sma_200
    vote = 1 if close > max(fast, slow) else -1 if close < min(fast, slow) else 0
    said = ("between", "above both", "below both")[vote]
    text = (
        f"the close is {said} of the means of 50 and 200 closes"
        if vote
        else f"the close is {said} the means of 50 and 200 closes"
    )
    return Rule(name="averages", vote=vote, values={"close": close, "sma_50": fast, "sma_200": slow}, text=text)


def _momentum(prices: PriceFigures) -> Rule | None:
    histogram, size = prices.macd_histogram, prices.atr_14
    if math.isnan(histogram) or not size > 0.0:
        return None
    ratio = histogram / size
    text = f"MACD is {ratio:+.2f} average true ranges off its signal line (beyond ±{MACD_RANGES} it votes)"
    return Rule(name="momentum", vote=_sign(ratio, MACD_RANGES), values={"macd_in_ranges": ratio}, text=text)


def _excess(prices: PriceFigures) -> Rule | None:
    rsi = prices.rsi_14
    if math.isnan(rsi):
        return None
    vote = -1 if rsi >= RSI_HIGH else 1 if rsi <= RSI_LOW else 0
    said = ("neither", "oversold", "overbought")[vote]
    text = f"RSI is {rsi:.0f}: {said} by the usual {RSI_LOW:g} and {RSI_HIGH:g}, after which books expect a turn"
    return Rule(name="excess", vote=vote, values={"rsi_14": rsi}, text=text)


def _of_mood(mood: MoodFigures) -> Rule:
    unsure = mood.confidence < SURE
    vote = 0 if unsure else _sign(mood.index, MOOD)
    why = f", too unsure to vote (below {SURE:g})" if unsure else f" (from ±{MOOD:g} on it votes)"
    text = f"{mood.texts} texts of 24 h: index {mood.index:+.2f} with confidence {mood.confidence:.2f}{why}"
    values = {"index": mood.index, "confidence": mood.confidence, "texts": float(mood.texts)}
    return Rule(name="sentiment", vote=vote, values=values, text=text)


def _sign(value: float, least: float) -> int:
    return 1 if value >= least else -1 if value <= -least else 0


_PRICE_RULES: dict[str, Callable[[PriceFigures], Rule | None]] = {
    "trend": _trend,
    "averages": _averages,
    "momentum": _momentum,
    "excess": _excess,
}
