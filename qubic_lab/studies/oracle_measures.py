"""What the market oracle is measured by: known anomalies put into bars, past forecasts, ratings, and looks ahead.

Everything here gives plain values; `qubic_lab.studies.oracle_overview` draws and tells them.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qubic_lab.database import open_database
from qubic_lab.errors import InputError, ModelError
from qubic_lab.oracle.analysis.anomaly_trials import KINDS, InjectedKind, inject, roc
from qubic_lab.oracle.analysis.forecast import HOURS, RULE, forecast_path
from qubic_lab.oracle.analysis.price_analysis import CAUSAL
from qubic_lab.oracle.analysis.rating import STEPS, Rating, price_figures, rate
from qubic_lab.oracle.ingest.files.bar_files import BarOptions, flagged_bars, read_bars
from qubic_lab.oracle.ingest.files.packaged import read_packaged
from qubic_lab.oracle.ingest.files.sample_texts import read_sample_texts
from qubic_lab.oracle.ingest.quality import completeness
from qubic_lab.oracle.model.bars import COLUMNS, Bars, Floats
from qubic_lab.oracle.model.records import Series, Text
from qubic_lab.oracle.model.response import Missing, to_plain
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, now_us
from qubic_lab.oracle.sentiment.index import IndexSettings, ScoredText, index_series, sentiment_index
from qubic_lab.oracle.sentiment.models import make_model
from qubic_lab.oracle.sentiment.scores import SentimentModel
from qubic_lab.oracle.sentiment.stored import read_scored, score_stored
from qubic_lab.oracle.serving.analysis_parts import RATED_BARS
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.stats import bootstrap_interval
from qubic_lab.studies.forecast_accuracy import ForecastStudy, study_forecasts

Row = dict[str, Any]
WITHOUT_WEIGHTS = "crypto-lexicon"
"""The model of texts where the weights of another one are not installed."""
RETURN_KINDS: tuple[InjectedKind, ...] = ("outlier", "jump")
_FIRST, _APART, _MOST = 250, 26, 40
"""The first place for an anomaly, bars between two of them, and how many there are at most."""
_END_US = 1 << 62


@dataclass(frozen=True)
class Market:
    """Bars of one hour, and bars with volumes: those of days where the hours have none; with the data's quality."""

    coin: str
    source: str
    hours: Bars
    with_volume: Bars
    quality: tuple[Row, ...]


def load_market(file: str = "", coin: str = "bitcoin") -> Market:
    """Return the bars of a file, or the packaged ones of Bitcoin, as they come out of a database that flagged them.

    Raises:
        InputError: a file that cannot be read, or without bars that make hours.
    """
    named = ("bitcoin-15min", "bitcoin-1day")
    given = [read_bars(Path(file), BarOptions(coin), now_us())] if file else [read_packaged(n, now_us()) for n in named]
    found = [flagged_bars(each) for each in given]
    bars, series = [each for each, _ in found], given[0].series
    quality = tuple(_quality_row(each.series, *one) for each, one in zip(given, found, strict=True))
    if series.interval_s and 3_600 % series.interval_s:
        raise InputError(f"{file} has bars of {series.interval_s} s, which make no hours: give bars of 1 h or shorter")
    hours = bars[0].resample(HOUR_US, _END_US, max(1, series.interval_s) * SECOND_US)
    if len(hours) > 1 and np.median(np.diff(hours.closed_us)) > HOUR_US:
        raise InputError(f"most prices of {file} are more than 1 h apart: give bars of 1 h or shorter")
    return Market(series.coin, series.source, hours, bars[1] if len(bars) > 1 else hours, quality)


def _quality_row(series: Series, bars: Bars, flags: Mapping[str, int]) -> Row:
    found = completeness(bars.opened_us, bars.closed_us, series.interval_s * SECOND_US)
    return {
        "source": series.source,
        "bars of": f"{series.interval_s / 60:g} min" if series.interval_s < 86_400 else "1 day",
        "from": iso(int(bars.opened_us[0])),
        "to": iso(int(bars.closed_us[-1])),
        "prices": len(bars),
        "complete_pct": 100 * found.share,
        "gaps": found.gaps,
        "longest_gap_h": found.longest_gap_s / 3_600,
        "outliers": flags.get("outlier", 0),
        "repeated prices": flags.get("flat", 0),
        "corrected": 0,
    }


@dataclass(frozen=True)
class News:
    """Texts with their scores, and the model that gave them; `simulated`: they are invented samples."""

    texts: tuple[ScoredText, ...]
    model: str
    simulated: bool

    @property
    def settings(self) -> IndexSettings:
        """How their index is made: by when they were published, since a chart of the past is drawn."""
        return IndexSettings(samples=self.simulated, availability="published")

    @property
    def end_us(self) -> int:
        """When the last one was published."""
        return max(text.at_us for text in self.texts)


def load_news(coin: str, model: str, database: str = "") -> News:
    """Return a coin's collected texts of a database with scores, or the samples where there are none.

    Args:
        coin: its id.
        model: a name of `sentiment.models`; without its weights the lexicon scores.
        database: its URL; empty: the samples.

    Raises:
        InputError: an unknown model, or no text at all is about the coin.
    """
    scorer = find_scorer(model)
    found: list[Text] = []
    if database:
        engine = open_database(database)
        every = TextStore(engine).read(coin, 0, _END_US)
        found = [text for text in every if text.source != "sample"]
        engine.dispose()
    texts = found or read_sample_texts()
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(f"sqlite:///{folder}/texts.db")
        store = TextStore(engine)
        store.add(texts)
        key = score_stored(store, scorer, coin).key
        scored = read_scored(store, key, coin, 0, _END_US)
        engine.dispose()
    if not scored:
        raise InputError(f"no text is about {coin}: collect some, or take a coin of the sample texts such as bitcoin")
    return News(tuple(scored), key, simulated=not found)


def find_scorer(name: str) -> SentimentModel:
    """Return a model of texts, or the one that needs no weights where its own are not installed.

    Raises:
        InputError: an unknown name.
    """
    try:
        model = make_model(name)
        model.score(["Prices rise"])  # weights are looked for when they are needed
    except ModelError:
        return make_model(WITHOUT_WEIGHTS)
    return model


def index_over_time(news: News, every_us: int = HOUR_US) -> dict[str, list[Any]]:
    """Return the index at even instants from the first text to the last, a list for each of its figures."""
    first = min(text.at_us for text in news.texts)
    times = np.arange(first, news.end_us + every_us, every_us, dtype=np.int64)
    series = index_series(news.texts, times, news.settings)
    return {
        "at_us": series.at_us.tolist(),
        "index": _or_none(series.composite),
        "spread": _or_none(series.spread),
        "confidence": series.confidence.tolist(),
        "texts": series.texts.tolist(),
    }


def index_factors(news: News, most: int = 6) -> list[Row]:
    """Return the texts that moved the last index most."""
    found = sentiment_index(news.texts, news.end_us, news.settings, most)
    return [
        {
            "published": iso(each.at_us),
            "source": f"{each.source} (invented)" if news.simulated else each.source,
            "title": each.title[:70],
            "score": each.score,
            "weight_pct": 100 * each.share,
            "moves the index by": each.contribution,
        }
        for each in found.factors
    ]


def injected(market: Market, sizes: Sequence[float], seed: int = 0) -> list[dict[str, Any]]:
    """Return the curve of each kind of anomaly and size: known ones put into the market's own bars, then looked for.

    Kinds of returns go into the hours, those with volumes into the bars that have them.
    """
    found = []
    for kind, score in KINDS.items():
        bars = market.hours if kind in RETURN_KINDS else market.with_volume
        at = _places(bars, seed)
        for size in sizes:
            trial = inject(kind, bars, at, size, seed)
            known = CAUSAL[score](trial.bars)[trial.judged]
            curve = roc(np.abs(known), trial.truth[trial.judged])
            found.append(
                {
                    "kind": kind,
                    "size": size,
                    "bars": "1 h" if bars.frame_us == HOUR_US else "1 day",
                    "anomalies": curve.anomalies,
                    "others": curve.others,
                    "auc": curve.auc,
                    "low": curve.low,
                    "high": curve.high,
                    "false_alarms": curve.false_alarms.tolist(),
                    "hits": curve.hits.tolist(),
                }
            )
    return found


def _places(bars: Bars, seed: int) -> list[int]:
    """Return places for anomalies, apart from each other and with a known volume before, drawn by the seed."""
    last = len(bars) - _APART
    if last <= _FIRST + _APART:
        raise InputError(f"{len(bars)} bars are too few to put anomalies in: give {_FIRST + 3 * _APART} or more")
    slots = np.arange(_FIRST, last, _APART)
    draw = np.random.default_rng(seed)
    chosen = np.sort(draw.permutation(slots)[:_MOST]) + draw.integers(0, _APART // 4, min(_MOST, len(slots)))
    return [int(place) for place in chosen]


def past_forecasts(bars: Bars, seed: int = 0) -> ForecastStudy:
    """Return how forecasts of the past did, as `qubic_lab.studies.forecast_accuracy` judges them.

    Raises:
        InputError: some cannot be judged, such as of too few bars.
    """
    study = study_forecasts({"1 h": bars}, seed=seed)
    for (_, hours), why in study.absent.items():
        raise InputError(f"forecasts of {hours} h cannot be judged: {why}; give a longer file")
    return study


def simulated_coverage(walks: int = 12, bars: int = 1_200, seed: int = 0) -> list[Row]:
    """Return the share of prices that intervals hold on random walks and on trends with noise, all simulated."""
    draw = np.random.default_rng(seed)
    found = []
    for name, drift in (("random walk", 0.0), ("trend with noise", 0.002)):
        for hours in HOURS:
            shares = []
            for _ in range(walks):
                path = 100.0 * np.exp(np.cumsum(draw.normal(drift, 0.005, bars)))
                shares.append(_held_share(_close_bars(path), hours))
            low, high = bootstrap_interval(lambda drawn, s=shares: float(np.mean(np.asarray(s)[drawn])), walks)  # type: ignore[misc]
            held = float(np.mean(shares))
            found.append(
                {"series": name, "hours": hours, "promised": RULE.coverage, "held": held, "low": low, "high": high}
            )
    return found


def _close_bars(close: Floats) -> Bars:
    """Return hourly bars that have a close alone."""
    return Bars.of((np.arange(len(close), dtype=np.int64) + 400_000) * HOUR_US, close, frame_us=HOUR_US)


def _held_share(bars: Bars, hours: int) -> float:
    path = forecast_path(bars, hours)
    made = np.flatnonzero((path.later >= 0) & ~np.isnan(path.half_width))
    error = bars.log_close[path.later[made]] - path.point[made]
    return float(np.mean(np.abs(error) <= path.half_width[made]))


def looks_ahead(bars: Bars, cuts: int = 3, seed: int = 0) -> list[str]:
    """Return the names of all that is told bar by bar and changes when later bars are cut off, or others.

    Each is computed of all bars, of the first ones alone, and of those with scrambled ones after them.
    """
    draw = np.random.default_rng(seed)
    places = np.sort(draw.integers(len(bars) // 4, len(bars), cuts)).tolist()
    guilty = set()
    for name, function in CAUSAL.items():
        whole = function(bars)
        for cut in places:
            for other in (bars.slice(0, cut), _scrambled(bars, cut, draw)):
                if not np.array_equal(whole[:cut], function(other)[:cut], equal_nan=True):
                    guilty.add(name)
    return sorted(guilty)


def _scrambled(bars: Bars, cut: int, draw: np.random.Generator) -> Bars:
    factor = np.ones(len(bars))
    factor[cut:] = np.exp(draw.normal(0.0, 0.2, len(bars) - cut))
    columns: dict[str, Any] = {name: getattr(bars, name) * factor for name in COLUMNS}
    return Bars.of(bars.closed_us, **columns, frame_us=bars.frame_us)


def past_ratings(market: Market, every: int = 6, ahead: int = 24) -> dict[str, Any]:
    """Return the ratings of the past by the price rules alone, and what the price did in the hours after each.

    Weeks are drawn for the intervals, as hours of a week hang together.
    """
    hours, found = market.hours, []
    logs = hours.log_close
    for place in range(RATED_BARS, len(hours) - ahead, every):
        later = int(np.searchsorted(hours.closed_us, hours.closed_us[place] + ahead * HOUR_US))
        if later >= len(hours) or hours.closed_us[later] != hours.closed_us[place] + ahead * HOUR_US:
            continue  # a gap
        rating = rate(price_figures(hours.slice(place + 1 - RATED_BARS, place + 1)), _NO_TEXTS)
        if isinstance(rating, Rating):
            found.append((int(hours.closed_us[place]), rating, 100.0 * float(np.expm1(logs[later] - logs[place]))))
    if not found:
        raise InputError(f"{len(hours)} hours are too few to judge ratings: give {RATED_BARS + 10 * ahead} or more")
    weeks = np.array([at // (7 * DAY_US) for at, _, _ in found])
    scores, changes = np.array([rating.score for _, rating, _ in found]), np.array([change for *_, change in found])
    return {
        "ahead_h": ahead,
        "ratings": len(found),
        "weeks": len(np.unique(weeks)),
        "steps": [
            {"rating": step, "times": int(of.sum()), **_mean_by_weeks(changes[of], weeks[of])}
            for step in STEPS
            if (of := np.array([rating.rating == step for _, rating, _ in found])).any()
        ],
        "correlation": _correlation(scores, changes, weeks),
        "last": to_plain(found[-1][1]),
        "last_at": iso(found[-1][0]),
    }


_NO_TEXTS = Missing(reason="no collected texts are of that time")


def _mean_by_weeks(values: Floats, weeks: NDArray[np.int64]) -> Row:
    _, which = np.unique(weeks, return_inverse=True)
    sums, counts = np.bincount(which, values), np.bincount(which)
    low, high = bootstrap_interval(lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), len(sums))
    return {"mean_pct": float(values.mean()), "low_pct": low, "high_pct": high}


def _correlation(scores: Floats, changes: Floats, weeks: NDArray[np.int64]) -> Row:
    """Return Pearson's correlation with its interval; None where one of the two does not vary."""
    groups = [np.flatnonzero(weeks == week) for week in np.unique(weeks)]

    def of(places: NDArray[np.intp]) -> float:
        first, second = scores[places], changes[places]
        return float(np.corrcoef(first, second)[0, 1]) if np.ptp(first) > 0.0 and np.ptp(second) > 0.0 else math.nan

    value = of(np.arange(len(scores)))
    if math.isnan(value):
        return {"value": None, "low": None, "high": None}
    low, high = bootstrap_interval(lambda drawn: of(np.concatenate([groups[n] for n in drawn])), len(groups))
    return {"value": value, "low": low, "high": high}


def _or_none(values: Floats) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
