"""Measures of the market oracle: known anomalies put into bars, past forecasts, ratings, and looks ahead.

`qubic_lab.studies.oracle_overview` draws them and puts them into words.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qubic_lab.database import open_database
from qubic_lab.errors import InputError, ModelError
from qubic_lab.oracle.analysis.forecast import HOURS, RULE, forecast_path
from qubic_lab.oracle.analysis.price_analysis import CAUSAL
from qubic_lab.oracle.analysis.rating import STEPS, Rating, price_figures, rate
from qubic_lab.oracle.ingest.packaged import read_sample_texts
from qubic_lab.oracle.model.bars import COLUMNS, Bars, Floats
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.response import Figure, Missing
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, iso
from qubic_lab.oracle.sentiment.index import IndexSettings, ScoredText, index_series, sentiment_index
from qubic_lab.oracle.sentiment.models import make_model
from qubic_lab.oracle.sentiment.scores import SentimentModel, model_key, score_texts
from qubic_lab.oracle.serving.overview import RATED_BARS
from qubic_lab.oracle.store.text_reader import StoredText
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.stats import bootstrap_interval
from qubic_lab.studies.anomaly_trials import KINDS, InjectedKind, inject, roc
from qubic_lab.studies.forecast_accuracy import ForecastStudy, study_forecasts
from qubic_lab.studies.market_bars import MarketData
from qubic_lab.studies.oracle_results import AnomalyCurve, RecordedEstimate

Row = dict[str, Any]
WITHOUT_WEIGHTS = "crypto-lexicon"
"""The model of texts where the weights of another one are not installed."""
RETURN_KINDS: tuple[InjectedKind, ...] = ("outlier", "jump")
_FIRST, _APART, _MOST = 250, 26, 40
"""The first place for an anomaly, bars between two of them, and how many there are at most."""
_END_US = 1 << 62


@dataclass(frozen=True)
class News:
    """Texts with their scores, and the model that gave them; `simulated`: they are invented samples."""

    texts: tuple[ScoredText, ...]
    model: str
    simulated: bool

    @property
    def settings(self) -> IndexSettings:
        """How their index is made: by when they were published, since a chart of the past is drawn."""
        return IndexSettings(availability="published")

    @property
    def end_us(self) -> int:
        """When the last one was published."""
        return max(text.at_us for text in self.texts)


def load_news(coin: str, model: str, database: str = "") -> News:
    """Return a coin's collected texts in a database, or the samples if there are none, scored by a model of a name."""
    scorer = find_scorer(model)
    collected = _read_texts(database, coin) if database else []
    with tempfile.TemporaryDirectory() as folder:
        texts = collected or _read_texts(f"sqlite:///{folder}/texts.db", coin, read_sample_texts())
    if not texts:
        raise InputError(f"no text is about {coin}: collect some, or take a coin of the sample texts such as bitcoin")
    scored = tuple(
        ScoredText(text.id, text.at_us, text.known_us, each.score, text.source, text.title or text.body[:120])
        for text, each in zip(texts, score_texts(scorer, texts), strict=True)
    )
    return News(scored, model_key(scorer), simulated=not collected)


def _read_texts(database: str, coin: str, samples: Sequence[Text] = ()) -> list[StoredText]:
    """Return a coin's texts in a database without its samples, or the given samples as it keeps them."""
    engine = open_database(database)
    store = TextStore(engine)
    if samples:
        store.add(samples)
    texts = store.read(coin, 0, _END_US, invented=bool(samples))
    engine.dispose()
    return texts


def find_scorer(name: str) -> SentimentModel:
    """Return a model of texts, or the one that needs no weights where its own are not installed."""
    try:
        model = make_model(name)
        model.score(["Prices rise"])  # weights are looked for when they are needed
    except ModelError:
        return make_model(WITHOUT_WEIGHTS)
    return model


@dataclass(frozen=True)
class IndexOverTime:
    """The sentiment index at even times; NaN without texts."""

    at_us: tuple[int, ...]
    index: tuple[Figure, ...]
    spread: tuple[Figure, ...]
    confidence: tuple[float, ...]
    texts: tuple[int, ...]


def index_over_time(news: News, every_us: int = HOUR_US) -> IndexOverTime:
    """Return the index at even times from the first text to the last."""
    first = min(text.at_us for text in news.texts)
    times = np.arange(first, news.end_us + every_us, every_us, dtype=np.int64)
    series = index_series(news.texts, times, news.settings)
    columns = (times, series.composite, series.spread, series.confidence, series.texts)
    return IndexOverTime(*(tuple(each.tolist()) for each in columns))


def index_factors(news: News, most: int = 6) -> list[Row]:
    """Return the texts that moved the last index most."""
    found = sentiment_index(news.texts, news.end_us, news.settings, most)
    assert found is not None  # there is a text
    return [
        {
            "published": iso(each.text.at_us),
            "source": f"{each.text.source} (invented)" if news.simulated else each.text.source,
            "title": each.text.title[:70],
            "score": each.text.score,
            "weight_pct": 100 * each.share,
            "moves the index by": each.contribution,
        }
        for each in found.contributions
    ]


def injected(market: MarketData, sizes: Sequence[float], seed: int = 0) -> list[AnomalyCurve]:
    """Put known anomalies into the market's own bars and return the curve of each kind and size.

    Kinds of returns go into the hours, those with volumes into the bars that have them.
    """
    found = []
    for kind, score in KINDS.items():
        bars = market.hours if kind in RETURN_KINDS else market.with_volume
        at, length = _places(bars, seed), "1 h" if bars.frame_us == HOUR_US else "1 day"
        for size in sizes:
            trial = inject(kind, bars, at, size, seed)
            known = CAUSAL[score](trial.bars)[trial.judged]
            curve = roc(np.abs(known), trial.truth[trial.judged])
            found.append(AnomalyCurve(**vars(curve), kind=kind, size=size, bars=length))
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
    """Return how forecasts of the past did; an InputError if some cannot be judged, such as of too few bars."""
    study = study_forecasts({"1 h": bars}, seed=seed)
    for (_, hours), why in study.absent.items():
        raise InputError(f"forecasts of {hours} h cannot be judged: {why}; give a longer file")
    return study


@dataclass(frozen=True)
class SimulatedCoverage:
    """The share of prices that intervals of forecasts held on simulated series, with its 95 % interval."""

    series: str
    hours: int
    promised: float
    held: float
    low: float
    high: float


def simulated_coverage(walks: int = 12, bars: int = 1_200, seed: int = 0) -> list[SimulatedCoverage]:
    """Return the share of prices that intervals hold on simulated random walks and trends with noise."""
    draw, found = np.random.default_rng(seed), []
    for name, drift in (("random walk", 0.0), ("trend with noise", 0.002)):
        for hours in HOURS:
            walked = [_held_share(np.cumsum(draw.normal(drift, 0.005, bars)), hours) for _ in range(walks)]
            shares = np.array(walked)
            low, high = bootstrap_interval(lambda drawn, s=shares: float(np.mean(s[drawn])), walks)  # type: ignore[misc]
            found.append(SimulatedCoverage(name, hours, RULE.coverage, float(np.mean(shares)), low, high))
    return found


def _held_share(logs: Floats, hours: int) -> float:
    """Return the share of prices that the intervals of forecasts held, on hours with these log closes."""
    ends = (np.arange(len(logs), dtype=np.int64) + 400_000) * HOUR_US
    bars = Bars.of(ends, 100.0 * np.exp(logs), frame_us=HOUR_US)
    path = forecast_path(bars, hours)
    made = np.flatnonzero((path.later >= 0) & ~np.isnan(path.half_width))
    error = bars.log_close[path.later[made]] - path.point[made]
    return float(np.mean(np.abs(error) <= path.half_width[made]))


def looks_ahead(bars: Bars, cuts: int = 3, seed: int = 0) -> list[str]:
    """Return the names of the figures that change when later bars are cut off or scrambled."""
    draw = np.random.default_rng(seed)
    places = np.sort(draw.integers(len(bars) // 4, len(bars), cuts)).tolist()
    others = [(cut, other) for cut in places for other in (bars.slice(0, cut), _scrambled(bars, cut, draw))]
    return sorted(
        name
        for name, function in CAUSAL.items()
        for whole in [function(bars)]
        if not all(np.array_equal(whole[:cut], function(other)[:cut], equal_nan=True) for cut, other in others)
    )


def _scrambled(bars: Bars, cut: int, draw: np.random.Generator) -> Bars:
    factor = np.ones(len(bars))
    factor[cut:] = np.exp(draw.normal(0.0, 0.2, len(bars) - cut))
    columns: dict[str, Any] = {name: getattr(bars, name) * factor for name in COLUMNS}
    return Bars.of(bars.closed_us, **columns, frame_us=bars.frame_us)


@dataclass(frozen=True)
class RatingStep:
    """The mean change of the price after one step of the rating, with its 95 % interval; None: too few weeks."""

    rating: str
    times: int
    mean_pct: float
    low_pct: float | None
    high_pct: float | None


@dataclass(frozen=True)
class PastRatings:
    """Past ratings by the price rules alone, and the changes of the price in the hours after them.

    `correlation` is that of scores and changes; None where one of them does not vary. `last` was made at `last_at`.
    """

    ahead_h: int
    ratings: int
    weeks: int
    steps: tuple[RatingStep, ...]
    correlation: RecordedEstimate
    last: Rating
    last_at: str


def past_ratings(market: MarketData, every: int = 6, ahead: int = 24) -> PastRatings:
    """Return the ratings of the past by the price rules alone, and what the price did in the hours after each.

    Weeks are drawn for the intervals, as hours of a week hang together.

    Raises:
        InputError: too few hours.
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
    steps = [
        RatingStep(step, int(of.sum()), *astuple(_mean_by_weeks(changes[of], weeks[of])))
        for step in STEPS
        if (of := np.array([rating.rating == step for _, rating, _ in found])).any()
    ]
    correlation = _correlation(scores, changes, weeks)
    last_us, last, _ = found[-1]
    return PastRatings(ahead, len(found), len(np.unique(weeks)), tuple(steps), correlation, last, iso(last_us))


_NO_TEXTS = Missing(reason="no collected texts are of that time")


def _mean_by_weeks(values: Floats, weeks: NDArray[np.int64]) -> RecordedEstimate:
    _, which = np.unique(weeks, return_inverse=True)
    sums, counts = np.bincount(which, values), np.bincount(which)
    drawn_weeks = bootstrap_interval(lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), len(sums))
    return RecordedEstimate.of(float(values.mean()), drawn_weeks)


def _correlation(scores: Floats, changes: Floats, weeks: NDArray[np.int64]) -> RecordedEstimate:
    """Return Pearson's correlation with its interval; None where one of the two does not vary."""
    groups = [np.flatnonzero(weeks == week) for week in np.unique(weeks)]

    def of(places: NDArray[np.intp]) -> float:
        first, second = scores[places], changes[places]
        return float(np.corrcoef(first, second)[0, 1]) if np.ptp(first) > 0.0 and np.ptp(second) > 0.0 else math.nan

    drawn_weeks = bootstrap_interval(lambda drawn: of(np.concatenate([groups[n] for n in drawn])), len(groups))
    return RecordedEstimate.of(of(np.arange(len(scores))), drawn_weeks)
