"""What is told of a sentiment index: its figures, history, and the texts that moved it; from stored scores alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Engine, func, select

from qubic_lab.oracle.model.response import WINDOW_S, Missing, Window, age_s
from qubic_lab.oracle.model.source_names import SAMPLE
from qubic_lab.oracle.model.timestamps import HOUR_US, MINUTE_US, SECOND_US, iso
from qubic_lab.oracle.sentiment.index import (
    WEIGHTING,
    IndexSettings,
    ScoredText,
    Weighting,
    index_series,
    sentiment_index,
)
from qubic_lab.oracle.serving.responses import IndexFactor, IndexPoint, Mood, SentimentIndex, Shares
from qubic_lab.oracle.store.tables import NEWS_COINS, NEWS_DATA, SENTIMENT_SCORES
from qubic_lab.oracle.store.text_store import ScoreColumns, ScoreSummary

STEP_US: dict[Window, int] = {"1h": 5 * MINUTE_US, "24h": HOUR_US, "7d": 24 * HOUR_US}
"""Between points of the history."""
PREFERRED = ("default", "finbert", "crypto-lexicon", "vader")
"""Whose scores are taken where there are several models': the first of these, then others by name."""
BASELINE = "majority"
"""It says the same of every text, so an index of it would be none."""
MOST_FACTORS = 8
TITLE_CHARACTERS = 120
"""So much is shown of a post that has no title."""
NO_SCORES = "no model has scored these texts: qubic-lab oracle score does"
NO_TEXTS = "there are no texts"
_CHUNK = 1_000


def settings_of(window: Window, weighting: Weighting = WEIGHTING) -> IndexSettings:
    """Return how the index of a window is made."""
    return weighting.settings(float(WINDOW_S[window]), WINDOW_S[window] * SECOND_US // STEP_US[window])


def choose_model(summaries: Iterable[ScoreSummary]) -> str | None:
    """Return the model whose scores make the index: by preference, then by how many it has, then the newest."""
    found = [each for each in summaries if _name(each.model) != BASELINE]
    if not found:
        return None

    def rank(summary: ScoreSummary) -> tuple[int, int, int, str]:
        name = _name(summary.model)
        place = PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
        return place, -summary.texts, -summary.known_us, summary.model

    return min(found, key=rank).model


def _name(model: str) -> str:
    return model.partition("@")[0].partition(":")[0]


def scored_texts(scores: ScoreColumns, sources: Mapping[int, str]) -> list[ScoredText]:
    """Return the texts that have these scores; those of the store are distinct already.

    `sources`: of texts, by their ids; where it matters not it may be empty.
    """
    columns = (scores.news_id, scores.at_us, scores.known_us, scores.score)
    return [
        ScoredText(
            id=id, key=str(id), source=sources.get(id, ""), title="", at_us=at_us, known_us=known_us, score=score
        )
        for id, at_us, known_us, score in zip(*(each.tolist() for each in columns), strict=True)
    ]


def read_sources(engine: Engine, ids: Sequence[int], weighting: Weighting) -> dict[int, str]:
    """Return the sources of texts, by their ids; nothing where all sources weigh the same."""
    if not weighting.source_weights:
        return {}
    found: dict[int, str] = {}
    with engine.connect() as connection:
        for start in range(0, len(ids), _CHUNK):
            query = select(NEWS_DATA.c.id, NEWS_DATA.c.source).where(NEWS_DATA.c.id.in_(ids[start : start + _CHUNK]))
            found.update(tuple(row) for row in connection.execute(query))
    return found


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
    engine: Engine,
    texts: Sequence[ScoredText],
    model: str,
    window: Window,
    at_us: int,
    as_of_us: int | None,
    unscored: int,
    weighting: Weighting = WEIGHTING,
) -> SentimentIndex | Missing:
    """Return the index of a window with its history.

    Args:
        engine: of the database that the texts are from.
        texts: of the window and of one as long before it.
        model: whose scores they have.
        window: how long it is.
        at_us: when it ends.
        as_of_us: scores count that were known then; None: by now.
        unscored: distinct texts of the window without a score.
        weighting: of texts by age and source.
    """
    settings, step_us = settings_of(window, weighting), STEP_US[window]
    found = sentiment_index(texts, at_us, settings, MOST_FACTORS)
    if found.composite is None or found.newest_us is None:
        return Missing(reason=NO_SCORES)
    times = at_us - step_us * np.arange(settings.volatility_steps, -1, -1, dtype=np.int64)
    series = index_series(texts, times, settings)
    start_us = at_us - WINDOW_S[window] * SECOND_US
    inside = [text for text in texts if start_us < text.at_us <= at_us]
    about = _about(engine, [each.id for each in found.factors])
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
        shares=_shares(engine, inside, model, at_us, as_of_us, settings),
        factors=[
            IndexFactor(
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


def sample_ids(engine: Engine, coin: str, start_us: int, end_us: int) -> set[int]:
    """Return the invented texts about a coin in a range, in all their versions."""
    query = select(NEWS_COINS.c.news_id).join(NEWS_DATA, NEWS_DATA.c.id == NEWS_COINS.c.news_id)
    query = query.where(
        NEWS_COINS.c.coin == coin,
        NEWS_COINS.c.at_us >= start_us,
        NEWS_COINS.c.at_us < end_us,
        NEWS_DATA.c.source == SAMPLE,
    )
    with engine.connect() as connection:
        return set(connection.execute(query).scalars())


def _about(engine: Engine, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return what is shown of each of these texts."""
    body = func.substr(NEWS_DATA.c.body, 1, TITLE_CHARACTERS).label("body")
    names = ("id", "title", "source", "publisher", "url")
    query = select(*(NEWS_DATA.c[name] for name in names), body).where(NEWS_DATA.c.id.in_(ids))
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    found = {}
    for row in rows:
        first = row.pop("body")
        found[row["id"]] = {**row, "title": row["title"] or first}
    return found


def _shares(
    engine: Engine,
    texts: Sequence[ScoredText],
    model: str,
    at_us: int,
    as_of_us: int | None,
    settings: IndexSettings,
) -> Shares | Missing:
    """Return the mean of the probabilities that are kept beside scores, weighed as in the index."""
    details: dict[int, Mapping[str, Any]] = {}
    columns = (SENTIMENT_SCORES.c.news_id, SENTIMENT_SCORES.c.details)
    ids = [text.id for text in texts]
    for start in range(0, len(ids), _CHUNK):
        some = ids[start : start + _CHUNK]
        query = select(*columns).where(SENTIMENT_SCORES.c.news_id.in_(some), SENTIMENT_SCORES.c.model == model)
        if as_of_us is not None:
            query = query.where(SENTIMENT_SCORES.c.known_us <= as_of_us)
        with engine.connect() as connection:
            rows_of = connection.execute(query.order_by(SENTIMENT_SCORES.c.known_us))
            details |= {row.news_id: row.details for row in rows_of}
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
