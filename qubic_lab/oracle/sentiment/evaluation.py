"""How well models tell labels: accuracy and macro-F1 with intervals, and paired differences on the same texts."""

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
"""What the others are compared with."""
MEASURES = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelFigures:
    """One label: texts that have it, and precision, recall and F1 of what a model says of it."""

    texts: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of texts.

    Attributes:
        n: texts.
        confusion: counts; rows are true labels, columns what the model says, both in the order of `LABELS`.
        labels: figures of each label.
        calibration_error: of the probability of what the model says (see `stats.calibration_error`).
        calibration_luck: an error up to this is no evidence against the probabilities: 95 % of the time sampling alone
            would make a smaller one, were they right.
    """

    model: str
    version: str
    n: int
    accuracy: Estimate
    macro_f1: Estimate
    confusion: tuple[tuple[int, ...], ...]
    labels: Mapping[str, LabelFigures]
    calibration_error: float
    calibration_luck: float


@dataclass(frozen=True)
class Difference:
    """A measure of one model less that of another on the same texts; `shown`: better, worse or neither."""

    model: str
    baseline: str
    measure: str
    difference: Estimate
    shown: str


@dataclass(frozen=True)
class Comparison:
    """Models on the same texts, and how they differ from the baselines among them.

    Attributes:
        units: what was drawn for intervals: texts, or groups of them.
        parts: accuracy and macro-F1 of each model in each part of the texts, where parts were told.
    """

    n: int
    units: int
    evaluations: tuple[Evaluation, ...]
    differences: tuple[Difference, ...]
    parts: Mapping[str, Mapping[str, Mapping[str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def confusion_of(truth: ArrayLike, said: ArrayLike) -> Counts:
    """Return counts (3, 3) of true and said labels, given by number."""
    counts = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    np.add.at(counts, (np.asarray(truth, dtype=np.intp), np.asarray(said, dtype=np.intp)), 1)
    return counts


def macro_f1(confusion: Counts) -> float:
    """Return the mean F1 of the labels that occur, as true ones or as said.

    Source: definition as in M. Sokolova and G. Lapalme, "A systematic analysis of performance measures for
    classification tasks", Information Processing and Management 45 (2009), 427-437, with F1 averaged over labels.
    """
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float((2 * np.diag(confusion)[both > 0] / both[both > 0]).mean()) if both.any() else np.nan


def accuracy(confusion: Counts) -> float:
    """Return the share of texts whose label was said."""
    return float(np.trace(confusion) / confusion.sum()) if confusion.any() else np.nan


_MEASURES = {"accuracy": accuracy, "macro_f1": macro_f1}


def compare(
    truth: Sequence[str],
    scores: Mapping[str, Sequence[SentimentScore]],
    groups: Sequence[object] | None = None,
    parts: Sequence[str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Return how well models tell the labels of the same texts.

    Intervals are percentiles of bootstrap draws; all models are judged on the same draws, so that differences
    are paired. Where texts are variants of each other, groups are drawn with all their texts.

    Args:
        truth: label of each text.
        scores: of each text, by model.
        groups: of each text; None: each stands for itself.
        parts: name of a part for each text, whose figures are told beside.
        seed: of the draws.

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
    return Comparison(len(truth), units, evaluations, _differences(whole, drawn), _parts(true, said, parts))


def verdict(comparison: Comparison, model: str) -> str:
    """Return in words whether a model is shown to be better than each baseline in macro-F1 on these texts."""
    told = [each for each in comparison.differences if each.model == model and each.measure == "macro_f1"]
    if not told:
        return f"{model} is compared with no baseline here"
    parts = [
        f"{_IN_WORDS[each.shown]} {each.baseline} ({each.difference.value:+.3f}, "
        f"95 % interval {each.difference.low:+.3f} to {each.difference.high:+.3f})"
        for each in told
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
    """Return each model's counts (units, 3, 3)."""
    names = [str(each) for each in groups] if groups is not None else [str(place) for place in range(len(true))]
    _, unit = np.unique(names, return_inverse=True)
    found = {}
    for model, labels in said.items():
        counts = np.zeros((unit.max() + 1, len(LABELS), len(LABELS)), dtype=np.int64)
        np.add.at(counts, (unit, true, labels), 1)
        found[model] = counts
    return found


def _drawn(by_unit: Mapping[str, Counts], seed: int) -> dict[str, Counts]:
    """Return each model's counts (RESAMPLES, 3, 3) over units drawn with replacement, the same ones for all models."""
    if not by_unit:
        return {}
    units = len(next(iter(by_unit.values())))
    flat = np.concatenate([counts.reshape(units, -1) for counts in by_unit.values()], axis=1).astype(np.float64)
    draw = np.random.default_rng(seed)
    sums = [np.bincount(draw.integers(0, units, units), minlength=units) @ flat for _ in range(RESAMPLES)]
    by_model = np.rint(sums).astype(np.int64).reshape(RESAMPLES, len(by_unit), len(LABELS), len(LABELS))
    return {model: by_model[:, place] for place, model in enumerate(by_unit)}


def _estimate(value: float, drawn: Sequence[float]) -> Estimate:
    """Return a figure with the percentile interval of its draws (B. Efron, Annals of Statistics 7, 1979, 1-26)."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _evaluation(
    name: str, scores: Sequence[SentimentScore], true: NDArray[np.intp], confusion: Counts, drawn: Counts
) -> Evaluation:
    estimates = {
        measure: _estimate(function(confusion), [function(each) for each in drawn])
        for measure, function in _MEASURES.items()
    }
    right = np.array([LABELS.index(each.label) for each in scores]) == true
    forecasts = Forecasts.of([min(1.0, max(each.probabilities)) for each in scores], right)
    return Evaluation(
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


def _differences(whole: Mapping[str, Counts], drawn: Mapping[str, Counts]) -> tuple[Difference, ...]:
    return tuple(
        _difference(model, baseline, measure, whole, drawn)
        for model in whole
        for baseline in BASELINES
        if baseline in whole and model not in (baseline, "majority")
        for measure in MEASURES
    )


def _difference(
    model: str, baseline: str, measure: str, whole: Mapping[str, Counts], drawn: Mapping[str, Counts]
) -> Difference:
    function = _MEASURES[measure]
    pairs = zip(drawn[model], drawn[baseline], strict=True)
    difference = _estimate(
        function(whole[model]) - function(whole[baseline]), [function(one) - function(other) for one, other in pairs]
    )
    shown = "better" if difference.low > 0 else "worse" if difference.high < 0 else "neither"
    return Difference(model, baseline, measure, difference, shown)


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
