"""How right sentiment models are on labelled files of anybody, beside the test part of our own headlines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qubic_lab.bench.result import BenchResult, Table, interval_text
from qubic_lab.core import Progress, no_progress
from qubic_lab.oracle.sentiment.evaluation import MeasureEstimate, ModelComparison, compare, verdict
from qubic_lab.oracle.sentiment.labelled import HEADLINES_FILE, Columns, LabelledTexts, read_labelled
from qubic_lab.oracle.sentiment.models import DEFAULT, majority_of, make_model
from qubic_lab.oracle.sentiment.scores import SentimentModel, SentimentScore

MODELS = ("vader", "crypto-lexicon", DEFAULT)
CALIBRATED = 0.05
"""Up to this calibration error, probabilities are called calibrated."""
SCORED_TOGETHER = 64


@dataclass(frozen=True)
class FileAccuracy:
    """The models on one file; `what` names it."""

    what: str
    rows: int
    comparison: ModelComparison


@dataclass(frozen=True, kw_only=True)
class SentimentResult(BenchResult):
    """The models on each file; the first one is the test part of our headlines."""

    files: tuple[FileAccuracy, ...]
    default_model: str

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(file.what if place == 0 else "", f"{each.n}" if place == 0 else "", each.model),
                *(_text(each.accuracy), _text(each.macro_f1)),
                interval_text(each.calibration_error, *each.calibration_interval, ".3f"),
            )
            for file in self.files
            for place, each in enumerate(file.comparison.evaluations)
        ]
        yield Table(("file", "texts", "model", "accuracy", "macro-F1", "calibration error"), rows)
        yield "Intervals are 95 %: in brackets."
        for file in self.files:
            yield f"{file.what}: {verdict(file.comparison, DEFAULT)}; {_calibration(file.comparison)}"


def bench_sentiment(
    files: Sequence[Path],
    columns: Columns,
    finbert: Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> SentimentResult:
    """Judge the default model beside the majority of each file, two lexicons, and FinBERT if its folder is given.

    Args:
        files: with labelled texts.
        columns: how to read all of them.
        finbert: folder of a sequence classifier.
        seed: of the intervals.
        progress: called with each model's texts.

    Raises:
        InputError: a file cannot be read right.
        ModelError: the embedder's weights, or FinBERT's, are missing.
    """
    own = Columns("text", "label", where={"split": "test"}, group="group")
    sets = [("our headlines, test part", read_labelled(HEADLINES_FILE, own))]
    sets += [(each.name, read_labelled(each, columns)) for each in files]
    names = (*MODELS, *([f"finbert:{finbert}"] if finbert else []))
    models = [make_model(name) for name in names]
    judged = tuple(_judge(what, labelled, models, seed, progress) for what, labelled in sets)
    default = next(each for each in models if each.name == DEFAULT)
    return SentimentResult(files=judged, default_model=f"{default.name}@{default.version}")


def _judge(
    what: str, labelled: LabelledTexts, models: Sequence[SentimentModel], seed: int, progress: Progress
) -> FileAccuracy:
    scores: dict[str, list[SentimentScore]] = {}
    for model in (majority_of(labelled.labels), *models):
        found = scores[model.name] = []
        for start in range(0, len(labelled.texts), SCORED_TOGETHER):
            found += model.score(labelled.texts[start : start + SCORED_TOGETHER])
            progress(f"{what}: {model.name}", len(found), len(labelled.texts))
    return FileAccuracy(what, labelled.rows, compare(labelled.labels, scores, labelled.groups, seed))


def _text(estimate: MeasureEstimate) -> str:
    return interval_text(estimate.value, estimate.low, estimate.high, ".3f")


def _calibration(comparison: ModelComparison) -> str:
    found = next(each for each in comparison.evaluations if each.model == DEFAULT)
    low, high = found.calibration_interval
    within = "not calibrated" if low > CALIBRATED else "calibrated" if high <= CALIBRATED else "not shown to be either"
    return f"its probabilities are {within} (error up to {CALIBRATED:g}) there"
