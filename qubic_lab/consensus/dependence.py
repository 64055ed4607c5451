"""How many independent votes a group of voters is worth.

Voters that err together are worth less than their number: n voters whose errors correlate by ρ are worth n / (1 + (n −
1) ρ) independent ones. Copies are detected by construction, other dependence from past votes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qubic_lab.consensus.voting import AnswerSource, Ballot, Group
from qubic_lab.stats import Floats, Indices, bootstrap_interval


def find_copies(sources: Mapping[str, AnswerSource]) -> tuple[tuple[str, ...], ...]:
    """Return the sorted sets of voters that are copies: same model and prompt, and greedy or with the same draws.

    Copies may still differ by rounding on different machines; that is no second opinion.
    """
    alike: dict[tuple[object, ...], list[str]] = {}
    for voter in sorted(sources):
        source, sampling = sources[voter], sources[voter].sampling
        draw = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) if sampling.temperature else ()
        alike.setdefault((source.model_hash, source.prompt, *draw), []).append(voter)
    return tuple(tuple(voters) for voters in alike.values() if len(voters) > 1)


def merge_copies(
    ballots: Sequence[Ballot], copies: Iterable[Sequence[str]]
) -> tuple[tuple[Ballot, ...], dict[str, str]]:
    """Keep one ballot of each set of copies; also return the dropped voters with their reasons.

    The kept ballot is the first by name for the group that most copies are for (ties: the group whose first voter comes
    first); an answer wins over none.
    """
    by_voter = {each.voter: each for each in ballots}
    dropped: dict[str, str] = {}
    for names in copies:
        cast = [by_voter[name] for name in sorted(names) if name in by_voter]
        if len(cast) < 2:
            continue
        groups = [each.group for each in cast if each.group is not None]
        chosen: Group | None = max(groups, key=groups.count) if groups else None
        kept = next(each for each in cast if each.group == chosen)
        dropped |= {each.voter: f"a copy of {kept.voter}" for each in cast if each is not kept}
    return tuple(each for each in ballots if each.voter not in dropped), dropped


@dataclass(frozen=True)
class PastVote:
    """A voter's answer to a question with a known answer: its group, and whether it is right."""

    question: str
    voter: str
    group: Group
    right: bool


@dataclass(frozen=True)
class ErrorCorrelation:
    """How much voters err together, with 95 % bootstrap intervals over questions; None: too few questions for one.

    `rho` is the error correlation over all pairs of voters; 0: independent, 1: always together. `same_wrong` is the
    share of the `both_wrong` pairs that gave the same answer, or None. `questions` counts those with at least two
    voters.
    """

    rho: float
    rho_interval: tuple[float, float] | None
    same_wrong: float | None
    same_wrong_interval: tuple[float, float] | None
    both_wrong: int
    questions: int
    voters: int


def error_correlation(history: Sequence[PastVote], resamples: int = 1000, seed: int = 0) -> ErrorCorrelation | None:
    """Estimate how much voters err together.

    ρ is the sum of the pairs' error covariances ÷ the sum of the products of their standard deviations, each pair over
    the questions that both answered. For equally accurate voters it is the intraclass correlation. Unequal difficulty
    of questions correlates errors too; this is included on purpose, because a vote does not help there either.

    Returns:
        None with fewer than two questions with two votes, or no pair with both errors and successes.
    """
    wrong_QV, group_QV = _tables(history)
    shared = (~np.isnan(wrong_QV)).sum(axis=1) >= 2
    wrong_QV, group_QV = wrong_QV[shared], group_QV[shared]
    questions, voters = wrong_QV.shape
    if questions < 2:
        return None
    both_wrong_Q, same_wrong_Q = _wrong_pairs(wrong_QV, group_QV)

    def rho(rows: Indices) -> float:
        return _rho(wrong_QV, np.bincount(rows, minlength=questions).astype(np.float64))

    def same(rows: Indices) -> float:
        pairs = both_wrong_Q[rows].sum()
        return float(same_wrong_Q[rows].sum() / pairs) if pairs else float("nan")

    def interval(statistic: Callable[[Indices], float]) -> tuple[float, float] | None:
        ends = bootstrap_interval(statistic, questions, resamples=resamples, seed=seed)
        return None if np.isnan(ends[0]) else ends

    every = np.arange(questions)
    if np.isnan(estimate := rho(every)):
        return None
    both_wrong = int(both_wrong_Q.sum())
    return ErrorCorrelation(
        rho=estimate,
        rho_interval=interval(rho),
        same_wrong=same(every) if both_wrong else None,
        same_wrong_interval=interval(same) if both_wrong else None,
        both_wrong=both_wrong,
        questions=questions,
        voters=voters,
    )


def _tables(history: Sequence[PastVote]) -> tuple[Floats, Floats]:
    """Return wrong (1) or right (0) and the answer's number, question by voter; NaN without a vote."""
    rows = {name: number for number, name in enumerate(dict.fromkeys(each.question for each in history))}
    columns = {name: number for number, name in enumerate(dict.fromkeys(each.voter for each in history))}
    groups = {name: number for number, name in enumerate(dict.fromkeys(each.group for each in history))}
    wrong_QV = np.full((len(rows), len(columns)), np.nan)
    group_QV = wrong_QV.copy()
    for each in history:
        place = rows[each.question], columns[each.voter]
        assert np.isnan(wrong_QV[place]), f"{each.voter} has two votes on question {each.question}"
        wrong_QV[place] = not each.right
        group_QV[place] = groups[each.group]
    return wrong_QV, group_QV


def _rho(wrong_QV: Floats, times_Q: Floats) -> float:
    """Return ρ with these question weights, or NaN if it is undefined."""
    voted_QV = (~np.isnan(wrong_QV)).astype(np.float64)
    error_QV = np.nan_to_num(wrong_QV)
    weighted_QV = times_Q[:, None] * voted_QV
    both_VV = weighted_QV.T @ voted_QV
    with np.errstate(invalid="ignore", divide="ignore"):
        # For each pair, over questions that both answered: the mean error of one, and of both together. Errors are
        # 0 or 1, so the mean square is the mean.
        mean_VV = (times_Q[:, None] * error_QV).T @ voted_QV / both_VV
        joint_VV = (times_Q[:, None] * error_QV).T @ error_QV / both_VV
        variance_VV = mean_VV * (1 - mean_VV)
        covariance_VV = joint_VV - mean_VV * mean_VV.T
    upper = np.triu_indices(len(both_VV), 1)
    scale = np.nansum(np.sqrt(np.maximum(0.0, variance_VV * variance_VV.T))[upper])
    if scale == 0:
        return float("nan")
    return float(np.clip(np.nansum(covariance_VV[upper]) / scale, -1.0, 1.0))  # rounding can exceed the range


def _wrong_pairs(wrong_QV: Floats, group_QV: Floats) -> tuple[Floats, Floats]:
    """Return for each question the number of pairs that are both wrong, and of those with the same answer."""
    first, second = np.triu_indices(wrong_QV.shape[1], 1)
    both_QP = (wrong_QV[:, first] == 1) & (wrong_QV[:, second] == 1)
    same_QP = both_QP & (group_QV[:, first] == group_QV[:, second])
    return both_QP.sum(axis=1).astype(np.float64), same_QP.sum(axis=1).astype(np.float64)


def effective_votes(weights: Sequence[float], rho: float) -> float:
    """Return the equivalent number of independent equal votes: (Σw)² / ((1 − ρ) Σw² + ρ (Σw)²).

    This is the variance of one vote ÷ the variance of the weighted mean of votes that all correlate by ρ; for n equal
    weights it is n / (1 + (n − 1) ρ), n over the design effect (L. Kish, "Survey sampling", 1965). A negative ρ counts
    as 0, so the result never exceeds the number of votes; it is 0 without weight.
    """
    total, squares = sum(weights), sum(each * each for each in weights)
    rho = max(0.0, rho)
    return total**2 / ((1 - rho) * squares + rho * total**2) if total else 0.0
