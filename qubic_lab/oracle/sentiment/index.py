"""The sentiment of the texts about a coin in one number, its confidence, and the texts that moved it.

Everything here depends only on texts that were published and known by the instant in question: later texts change
nothing before them, to the last bit.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qubic_lab.checked_yaml import STRICT
from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import Flags, Floats, Integers
from qubic_lab.oracle.model.records import is_sample
from qubic_lab.oracle.model.timestamps import SECOND_US

AVAILABILITIES = ("known", "published")
HALF_SURE = 5.0
"""Number of fresh texts of weight 1 for which the factor `number` of the confidence is one half."""


@dataclass(frozen=True)
class ScoredText:
    """A version of a text with its score.

    Attributes:
        id: number of this version.
        key: identifies the text at its source, the same for all its versions.
        at_us: time of publication.
        known_us: time from which the version and its score were known here.
        score: -1 (bad) to 1 (good).
        duplicate_of: the text that it repeats, if any.
    """

    id: int
    key: str
    source: str
    title: str
    at_us: int
    known_us: int
    score: float
    duplicate_of: int | None = None

    def __post_init__(self) -> None:
        if not -1.0 <= self.score <= 1.0:
            raise InputError(f"score of text {self.id} is {self.score}: it must be in -1 to 1")


@dataclass(frozen=True)
class IndexSettings:
    """The parameters of an index.

    Attributes:
        window_s: older texts do not count.
        half_life_s: a text of this age counts half.
        source_weights: weights of texts by source; those of all other sources are 1.
        volatility_steps: number of past changes whose standard deviation is the volatility.
        samples: count invented sample texts, which say nothing about a real coin.
        availability: a text counts once it is "known" here; or once it was "published", which is only for charts of
            imported archives: never test a strategy with it.
    """

    window_s: float = 72 * 3600.0
    half_life_s: float = 12 * 3600.0
    source_weights: Mapping[str, float] = field(default_factory=dict)
    volatility_steps: int = 24
    samples: bool = False
    availability: str = "known"

    def __post_init__(self) -> None:
        for name in ("window_s", "half_life_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: it must be a number above 0")
        for source, weight in self.source_weights.items():
            if not 0.0 <= weight < math.inf:
                raise InputError(f"weight of {source} is {weight}: it must be a number of 0 or more")
        if self.volatility_steps < 2:
            raise InputError(f"volatility_steps is {self.volatility_steps}: it must be at least 2")
        if self.availability not in AVAILABILITIES:
            raise InputError(f"availability is {self.availability!r}: it must be one of {', '.join(AVAILABILITIES)}")


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
        IndexSettings(source_weights=self.source_weights)

    def settings(self, window_s: float, volatility_steps: int) -> IndexSettings:
        """Return the parameters for a window, for texts that were known at the instant in question."""
        return IndexSettings(
            window_s,
            self.half_life * window_s,
            self.source_weights,
            volatility_steps=volatility_steps,
            availability="published",
        )


WEIGHTING = Weighting()


@dataclass(frozen=True)
class TextContribution:
    """A text's part in an index: `contribution` is the index less its value without this text."""

    id: int
    source: str
    title: str
    at_us: int
    score: float
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
        composite: -1 to 1; None if no text counts.
        confidence: 0 to 1, the product of `number`, `age` and `agreement`.
        spread: weighted standard deviation of the scores.
        texts: number of texts that count.
        effective_texts: (Σw)² / Σw², the number of texts of equal weight that would say as much (L. Kish, Survey
            Sampling, 1965).
        newest_us: publication of the newest text.
        contributions: the texts that moved the index most, the largest contribution first.
    """

    composite: float | None
    confidence: float
    number: float
    age: float
    agreement: float
    spread: float
    texts: int
    effective_texts: float
    newest_us: int | None
    contributions: tuple[TextContribution, ...]


@dataclass(frozen=True, eq=False)
class IndexSeries:
    """An index at several instants, [instants]; NaN if no text counts.

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
) -> IndexValue:
    """Return the index at an instant, with `most_factors` contributions at most; the order of texts is of no effect."""
    pool = _Pool(texts, settings)
    chosen = pool.choose(at_us)
    summed = _sum(pool, chosen, at_us, settings)
    rows = [pool.texts[place] for place in chosen]
    return IndexValue(
        composite=summed.mean if len(rows) and summed.mass > 0 else None,
        confidence=summed.confidence,
        number=summed.number,
        age=summed.age,
        agreement=1.0 - summed.spread if rows else 0.0,
        spread=summed.spread,
        texts=len(rows),
        effective_texts=summed.effective,
        newest_us=max((text.at_us for text in rows), default=None),
        contributions=_contributions(rows, summed, most_factors),
    )


def index_series(
    texts: Iterable[ScoredText], times_us: Sequence[int] | Integers, settings: IndexSettings = SETTINGS
) -> IndexSeries:
    """Return the index at instants in rising order.

    Raises:
        InputError: the instants do not rise.
    """
    times = np.asarray(times_us, dtype=np.int64)
    if times.ndim != 1 or (np.diff(times) <= 0).any():
        raise InputError("instants of a series must rise: give each once, in order")
    pool = _Pool(texts, settings)
    columns = np.full((3, len(times)), np.nan)
    counts = np.zeros(len(times), dtype=np.int64)
    for place, at_us in enumerate(times):
        chosen = pool.choose(int(at_us))
        counts[place] = len(chosen)
        summed = _sum(pool, chosen, int(at_us), settings)
        columns[:, place] = (summed.mean, summed.confidence, summed.spread) if summed.mass > 0 else (np.nan, 0, np.nan)
    composite, confidence, spread = columns
    return IndexSeries(times, composite, confidence, spread, _volatility(composite, settings.volatility_steps), counts)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Weighted sums over the texts that count."""

    weights: Floats
    mean: float
    mass: float
    spread: float
    number: float
    age: float
    confidence: float
    effective: float


class _Pool:
    """Texts in the order in which they become available, with the time from which and until which each counts."""

    def __init__(self, texts: Iterable[ScoredText], settings: IndexSettings) -> None:
        self.settings = settings
        self.texts = sorted(texts, key=lambda text: (self._available(text), text.id))
        self.from_us = np.array([self._available(text) for text in self.texts], dtype=np.int64)
        self.at_us = np.array([text.at_us for text in self.texts], dtype=np.int64)
        self.score = np.array([text.score for text in self.texts], dtype=np.float64)
        weights = settings.source_weights
        self.weight = np.array([weights.get(each.source, 1.0) for each in self.texts], np.float64)
        self.sample = np.array([is_sample(each.source) and not settings.samples for each in self.texts], dtype=bool)
        self.repeats = np.zeros(len(self.texts), dtype=bool)
        self.until_us = np.full(len(self.texts), np.iinfo(np.int64).max)
        self._mark_versions_and_repetitions()

    def _available(self, text: ScoredText) -> int:
        return max(text.at_us, text.known_us) if self.settings.availability == "known" else text.at_us

    def _mark_versions_and_repetitions(self) -> None:
        """End each version where the next one begins, and count only the first of texts that repeat each other."""
        newest: dict[str, int] = {}
        first: dict[int, str] = {}
        for place, text in enumerate(self.texts):
            if text.key in newest:
                self.until_us[newest[text.key]] = self.from_us[place]
            newest[text.key] = place
            if not self.sample[place] and self.weight[place] > 0:  # a text that never counts replaces no other
                group = text.id if text.duplicate_of is None else text.duplicate_of
                self.repeats[place] = first.setdefault(group, text.key) != text.key

    def _alive(self, at_us: int) -> Flags:
        """Return which texts are available in this version and young enough."""
        start_us = at_us - int(self.settings.window_s * SECOND_US)
        end = int(np.searchsorted(self.from_us, at_us, side="right"))
        return np.asarray((self.until_us[:end] > at_us) & (self.at_us[:end] > start_us))

    def choose(self, at_us: int) -> NDArray[np.intp]:
        """Return the positions of the texts that count at an instant."""
        alive = self._alive(at_us)
        end = len(alive)
        counts = alive & ~self.repeats[:end] & ~self.sample[:end] & (self.weight[:end] > 0)
        return np.flatnonzero(counts)


def _sum(pool: _Pool, chosen: NDArray[np.intp], at_us: int, settings: IndexSettings) -> _Sums:
    ages_s = (at_us - pool.at_us[chosen]) / SECOND_US
    unaged = pool.weight[chosen]
    weights = unaged * np.exp2(-ages_s / settings.half_life_s)
    mass = float(weights.sum())
    if mass <= 0.0:
        return _Sums(weights, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    scores = pool.score[chosen]
    mean = min(1.0, max(-1.0, float((weights * scores).sum() / mass)))
    spread = min(1.0, math.sqrt(float((weights * (scores - mean) ** 2).sum() / mass)))
    number = float(unaged.sum() / (unaged.sum() + HALF_SURE))
    fresh = mass / (mass + HALF_SURE)
    shares = weights / mass
    effective = float(1.0 / (shares * shares).sum())
    return _Sums(weights, mean, mass, spread, number, fresh / number, fresh * (1.0 - spread), effective)


def _contributions(rows: Sequence[ScoredText], summed: _Sums, most: int) -> tuple[TextContribution, ...]:
    """Return the contributions of texts, the largest first; without its only text the index would be 0."""
    found = []
    for text, weight in zip(rows, summed.weights, strict=True):
        rest = summed.mass - float(weight)
        alone = len(rows) == 1 or rest <= 0.0
        contribution = summed.mean if alone else float(weight) * (text.score - summed.mean) / rest
        share = float(weight) / summed.mass if summed.mass > 0 else 0.0
        found.append(TextContribution(text.id, text.source, text.title, text.at_us, text.score, share, contribution))
    return tuple(sorted(found, key=lambda each: (-abs(each.contribution), each.id))[:most])


def _volatility(composite: Floats, steps: int) -> Floats:
    """Return the standard deviation of the last `steps` changes; each value is computed independently of the others."""
    found = np.full(len(composite), np.nan)
    if len(composite) > steps:
        windows = np.lib.stride_tricks.sliding_window_view(np.diff(composite), steps)
        found[steps:] = [float(np.std(window, ddof=1)) for window in windows]
    return found
