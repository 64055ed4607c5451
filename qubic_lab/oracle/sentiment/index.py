"""The sentiment of the texts about a coin in one number, its confidence, and the texts that moved it.

Everything here depends only on texts that were published and known by the instant in question: later texts change
nothing before them, to the last bit.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qubic_lab.checked_yaml import STRICT
from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import Floats, Integers
from qubic_lab.oracle.model.response import Direction
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.store.text_reader import ScoreColumns, TextReader

PREFERRED = ("finbert", "default", "crypto-lexicon", "vader")
"""Models whose scores make the index, the first choice first; others follow by name. FinBERT scores where asked to."""
BASELINE = "majority"
"""A model that gives every text the same score, so an index of its scores would say nothing."""
NO_SCORES = "no model has scored these texts: qubic-lab oracle score does"
NO_TEXTS = "there are no texts"
TREND_ERRORS, TREND_TEXTS = 1.96, 5.0
"""An index points somewhere if it is this many standard errors from 0, by this number of effective texts or more."""
HALF_SURE = 5.0
"""Number of fresh texts of weight 1 for which the factor `number` of the confidence is one half."""


@dataclass(frozen=True)
class ScoredText:
    """A text with its score, -1 (bad) to 1 (good).

    Attributes:
        at_us: time of publication.
        known_us: time from which its score was known here.
    """

    id: int
    at_us: int
    known_us: int
    score: float
    source: str = ""
    title: str = ""


@dataclass(frozen=True)
class IndexSettings:
    """The parameters of an index.

    Attributes:
        window_s: older texts do not count.
        half_life_s: a text of this age counts half.
        source_weights: weights of texts by source; those of all other sources are 1.
        volatility_steps: number of past changes whose standard deviation is the volatility.
        availability: a text counts once it is "known" here; or once it was "published", which is only for charts of
            imported archives and for texts that a snapshot has limited: never test a strategy with it.
    """

    window_s: float = 72 * 3600.0
    half_life_s: float = 12 * 3600.0
    source_weights: Mapping[str, float] = field(default_factory=dict)
    volatility_steps: int = 24
    availability: Literal["known", "published"] = "known"


SETTINGS = IndexSettings()


@dataclass(frozen=True)
class Weighting:
    """The weights of texts in an index, for windows of any length.

    Attributes:
        half_life: the share of the window after which a text counts half.
        source_weights: weights of texts by source; those of all other sources are 1.

    Raises:
        InputError: a number out of its range.
    """

    __pydantic_config__ = STRICT

    half_life: float = 0.5
    source_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 < self.half_life <= 10.0:
            raise InputError(f"half_life is {self.half_life}: it must be above 0 and at most 10 windows")
        for source, weight in self.source_weights.items():
            if not 0.0 <= weight < math.inf:
                raise InputError(f"weight of {source} is {weight}: it must be a number of 0 or more")

    def settings(self, window_s: float, volatility_steps: int) -> IndexSettings:
        """Return the parameters for a window, for texts that were known at the instant in question."""
        half_life_s = self.half_life * window_s
        return IndexSettings(window_s, half_life_s, self.source_weights, volatility_steps, "published")


WEIGHTING = Weighting()


@dataclass(frozen=True)
class TextContribution:
    """A text's part in an index: `contribution` is the index less its value without this text."""

    text: ScoredText
    share: float
    contribution: float


@dataclass(frozen=True)
class IndexValue:
    """The index at an instant.

    The composite is the mean of scores s with weights w = source weight × 2^(-age / half-life). With W the sum of w,
    S the same sum without ageing, k = `HALF_SURE` and sd the weighted standard deviation of s (at most 1):

        number = S / (S + k),  age = (W / (W + k)) / number,  agreement = 1 - sd,
        confidence = number × age × agreement = W / (W + k) × (1 - sd)

    so more texts, fresher texts and less spread each raise it.

    Attributes:
        composite: -1 to 1.
        confidence: 0 to 1, the product of `number`, `age` and `agreement`.
        spread: weighted standard deviation of the scores.
        intensity: weighted mean of the scores' sizes, 0 to 1: how strongly texts speak, whichever way.
        texts: number of texts that count.
        effective_texts: (Σw)² / Σw², the number of texts of equal weight that would say as much (L. Kish, Survey
            Sampling, 1965).
        newest_us: publication of the newest text.
        contributions: the texts that moved the index most, the largest contribution first.
    """

    composite: float
    confidence: float
    number: float
    age: float
    agreement: float
    spread: float
    intensity: float
    texts: int
    effective_texts: float
    newest_us: int
    contributions: tuple[TextContribution, ...]

    @property
    def direction(self) -> Direction:
        """Bullish or bearish where the composite differs from 0 by more than chance, else neutral."""
        error = self.spread / math.sqrt(self.effective_texts)
        if self.effective_texts < TREND_TEXTS or abs(self.composite) <= max(TREND_ERRORS * error, 1e-9):
            return "neutral"
        return "bullish" if self.composite > 0.0 else "bearish"


@dataclass(frozen=True, eq=False)
class IndexSeries:
    """An index at several instants, [instants]; NaN (and a confidence of 0) if no text counts.

    Attributes:
        spread: of the scores within each window.
        volatility: standard deviation of the last `volatility_steps` changes of the composite; NaN if one is missing.
        texts: number of texts that count.
    """

    at_us: Integers
    composite: Floats
    confidence: Floats
    spread: Floats
    volatility: Floats
    texts: Integers


def sentiment_index(
    texts: Iterable[ScoredText], at_us: int, settings: IndexSettings = SETTINGS, most_factors: int = 10
) -> IndexValue | None:
    """Return the index at an instant, with `most_factors` contributions at most; None if no text counts.

    The order of the texts is of no effect.
    """
    return _Pool(texts, settings).index_at(at_us, most_factors)


def index_series(texts: Iterable[ScoredText], times_us: Integers, settings: IndexSettings = SETTINGS) -> IndexSeries:
    """Return the index at instants in rising order."""
    pool = _Pool(texts, settings)
    composite, spread = np.full((2, len(times_us)), np.nan)
    confidence, counts = np.zeros(len(times_us)), np.zeros(len(times_us), np.int64)
    for place, at_us in enumerate(times_us.tolist()):
        if (found := pool.index_at(at_us, 0)) is not None:
            composite[place], spread[place] = found.composite, found.spread
            confidence[place], counts[place] = found.confidence, found.texts
    return IndexSeries(
        times_us, composite, confidence, spread, _volatility(composite, settings.volatility_steps), counts
    )


def choose_model(scores: Mapping[str, ScoreColumns]) -> str | None:
    """Return the model whose scores make the index: by preference, then by number of scores, then by age."""

    def rank(key: str) -> tuple[int, int, int, str]:
        name = _model_name(key)
        place = PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
        return place, -len(scores[key]), -int(scores[key].known_us.max()), key

    return min((key for key in scores if _model_name(key) != BASELINE), key=rank, default=None)


def scored_texts(texts: TextReader, scores: ScoreColumns, weighting: Weighting) -> list[ScoredText]:
    """Return the texts that have these scores, without titles; with sources only if sources weigh differently."""
    sources = texts.sources(scores.news_id.tolist()) if weighting.source_weights else {}
    columns = (scores.news_id, scores.at_us, scores.known_us, scores.score)
    return [
        ScoredText(id, at_us, known_us, score, sources.get(id, ""))
        for id, at_us, known_us, score in zip(*(each.tolist() for each in columns), strict=True)
    ]


def _model_name(key: str) -> str:
    return key.partition("@")[0].partition(":")[0]


class _Pool:
    """Texts with a weight, in the order in which they become available, as columns."""

    def __init__(self, texts: Iterable[ScoredText], settings: IndexSettings) -> None:
        self._settings, weights = settings, settings.source_weights
        weighted = [text for text in texts if weights.get(text.source, 1.0) > 0]
        self._texts = sorted(weighted, key=lambda text: (self._available(text), text.id))
        self._from_us = np.array([self._available(text) for text in self._texts], np.int64)
        self._at_us = np.array([text.at_us for text in self._texts], np.int64)
        self._score = np.array([text.score for text in self._texts], np.float64)
        self._weight = np.array([weights.get(text.source, 1.0) for text in self._texts], np.float64)

    def _available(self, text: ScoredText) -> int:
        return max(text.at_us, text.known_us) if self._settings.availability == "known" else text.at_us

    def index_at(self, at_us: int, most_factors: int) -> IndexValue | None:
        start_us = at_us - int(self._settings.window_s * SECOND_US)
        end = int(np.searchsorted(self._from_us, at_us, side="right"))
        chosen = np.flatnonzero(self._at_us[:end] > start_us)
        unaged, scores = self._weight[chosen], self._score[chosen]
        weights = unaged * np.exp2(-((at_us - self._at_us[chosen]) / SECOND_US) / self._settings.half_life_s)
        mass = float(weights.sum())
        if mass <= 0.0:
            return None
        mean = min(1.0, max(-1.0, float((weights * scores).sum() / mass)))
        spread = min(1.0, math.sqrt(float((weights * (scores - mean) ** 2).sum() / mass)))
        number, fresh = float(unaged.sum() / (unaged.sum() + HALF_SURE)), mass / (mass + HALF_SURE)
        shares = weights / mass
        return IndexValue(
            composite=mean,
            confidence=fresh * (1.0 - spread),
            number=number,
            age=fresh / number,
            agreement=1.0 - spread,
            spread=spread,
            intensity=min(1.0, float((weights * np.abs(scores)).sum() / mass)),
            texts=len(chosen),
            effective_texts=float(1.0 / (shares * shares).sum()),
            newest_us=int(self._at_us[chosen].max()),
            contributions=self._contributions(chosen, weights, mean, most_factors) if most_factors else (),
        )

    def _contributions(
        self, chosen: NDArray[np.intp], weights: Floats, mean: float, most: int
    ) -> tuple[TextContribution, ...]:
        """Return the contributions of texts, the largest first; without its only text the index would be 0."""
        mass, found = float(weights.sum()), []
        for place, weight in zip(chosen.tolist(), weights.tolist(), strict=True):
            text, rest = self._texts[place], mass - weight
            alone = len(chosen) == 1 or rest <= 0.0
            contribution = mean if alone else weight * (text.score - mean) / rest
            found.append(TextContribution(text, weight / mass, contribution))
        return tuple(sorted(found, key=lambda each: (-abs(each.contribution), each.text.id))[:most])


def _volatility(composite: Floats, steps: int) -> Floats:
    """Return the standard deviation of the last `steps` changes; each value is computed independently of the others."""
    found = np.full(len(composite), np.nan)
    if len(composite) > steps:
        windows = np.lib.stride_tricks.sliding_window_view(np.diff(composite), steps)
        found[steps:] = [float(np.std(window, ddof=1)) for window in windows]
    return found
