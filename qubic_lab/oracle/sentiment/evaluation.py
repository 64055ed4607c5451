"""Evaluation of sentiment models on labelled texts: measures with intervals, and differences on the same texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentScore
from qubic_lab.stats import (
    RESAMPLES,
    Forecasts,
    calibration_error,
    calibration_error_if_calibrated,
    calibration_error_interval,
)

BASELINES = ("majority", "vader")
"""The models that others are compared with."""
LEAST_UNITS = 20
"""With fewer units resamples vary too little: a measure has no interval, and no model is shown to be better."""


@dataclass(frozen=True)
class MeasureEstimate:
    """A measure with the ends of its 95 % interval; None: too few texts for one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LabelFigures:
    """One label: the number of texts that have it, and a model's precision, recall and F1."""

    texts: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ModelEvaluation:
    """One model on one set of texts.

    Attributes:
        n: number of texts.
        confusion: counts; rows are true labels, columns predicted ones, both in the order of `LABELS`.
        labels: figures of each label.
        calibration_error: of the probability of the predicted label (see `stats.calibration_error`).
        calibration_interval: the 95 % interval of that error.
        calibration_luck: an error up to this is no evidence against the probabilities: if they are correct, sampling
            alone makes a smaller one 95 % of the time.
    """

    model: str
    version: str
    n: int
    accuracy: MeasureEstimate
    macro_f1: MeasureEstimate
    confusion: tuple[tuple[int, ...], ...]
    labels: Mapping[str, LabelFigures]
    calibration_error: float
    calibration_interval: tuple[float, float]
    calibration_luck: float


@dataclass(frozen=True)
class ModelDifference:
    """A measure of one model less that of a baseline on the same texts; `shown`: better, worse or neither."""

    model: str
    baseline: str
    measure: str
    difference: MeasureEstimate
    shown: str


@dataclass(frozen=True)
class ModelComparison:
    """Models on the same texts, and their differences from the baselines among them.

    `units`: number of resampled units: texts, or groups of them.
    """

    n: int
    units: int
    evaluations: tuple[ModelEvaluation, ...]
    differences: tuple[ModelDifference, ...]


def confusion_of(truth: ArrayLike, said: ArrayLike) -> Floats:
    """Return counts (3, 3) of true and predicted labels, given by number."""
    counts = np.zeros((len(LABELS), len(LABELS)))
    np.add.at(counts, (np.asarray(truth, np.intp), np.asarray(said, np.intp)), 1)
    return counts


def macro_f1(confusion: Floats) -> Floats:
    """Return the mean F1 of the labels that occur as true or as predicted ones, of counts (..., 3, 3).

    Source: definition as in M. Sokolova and G. Lapalme, "A systematic analysis of performance measures for
    classification tasks", Information Processing and Management 45 (2009), 427-437, with F1 averaged over labels.
    """
    both = confusion.sum(axis=-2) + confusion.sum(axis=-1)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.asarray(np.nanmean(np.divide(2 * hits, both, out=np.full(both.shape, np.nan), where=both > 0), axis=-1))


def accuracy(confusion: Floats) -> Floats:
    """Return the share of texts whose label was predicted, of counts (..., 3, 3)."""
    return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1)))


_MEASURES = {"accuracy": accuracy, "macro_f1": macro_f1}


def compare(
    truth: Sequence[str],
    scores: Mapping[str, Sequence[SentimentScore]],
    groups: Sequence[object] | None = None,
    seed: int = 0,
    baselines: Sequence[str] = BASELINES,
) -> ModelComparison:
    """Return the comparison of models on the same labelled texts, at least one.

    Intervals are percentiles of a bootstrap (B. Efron, Annals of Statistics 7, 1979, 1-26); all models use the same
    resamples, so differences are paired. If texts are variants of each other, whole groups are resampled.

    Args:
        truth: label of each text.
        scores: of each text, by model.
        groups: of each text; None: each text is a group.
        seed: of the resamples.
        baselines: models that the others are compared with.
    """
    true = np.array([LABELS.index(label) for label in truth], np.intp)
    said = {name: np.array([LABELS.index(each.label) for each in given], np.intp) for name, given in scores.items()}
    whole = {name: confusion_of(true, labels) for name, labels in said.items()}
    units, drawn = _resample(true, said, groups, seed)
    evaluations = tuple(_evaluation(name, scores[name], true, whole[name], drawn[name], units) for name in scores)
    return ModelComparison(len(truth), units, evaluations, _differences(whole, drawn, units, baselines))


def verdict(comparison: ModelComparison, model: str) -> str:
    """Return a sentence: whether a model is shown to be better than each baseline in macro-F1 on these texts."""
    words = {
        "better": "shown to be better than",
        "worse": "shown to be worse than",
        "neither": "not shown to be better or worse than",
    }
    if comparison.units < LEAST_UNITS:
        independent = "" if comparison.units == comparison.n else "independent "
        return f"{comparison.units} {independent}texts are too few to compare {model} by: give {LEAST_UNITS} at least"
    parts = [
        f"{words[each.shown]} {each.baseline} ({each.difference.value:+.3f}, "
        f"95 % interval {each.difference.low:+.3f} to {each.difference.high:+.3f})"
        for each in comparison.differences
        if each.model == model and each.measure == "macro_f1"
    ]
    return f"in macro-F1 on these texts, {model} is {' and '.join(parts)}"


def _resample(
    true: NDArray[np.intp], said: Mapping[str, NDArray[np.intp]], groups: Sequence[object] | None, seed: int
) -> tuple[int, dict[str, Floats]]:
    """Return the number of units, and each model's counts (RESAMPLES, 3, 3) over the same resampled units."""
    _, unit = np.unique([str(each) for each in groups or range(len(true))], return_inverse=True)
    units = int(unit.max()) + 1
    counts = np.zeros((units, len(said), len(LABELS), len(LABELS)))
    for place, labels in enumerate(said.values()):
        np.add.at(counts[:, place], (unit, true, labels), 1)
    draw = np.random.default_rng(seed)
    times_drawn = [np.bincount(draw.integers(0, units, units), minlength=units) for _ in range(RESAMPLES)]
    sums = [times @ counts.reshape(units, -1) for times in times_drawn]
    by_model = np.reshape(sums, (RESAMPLES, *counts.shape[1:]))
    return units, {model: by_model[:, place] for place, model in enumerate(said)}


def _estimate(value: Floats, drawn: Floats, units: int) -> MeasureEstimate:
    if units < LEAST_UNITS:
        return MeasureEstimate(float(value), None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return MeasureEstimate(float(value), float(low), float(high))


def _evaluation(
    name: str, scores: Sequence[SentimentScore], true: NDArray[np.intp], confusion: Floats, drawn: Floats, units: int
) -> ModelEvaluation:
    from sklearn.metrics import precision_recall_fscore_support

    said = [LABELS.index(each.label) for each in scores]
    forecasts = Forecasts.of([min(1.0, max(each.probabilities)) for each in scores], np.equal(said, true))
    figures = zip(*precision_recall_fscore_support(true, said, labels=range(len(LABELS)), zero_division=0), strict=True)
    return ModelEvaluation(
        model=name,
        version=scores[0].version,
        n=len(true),
        accuracy=_estimate(accuracy(confusion), accuracy(drawn), units),
        macro_f1=_estimate(macro_f1(confusion), macro_f1(drawn), units),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
        labels={
            label: LabelFigures(int(texts), *map(float, shares))
            for label, (*shares, texts) in zip(LABELS, figures, strict=True)
        },
        calibration_error=calibration_error(forecasts),
        calibration_interval=calibration_error_interval(forecasts),
        calibration_luck=calibration_error_if_calibrated(forecasts)[1],
    )


def _differences(
    whole: Mapping[str, Floats], drawn: Mapping[str, Floats], units: int, baselines: Sequence[str]
) -> tuple[ModelDifference, ...]:
    found = []
    for model, baseline in ((model, baseline) for model in whole for baseline in baselines if baseline in whole):
        if model in (baseline, "majority"):
            continue
        for name, measure in _MEASURES.items():
            less = measure(whole[model]) - measure(whole[baseline])
            difference = _estimate(less, measure(drawn[model]) - measure(drawn[baseline]), units)
            low, high = difference.low or 0.0, difference.high or 0.0
            shown = "better" if low > 0 else "worse" if high < 0 else "neither"
            found.append(ModelDifference(model, baseline, name, difference, shown))
    return tuple(found)
