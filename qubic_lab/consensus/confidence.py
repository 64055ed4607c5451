"""The probability that a vote's winner is right, calibrated from the vote's signals, or None.

A vote share is not a probability: five greedy copies always agree. So a curve from signals to probabilities is fitted
to a development split, which also chooses the method by cross-validation. Levels have a promise (`bands`): a second
curve is fitted to one half of the split, and the other half shows from which score on the promise holds. All is stored
as JSON with its evidence and applies to one model and one question type; for others there is no probability.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AwareDatetime, TypeAdapter

from qubic_lab import stats
from qubic_lab.checked_yaml import STRICT, check_content
from qubic_lab.consensus.bands import MOST_WRONG, Band, ConfidenceLevel, find_bands, level_of
from qubic_lab.consensus.calibrators import METHODS, Curve
from qubic_lab.consensus.voting import Decision
from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.stats import Floats

FOLDS = 5
FEWEST_QUESTIONS = 200
"""With 50, errors (ECE) of up to 0.19 were seen on held-out votes."""

SIGNALS = ("vote_share", "margin", "weight_share", "token_probability", "similarity", "tokens")


@dataclass(frozen=True)
class Signals:
    """Signals of a vote's winner, or of its leader if nobody won; None if unknown.

    `ballots` includes those without an answer. `margin` is the lead as a share. `token_probability` is the geometric
    mean of the winner's token probabilities. `similarity`, 0 to 1, and `tokens` are means over its answers; length is a
    baseline, because long answers of some models are wrong more often.
    """

    ballots: int
    vote_share: float
    margin: float
    weight_share: float
    token_probability: float | None = None
    similarity: float | None = None
    tokens: float | None = None

    @classmethod
    def of(
        cls,
        decision: Decision,
        logprobs: Sequence[float | None] = (),
        tokens: Sequence[int] = (),
        similarity: float | None = None,
    ) -> "Signals":
        """Return the signals of a decision; mean log probabilities, in nats, and tokens are those of its answers."""
        leader = decision.standings[0] if decision.standings else None
        known = [each for each in logprobs if each is not None]
        return cls(
            ballots=decision.ballots,
            vote_share=leader.ballot_share if leader else 0.0,
            margin=decision.margin,
            weight_share=leader.weight_share if leader else 0.0,
            token_probability=math.exp(fmean(known)) if known and len(known) == len(logprobs) else None,
            similarity=similarity,
            tokens=fmean(tokens) if tokens else None,
        )


@dataclass(frozen=True)
class Observation:
    """A vote on a question with a known answer: its signals, and whether its winner was right."""

    question: str
    signals: Signals
    right: bool


@dataclass(frozen=True)
class CalibrationCandidate:
    """A method with its signals, and its mean log loss in cross-validation, in nats."""

    method: str
    signals: tuple[str, ...]
    log_loss: float


@dataclass(frozen=True)
class SignalCurve:
    """A curve of a method, with the names of the signals that it takes.

    Raises:
        InputError: the curve is not of this method, or does not take these signals.
    """

    __pydantic_config__ = STRICT
    method: str
    signals: tuple[str, ...]
    curve: Curve

    def __post_init__(self) -> None:
        if not isinstance(self.curve, METHODS[check_choice("calibration method", self.method, METHODS)]):
            raise InputError(f"these are not the numbers of a {self.method} curve: calibrate again")
        for name in self.signals:
            check_choice("signal", name, SIGNALS)
        if self.curve.signals != len(self.signals):
            raise InputError(f"the curve takes {self.curve.signals} signals, not {len(self.signals)}: give as many")

    def __call__(self, signals: Sequence[Signals]) -> Floats:
        """Return the probability that each winner is right; an InputError if a required signal is unknown."""
        return self.curve(_matrix(signals, self.signals))


@dataclass(frozen=True)
class VoteCalibration:
    """Curves from signals to the probability that a winner is right, for one model (by hash) and one question type.

    `probability` is fitted to all observations. `score` is fitted to a half of the questions; the `bands` say from
    which of its values a level is given, and are found on the other half. `candidates` are all that were tried for the
    probability, the chosen one first. `data_sha256`, `observations`, `questions` and `right` describe the data.
    `ballots` are the numbers of ballots of the votes: the same share means different things for 3 and 5 ballots.
    """

    __pydantic_config__ = STRICT
    model: str
    question_type: str
    probability: SignalCurve
    score: SignalCurve
    bands: tuple[Band, ...]
    candidates: tuple[CalibrationCandidate, ...]
    data_sha256: str
    observations: int
    questions: int
    right: int
    ballots: tuple[int, ...]
    made_utc: AwareDatetime
    format: Literal[2] = 2

    def levels(self, signals: Sequence[Signals]) -> list[ConfidenceLevel]:
        """Return the level of each vote; an InputError if a required signal is unknown."""
        return [level_of(score, self.bands) for score in self.score(signals).tolist()]


def calibrate(
    observations: Sequence[Observation], model: str, question_type: str, made_utc: datetime
) -> VoteCalibration:
    """Choose a method and its signals by cross-validation, and fit it to all observations of a development split.

    The candidates are each method with each signal that is always known, the logistic curve also with all of them, and
    the base rate. The least mean log loss wins; ties go to the earlier candidate. Folds are made of questions, so votes
    on one question are never on both sides. The same is done on a half of the questions for the score of the bands,
    which are found on one vote of each other question. `model` is a hash.

    Raises:
        InputError: too few questions.
    """
    questions = {each.question for each in observations}
    check_at_least("the number of questions to calibrate on", len(questions), FEWEST_QUESTIONS)
    observations = sorted(observations, key=_line)  # so that sums round alike in any order
    half_N = _folds([each.question for each in observations], 2)
    first, second = ([each for each, of in zip(observations, half_N, strict=True) if of == half] for half in (0, 1))
    second = list({each.question: each for each in sorted(second, key=_digest)}.values())  # one, whatever its outcome
    tried = _try_all(observations)
    score = _fit(_try_all(first)[0], first)
    judged = [(score([each.signals for each in half]), _outcomes(half)) for half in (first, second)]
    return VoteCalibration(
        model=model,
        question_type=question_type,
        probability=_fit(tried[0], observations),
        score=score,
        bands=find_bands(*judged[0], *judged[1]),
        candidates=tuple(tried),
        data_sha256=hashlib.sha256("\n".join(map(_line, observations)).encode()).hexdigest(),
        observations=len(observations),
        questions=len(questions),
        right=sum(each.right for each in observations),
        ballots=tuple(sorted({each.signals.ballots for each in observations})),
        made_utc=made_utc,
    )


def _try_all(observations: Sequence[Observation]) -> list[CalibrationCandidate]:
    """Return all methods and signals with their losses in cross-validation, the best first."""
    signals, right_N = [each.signals for each in observations], _outcomes(observations)
    fold_N = _folds([each.question for each in observations], FOLDS)
    tried = []
    for method, names in _candidates(signals):
        fit, signals_NS = METHODS[method].fit, _matrix(signals, names)
        probability_N = np.empty(len(observations))
        for fold in range(FOLDS):
            held_out = fold_N == fold
            probability_N[held_out] = fit(signals_NS[~held_out], right_N[~held_out])(signals_NS[held_out])
        tried.append(CalibrationCandidate(method, names, log_loss(probability_N, right_N)))
    return sorted(tried, key=lambda each: each.log_loss)


def _fit(chosen: CalibrationCandidate, observations: Sequence[Observation]) -> SignalCurve:
    signals_NS = _matrix([each.signals for each in observations], chosen.signals)
    curve = METHODS[chosen.method].fit(signals_NS, _outcomes(observations))
    return SignalCurve(chosen.method, chosen.signals, curve)


def _outcomes(observations: Sequence[Observation]) -> Floats:
    return np.array([each.right for each in observations], dtype=np.float64)


def log_loss(probability_N: Floats, right_N: Floats) -> float:
    """Return the mean negative log probability of the outcomes, in nats."""
    given = np.where(right_N == 1, probability_N, 1 - probability_N)
    return float(-np.log(np.maximum(given, 1e-300)).mean())


def _candidates(signals: Sequence[Signals]) -> list[tuple[str, tuple[str, ...]]]:
    known = tuple(name for name in SIGNALS if all(getattr(each, name) is not None for each in signals))
    single = [(method, (name,)) for method in ("histogram", "isotonic", "logistic") for name in known]
    return [("base-rate", ()), *single, *([("logistic", known)] if len(known) > 1 else [])]


def _matrix(signals: Sequence[Signals], names: Sequence[str]) -> Floats:
    rows = [[getattr(each, name) for name in names] for each in signals]
    missing = next((name for row in rows for name, value in zip(names, row, strict=True) if value is None), None)
    if missing is not None:
        raise InputError(f"the signal {missing} is not known for every vote: leave it out")
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def _folds(questions: Sequence[str], folds: int) -> NDArray[np.intp]:
    """Return a fold per question, of equal sizes, by the hash of its name, so in any order."""
    by_hash = sorted(set(questions), key=lambda each: hashlib.sha256(each.encode()).digest())
    fold = {name: number % folds for number, name in enumerate(by_hash)}
    return np.array([fold[each] for each in questions])


def _line(observation: Observation) -> str:
    content = {"question": observation.question, "right": observation.right, "signals": vars(observation.signals)}
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _digest(observation: Observation) -> bytes:
    return hashlib.sha256(_line(observation).encode()).digest()


def save_calibration(calibration: VoteCalibration, path: Path) -> None:
    """Write a calibration as JSON; an InputError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TypeAdapter(VoteCalibration).dump_json(calibration, indent=1))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): give a file that can") from error


def load_calibration(path: Path) -> VoteCalibration:
    """Read and check a calibration; an InputError if the file cannot be read, or holds no valid calibration."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a calibration file") from error
    except ValueError as error:
        raise InputError(f"{path} is not a calibration: {error}") from error
    return check_content(VoteCalibration, content, f"{path} is not a calibration")


def load_calibrations(folder: Path) -> tuple[VoteCalibration, ...]:
    """Read all calibrations `*.json` of a folder, sorted by name; none if the folder is missing.

    Raises:
        InputError: one of them is invalid.
    """
    return tuple(load_calibration(path) for path in sorted(folder.glob("*.json")))


@dataclass(frozen=True)
class Confidence:
    """The probability that a winner is right and its level, or None if uncalibrated; `note` says why."""

    probability: float | None
    note: str
    level: ConfidenceLevel | None = None


def confidence_of(
    signals: Signals, model: str, question_type: str, calibrations: Iterable[VoteCalibration]
) -> Confidence:
    """Return the probability that a winner is right, by the newest calibration for this model and question type."""
    fitting = [each for each in calibrations if (each.model, each.question_type) == (model, question_type)]
    if not fitting:
        return Confidence(None, f"uncalibrated: none for this model and {question_type} questions")
    newest = max(fitting, key=lambda each: each.made_utc)
    if signals.ballots not in newest.ballots:
        known = ", ".join(map(str, newest.ballots))
        return Confidence(None, f"uncalibrated: fitted to votes of {known} ballots, not of {signals.ballots}")
    used = dict.fromkeys((*newest.probability.signals, *newest.score.signals))
    if missing := [name for name in used if getattr(signals, name) is None]:
        return Confidence(None, f"uncalibrated: {' and '.join(missing)} must be known")
    curve, level = newest.probability, newest.levels([signals])[0]
    note = f"{curve.method} on {', '.join(curve.signals) or 'no signal'}, {newest.observations} votes"
    if level in MOST_WRONG:
        note += f"; of votes at this level or a better one at most {MOST_WRONG[level]:.0%} are wrong"
    return Confidence(float(curve([signals])[0]), note, level)


@dataclass(frozen=True)
class ConfidenceReport:
    """The quality of confidences on `items` held-out questions; intervals are 95 %.

    `accuracy` is the share of right winners. `ece` is the expected calibration error over bins of equal mass
    (`…_equal_width`: of equal width), its interval is of the true error over these bins, and `ece_if_calibrated` and
    `…_95` are the mean and the 95 % quantile that perfectly calibrated confidences would have. `brier` is the mean
    squared error. `aurc` is the area under the risk-coverage curve, 1 − accuracy for a random order.
    """

    items: int
    accuracy: float
    ece: float
    ece_interval: tuple[float, float]
    ece_if_calibrated: float
    ece_if_calibrated_95: float
    ece_equal_width: float
    ece_equal_width_interval: tuple[float, float]
    brier: float
    brier_interval: tuple[float, float]
    brier_parts: stats.BrierParts
    aurc: float
    aurc_interval: tuple[float, float]
    reliability: tuple[stats.ReliabilityBin, ...]
    risk_coverage: tuple[stats.RiskAtCoverage, ...]


def judge_confidence(
    probability: ArrayLike, right: ArrayLike, resamples: int = stats.RESAMPLES, seed: int = 0
) -> ConfidenceReport:
    """Judge confidences by whether the winners were right, on questions held out from the fit.

    The intervals treat items as independent: pass one vote per question.
    """
    mass = stats.Forecasts.of(probability, right)
    width = stats.Forecasts.of(probability, right, equal_mass=False)
    mean_if, most_if = stats.calibration_error_if_calibrated(mass, resamples=resamples, seed=seed)

    def interval(statistic: Callable[[stats.Forecasts], float]) -> tuple[float, float]:
        return stats.bootstrap_interval(
            lambda rows: statistic(mass.take(rows)), len(mass), resamples=resamples, seed=seed
        )

    return ConfidenceReport(
        items=len(mass),
        accuracy=float(mass.happened.mean()),
        ece=stats.calibration_error(mass),
        ece_interval=stats.calibration_error_interval(mass, resamples=resamples, seed=seed),
        ece_if_calibrated=mean_if,
        ece_if_calibrated_95=most_if,
        ece_equal_width=stats.calibration_error(width),
        ece_equal_width_interval=stats.calibration_error_interval(width, resamples=resamples, seed=seed),
        brier=stats.brier_score(mass),
        brier_interval=interval(stats.brier_score),
        brier_parts=stats.brier_parts(mass),
        aurc=stats.risk_coverage_area(mass),
        aurc_interval=interval(stats.risk_coverage_area),
        reliability=stats.reliability_table(mass),
        risk_coverage=stats.risk_coverage(mass),
    )
