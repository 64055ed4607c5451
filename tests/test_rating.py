"""The rating: each rule by hand, the five steps, and when there is none."""

import math
from dataclasses import replace

import pytest

from qubic_lab.oracle.analysis.rating import (
    LEAST_RULES,
    STEPS,
    PriceFigures,
    Rating,
    SentimentFigures,
    rate,
    rate_market,
    step_of,
)
from qubic_lab.oracle.model.response import Missing

CALM = PriceFigures(
    bars=480, close=100.0, sma_50=101.0, sma_200=99.0, rsi_14=50.0, macd_histogram=0.0, atr_14=1.0, drift_48=0.0
)
NO_TEXTS = Missing(reason="there are no texts")
NAN = math.nan


def rated(prices: PriceFigures | Missing, sentiment: SentimentFigures | Missing = NO_TEXTS) -> Rating:
    found = rate(prices, sentiment, ["bars"])
    assert isinstance(found, Rating), found
    return found


def votes(prices: PriceFigures, sentiment: SentimentFigures | Missing = NO_TEXTS) -> dict[str, int]:
    return {rule.name: rule.vote for rule in rated(prices, sentiment).rules}


@pytest.mark.parametrize(
    ("rule", "changes", "vote"),
    [
        ("trend", {"drift_48": 1.96}, 1),
        ("trend", {"drift_48": 1.95}, 0),
        ("trend", {"drift_48": -1.96}, -1),
        ("averages", {"close": 102.0}, 1),
        ("averages", {"close": 101.0}, 0),
        ("averages", {"close": 98.0}, -1),
        ("momentum", {"macd_histogram": 0.31, "atr_14": 3.0}, 1),
        ("momentum", {"macd_histogram": 0.29, "atr_14": 3.0}, 0),
        ("momentum", {"macd_histogram": -0.31, "atr_14": 3.0}, -1),
        ("excess", {"rsi_14": 70.0}, -1),
        ("excess", {"rsi_14": 69.9}, 0),
        ("excess", {"rsi_14": 30.0}, 1),
    ],
)
def test_each_rule_votes_from_its_numbers_alone(rule: str, changes: dict[str, float], vote: int) -> None:
    found = votes(replace(CALM, **changes))  # type: ignore[arg-type]
    assert found == {"trend": 0, "averages": 0, "momentum": 0, "excess": 0} | {rule: vote}
    [told] = [each for each in rated(replace(CALM, **changes)).rules if each.name == rule]  # type: ignore[arg-type]
    assert told.values
    assert all(math.isfinite(value) for value in told.values.values())


@pytest.mark.parametrize(
    ("sentiment", "vote"),
    [
        (SentimentFigures(0.15, 0.25, 9), 1),
        (SentimentFigures(-0.15, 0.9, 9), -1),
        (SentimentFigures(0.14, 0.9, 9), 0),
        (SentimentFigures(0.9, 0.24, 9), 0),
    ],
)
def test_texts_vote_where_they_are_many_and_agree(sentiment: SentimentFigures, vote: int) -> None:
    assert votes(CALM, sentiment)["sentiment"] == vote


def test_a_rating_tells_its_basis_and_that_it_is_no_advice() -> None:
    found = rated(replace(CALM, close=105.0, drift_48=3.0, macd_histogram=0.5), SentimentFigures(0.5, 0.5, 12))
    assert (found.rating, found.score) == ("strongly positive", 0.8)
    assert "no advice" in found.note
    assert found.basis == ("bars",)
    texts = {rule.name: rule.text for rule in found.rules}
    assert texts["trend"].startswith("rising beyond chance: the move over 48 h is +3.0 deviations")
    assert rated(CALM).left_out == {"sentiment": "there are no texts"}


def test_the_steps_have_their_edges_on_the_side_away_from_zero() -> None:
    scores = [-1.0, -0.6, -0.59, -0.2, -0.19, 0.0, 0.19, 0.2, 0.59, 0.6, 1.0]
    places = [STEPS.index(step_of(score)) for score in scores]
    assert places == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]
    assert step_of(3 / 5) == "strongly positive"
    assert step_of(-(0.1 + 0.1)) == "negative"


def test_with_too_few_numbers_there_is_no_rating() -> None:
    short = replace(CALM, bars=40, sma_50=NAN, sma_200=NAN, drift_48=NAN)
    found = rate(short, NO_TEXTS)
    assert found.reason == (
        "no rating: 3 rules must have their numbers, 2 have (trend: not known from 40 hourly bars; averages: not known "
        "from 40 hourly bars; sentiment: there are no texts)"
    )
    assert len(rated(short, SentimentFigures(0.0, 0.5, 3)).rules) == LEAST_RULES
    assert isinstance(rate(Missing(reason="no bars"), SentimentFigures(1.0, 1.0, 9)), Missing)
    still = replace(CALM, atr_14=0.0, rsi_14=NAN, drift_48=NAN)
    assert isinstance(rate(still, NO_TEXTS), Missing)


def test_the_market_is_the_mean_of_the_coins_that_have_a_rating() -> None:
    up = rated(replace(CALM, close=105.0, drift_48=3.0, macd_histogram=0.5))
    calm = rated(CALM)
    found = rate_market({"A": up, "B": calm, "C": Missing(reason="too old")})
    assert (found.rating, found.score, found.coins, found.without) == ("positive", 0.375, 2, ("C",))
    assert found.steps == dict.fromkeys(STEPS, 0) | {"strongly positive": 1, "neutral": 1}
    alone = rate_market({"A": up, "C": Missing(reason="too old")})
    assert alone.reason == "no rating of the market: 2 coins must have one, 1 of 2 have"
