"""The sentiment index of a window as clients read it: its value, its history, and the texts that moved it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from qubic_lab.oracle.model.response import (
    WINDOW_S,
    AgeS,
    Direction,
    Instant,
    Missing,
    Part,
    Publisher,
    Share,
    TextSource,
    TextUrl,
    Title,
    Window,
    age_s,
)
from qubic_lab.oracle.model.timestamps import HOUR_US, MINUTE_US, SECOND_US
from qubic_lab.oracle.sentiment.index import (
    NO_SCORES,
    NO_TEXTS,
    IndexSettings,
    ScoredText,
    Weighting,
    choose_model,
    index_series,
    scored_texts,
    sentiment_index,
)
from qubic_lab.oracle.sentiment.scores import LABELS
from qubic_lab.oracle.store.snapshot import Snapshot
from qubic_lab.oracle.store.text_reader import ScoreColumns

STEP_US: dict[Window, int] = {"1h": 5 * MINUTE_US, "24h": HOUR_US, "7d": 24 * HOUR_US}
"""Time between points of the history."""
MOST_FACTORS = 8

IndexScale = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True, kw_only=True)
class ModelScores(Part):
    """Stored scores of one model, without those of duplicates: -1 negative to 1 positive.

    `volatility`: their standard deviation, null for fewer than two.
    """

    model: Annotated[str, Field(description="whose scores they are, with its version")]
    texts: Annotated[int, Field(description="number of texts with a score")]
    mean: Annotated[float, Field(description="-1 to 1")]
    volatility: float | None
    newest_known_us: Instant


@dataclass(frozen=True, kw_only=True)
class LabelShares(Part):
    """The probabilities of bad, neutral and good news: the mean of the model's calibrated ones, weighted as the index.

    `texts`: number of texts with probabilities.
    """

    negative: Share
    neutral: Share
    positive: Share
    texts: int


@dataclass(frozen=True, kw_only=True)
class IndexFactor(Part):
    """A text that moved the index."""

    id: Annotated[int, Field(description="of the text")]
    title: Title
    source: TextSource
    publisher: Publisher
    url: TextUrl
    at_us: Instant
    score: Annotated[float, Field(description="-1 to 1")]
    share: Annotated[float, Field(description="of all weights, between 0 and 1")]
    contribution: Annotated[float, Field(description="the index less its value without this text")]


@dataclass(frozen=True, kw_only=True)
class IndexPoint(Part):
    """The index at an earlier instant, from the texts that were published by then."""

    at_us: Instant
    index: Annotated[float | None, Field(description="-1 to 1; null: there were no texts")]
    confidence: Share
    texts: Annotated[int, Field(description="number of texts with a score")]


@dataclass(frozen=True, kw_only=True)
class SentimentIndex(Part):
    """The sentiment of the texts of a window in one number: the mean of their scores, with more weight on newer texts.

    Attributes:
        model: whose scores they are, with its version.
        index: -1 (bad) to 1 (good).
        confidence: 0 to 1, the product of the next three.
        number, age, agreement: factors that rise with more texts, with fresher ones, and with less spread.
        spread: weighted standard deviation of the scores.
        intensity: weighted mean of the scores' sizes, 0 to 1: how strongly texts speak, whichever way.
        direction: bullish or bearish where the index is more than 1.96 standard errors (spread / √effective texts)
            from 0, by at least 5 effective texts; else neutral.
        volatility: standard deviation of the changes between points of the history; null if one is missing.
        texts: number of texts with a score; `unscored` have none yet.
        effective_texts: number of texts of equal weight that would say as much.
        half_life_s: a text of this age counts half.
        history: by time of publication, as known at `as_of`. Scores may be younger than that: to test something on past
            values, ask with an earlier `as_of`.
    """

    model: str
    index: IndexScale
    confidence: Share
    number: Share
    age: Share
    agreement: Share
    spread: float
    intensity: Share
    direction: Direction
    volatility: float | None
    texts: int
    unscored: Annotated[int, Field(description="texts that have no score yet")]
    effective_texts: float
    newest_us: Instant
    newest_age_s: AgeS
    half_life_s: float
    shares: LabelShares | Missing
    factors: Annotated[tuple[IndexFactor, ...], Field(description="the texts that moved it most, the largest first")]
    step_s: Annotated[float, Field(description="seconds between points of the history")]
    history: tuple[IndexPoint, ...]


@dataclass(frozen=True, kw_only=True)
class SentimentSummary(Part):
    """The sentiment index of 24 hours in short."""

    model: Annotated[str, Field(description="whose scores they are, with its version")]
    index: Annotated[IndexScale, Field(description="-1 (bad) to 1 (good)")]
    confidence: Share
    texts: Annotated[int, Field(description="number of texts with a score")]
    newest_age_s: AgeS


def summarize_sentiment(snapshot: Snapshot, coin: str, weighting: Weighting) -> SentimentSummary | Missing:
    """Return the index of the last 24 hours in short, or why there is none."""
    scores = snapshot.scores(coin, snapshot.at_us - WINDOW_S["24h"] * SECOND_US)
    model = choose_model(scores)
    if model is None:
        return Missing(NO_SCORES)
    texts = scored_texts(snapshot.texts, scores[model], weighting)
    found = sentiment_index(texts, snapshot.at_us, _settings("24h", weighting), most_factors=0)
    if found is None:
        return Missing(NO_SCORES)
    return SentimentSummary(
        model=model,
        index=found.composite,
        confidence=found.confidence,
        texts=found.texts,
        newest_age_s=age_s(found.newest_us, snapshot.at_us),
    )


def report_index(
    snapshot: Snapshot, coin: str, window: Window, texts: int, weighting: Weighting
) -> tuple[tuple[ModelScores, ...] | Missing, SentimentIndex | Missing]:
    """Return what each model has scored in a window that ends at the snapshot's instant, and the index of one of them.

    `texts` is the number of distinct texts in the window, with or without a score.
    """
    if not texts:
        return Missing(NO_TEXTS), Missing(NO_TEXTS)
    start_us = snapshot.at_us - WINDOW_S[window] * SECOND_US
    scores = snapshot.scores(coin, start_us)
    by_model = _by_model(scores) or Missing(NO_SCORES)
    model = choose_model(scores)
    if model is None:
        return by_model, Missing(NO_SCORES)
    # The history looks back over a window before its first point, too.
    before = snapshot.texts.scores(coin, 2 * start_us - snapshot.at_us, start_us, model, invented=False)
    scored = [text for each in (before, scores[model]) for text in scored_texts(snapshot.texts, each, weighting)]
    return by_model, _index(snapshot, scored, model, window, texts - len(scores[model]), weighting)


def _settings(window: Window, weighting: Weighting) -> IndexSettings:
    return weighting.settings(float(WINDOW_S[window]), WINDOW_S[window] * SECOND_US // STEP_US[window])


def _by_model(scores: Mapping[str, ScoreColumns]) -> tuple[ModelScores, ...]:
    return tuple(
        ModelScores(
            model=model,
            texts=len(columns),
            mean=float(columns.score.mean()),
            volatility=float(columns.score.std(ddof=1)) if len(columns) > 1 else None,
            newest_known_us=int(columns.known_us.max()),
        )
        for model, columns in sorted(scores.items())
    )


def _index(
    snapshot: Snapshot, texts: Sequence[ScoredText], model: str, window: Window, unscored: int, weighting: Weighting
) -> SentimentIndex | Missing:
    at_us, settings = snapshot.at_us, _settings(window, weighting)
    start_us = at_us - WINDOW_S[window] * SECOND_US
    found = sentiment_index(texts, at_us, settings, MOST_FACTORS)
    if found is None:
        return Missing(NO_SCORES)
    times = at_us - STEP_US[window] * np.arange(settings.volatility_steps, -1, -1, dtype=np.int64)
    series = index_series(texts, times, settings)
    points = zip(series.at_us.tolist(), series.composite.tolist(), series.confidence, series.texts, strict=True)
    titles = snapshot.texts.titles([each.text.id for each in found.contributions])
    return SentimentIndex(
        model=model,
        index=found.composite,
        confidence=found.confidence,
        number=found.number,
        age=found.age,
        agreement=found.agreement,
        spread=found.spread,
        intensity=found.intensity,
        direction=found.direction,
        volatility=_known(float(series.volatility[-1])),
        texts=found.texts,
        unscored=unscored,
        effective_texts=found.effective_texts,
        newest_us=found.newest_us,
        newest_age_s=age_s(found.newest_us, at_us),
        half_life_s=settings.half_life_s,
        shares=_shares(snapshot, [text for text in texts if text.at_us > start_us], model, settings),
        factors=tuple(
            IndexFactor(
                id=each.text.id,
                at_us=each.text.at_us,
                score=each.text.score,
                share=each.share,
                contribution=each.contribution,
                **titles[each.text.id],
            )
            for each in found.contributions
        ),
        step_s=STEP_US[window] / SECOND_US,
        history=tuple(
            IndexPoint(at_us=at, index=_known(index), confidence=float(confidence), texts=int(count))
            for at, index, confidence, count in points
        ),
    )


def _shares(
    snapshot: Snapshot, texts: Sequence[ScoredText], model: str, settings: IndexSettings
) -> LabelShares | Missing:
    """Return the mean of the probabilities that are stored with the scores of a window, weighted as in the index."""
    details = snapshot.texts.score_details([each.id for each in texts], model)
    weights, rows = [], []
    for text in texts:
        if stored := details.get(text.id):
            fresh = math.exp2(-(snapshot.at_us - text.at_us) / SECOND_US / settings.half_life_s)
            weights.append(fresh * settings.source_weights.get(text.source, 1.0))
            rows.append([stored[label] for label in LABELS])
    if not any(weights):
        return Missing(f"{model} keeps no probabilities beside its scores")
    mean = np.average(rows, axis=0, weights=weights)
    negative, neutral, positive = (mean / mean.sum()).tolist()
    return LabelShares(negative=negative, neutral=neutral, positive=positive, texts=len(rows))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
