"""Evaluation of sentiment models on labelled texts of anybody's files, with their own column names and labels."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.model.file_tables import FileTable, read_table
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentScore
from qubic_lab.stats import RESAMPLES, Forecasts, calibration_error, calibration_error_if_calibrated

BASELINES = ("majority", "vader")
"""The models that others are compared with."""
SKIP = "skip"
"""Rows whose label is mapped to this are left out."""
_SPELLINGS = {
    "negative": ("negative", "neg", "bearish", "bear", "bad", "-", "down", "very negative", "sell"),
    "neutral": ("neutral", "neu", "none", "mixed", "hold", "sideways"),
    "positive": ("positive", "pos", "bullish", "bull", "good", "+", "up", "very positive", "buy"),
}
_KNOWN = {spelling: label for label, spellings in _SPELLINGS.items() for spelling in spellings}
_SIGNS = {-1: "negative", 0: "neutral", 1: "positive"}
_NUMBER = re.compile(r"[-+]?\d+(?:\.0+)?")


@dataclass(frozen=True)
class LabelledTexts:
    """The labelled texts of a file with `rows` rows; `left_out`: how many of these do not count, by reason."""

    file: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None
    rows: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class LabelledHeadline:
    """A headline with the number of its label, and its group."""

    text: str
    label: int
    group: str


def read_examples(path: Path, split: str = "train") -> list[LabelledHeadline]:
    """Return the headlines of one part, in the file's order."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        LabelledHeadline(row["text"], LABELS.index(row["label"]), row["group"]) for row in rows if row["split"] == split
    ]


def read_labelled(
    path: Path, text: str, label: str, mapping: Mapping[str, str], where: Mapping[str, str], group: str | None = None
) -> LabelledTexts:
    """Read the texts of a file, CSV, JSON lines or Parquet, with their labels.

    Args:
        path: the file.
        text: column of the texts.
        label: column of the labels.
        mapping: meaning of the file's labels, in addition to common spellings; see `read_labels`.
        where: only rows with these values in these columns.
        group: column whose equal values mark variants of a text.

    Raises:
        InputError: the file or a column is missing, a label is not known, or no row is left.
    """
    wanted = {text.lower(), label.lower()}
    try:
        table = read_table(path, lambda names: any(name.lower() in wanted for name in names))
    except InputError:  # if there is no such header, take any, so that an error can suggest one of its names
        table = read_table(path, lambda names: len(names) > 1)
    places = {name: _place(table, name) for name in (text, label, *where, *([group] if group else []))}
    chosen = [row for row in table.rows if all(_cell(row[places[name]]) == value for name, value in where.items())]
    written = [row for row in chosen if _cell(row[places[text]])]
    given = [row for row in written if _cell(row[places[label]])]
    labels = read_labels([_cell(row[places[label]]) for row in given], mapping)
    kept = [(row, each) for row, each in zip(given, labels, strict=True) if each is not None]
    if not kept:
        raise InputError(
            f"{table.file}: none of {len(table.rows)} rows has a text and a label that count: "
            f"check --text {text}, --label {label}{' and --where' if where else ''}"
        )
    return LabelledTexts(
        file=table.file,
        texts=tuple(_cell(row[places[text]]) for row, _ in kept),
        labels=tuple(each for _, each in kept),
        groups=tuple(_cell(row[places[group]]) for row, _ in kept) if group else None,
        rows=len(table.rows),
        left_out={
            "other rows": len(table.rows) - len(chosen),
            "empty texts": len(chosen) - len(written),
            "no label": len(written) - len(given),
            "skipped": len(given) - len(kept),
        },
    )


def _place(table: FileTable, name: str) -> int:
    """Return the number of a column; its name may differ in case."""
    exact = [place for place, each in enumerate(table.header) if each == name]
    alike = exact or [place for place, each in enumerate(table.header) if each.lower() == name.lower()]
    if not alike:
        raise InputError(f"{table.file}: no column {name!r}: {did_you_mean(name, table.header)}")
    return alike[0]


def _cell(value: object) -> str:
    """Return a cell as text; missing values are empty."""
    if value is None or value != value:
        return ""
    return " ".join(str(value).split())


def read_label(spelling: object) -> str:
    """Return the label that a word stands for.

    Raises:
        InputError: an unknown word.
    """
    label = _KNOWN.get(_plain(spelling))
    if label is None:
        shown = str(spelling)[:60]
        raise InputError(
            f"unknown label {shown!r}: {did_you_mean(_plain(shown), LABELS)}; say what it means, "
            f"such as --map {shown!r}=neutral, or =skip to leave such rows out"
        )
    return label


def read_labels(spellings: Sequence[object], mapping: Mapping[str, str] | None = None) -> list[str | None]:
    """Return the label of each spelling; None for those to leave out.

    Common spellings of words are known, and the numbers -1, 0 and 1 if -1 occurs: 0, 1 and 2, or 0 and 1 alone, mean
    different things in different files.

    Args:
        spellings: as they occur in a file.
        mapping: labels, or "skip", of spellings that are unknown or mean something else in this file.

    Raises:
        InputError: an unknown label, or ambiguous numbers.
    """
    for theirs, ours in (mapping or {}).items():
        if ours not in (*LABELS, SKIP):
            raise InputError(f"--map {theirs}={ours}: {ours!r} is no label: {did_you_mean(ours, (*LABELS, SKIP))}")
    mapped = {_plain(theirs): ours for theirs, ours in (mapping or {}).items()}
    written = {_plain(each): str(each) for each in spellings[::-1]}
    distinct = [plain for plain in dict.fromkeys(map(_plain, spellings)) if plain not in mapped]
    numbers = {int(float(each)) for each in distinct if _NUMBER.fullmatch(each)}
    if numbers and not (numbers <= set(_SIGNS) and -1 in numbers):
        shown = ", ".join(map(str, sorted(numbers)[:6]))
        raise InputError(
            f"labels are the numbers {shown}, which mean different things in different files: say which is which, "
            "such as --map 0=negative --map 1=neutral --map 2=positive"
        )
    known = {
        each: _SIGNS[int(float(each))] if _NUMBER.fullmatch(each) else read_label(written[each]) for each in distinct
    }
    known |= mapped
    return [None if known[_plain(each)] == SKIP else known[_plain(each)] for each in spellings]


def _plain(spelling: object) -> str:
    text = " ".join(str(spelling).strip().lower().replace("_", " ").split())
    return str(int(float(text))) if _NUMBER.fullmatch(text) else text


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
) -> ModelComparison:
    """Return the comparison of models on the same labelled texts, at least one.

    Intervals are percentiles of a bootstrap (B. Efron, Annals of Statistics 7, 1979, 1-26); all models use the same
    resamples, so differences are paired. If texts are variants of each other, whole groups are resampled.

    Args:
        truth: label of each text.
        scores: of each text, by model.
        groups: of each text; None: each text is a group.
        seed: of the resamples.
    """
    true = np.array([LABELS.index(label) for label in truth], np.intp)
    said = {name: np.array([LABELS.index(each.label) for each in given], np.intp) for name, given in scores.items()}
    whole = {name: confusion_of(true, labels) for name, labels in said.items()}
    units, drawn = _resample(true, said, groups, seed)
    evaluations = tuple(_evaluation(name, scores[name], true, whole[name], drawn[name]) for name in scores)
    return ModelComparison(len(truth), units, evaluations, _differences(whole, drawn))


def verdict(comparison: ModelComparison, model: str) -> str:
    """Return a sentence: whether a model is shown to be better than each baseline in macro-F1 on these texts."""
    words = {
        "better": "shown to be better than",
        "worse": "shown to be worse than",
        "neither": "not shown to be better or worse than",
    }
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


def _estimate(value: Floats, drawn: Floats) -> MeasureEstimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return MeasureEstimate(float(value), float(low), float(high))


def _evaluation(
    name: str, scores: Sequence[SentimentScore], true: NDArray[np.intp], confusion: Floats, drawn: Floats
) -> ModelEvaluation:
    from sklearn.metrics import precision_recall_fscore_support

    said = [LABELS.index(each.label) for each in scores]
    forecasts = Forecasts.of([min(1.0, max(each.probabilities)) for each in scores], np.equal(said, true))
    figures = zip(*precision_recall_fscore_support(true, said, labels=range(len(LABELS)), zero_division=0), strict=True)
    return ModelEvaluation(
        model=name,
        version=scores[0].version,
        n=len(true),
        accuracy=_estimate(accuracy(confusion), accuracy(drawn)),
        macro_f1=_estimate(macro_f1(confusion), macro_f1(drawn)),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
        labels={
            label: LabelFigures(int(texts), *map(float, shares))
            for label, (*shares, texts) in zip(LABELS, figures, strict=True)
        },
        calibration_error=calibration_error(forecasts),
        calibration_luck=calibration_error_if_calibrated(forecasts)[1],
    )


def _differences(whole: Mapping[str, Floats], drawn: Mapping[str, Floats]) -> tuple[ModelDifference, ...]:
    found = []
    for model, baseline in ((model, baseline) for model in whole for baseline in BASELINES if baseline in whole):
        if model in (baseline, "majority"):
            continue
        for name, measure in _MEASURES.items():
            less = measure(whole[model]) - measure(whole[baseline])
            difference = _estimate(less, measure(drawn[model]) - measure(drawn[baseline]))
            shown = "better" if difference.low > 0 else "worse" if difference.high < 0 else "neither"
            found.append(ModelDifference(model, baseline, name, difference, shown))
    return tuple(found)
