"""Checks voting and calibrated confidence against theory, with simulated voters whose truth is known.

The code for voting, calibration, dependence and stopping is the real one. A simulated voter gives the right option with
a known probability, and otherwise one of the wrong options, all equally likely. Each question has one common draw of
that kind; each voter copies it with probability √ρ, and otherwise draws its own. Two voters both copy it with
probability ρ, so the correlation of their correctness is exactly ρ. With ρ = 0 they are independent, with 1 copies.

The results are about decisions, not about language models: simulated questions are all equally difficult.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qubic_lab import stats
from qubic_lab.bench.result import BenchResult, Table, interval_text
from qubic_lab.consensus.bands import MOST_WRONG, ConfidenceLevel
from qubic_lab.consensus.certificate import DEFAULT_ERROR
from qubic_lab.consensus.confidence import (
    FEWEST_QUESTIONS,
    ConfidenceReport,
    Observation,
    Signals,
    calibrate,
    judge_confidence,
)
from qubic_lab.consensus.dependence import PastVote, effective_votes, error_correlation
from qubic_lab.consensus.stopping import replay
from qubic_lab.consensus.voting import Ballot, decide
from qubic_lab.errors import InputError, check_choice, check_range

VOTERS = ("simulated",)
RULE, FALLBACK = "majority", "plurality"
MOST_VOTERS = 32
MOST_OPTIONS = 26
MOST_QUESTIONS = 100_000
DEPENDENCE_QUESTIONS = 2_000
"""Questions of the development split from which ρ is estimated."""
STOPPING_QUESTIONS = 2_000
"""Held-out questions that are voted on again with early stopping."""
STOP_LEVELS = (None, 0.95)
"""The probability of the lead that is enough to stop, beside certainty; the certificate is a third rule."""
RIGHT = 0
"""The number of the right option."""

Votes = NDArray[np.int64]


@dataclass(frozen=True)
class LevelShare:
    """Questions whose confidence is at a level, and the share of right winners, with Wilson intervals.

    `wrong` is the share of wrong winners at this level and the better ones together; `most_wrong` is what they promise.
    """

    level: ConfidenceLevel
    questions: int
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    wrong: float | None
    wrong_interval: tuple[float, float] | None
    most_wrong: float | None

    def cells(self) -> tuple[str, ...]:
        right, wrong = "-", "-"
        if self.accuracy is not None and self.accuracy_interval is not None:
            right = interval_text(self.accuracy, *self.accuracy_interval, ".4f")
        if self.wrong is not None and self.wrong_interval is not None:
            wrong = interval_text(self.wrong, *self.wrong_interval, ".4f")
        promised = "-" if self.most_wrong is None else f"at most {self.most_wrong:g}"
        return self.level, f"{self.questions}", right, wrong, promised


@dataclass(frozen=True)
class Stopping:
    """Savings and costs of stopping once the winner is certain, or ahead with `level`, or certified at `error`.

    `samples_saved` is the share of samples that were not taken, `changed` the share of questions whose winner differs
    from that of all samples.
    """

    level: float | None
    error: float | None
    questions: int
    samples_saved: float
    samples_saved_interval: tuple[float, float]
    changed: float
    changed_interval: tuple[float, float]

    def cells(self) -> tuple[str, ...]:
        rule = "certain" if self.level is None else f"certain, or ahead with {self.level:g}"
        rule = rule if self.error is None else f"certain, or certified at {100 * self.error:g} %"
        saved = interval_text(self.samples_saved, *self.samples_saved_interval, ".1%")
        return rule, saved, interval_text(self.changed, *self.changed_interval, ".2%")


@dataclass(frozen=True)
class ConsensusResult(BenchResult):
    """Accuracy and confidence of a vote of simulated voters on held-out questions, with 95 % intervals.

    Attributes:
        questions: number of held-out questions; the development split has as many.
        expected_majority_accuracy: accuracy of the vote by theory with two options; None with more.
        single_accuracy: accuracy of one voter, as the mean over voters; `gain` is the vote's minus this.
        ece: expected calibration error of the confidences; `ece_if_calibrated` if every confidence were correct,
            `vote_share_ece` with the vote's share as its confidence.
        rho: correlation of errors, estimated from the votes; None if it is not defined (one voter, no errors, no
            successes). `effective_votes`: independent votes that k votes are worth by that estimate.
        method: method of calibration chosen on the development split, using `signals`.
    """

    voters: str
    k: int
    accuracy: float
    correlation: float
    options: int
    questions: int
    seed: int
    majority_accuracy: float
    majority_accuracy_interval: tuple[float, float]
    expected_majority_accuracy: float | None
    single_accuracy: float
    single_accuracy_interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    ece: float
    ece_interval: tuple[float, float]
    ece_if_calibrated: float
    vote_share_ece: float
    vote_share_ece_interval: tuple[float, float]
    rho: float | None
    rho_interval: tuple[float, float] | None
    effective_votes: float | None
    method: str
    signals: tuple[str, ...]
    levels: tuple[LevelShare, ...]
    stopping: tuple[Stopping, ...]
    confidence: ConfidenceReport
    simulated: bool = True

    def report(self) -> Iterator[Table | str]:
        theory = self.expected_majority_accuracy
        by_theory = "-" if theory is None else f"{theory:.4f} by theory"
        figures = [
            ("one voter's accuracy", self.single_accuracy, self.single_accuracy_interval, "-"),
            ("the vote's accuracy", self.majority_accuracy, self.majority_accuracy_interval, by_theory),
            ("gain", self.gain, self.gain_interval, "-"),
            ("ECE of the confidence", self.ece, self.ece_interval, f"{self.ece_if_calibrated:.4f} by chance alone"),
            ("ECE of the vote's share", self.vote_share_ece, self.vote_share_ece_interval, "-"),
        ]
        if self.rho is not None and self.rho_interval is not None:
            worth = f"{self.effective_votes:.2f} of {self.k} votes count"
            figures.append(("correlation of errors", self.rho, self.rho_interval, worth))
        rows = [
            (name, f"{value:{'+' if name == 'gain' else ''}.4f}", f"{low:.4f} to {high:.4f}", note)
            for name, value, (low, high), note in figures
        ]
        yield Table(("", "found", "95 % interval", "compared with"), rows)
        shares = ("right (95 % interval)", "wrong at this or a better level", "promised")
        yield Table(("confidence", "questions", *shares), [each.cells() for each in self.levels])
        header = ("stop when the winner is", "samples saved (95 % interval)", "other winners (95 % interval)")
        yield Table(header, [each.cells() for each in self.stopping])
        yield (
            f"Simulated: {self.k} voters, calibrated on as many other questions with "
            f"{', '.join(self.signals) or 'no signal'}; stopping on {self.stopping[0].questions} questions"
        )


def bench_consensus(
    voters: str = "simulated",
    accuracy: float = 0.6,
    correlation: float = 0.0,
    k: int = 5,
    options: int = 2,
    questions: int = 10_000,
    seed: int = 0,
) -> ConsensusResult:
    """Let `k` simulated voters vote on `questions` held-out questions, calibrated on as many others.

    They vote by majority, or else plurality. `accuracy` is that of each voter and `correlation` that between the
    correctness of two voters, both 0 to 1. Each question has `options` options. Equal seeds give equal results.

    Raises:
        InputError: a value is out of range.
    """
    check_choice("voters", voters, VOTERS)
    _check_simulation(accuracy, correlation, k, options, questions)
    draw = np.random.default_rng(seed)
    development_QK, held_out_QK = (simulate_votes(draw, questions, k, accuracy, correlation, options) for _ in range(2))
    calibration = calibrate(_observe(development_QK), voters, f"{options} options", datetime.now(UTC))

    held_out = _observe(held_out_QK)
    right_Q = np.array([each.right for each in held_out], dtype=np.float64)
    single_Q = (held_out_QK == RIGHT).mean(axis=1)
    signals = [each.signals for each in held_out]
    confidence_Q = calibration.probability(signals)
    confidence = judge_confidence(confidence_Q, right_Q, seed=seed)
    vote_share = stats.Forecasts.of([each.signals.vote_share for each in held_out], right_Q)
    return ConsensusResult(
        voters=voters,
        k=k,
        accuracy=accuracy,
        correlation=correlation,
        options=options,
        questions=questions,
        seed=seed,
        majority_accuracy=float(right_Q.mean()),
        majority_accuracy_interval=stats.wilson_interval(int(right_Q.sum()), questions),
        expected_majority_accuracy=theoretical_accuracy(k, accuracy, correlation) if options == 2 else None,
        single_accuracy=float(single_Q.mean()),
        single_accuracy_interval=_mean_interval(single_Q, seed),
        gain=float((right_Q - single_Q).mean()),
        gain_interval=_mean_interval(right_Q - single_Q, seed),
        ece=confidence.ece,
        ece_interval=confidence.ece_interval,
        ece_if_calibrated=confidence.ece_if_calibrated,
        vote_share_ece=stats.calibration_error(vote_share),
        vote_share_ece_interval=stats.calibration_error_interval(vote_share, seed=seed),
        **_dependence(development_QK[:DEPENDENCE_QUESTIONS], seed),
        method=calibration.probability.method,
        signals=calibration.probability.signals,
        levels=_level_shares(calibration.levels(signals), right_Q.tolist()),
        stopping=tuple(
            _stopping(held_out_QK[:STOPPING_QUESTIONS], level, error, seed)
            for level, error in (*((level, None) for level in STOP_LEVELS), (None, DEFAULT_ERROR))
        ),
        confidence=confidence,
    )


def simulate_votes(
    draw: np.random.Generator, questions: int, k: int, accuracy: float, correlation: float, options: int
) -> Votes:
    """Return the option that each voter chooses for each question, 0 being the right one; see the module docstring."""

    def answers(width: int) -> Votes:
        is_right = draw.random((questions, width)) < accuracy
        return np.where(is_right, RIGHT, draw.integers(1, options, (questions, width)))

    common_Q1, own_QK = answers(1), answers(k)
    copies_QK = draw.random((questions, k)) < math.sqrt(correlation)
    return np.where(copies_QK, common_Q1, own_QK)


def theoretical_accuracy(k: int, accuracy: float, correlation: float) -> float:
    """Return the accuracy of the majority of simulated voters with two options; half of the ties are right.

    Given the number of voters that copy the common draw, the right answers of the others are binomial. With ρ = 0 this
    is Condorcet's sum.
    """
    total = 0.0
    for copies, probability in enumerate(_binomial(k, math.sqrt(correlation))):
        for common_right, share in ((1, accuracy), (0, 1 - accuracy)):
            for own_right, chance in enumerate(_binomial(k - copies, accuracy)):
                lead = 2 * (copies * common_right + own_right) - k
                total += probability * share * chance * (0.5 if lead == 0 else float(lead > 0))
    return total


def _check_simulation(accuracy: float, correlation: float, k: int, options: int, questions: int) -> None:
    for what, share in (("accuracy", accuracy), ("correlation", correlation)):
        if not 0.0 <= share <= 1.0:
            raise InputError(f"{what} is {share}: it must lie between 0 and 1")
    check_range("k", k, 1, MOST_VOTERS)
    check_range("options", options, 2, MOST_OPTIONS)
    check_range("questions", questions, FEWEST_QUESTIONS, MOST_QUESTIONS)


def _binomial(draws: int, share: float) -> list[float]:
    return [math.comb(draws, n) * share**n * (1 - share) ** (draws - n) for n in range(draws + 1)]


def _ballots(options: Sequence[int]) -> list[Ballot]:
    return [Ballot(f"voter-{number:02d}", option) for number, option in enumerate(options)]


def _observe(votes_QK: Votes) -> list[Observation]:
    """Vote on each question; equal sets of votes are computed once."""

    @cache
    def vote(options: tuple[int, ...]) -> tuple[Signals, bool]:
        decision = decide(_ballots(options), RULE, FALLBACK)
        return Signals.of(decision), decision.winner == RIGHT

    return [Observation(f"{number}", *vote(tuple(row))) for number, row in enumerate(votes_QK.tolist())]


def _history(votes_QK: Votes) -> list[PastVote]:
    return [
        PastVote(f"{question}", f"{voter}", option, option == RIGHT)
        for question, row in enumerate(votes_QK.tolist())
        for voter, option in enumerate(row)
    ]


def _stopping(votes_QK: Votes, level: float | None, error: float | None, seed: int) -> Stopping:
    @cache
    def stopped(options: tuple[int, ...]) -> tuple[float, bool]:
        done = replay(_ballots(options), [1] * len(options), level, RULE, FALLBACK, error)
        return done.tokens_saved / len(options), done.winner != done.full_winner

    saved_Q, changed_Q = np.array([stopped(tuple(row)) for row in votes_QK.tolist()], dtype=np.float64).T
    return Stopping(
        level=level,
        error=error,
        questions=len(votes_QK),
        samples_saved=float(saved_Q.mean()),
        samples_saved_interval=_mean_interval(saved_Q, seed),
        changed=float(changed_Q.mean()),
        changed_interval=stats.wilson_interval(int(changed_Q.sum()), len(votes_QK)),
    )


def _level_shares(level_Q: Sequence[ConfidenceLevel], right_Q: Sequence[float]) -> tuple[LevelShare, ...]:
    found, votes, wrong = [], 0, 0
    for level in ConfidenceLevel:
        outcomes = [right for at, right in zip(level_Q, right_Q, strict=True) if at is level]
        right = int(sum(outcomes))
        votes, wrong = votes + len(outcomes), wrong + len(outcomes) - right
        found.append(
            LevelShare(
                level=level,
                questions=len(outcomes),
                accuracy=right / len(outcomes) if outcomes else None,
                accuracy_interval=stats.wilson_interval(right, len(outcomes)) if outcomes else None,
                wrong=wrong / votes if votes else None,
                wrong_interval=stats.wilson_interval(wrong, votes) if votes else None,
                most_wrong=MOST_WRONG.get(level),
            )
        )
    return tuple(found)


def _dependence(votes_QK: Votes, seed: int) -> dict[str, Any]:
    """Return how much voters err together, and how many independent votes they are worth, as fields of a result."""
    found = error_correlation(_history(votes_QK), seed=seed)
    if found is None:
        return {"rho": None, "rho_interval": None, "effective_votes": None}
    worth = effective_votes([1.0] * votes_QK.shape[1], found.rho)
    return {"rho": found.rho, "rho_interval": found.rho_interval, "effective_votes": worth}


def _mean_interval(values_Q: stats.Floats, seed: int) -> tuple[float, float]:
    return stats.bootstrap_interval(lambda rows: float(values_Q[rows].mean()), len(values_Q), seed=seed)
