"""From the answers of two ways of running to how alike and how right they are: no process is started here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubic_lab.evals.comparison import Divergence, PairedAccuracy, PairedTests, RunLikeness, SystemAccuracy
from qubic_lab.evals.identity import first_divergence, kl_divergences, logits_max_abs, token_identity, top_margins
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import is_checkable, is_right
from qubic_lab.stats import (
    is_equivalent,
    mcnemar_exact,
    minimum_detectable_difference,
    tango_interval,
    wilson_interval,
)

EQUIVALENCE_MARGIN = 0.03
"""Set beforehand: two ways whose shares of right answers differ by less are called equivalent."""
ALPHA = 0.05


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer; a `cut` one ended at the limit of new tokens."""

    token_ids: tuple[int, ...]
    text: str
    cut: bool


WithLogits = tuple[GreedyAnswer, npt.NDArray[np.float32]]
"""An answer and its fp32 logits, shape (tokens, V)."""


@dataclass(frozen=True)
class ScoredAnswers:
    """Which of the checkable questions a way of running answered rightly, and which answers were cut."""

    right: tuple[bool, ...]
    cut: tuple[bool, ...]
    token_ids: tuple[tuple[int, ...], ...]


def likeness(ids: Sequence[str], base: Iterable[WithLogits], other: Iterable[WithLogits]) -> RunLikeness:
    """Compare answers to the same questions, given by id, pair by pair: logits are large, and each is seen once."""
    pairs, divergences, largest, kl, margins = [], [], 0.0, [], []
    for id, (ours, base_TV), (theirs, other_TV) in zip(ids, base, other, strict=True):
        position = first_divergence(ours.token_ids, theirs.token_ids)
        steps = min(len(base_TV), len(other_TV)) if position is None else position + 1
        lead_T = top_margins(base_TV[:steps])
        largest = max(largest, logits_max_abs(base_TV, other_TV, position))
        equal = np.array_equal(base_TV[:steps], other_TV[:steps])  # the usual case, and KL over a vocabulary is slow
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
    """Score the answers to checkable questions; `opening` is what the prompt had already begun the answer with."""
    checked = [
        (question, answer) for question, answer in zip(questions, answers, strict=True) if is_checkable(question)
    ]
    return ScoredAnswers(
        right=tuple(is_right(question, opening + answer.text) for question, answer in checked),
        cut=tuple(answer.cut for _, answer in checked),
        token_ids=tuple(answer.token_ids for answer in answers),
    )


def accuracy(dtype: str, system: str, scored: ScoredAnswers) -> SystemAccuracy:
    """Count right and cut answers of one way of running; there must be a checkable question."""
    correct, questions = sum(scored.right), len(scored.right)
    low, high = wilson_interval(correct, questions)
    return SystemAccuracy(dtype, system, questions, correct, sum(scored.cut), low, high)


def paired_accuracy(
    dtype: str,
    baseline: tuple[str, ScoredAnswers],
    other: tuple[str, ScoredAnswers],
    margin: float = EQUIVALENCE_MARGIN,
) -> PairedAccuracy:
    """Compare two named ways on the same questions; there must be a checkable one."""
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
    """Return the tests of two paired shares of right answers, other less baseline."""
    low, high = tango_interval(only_other, only_baseline, questions, 1 - ALPHA)
    tost_low, tost_high = tango_interval(only_other, only_baseline, questions, 1 - 2 * ALPHA)
    return PairedTests(
        difference=(only_other - only_baseline) / questions,
        low=low,
        high=high,
        mcnemar_p=mcnemar_exact(only_other, only_baseline),
        tost_low=tost_low,
        tost_high=tost_high,
        equivalent=is_equivalent(only_other, only_baseline, questions, margin, ALPHA),
        minimum_detectable=minimum_detectable_difference(questions, only_other + only_baseline, ALPHA),
    )
