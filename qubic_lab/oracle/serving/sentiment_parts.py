"""What is told of a sentiment index: its figures, history, and the texts that moved it; from stored scores alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qubic_lab.oracle.model.response import WINDOW_S, Missing, Window, age_s
from qubic_lab.oracle.model.timestamps import HOUR_US, MINUTE_US, SECOND_US, iso
from qubic_lab.oracle.sentiment.index import (
    WEIGHTING,
    IndexSettings,
    ScoredText,
    Weighting,
    index_series,
    sentiment_index,
)
from qubic_lab.oracle.sentiment.stored import NO_SCORES
from qubic_lab.oracle.serving.responses import IndexFactor, IndexPoint, Mood, SentimentIndex, Shares
from qubic_lab.oracle.store.snapshot import Snapshot

STEP_US: dict[Window, int] = {"1h": 5 * MINUTE_US, "24h": HOUR_US, "7d": 24 * HOUR_US}
"""Between points of the history."""
MOST_FACTORS = 8


def settings_of(window: Window, weighting: Weighting = WEIGHTING) -> IndexSettings:
    """Return how the index of a window is made."""
    return weighting.settings(float(WINDOW_S[window]), WINDOW_S[window] * SECOND_US // STEP_US[window])


def mood(texts: Sequence[ScoredText], model: str, at_us: int, weighting: Weighting = WEIGHTING) -> Mood | Missing:
    """Return the index of 24 hours in short."""
    found = sentiment_index(texts, at_us, settings_of("24h", weighting), most_factors=0)
    if found.composite is None or found.newest_us is None:
        return Missing(reason=NO_SCORES)
    return Mood(
        model=model,
        index=found.composite,
        confidence=found.confidence,
        texts=found.texts,
        newest_age_s=age_s(found.newest_us, at_us),
    )


def index_part(
    snapshot: Snapshot, texts: Sequence[ScoredText], model: str, window: Window, unscored: int, weighting: Weighting
) -> SentimentIndex | Missing:
    """Return the index of a window with its history.

    Args:
        snapshot: what was known; the window ends at its instant.
        texts: of the window and of one as long before it.
        model: whose scores they have.
        window: how long it is.
        unscored: distinct texts of the window without a score.
        weighting: of texts by age and source.
    """
    at_us = snapshot.at_us
    settings, step_us = settings_of(window, weighting), STEP_US[window]
    found = sentiment_index(texts, at_us, settings, MOST_FACTORS)
    if found.composite is None or found.newest_us is None:
        return Missing(reason=NO_SCORES)
    times = at_us - step_us * np.arange(settings.volatility_steps, -1, -1, dtype=np.int64)
    series = index_series(texts, times, settings)
    start_us = at_us - WINDOW_S[window] * SECOND_US
    inside = [text for text in texts if start_us < text.at_us <= at_us]
    about = snapshot.texts.titles([each.id for each in found.factors])
    return SentimentIndex(
        model=model,
        index=found.composite,
        confidence=found.confidence,
        number=found.number,
        age=found.age,
        agreement=found.agreement,
        spread=found.spread,
        volatility=_known(float(series.volatility[-1])),
        texts=found.texts,
        unscored=unscored,
        effective_texts=found.effective_texts,
        newest=iso(found.newest_us),
        newest_age_s=age_s(found.newest_us, at_us),
        half_life_s=settings.half_life_s,
        shares=_shares(
            inside, snapshot.texts.score_details([each.id for each in inside], model), model, at_us, settings
        ),
        factors=[
            IndexFactor(
                id=each.id,
                at=iso(each.at_us),
                score=each.score,
                share=each.share,
                contribution=each.contribution,
                **about[each.id],
            )
            for each in found.factors
        ],
        step_s=step_us / SECOND_US,
        history=[
            IndexPoint(at=iso(int(at)), index=_known(float(index)), confidence=float(sure), texts=int(count))
            for at, index, sure, count in zip(
                series.at_us, series.composite, series.confidence, series.texts, strict=True
            )
        ],
    )


def _shares(
    texts: Sequence[ScoredText],
    details: Mapping[int, Mapping[str, Any]],
    model: str,
    at_us: int,
    settings: IndexSettings,
) -> Shares | Missing:
    """Return the mean of the probabilities that are kept beside scores, weighed as in the index."""
    names = ("negative", "neutral", "positive")
    weights, rows = [], []
    for text in texts:
        kept = details.get(text.id) or {}
        values = [kept.get(name) for name in names]
        if all(isinstance(value, int | float) and 0.0 <= value <= 1.0 for value in values):
            fresh = math.exp2(-(at_us - text.at_us) / SECOND_US / settings.half_life_s)
            weights.append(fresh * settings.source_weights.get(text.source, settings.other_weight))
            rows.append(values)
    if not any(weights):
        return Missing(reason=f"{model} keeps no probabilities beside its scores")
    mean = np.average(np.array(rows, dtype=np.float64), axis=0, weights=weights)
    mean /= max(1e-12, float(mean.sum()))
    negative, neutral, positive = (float(each) for each in mean)
    return Shares(negative=negative, neutral=neutral, positive=positive, texts=len(rows))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
