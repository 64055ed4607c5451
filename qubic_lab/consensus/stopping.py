"""Decides when further samples are unnecessary: once the winner is certain, or certain enough.

The winner is certain if no outstanding ballot can change it; this costs nothing. It is certain enough if the posterior
probability that the leader is the voters' most frequent answer reaches a level; `replay` measures how often that errs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from qubic_lab.consensus.voting import DEFAULT_RULE, RULES, Ballot, Group, decide


def is_settled(
    ballots: Sequence[Ballot],
    to_come: Sequence[Ballot],
    rule: str = DEFAULT_RULE,
    fallback: str | None = None,
) -> bool:
    """Return whether the winner, or that there is none, is certain whatever the outstanding ballots say.

    The groups of the ballots to come are ignored. A voter that fails later must be counted as a ballot for no group;
    one that is no longer asked may be left out: the winner is the same with and without it. The fallback must be a
    plurality with the rule's measure.
    """
    asked = RULES[fallback or rule]  # a winner by the rule also has the plurality
    assert asked.measure == RULES[rule].measure and (fallback is None or asked.more_than == 0), fallback
    rest = sum(each.counts(asked.measure) for each in to_come)
    support: dict[Group, int] = {}
    for ballot in ballots:
        if ballot.group is not None:
            support[ballot.group] = support.get(ballot.group, 0) + ballot.counts(asked.measure)
    total = rest + sum(each.counts(asked.measure) for each in ballots)
    most, next_most, *_ = [*sorted(support.values(), reverse=True), 0, 0]
    if not asked.is_met(most + rest, total):
        return True  # no group can win any more
    if not asked.is_met(most, total):
        return False
    return asked.more_than >= Fraction(1, 2) or most - next_most > rest


def lead_probability(leader: int, runner_up: int) -> float:
    """Return the posterior probability that the leader is a more frequent answer than the runner-up.

    Answers are drawn from unknown shares (a multinomial) with a uniform Dirichlet prior. The leader's part of the two
    shares is then Beta(leader + 1, runner-up + 1), and this is its mass above 1/2, for whole numbers a binomial sum.
    Groups with fewer votes are ignored.

    Source: P. Aggarwal, A. Madaan, Y. Yang and Mausam, "Let's sample step by step: adaptive-consistency for efficient
    reasoning and coding with LLMs", EMNLP 2023.
    """
    draws = leader + runner_up + 1
    return float(Fraction(sum(math.comb(draws, k) for k in range(leader + 1)), 2**draws))


def reason_to_stop(
    ballots: Sequence[Ballot],
    to_come: Sequence[Ballot],
    stop_at: float | None = None,
    rule: str = DEFAULT_RULE,
    fallback: str | None = None,
) -> str | None:
    """Return why no further samples are needed, or None if they are.

    `stop_at` is the probability of the lead that is enough; None: only certainty is. It counts each ballot as one vote;
    pass one ballot per set of copies.
    """
    if not to_come:
        return "all have answered"
    if is_settled(ballots, to_come, rule, fallback):
        return "no ballots to come can change the decision"
    if stop_at is None:
        return None
    leader, *others = [len(each.voters) for each in decide(ballots, rule, fallback).standings] or [0]
    probability = lead_probability(leader, max(others, default=0))
    if probability >= stop_at:
        return f"the leader is ahead with probability {probability:.3f}, at least {stop_at:g}"
    return None


@dataclass(frozen=True)
class Replayed:
    """A vote with all samples known, stopped by a rule after `taken` samples.

    `winner` is the one at the stop, `full_winner` that of all samples; None: nobody.
    """

    taken: int
    why: str
    winner: Group | None
    full_winner: Group | None
    tokens_saved: int


def replay(
    ballots: Sequence[Ballot],
    tokens: Sequence[int],
    stop_at: float | None = None,
    rule: str = DEFAULT_RULE,
    fallback: str | None = None,
) -> Replayed:
    """Take ballots one by one, in order of arrival, until there is a reason to stop; the others do not count.

    There must be at least one ballot; `tokens` are those of each.
    """
    taken, why = 0, None
    while why is None:
        taken += 1
        why = reason_to_stop(ballots[:taken], ballots[taken:], stop_at, rule, fallback)
    return Replayed(
        taken=taken,
        why=why,
        winner=decide(ballots[:taken], rule, fallback).winner,
        full_winner=decide(ballots, rule, fallback).winner,
        tokens_saved=sum(tokens[taken:]),
    )
