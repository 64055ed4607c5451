"""The index is a mean that can be checked by hand, and is never moved by what comes later."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US
from qubic_lab.oracle.sentiment.index import IndexSettings, IndexValue, ScoredText, index_series
from qubic_lab.oracle.sentiment.index import sentiment_index as index_or_none

NOON = 1_700_000_000 * SECOND_US


def scored(number: int, score: float, age_h: float = 0.0, source: str = "wire", **changes: Any) -> ScoredText:
    at_us = NOON - int(age_h * HOUR_US)
    return replace(ScoredText(number, at_us, at_us, score, source), **changes)


def sentiment_index(texts: list[ScoredText], at_us: int, *options: Any, **more: Any) -> IndexValue:
    found = index_or_none(texts, at_us, *options, **more)
    assert found is not None
    return found


def test_the_index_by_hand() -> None:
    options = IndexSettings(half_life_s=6 * 3600, source_weights={"blog": 0.5})
    texts = [scored(1, 0.8), scored(2, -0.4, age_h=6), scored(3, 0.2, age_h=12, source="blog")]
    found = sentiment_index(texts, NOON, options)
    weights, scores = [1, 0.5, 0.5 * 0.25], np.array([0.8, -0.4, 0.2])
    mean = np.average(scores, weights=weights)
    spread = math.sqrt(np.average((scores - mean) ** 2, weights=weights))
    assert found.composite == pytest.approx(mean) and found.spread == pytest.approx(spread)
    assert found.number == pytest.approx(2.5 / 7.5)
    assert found.age == pytest.approx((1.625 / 6.625) / (2.5 / 7.5))
    assert found.agreement == pytest.approx(1 - spread)
    assert found.confidence == pytest.approx(found.number * found.age * found.agreement)
    assert found.effective_texts == pytest.approx(1.625**2 / (1 + 0.25 + 0.125**2))
    assert (found.texts, found.newest_us) == (3, NOON)


def test_contributions_are_what_is_missing_without_a_text() -> None:
    texts = [scored(number, score, age_h=number) for number, score in enumerate((0.9, -0.5, 0.1, -0.2))]
    found = sentiment_index(texts, NOON)
    for factor in found.contributions:
        without = sentiment_index([text for text in texts if text != factor.text], NOON)
        assert factor.contribution == pytest.approx(found.composite - without.composite)
    sizes = [abs(factor.contribution) for factor in found.contributions]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(factor.share for factor in found.contributions) == pytest.approx(1)
    assert len(sentiment_index(texts, NOON, most_factors=2).contributions) == 2


ARCHIVED = scored(1, 0.5, age_h=5, known_us=NOON + DAY_US)
SHORT = IndexSettings(half_life_s=1)


@pytest.mark.parametrize(
    ("texts", "options", "composite"),
    [
        ([], IndexSettings(), None),
        ([scored(1, 0.5, age_h=1000)], IndexSettings(), None),
        ([scored(1, 0.5, age_h=-1)], IndexSettings(), None),
        ([scored(1, 0.5)], IndexSettings(source_weights={"wire": 0.0}), None),
        # By publication, texts of an archive count before they were known.
        ([ARCHIVED], IndexSettings(), None),
        ([ARCHIVED], IndexSettings(availability="published"), 0.5),
        # Weights too small for a float leave no NaN.
        ([scored(1, 0.5, age_h=70)], SHORT, None),
        ([scored(1, 0.5, age_h=0.29)], SHORT, 0.5),
    ],
)
def test_which_texts_count(texts: list[ScoredText], options: IndexSettings, composite: float | None) -> None:
    found = index_or_none(texts, NOON, options)
    assert (None if found is None else found.composite) == pytest.approx(composite)
    series = index_series(texts, np.array([NOON]), options)
    assert (series.texts[0], math.isnan(series.composite[0])) == (composite is not None, composite is None)


# More texts, fresher ones and less spread: surer

SCORES = st.floats(-1, 1, allow_subnormal=False)
FRESH = st.lists(st.tuples(SCORES, st.floats(0, 40)), min_size=1, max_size=12)


def texts_of(pairs: list[tuple[float, float]]) -> list[ScoredText]:
    return [scored(number, score, age_h) for number, (score, age_h) in enumerate(pairs)]


@given(FRESH, st.floats(0, 30))
def test_a_text_that_agrees_makes_it_surer(pairs: list[tuple[float, float]], age_h: float) -> None:
    before = sentiment_index(texts_of(pairs), NOON)
    after = sentiment_index([*texts_of(pairs), scored(99, before.composite, age_h)], NOON)
    assert after.confidence >= before.confidence - 1e-12
    assert after.composite == pytest.approx(before.composite, abs=1e-9)


@given(FRESH, st.floats(0, 1))
def test_less_spread_makes_it_surer(pairs: list[tuple[float, float]], share: float) -> None:
    before = sentiment_index(texts_of(pairs), NOON)
    closer = [(before.composite + share * (score - before.composite), age_h) for score, age_h in pairs]
    closer = [(max(-1.0, min(1.0, score)), age_h) for score, age_h in closer]
    assert sentiment_index(texts_of(closer), NOON).confidence >= before.confidence - 1e-9


@given(FRESH, st.floats(0, 30))
def test_age_makes_it_less_sure(pairs: list[tuple[float, float]], later_h: float) -> None:
    before = sentiment_index(texts_of(pairs), NOON)
    after = sentiment_index(texts_of(pairs), NOON + int(later_h * HOUR_US))
    assert after.confidence <= before.confidence + 1e-12
    assert after.composite == pytest.approx(before.composite, abs=1e-9)


@given(FRESH, FRESH)
def test_everything_stays_in_its_range(pairs: list[tuple[float, float]], more: list[tuple[float, float]]) -> None:
    found = sentiment_index(texts_of(pairs + more), NOON)
    assert -1 <= found.composite <= 1
    for value in (found.confidence, found.number, found.age, found.agreement, found.spread):
        assert 0 <= value <= 1 + 1e-12
    assert found.effective_texts <= found.texts + 1e-9


# Nothing that comes later changes what was

TIMES = np.arange(NOON - 8 * HOUR_US, NOON + 24 * HOUR_US, HOUR_US)


@st.composite
def histories(draw: st.DrawFn) -> list[ScoredText]:
    """Texts of some hours with delays."""
    texts = []
    for id in range(draw(st.integers(1, 20))):
        at_us = NOON + draw(st.integers(-6 * 3600, 20 * 3600)) * SECOND_US
        known_us = at_us + draw(st.integers(-600, 7200)) * SECOND_US
        texts.append(ScoredText(id, at_us, known_us, draw(SCORES), draw(st.sampled_from(["wire", "blog"]))))
    return texts


OPTIONS = st.sampled_from(
    [
        IndexSettings(window_s=4 * 3600, half_life_s=3600, volatility_steps=3),
        IndexSettings(source_weights={"blog": 0.3, "wire": 2.0}, volatility_steps=2),
        IndexSettings(source_weights={"blog": 0.0}, availability="published", volatility_steps=5),
    ]
)


def available(text: ScoredText, options: IndexSettings) -> int:
    return max(text.at_us, text.known_us) if options.availability == "known" else text.at_us


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.tobytes() == other.tobytes()


COLUMNS = ("composite", "confidence", "spread", "volatility", "texts")
Scramble = Callable[[ScoredText], ScoredText | None]
SCRAMBLES: dict[str, Scramble] = {
    "gone": lambda text: None,
    "reversed": lambda text: replace(text, score=-text.score),
    "of another source": lambda text: replace(text, source="other"),
    "later still": lambda text: replace(text, known_us=text.known_us + DAY_US, at_us=text.at_us + DAY_US),
}


@pytest.mark.parametrize("scramble", SCRAMBLES)
@settings(max_examples=60)
@given(texts=histories(), place=st.integers(0, len(TIMES) - 1), options=OPTIONS)
def test_what_is_published_or_known_later_changes_nothing_earlier(
    scramble: str, texts: list[ScoredText], place: int, options: IndexSettings
) -> None:
    now = int(TIMES[place])
    changed = [SCRAMBLES[scramble](text) if available(text, options) > now else text for text in texts]
    other = [text for text in changed if text is not None]
    whole, scrambled = index_series(texts, TIMES, options), index_series(other, TIMES, options)
    for name in COLUMNS:
        assert same(getattr(whole, name)[: place + 1], getattr(scrambled, name)[: place + 1]), name
    assert index_or_none(texts, now, options) == index_or_none(other, now, options)


@settings(max_examples=60)
@given(texts=histories(), place=st.integers(1, len(TIMES)), options=OPTIONS)
def test_a_series_begins_like_a_longer_one_and_has_the_index_at_each_instant(
    texts: list[ScoredText], place: int, options: IndexSettings
) -> None:
    whole, prefix = index_series(texts, TIMES, options), index_series(texts, TIMES[:place], options)
    for name in COLUMNS:
        assert same(getattr(whole, name)[:place], getattr(prefix, name)), name
    found = index_or_none(texts[::-1], int(TIMES[place - 1]), options)
    expected = (math.nan, 0.0, 0) if found is None else (found.composite, found.confidence, found.texts)
    assert same(prefix.composite[-1:], np.array(expected[:1]))
    assert (prefix.confidence[-1], prefix.texts[-1]) == expected[1:]


def test_volatility_is_the_deviation_of_the_last_changes() -> None:
    options = IndexSettings(window_s=3600, volatility_steps=3)
    scores = [0.1, 0.5, -0.2, 0.3, 0.3]
    texts = [scored(number, score, age_h=-number) for number, score in enumerate(scores)]
    times = np.array([NOON + number * HOUR_US for number in range(6)])
    series = index_series(texts, times, options)
    assert series.composite[:5] == pytest.approx(scores) and np.isnan(series.composite[5])
    assert np.isnan(series.volatility[:3]).all() and np.isnan(series.volatility[5])
    assert series.volatility[3] == pytest.approx(np.std([0.4, -0.7, 0.5], ddof=1))
    assert series.volatility[4] == pytest.approx(np.std([-0.7, 0.5, 0.0], ddof=1))
