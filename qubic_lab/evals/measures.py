"""Measures how alike and how right the answers of two runs are: pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubic_lab import stats
from qubic_lab.evals.comparison import Divergence, PairedAccuracy, PairedTests, RunLikeness, SystemAccuracy
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import is_checkable, is_right

EQUIVALENCE_MARGIN = 0.03
"""Fixed beforehand: accuracies that differ by less are called equivalent."""
ALPHA = 0.05


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer; a `cut` one reached the token limit."""

    token_ids: tuple[int, ...]
    text: str
    cut: bool


WithLogits = tuple[GreedyAnswer, npt.NDArray[np.float32]]
"""An answer and its fp32 logits, shape (tokens, V)."""


@dataclass(frozen=True)
class ScoredAnswers:
    """Which checkable questions were answered correctly, and which answers were cut."""

    right: tuple[bool, ...]
    cut: tuple[bool, ...]
    token_ids: tuple[tuple[int, ...], ...]


def likeness(ids: Sequence[str], base: Iterable[WithLogits], other: Iterable[WithLogits]) -> RunLikeness:
    """Compare answers to the same questions pair by pair; logits are large, so each is read once."""
    pairs, divergences, largest, kl, margins = [], [], 0.0, [], []
    for id, (ours, base_TV), (theirs, other_TV) in zip(ids, base, other, strict=True):
        position = first_divergence(ours.token_ids, theirs.token_ids)
        steps = min(len(base_TV), len(other_TV)) if position is None else position + 1
        lead_T = top_margins(base_TV[:steps])
        largest = max(largest, logits_max_abs(base_TV, other_TV, position))
        equal = np.array_equal(base_TV[:steps], other_TV[:steps])  # the usual case; KL over a vocabulary is slow
        kl.append(np.zeros(steps) if equal else kl_divergences(base_TV[:steps], other_TV[:steps]))
        margins.append(lead_T)
        pairs.append((ours.token_ids, theirs.token_ids))
        if position is not None:
            divergences.append(Divergence(id, position, float(lead_T[position])))
    return RunLikeness(
        questions=len(pairs),
        tokens=sum(len(tokens) for tokens, _ in pairs),
        token_identity=token_identity(pairs),
        logits_max_abs=largest,
        kl_mean=float(np.concatenate(kl).mean()),
        kl_max=float(np.concatenate(kl).max()),
        margin_min=float(np.concatenate(margins).min()),
        divergences=tuple(divergences),
    )


def score(questions: Sequence[Question], answers: Sequence[GreedyAnswer], opening: str = "") -> ScoredAnswers:
    """Score the answers to checkable questions; `opening` is the beginning of the answer that the prompt contains."""
    checked = [
        (question, answer) for question, answer in zip(questions, answers, strict=True) if is_checkable(question)
    ]
    return ScoredAnswers(
        right=tuple(is_right(question, opening + answer.text) for question, answer in checked),
        cut=tuple(answer.cut for _, answer in checked),
        token_ids=tuple(answer.token_ids for answer in answers),
    )


def accuracy(dtype: str, system: str, scored: ScoredAnswers) -> SystemAccuracy:
    """Return the accuracy of one way of running; at least one question must be checkable."""
    correct, questions = sum(scored.right), len(scored.right)
    low, high = stats.wilson_interval(correct, questions)
    return SystemAccuracy(dtype, system, questions, correct, sum(scored.cut), low, high)


def paired_accuracy(
    dtype: str,
    baseline: tuple[str, ScoredAnswers],
    other: tuple[str, ScoredAnswers],
    margin: float = EQUIVALENCE_MARGIN,
) -> PairedAccuracy:
    """Compare two named ways of running on the same questions; at least one must be checkable."""
    pairs = list(zip(baseline[1].right, other[1].right, strict=True))
    identical = baseline[1].token_ids == other[1].token_ids
    only_baseline, only_other = pairs.count((True, False)), pairs.count((False, True))
    return PairedAccuracy(
        dtype=dtype,
        baseline=baseline[0],
        other=other[0],
        questions=len(pairs),
        both=pairs.count((True, True)),
        only_baseline=only_baseline,
        only_other=only_other,
        neither=pairs.count((False, False)),
        identical=identical,
        tests=None if identical else paired_tests(only_baseline, only_other, len(pairs), margin),
    )


def paired_tests(only_baseline: int, only_other: int, questions: int, margin: float) -> PairedTests:
    """Return the tests of two paired accuracies, other less baseline."""
    low, high = stats.tango_interval(only_other, only_baseline, questions, 1 - ALPHA)
    tost_low, tost_high = stats.tango_interval(only_other, only_baseline, questions, 1 - 2 * ALPHA)
    return PairedTests(
        difference=(only_other - only_baseline) / questions,
        low=low,
        high=high,
        mcnemar_p=stats.mcnemar_exact(only_other, only_baseline),
        tost_low=tost_low,
        tost_high=tost_high,
        equivalent=stats.is_equivalent(only_other, only_baseline, questions, margin, ALPHA),
        minimum_detectable=stats.minimum_detectable_difference(questions, only_other + only_baseline, ALPHA),
    )


def equal_tokens(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return the number of positions at which two answers have the same token."""
    return sum(a == b for a, b in zip(ours, theirs, strict=False))


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the first position at which two answers differ or one ends, or None if they are equal."""
    for position, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def token_identity(answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Return the share of equal tokens over pairs of answers; a missing token counts as different."""
    total = sum(max(len(ours), len(theirs)) for ours, theirs in answers)
    return sum(equal_tokens(ours, theirs) for ours, theirs in answers) / total if total else 1.0


def logits_max_abs(
    ours_TV: npt.NDArray[np.float32], theirs_TV: npt.NDArray[np.float32], divergence: int | None
) -> float:
    """Return the largest difference of two answers' logits up to and including the first divergent position."""
    steps = min(len(ours_TV), len(theirs_TV))
    if divergence is not None:
        steps = min(steps, divergence + 1)
    return float(np.abs(ours_TV[:steps] - theirs_TV[:steps]).max(initial=0.0))


def kl_divergences(base_TV: npt.NDArray[np.float32], other_TV: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return KL(base || other) of the next-token distributions at each position, in nats, shape (T,).

    Equal logits give exactly 0.

    Source: S. Kullback and R. A. Leibler, Annals of Mathematical Statistics 22 (1951), 79-86.
    """
    base, other = _log_softmax(base_TV), _log_softmax(other_TV)
    return np.asarray(np.maximum(0.0, (np.exp(base) * (base - other)).sum(axis=-1)))  # rounding can leave -1e-17


def top_margins(logits_TV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the lead of the best logit over the second at each position, shape (T,)."""
    best_two = np.partition(logits_TV, -2, axis=-1)[:, -2:]
    return np.asarray(best_two[:, 1] - best_two[:, 0])


def _log_softmax(logits_TV: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits_TV.astype(np.float64) - logits_TV.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
