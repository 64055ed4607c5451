"""The results of a comparison of two runs as frozen values, and how alike and how right their answers are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from qubic_lab import stats
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import is_checkable, judge

EQUIVALENCE_MARGIN = 0.03
"""Fixed beforehand: accuracies that differ by less are called equivalent."""
ALPHA = 0.05


@dataclass(frozen=True)
class Divergence:
    """The first position at which two answers differ, and the lead of the base's best logit there."""

    id: str
    position: int
    margin: float


@dataclass(frozen=True)
class RunLikeness:
    """How alike the answers of two runs are; the first run is the base.

    Logits count up to and including the first divergent position, while both have seen the same tokens. `kl_*` is
    KL(base || other) of the next-token distribution, in nats; `margin_min` is the smallest lead of the base's best
    logit over the second.
    """

    questions: int
    tokens: int
    token_identity: float
    logits_max_abs: float
    kl_mean: float
    kl_max: float
    margin_min: float
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True, kw_only=True)
class Case(RunLikeness):
    """N ranks against one rank at the same dtype, threads and batch; both must agree bit for bit.

    `measured_as` names a strategy with the same layers that was run instead. Tokens/s include prompts.
    """

    dtype: str
    ranks: int
    strategy: str
    layers: tuple[int, ...]
    batch: int
    tokens_per_s: float
    one_rank_tokens_per_s: float
    measured_as: str | None = None


@dataclass(frozen=True, kw_only=True)
class Variant(RunLikeness):
    """One rank against itself after a change of `what` (`threads` or `batch`); kernels may then round differently."""

    dtype: str
    what: str
    base: int
    other: int


@dataclass(frozen=True)
class TokenDifference:
    """Where our answer leaves the reference's, and the reference's lead for its own token there."""

    id: str
    position: int
    ours: str
    theirs: str
    margin: float


@dataclass(frozen=True, kw_only=True)
class ReferenceComparison(RunLikeness):
    """One rank against the transformers implementation (the base), greedy, as many prompts at once."""

    dtype: str
    library: str
    differences: tuple[TokenDifference, ...]


@dataclass(frozen=True)
class SystemAccuracy:
    """The number of right answers to checkable questions, with the 95 % Wilson interval of the share.

    `cut` answers reached the token limit; of these only what they had concluded is scored.
    """

    dtype: str
    system: str
    questions: int
    correct: int
    cut: int
    low: float
    high: float

    @property
    def cut_share(self) -> float:
        """The share of cut answers."""
        return self.cut / self.questions


@dataclass(frozen=True)
class PairedTests:
    """Tests of the difference of two accuracies on the same questions, other less baseline.

    `low` to `high` is Tango's 95 % interval, `tost_low` to `tost_high` the 90 % interval that must lie within the
    margin to be `equivalent`. `minimum_detectable` (power 80 %, two-sided 5 %) is None if there is none.
    """

    difference: float
    low: float
    high: float
    mcnemar_p: float
    tost_low: float
    tost_high: float
    equivalent: bool
    minimum_detectable: float | None


@dataclass(frozen=True)
class PairedAccuracy:
    """Two ways of running on the same checkable questions; identical tokens need no test."""

    dtype: str
    baseline: str
    other: str
    questions: int
    both: int
    only_baseline: int
    only_other: int
    neither: int
    identical: bool
    tests: PairedTests | None


@dataclass(frozen=True)
class AnswerRow:
    """A question, its reference answer and the model's answer (one rank, the first dtype and batch).

    `correct` is None if no rule can check the answer.
    """

    id: str
    kind: str
    question: str
    answer: str
    text: str
    tokens: int
    correct: bool | None
    cut: bool


@dataclass(frozen=True)
class SplitComparison:
    """All results of a comparison and its settings.

    `candidate` is the model whose weights the ranks ran, if it is not `model`; the hash of a split folder is that of
    the model in its manifest. `judged` says how many questions are `checkable` and why the others are not.
    """

    token_identity: float
    logits_max_abs: float
    model: str
    model_hash: str
    candidate: str
    candidate_hash: str
    meaningless: bool
    device: str
    threads: int
    commit: str
    seed: int
    questions: int
    checkable: int
    max_new_tokens: int
    equivalence_margin: float
    cases: tuple[Case, ...]
    reference: tuple[ReferenceComparison, ...]
    variants: tuple[Variant, ...]
    accuracy: tuple[SystemAccuracy, ...]
    paired: tuple[PairedAccuracy, ...]
    answers: tuple[AnswerRow, ...]
    judged: str = ""

    @property
    def verdict(self) -> Literal["SAME", "DIFFERENT"]:
        """SAME if the ranks gave the model's tokens, with logits equal bit for bit, in every case."""
        return "SAME" if self.token_identity == 1.0 and self.logits_max_abs == 0.0 else "DIFFERENT"

    @property
    def same_model(self) -> bool:
        """Whether the ranks ran the model itself, by its hash; a difference is then one of the split."""
        return not self.candidate or self.candidate_hash == self.model_hash


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
        largest = max(largest, logits_max_abs(base_TV, other_TV, steps))
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
        right=tuple(bool(judge(question, opening + answer.text, answer.cut)) for question, answer in checked),
        cut=tuple(answer.cut for _, answer in checked),
        token_ids=tuple(answer.token_ids for answer in answers),
    )


def accuracy(dtype: str, system: str, scored: ScoredAnswers) -> SystemAccuracy:
    """Return the accuracy of one way of running; at least one question must be checkable."""
    correct, questions = sum(scored.right), len(scored.right)
    low, high = stats.wilson_interval(correct, questions)
    return SystemAccuracy(dtype, system, questions, correct, sum(scored.cut), low, high)


def paired_accuracy(
    dtype: str, baseline: tuple[str, ScoredAnswers], other: tuple[str, ScoredAnswers]
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
        tests=None if identical else paired_tests(only_baseline, only_other, len(pairs)),
    )


def paired_tests(only_baseline: int, only_other: int, questions: int) -> PairedTests:
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
        equivalent=stats.is_equivalent(only_other, only_baseline, questions, EQUIVALENCE_MARGIN, ALPHA),
        minimum_detectable=stats.minimum_detectable_difference(questions, only_other + only_baseline, ALPHA),
    )


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the first position at which two answers differ or one ends, or None if they are equal."""
    for position, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def token_identity(answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Return the share of equal tokens over pairs of answers; a missing token counts as different."""
    total = sum(max(len(ours), len(theirs)) for ours, theirs in answers)
    equal = sum(a == b for ours, theirs in answers for a, b in zip(ours, theirs, strict=False))
    return equal / total if total else 1.0


def logits_max_abs(ours_TV: npt.NDArray[np.float32], theirs_TV: npt.NDArray[np.float32], steps: int) -> float:
    """Return the largest difference of two answers' logits at their first positions."""
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
