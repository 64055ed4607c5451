"""Compares a vote of k samples with one answer, and with other uses of the same tokens, from recorded answers.

With n samples of a question, a value at k is the mean over all sets of k of them if there are at most EXACT_SUBSETS,
else over RESAMPLED_SUBSETS random sets with a fixed seed. A tie counts as if one of the leading groups were drawn at
random. Tokens are generated tokens: a prompt is computed once for all samples.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubic_lab.consensus.certificate import DEFAULT_ERROR
from qubic_lab.consensus.stopping import replay
from qubic_lab.consensus.voting import Ballot, Group, decide
from qubic_lab.errors import InputError, check_choice, check_range
from qubic_lab.evals.paired import (
    McNemar,
    MeanEstimate,
    difference_estimate,
    mcnemar_tests,
    mean_estimate,
    minimum_detectable_mean,
    share_estimate,
)
from qubic_lab.evals.recorded import RecordedQuestion, RecordedSample

KS = (1, 3, 5, 8, 16)
MOST_EXAMPLES = 5
EXACT_SUBSETS = 20_000
RESAMPLED_SUBSETS = 4_000
METHODS = ("greedy", "longer greedy", "pass@1", "majority", "weighted", "oracle")
LENGTH_RULES = ("shortest", "longest", "median length")
ALL = "all"
"""The key of all question types together."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ExpectedVote:
    """The expected correctness of a vote on one question, and the share of tied votes."""

    right: float
    tied: float


@dataclass(frozen=True)
class CurvePoint:
    """The accuracy of a method with k answers, its mean tokens per question, and the share of tied votes.

    `cut` is the share of its answers that reached the token limit.
    """

    method: str
    k: int
    right: MeanEstimate
    tokens: float
    tied: float = 0.0
    cut: float = 0.0


@dataclass(frozen=True)
class Gain:
    """A method less a baseline on the same questions.

    `detectable` is the smallest mean difference found with power 80 %, or None if the spread is unknown.
    """

    method: MeanEstimate
    baseline: MeanEstimate
    difference: MeanEstimate
    detectable: float | None


@dataclass(frozen=True)
class EqualTokens:
    """A greedy answer with `factor` times the token limit, and the vote of `k` samples for no more tokens."""

    factor: int
    greedy_tokens: float
    k: int
    vote_tokens: float
    gain: Gain


@dataclass(frozen=True)
class AgreedWrongAnswer:
    """A wrong answer of more than half of a question's samples; `text` is the first of them."""

    id: str
    kind: str
    question: str
    reference: str
    text: str
    ballots: int
    samples: int


@dataclass(frozen=True)
class AgreeingWrong:
    """How often wrong answers agree, which no vote can notice.

    `questions` is the share of questions on which more than half of the samples give one wrong answer (Wilson). `pairs`
    is the chance that two wrong samples of a question say the same, over questions with at least two, or None.
    `examples` are those with the largest shares of ballots.
    """

    questions: MeanEstimate
    pairs: MeanEstimate | None
    examples: tuple[AgreedWrongAnswer, ...]


@dataclass(frozen=True)
class CertifiedVotes:
    """Votes that stop once their winner is certified or cannot change, against votes of all `k` samples.

    `certified` is the share of questions with a certificate, and `other_winner` of those with one for another answer
    than the most frequent of all recorded samples, k or more (Wilson). `saved` is the share of tokens that were not
    needed, and `difference` the right answers of these votes less those of all k.
    """

    k: int
    error: float
    certified: MeanEstimate
    other_winner: MeanEstimate
    saved: MeanEstimate
    difference: MeanEstimate


def oracle_at(row: RecordedQuestion, k: int) -> float:
    """Return the chance that at least one of k samples is right.

    Source: the unbiased estimator of M. Chen et al., "Evaluating large language models trained on code", arXiv
    2107.03374, section 2.1.
    """
    n, wrong = len(row.samples), int((~_right(row)).sum())
    return 1 - math.comb(wrong, k) / math.comb(n, k)


@functools.lru_cache(maxsize=8192)
def voted_at(row: RecordedQuestion, k: int, weighted: bool = False) -> ExpectedVote:
    """Return the expected result of a vote of k samples; the winner's answer is that of any of its voters.

    Samples without a final answer do not vote; if none votes, the vote is wrong.
    """
    groups = sorted({sample.group for sample in row.samples if sample.group is not None})
    if not groups:
        return ExpectedVote(0.0, 0.0)
    voters_NG = np.array([[sample.group == group for group in groups] for sample in row.samples], dtype=np.float64)
    weights_N = np.array([sample.weight if weighted else 1.0 for sample in row.samples])
    drawn_MN = _drawn(len(row.samples), k)
    votes_MG = _sums(drawn_MN, voters_NG * weights_N[:, None])
    # Sums of the same weights in another order may differ in the last bit.
    leads_MG = (votes_MG > 0) & (votes_MG >= votes_MG.max(axis=1, keepdims=True) * (1 - 1e-9))
    right_MG = _sums(drawn_MN, voters_NG * _right(row)[:, None]) / np.maximum(_sums(drawn_MN, voters_NG), 1)
    leaders_M = leads_MG.sum(axis=1)
    right_M = (leads_MG * right_MG).sum(axis=1) / np.maximum(leaders_M, 1)
    return ExpectedVote(float(right_M.mean()), float((leaders_M > 1).mean()))


def chosen_at(row: RecordedQuestion, k: int, rule: str) -> float:
    """Return the accuracy of a rule that chooses one of k samples; ties are drawn at random.

    The rule is one of LENGTH_RULES (by tokens), or a signal, whose highest value is chosen.
    """
    if rule == "median length":
        return _nearest_median(row, k)
    if rule in LENGTH_RULES:
        sign = 1 if rule == "longest" else -1
        scores = [float(sign * sample.tokens) for sample in row.samples]
    else:
        scores = [dict(sample.signals)[rule] for sample in row.samples]
    return _highest(scores, _right(row), k)


def vote(samples: Sequence[RecordedSample]) -> RecordedSample | None:
    """Hold one vote and return the first answer of the winning group.

    Ties go to the group that came first. None: no sample has a final answer.
    """
    winner = decide([Ballot(f"{number:06}", each.group) for number, each in enumerate(samples)], "plurality").winner
    return None if winner is None else next(sample for sample in samples if sample.group == winner)


def right_values(rows: Sequence[RecordedQuestion], method: str, k: int = 1) -> list[float]:
    """Return the correctness of a method, one of METHODS or a rule of `chosen_at`, for each judged question.

    `longer greedy` has k times the token limit; `greedy` and `pass@1` do not depend on k.

    Raises:
        InputError: there are no rows, one is not judged or has too few samples, or the method is unknown.
    """
    _check_rows(rows)
    check_choice("method", method, (*METHODS, *_rules(rows)))
    match method:
        case "greedy":
            return [float(bool(row.greedy.right)) for row in rows]
        case "longer greedy":
            return [float(bool(_longer(row, k).right)) for row in rows]
        case "pass@1":
            return [float(_right(row).mean()) for row in rows]
    for row in rows:
        check_range(f"k, with {len(row.samples)} samples of question {row.id!r},", k, 1, len(row.samples))
    match method:
        case "majority" | "weighted":
            return [voted_at(row, k, method == "weighted").right for row in rows]
        case "oracle":
            return [oracle_at(row, k) for row in rows]
        case _:
            return [chosen_at(row, k, method) for row in rows]


def mean_tokens(rows: Sequence[RecordedQuestion], method: str, k: int = 1) -> float:
    """Return a method's mean tokens per question; arguments as `right_values`."""
    if method == "greedy":
        tokens: list[float] = [row.greedy.tokens for row in rows]
    elif method == "longer greedy":
        tokens = [_longer(row, k).tokens for row in rows]
    else:
        samples = 1 if method == "pass@1" else k
        tokens = [samples * sum(sample.tokens for sample in row.samples) / len(row.samples) for row in rows]
    return sum(tokens) / len(tokens)


def cut_share(rows: Sequence[RecordedQuestion], method: str = "pass@1", k: int = 1) -> float:
    """Return the mean share of a method's answers that reached the token limit; arguments as `right_values`."""
    if method == "greedy":
        return sum(row.greedy.cut for row in rows) / len(rows)
    if method == "longer greedy":
        return sum(_longer(row, k).cut for row in rows) / len(rows)
    return sum(sum(sample.cut for sample in row.samples) / len(row.samples) for row in rows) / len(rows)


def curve(rows: Sequence[RecordedQuestion], ks: Sequence[int] | None = None, seed: int = 0) -> tuple[CurvePoint, ...]:
    """Return every method at every k, against its tokens; by default at all KS with enough samples."""
    _check_rows(rows)
    if ks is None:
        ks = [k for k in KS if k <= min(len(row.samples) for row in rows)]
    asked = [("greedy", 1), ("pass@1", 1)]
    factors = set.intersection(*({factor for factor, _ in row.longer} for row in rows))
    asked += [("longer greedy", factor) for factor in sorted(factors)]
    asked += [(method, k) for method in ("majority", "weighted", "oracle", *_rules(rows)) for k in ks]
    return tuple(
        CurvePoint(
            method=method,
            k=k,
            right=mean_estimate(right_values(rows, method, k), seed),
            tokens=mean_tokens(rows, method, k),
            tied=_tied(rows, method, k),
            cut=cut_share(rows, method, k),
        )
        for method, k in asked
    )


def gains(
    rows: Sequence[RecordedQuestion], k: int, method: str = "majority", baseline: str = "pass@1", seed: int = 0
) -> dict[str, Gain]:
    """Return a method's gain over a baseline (see `right_values`) by question type, and for all under ALL."""
    return {kind: _gain(some, (method, k), (baseline, k), seed) for kind, some in _by_kind(rows).items()}


def votes_against_greedy(rows: Sequence[RecordedQuestion], k: int) -> dict[str, McNemar]:
    """Compare the vote of each question's first k samples with its greedy answer, vote less greedy.

    The test needs right or wrong, so one vote is held; ties go to the group that came first. Holm's correction is over
    the question types, without ALL.
    """
    pairs = {}
    for kind, some in _by_kind(rows).items():
        winners = [vote(row.samples[:k]) for row in some]
        right = [winner is not None and bool(winner.right) for winner in winners]
        pairs[kind] = right, [bool(row.greedy.right) for row in some]
    return {**mcnemar_tests({ALL: pairs.pop(ALL)}), **mcnemar_tests(pairs)}


def equal_tokens(
    development: Sequence[RecordedQuestion],
    held_out: Sequence[RecordedQuestion],
    factor: int,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> EqualTokens:
    """Compare a majority with one greedy answer with `factor` times the limit, at equal tokens, on the held-out half.

    The vote's k is the best on the development half among those that take no more tokens there than the longer greedy
    answers; k = 1 is always allowed.
    """
    budget = mean_tokens(development, "longer greedy", factor)
    affordable = [k for k in sorted({1, *ks}) if k == 1 or mean_tokens(development, "majority", k) <= budget]
    means = {k: sum(right_values(development, "majority", k)) for k in affordable}
    best = max(affordable, key=lambda k: means[k])
    return EqualTokens(
        factor=factor,
        greedy_tokens=mean_tokens(held_out, "longer greedy", factor),
        k=best,
        vote_tokens=mean_tokens(held_out, "majority", best),
        gain=_gain(held_out, ("majority", best), ("longer greedy", factor), seed),
    )


def best_rule(development: Sequence[RecordedQuestion], k: int) -> str:
    """Return the length or signal of `chosen_at` with the best accuracy on a development half; ties go to the first.

    Judge the rule on other questions.
    """
    rules = _rules(development)
    sums = {rule: sum(right_values(development, rule, k)) for rule in rules}
    return max(rules, key=lambda rule: sums[rule])


def certified_votes(
    rows: Sequence[RecordedQuestion], k: int, error: float = DEFAULT_ERROR, seed: int = 0
) -> CertifiedVotes:
    """Hold each question's vote of its first k samples in their order, and stop it once its winner is certified."""
    certified, others, saved = 0, 0, list[float]()
    stopped, whole = list[float](), list[float]()
    for row in rows:
        samples = row.samples[:k]
        ballots = [Ballot(f"{number:06}", each.group) for number, each in enumerate(samples)]
        done = replay(ballots, [each.tokens for each in samples], rule="plurality", error=error)
        given = Counter[Group | None](each.group for each in row.samples if each.group is not None)
        certified += done.certified
        others += done.certified and given[done.winner] < max(given.values())
        saved.append(done.tokens_saved / max(1, sum(each.tokens for each in samples)))
        for right, winner in ((stopped, vote(samples[: done.taken])), (whole, vote(samples))):
            right.append(float(winner is not None and bool(winner.right)))
    return CertifiedVotes(
        k=k,
        error=error,
        certified=share_estimate(certified, len(rows)),
        other_winner=share_estimate(others, len(rows)),
        saved=mean_estimate(saved, seed),
        difference=difference_estimate(stopped, whole, seed),
    )


def agreeing_wrong(rows: Sequence[RecordedQuestion], seed: int = 0) -> AgreeingWrong:
    """Return how often wrong samples agree, over all samples of each question."""
    agreed = [found for row in rows if (found := _agreed(row)) is not None]
    agreed.sort(key=lambda each: -each.ballots / each.samples)
    pairs = [share for row in rows if (share := _wrong_pairs(row)) is not None]
    return AgreeingWrong(
        questions=share_estimate(len(agreed), len(rows)),
        pairs=mean_estimate(pairs, seed) if pairs else None,
        examples=tuple(agreed[:MOST_EXAMPLES]),
    )


def _gain(rows: Sequence[RecordedQuestion], method: tuple[str, int], baseline: tuple[str, int], seed: int) -> Gain:
    first, second = right_values(rows, *method), right_values(rows, *baseline)
    return Gain(
        method=mean_estimate(first, seed),
        baseline=mean_estimate(second, seed),
        difference=difference_estimate(first, second, seed),
        detectable=minimum_detectable_mean(first, second),
    )


def _highest(scores: Sequence[float], right: npt.NDArray[np.bool_], k: int) -> float:
    """Return the accuracy of the sample with the highest score among k, by counting subsets."""
    expected, below = 0.0, 0
    for score in sorted(set(scores)):
        equal = [is_right for is_right, other in zip(right, scores, strict=True) if other == score]
        # Subsets with this highest score; equal samples are equally likely.
        subsets = math.comb(below + len(equal), k) - math.comb(below, k)
        expected += subsets * sum(equal) / len(equal)
        below += len(equal)
    return expected / math.comb(len(scores), k)


def _nearest_median(row: RecordedQuestion, k: int) -> float:
    """Return the accuracy of the sample among k whose length is nearest to their median."""
    drawn_MK = _subsets(len(row.samples), k)
    length_MK = np.array([sample.tokens for sample in row.samples])[drawn_MK]
    distance_MK = abs(length_MK - np.median(length_MK, axis=1, keepdims=True))
    best_MK = distance_MK == distance_MK.min(axis=1, keepdims=True)
    return float(((best_MK * _right(row)[drawn_MK]).sum(axis=1) / best_MK.sum(axis=1)).mean())


def _agreed(row: RecordedQuestion) -> AgreedWrongAnswer | None:
    winner = vote(row.samples)
    if winner is None or winner.right:
        return None
    ballots = sum(sample.group == winner.group for sample in row.samples)
    if 2 * ballots <= len(row.samples):
        return None
    return AgreedWrongAnswer(row.id, row.kind, row.question, row.reference, winner.text, ballots, len(row.samples))


def _wrong_pairs(row: RecordedQuestion) -> float | None:
    """Return the share of pairs of wrong samples that say the same; those without a final answer never do."""
    wrong = [sample for sample in row.samples if not sample.right]
    if len(wrong) < 2:
        return None
    groups = Counter(sample.group for sample in wrong if sample.group is not None)
    return sum(math.comb(size, 2) for size in groups.values()) / math.comb(len(wrong), 2)


def _tied(rows: Sequence[RecordedQuestion], method: str, k: int) -> float:
    if method not in ("majority", "weighted"):
        return 0.0
    return sum(voted_at(row, k, method == "weighted").tied for row in rows) / len(rows)


def _by_kind(rows: Sequence[RecordedQuestion]) -> dict[str, Sequence[RecordedQuestion]]:
    kinds = dict.fromkeys(row.kind for row in rows)
    return {ALL: rows, **{kind: [row for row in rows if row.kind == kind] for kind in kinds}}


def _rules(rows: Sequence[RecordedQuestion]) -> tuple[str, ...]:
    """Return the rules of `chosen_at`: the lengths, and the signals that all samples have."""
    signals = [{name for name, _ in sample.signals} for row in rows for sample in row.samples]
    return *LENGTH_RULES, *sorted(set.intersection(*signals))


def _longer(row: RecordedQuestion, factor: int) -> RecordedSample:
    for known, sample in row.longer:
        if known == factor:
            return sample
    raise InputError(f"question {row.id!r} has no greedy answer with {factor} times the limit of tokens: record it")


def _right(row: RecordedQuestion) -> npt.NDArray[np.bool_]:
    return np.array([bool(sample.right) for sample in row.samples])


def _check_rows(rows: Sequence[RecordedQuestion]) -> None:
    if not rows:
        raise InputError("there are no recorded questions: give at least one")
    if unjudged := next((row.id for row in rows if not row.is_judged), None):
        raise InputError(f"question {unjudged!r} has no right answer: leave it out here, and look at its diversity")


def _sums(drawn_MN: Floats, values_NG: Floats) -> Floats:
    # Not a matrix product: starting its threads would cost more than these small sums.
    sums_MG: Floats = np.einsum("mn,ng->mg", drawn_MN, values_NG)
    return sums_MG


@functools.lru_cache(maxsize=32)
def _subsets(n: int, k: int) -> npt.NDArray[np.int64]:
    """Return sets of k of n samples, shape (M, k): all of them, or a random selection."""
    if math.comb(n, k) <= EXACT_SUBSETS:
        return np.array(list(itertools.combinations(range(n), k)))
    random = np.random.default_rng(0)
    return np.array([random.choice(n, k, replace=False) for _ in range(RESAMPLED_SUBSETS)])


@functools.lru_cache(maxsize=32)
def _drawn(n: int, k: int) -> Floats:
    """Return the same sets as indicator rows, shape (M, n)."""
    drawn_MN = np.zeros((len(_subsets(n, k)), n))
    np.put_along_axis(drawn_MN, _subsets(n, k), 1.0, axis=1)
    return drawn_MN
