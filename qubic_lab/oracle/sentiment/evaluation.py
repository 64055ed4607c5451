"""The accuracy of sentiment models: accuracy and macro-F1 with intervals, and paired differences on the same texts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentScore
from qubic_lab.stats import RESAMPLES, Forecasts, calibration_error, calibration_error_if_calibrated

Counts = NDArray[np.int64]
BASELINES = ("majority", "vader")
"""The models that others are compared with."""
MEASURES = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class MeasureEstimate:
    """A measure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


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

    Attributes:
        units: number of resampled units: texts, or groups of them.
        parts: accuracy and macro-F1 of each model in each part of the texts, if parts were given.
    """

    n: int
    units: int
    evaluations: tuple[ModelEvaluation, ...]
    differences: tuple[ModelDifference, ...]
    parts: Mapping[str, Mapping[str, Mapping[str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def confusion_of(truth: ArrayLike, said: ArrayLike) -> Counts:
    """Return counts (3, 3) of true and predicted labels, given by number."""
    counts = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    np.add.at(counts, (np.asarray(truth, dtype=np.intp), np.asarray(said, dtype=np.intp)), 1)
    return counts


def macro_f1(confusion: Counts) -> float:
    """Return the mean F1 of the labels that occur as true or as predicted ones.

    Source: definition as in M. Sokolova and G. Lapalme, "A systematic analysis of performance measures for
    classification tasks", Information Processing and Management 45 (2009), 427-437, with F1 averaged over labels.
    """
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float((2 * np.diag(confusion)[both > 0] / both[both > 0]).mean()) if both.any() else np.nan


def accuracy(confusion: Counts) -> float:
    """Return the share of texts whose label was predicted."""
    return float(np.trace(confusion) / confusion.sum()) if confusion.any() else np.nan


_MEASURES = {"accuracy": accuracy, "macro_f1": macro_f1}


def compare(
    truth: Sequence[str],
    scores: Mapping[str, Sequence[SentimentScore]],
    groups: Sequence[object] | None = None,
    parts: Sequence[str] | None = None,
    seed: int = 0,
) -> ModelComparison:
    """Return the comparison of models on the same labelled texts.

    Intervals are percentiles of a bootstrap; all models use the same resamples, so differences are paired. If texts are
    variants of each other, whole groups are resampled.

    Args:
        truth: label of each text.
        scores: of each text, by model.
        groups: of each text; None: each text is a group.
        parts: name of a part for each text; parts are reported separately.
        seed: of the resamples.

    Raises:
        InputError: no texts, or not as many scores, groups or parts as labels.
    """
    if not truth:
        raise InputError("there are no labelled texts to judge by: give at least one")
    for what, given in (*scores.items(), ("groups", groups), ("parts", parts)):
        if given is not None and len(given) != len(truth):
            raise InputError(f"{len(given)} values of {what} for {len(truth)} labels: give one for each")
    true = np.array([LABELS.index(label) for label in truth], dtype=np.intp)
    said = {name: np.array([LABELS.index(each.label) for each in given]) for name, given in scores.items()}
    by_unit = _confusion_by_unit(true, said, groups)
    units = len(next(iter(by_unit.values()))) if by_unit else 0
    whole = {name: counts.sum(axis=0) for name, counts in by_unit.items()}
    drawn = _drawn(by_unit, seed)
    evaluations = tuple(_evaluation(name, scores[name], true, whole[name], drawn[name]) for name in scores)
    return ModelComparison(len(truth), units, evaluations, _differences(whole, drawn), _parts(true, said, parts))


def verdict(comparison: ModelComparison, model: str) -> str:
    """Return a sentence: whether a model is shown to be better than each baseline in macro-F1 on these texts."""
    found = [each for each in comparison.differences if each.model == model and each.measure == "macro_f1"]
    if not found:
        return f"{model} is compared with no baseline here"
    parts = [
        f"{_IN_WORDS[each.shown]} {each.baseline} ({each.difference.value:+.3f}, "
        f"95 % interval {each.difference.low:+.3f} to {each.difference.high:+.3f})"
        for each in found
    ]
    return f"in macro-F1 on these texts, {model} is {' and '.join(parts)}"


_IN_WORDS = {
    "better": "shown to be better than",
    "worse": "shown to be worse than",
    "neither": "not shown to be better or worse than",
}


def _confusion_by_unit(
    true: NDArray[np.intp], said: Mapping[str, NDArray[np.intp]], groups: Sequence[object] | None
) -> dict[str, Counts]:
    """Return each model's confusion counts (units, 3, 3)."""
    names = [str(each) for each in groups] if groups is not None else [str(place) for place in range(len(true))]
    _, unit = np.unique(names, return_inverse=True)
    found = {}
    for model, labels in said.items():
        counts = np.zeros((unit.max() + 1, len(LABELS), len(LABELS)), dtype=np.int64)
        np.add.at(counts, (unit, true, labels), 1)
        found[model] = counts
    return found


def _drawn(by_unit: Mapping[str, Counts], seed: int) -> dict[str, Counts]:
    """Return each model's counts (RESAMPLES, 3, 3) over resampled units, the same ones for all models."""
    if not by_unit:
        return {}
    units = len(next(iter(by_unit.values())))
    flat = np.concatenate([counts.reshape(units, -1) for counts in by_unit.values()], axis=1).astype(np.float64)
    draw = np.random.default_rng(seed)
    sums = [np.bincount(draw.integers(0, units, units), minlength=units) @ flat for _ in range(RESAMPLES)]
    by_model = np.rint(sums).astype(np.int64).reshape(RESAMPLES, len(by_unit), len(LABELS), len(LABELS))
    return {model: by_model[:, place] for place, model in enumerate(by_unit)}


def _estimate(value: float, drawn: Sequence[float]) -> MeasureEstimate:
    """Return a measure with the percentile interval of its resamples (B. Efron, Annals of Statistics 7, 1979, 1-26)."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return MeasureEstimate(value, float(low), float(high))


def _evaluation(
    name: str, scores: Sequence[SentimentScore], true: NDArray[np.intp], confusion: Counts, drawn: Counts
) -> ModelEvaluation:
    estimates = {
        measure: _estimate(function(confusion), [function(each) for each in drawn])
        for measure, function in _MEASURES.items()
    }
    right = np.array([LABELS.index(each.label) for each in scores]) == true
    forecasts = Forecasts.of([min(1.0, max(each.probabilities)) for each in scores], right)
    return ModelEvaluation(
        model=name,
        version=scores[0].version,
        n=len(true),
        accuracy=estimates["accuracy"],
        macro_f1=estimates["macro_f1"],
        confusion=tuple(tuple(map(int, row)) for row in confusion),
        labels={label: _label_figures(confusion, column) for column, label in enumerate(LABELS)},
        calibration_error=calibration_error(forecasts),
        calibration_luck=calibration_error_if_calibrated(forecasts)[1],
    )


def _label_figures(confusion: Counts, column: int) -> LabelFigures:
    hits, said, true = int(confusion[column, column]), int(confusion[:, column].sum()), int(confusion[column].sum())
    return LabelFigures(
        texts=true,
        precision=hits / said if said else 0.0,
        recall=hits / true if true else 0.0,
        f1=2 * hits / (said + true) if said + true else 0.0,
    )


def _differences(whole: Mapping[str, Counts], drawn: Mapping[str, Counts]) -> tuple[ModelDifference, ...]:
    return tuple(
        _difference(model, baseline, measure, whole, drawn)
        for model in whole
        for baseline in BASELINES
        if baseline in whole and model not in (baseline, "majority")
        for measure in MEASURES
    )


def _difference(
    model: str, baseline: str, measure: str, whole: Mapping[str, Counts], drawn: Mapping[str, Counts]
) -> ModelDifference:
    function = _MEASURES[measure]
    pairs = zip(drawn[model], drawn[baseline], strict=True)
    difference = _estimate(
        function(whole[model]) - function(whole[baseline]), [function(one) - function(other) for one, other in pairs]
    )
    shown = "better" if difference.low > 0 else "worse" if difference.high < 0 else "neither"
    return ModelDifference(model, baseline, measure, difference, shown)


def _parts(
    true: NDArray[np.intp], said: Mapping[str, NDArray[np.intp]], parts: Sequence[str] | None
) -> dict[str, dict[str, dict[str, float]]]:
    if parts is None:
        return {}
    names = np.array(parts)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for part in sorted(set(parts)):
        inside = names == part
        found[part] = {"all": {"n": float(inside.sum())}}
        for model, labels in said.items():
            counts = confusion_of(true[inside], labels[inside])
            found[part][model] = {"accuracy": accuracy(counts), "macro_f1": macro_f1(counts)}
    return found
