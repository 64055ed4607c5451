"""Decides when further samples are unnecessary: once the winner is certain, or certain enough.

The winner is certain if no outstanding ballot can change it; this costs nothing. It is certain enough if the posterior
probability that the leader is the voters' most frequent answer reaches a level; `replay` measures how often that errs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from qubic_lab.consensus.voting import DEFAULT_RULE, RULES, Ballot, Group, decide
from qubic_lab.errors import InputError, check_at_least, check_choice

PRIOR = 1


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

    Raises:
        InputError: an unknown rule, or a fallback that does not fit it.
    """
    asked = RULES[check_choice("voting rule", rule, RULES)]
    if fallback is not None:
        second = RULES[check_choice("voting rule", fallback, RULES)]
        if second.measure != asked.measure or second.more_than != 0:
            raise InputError(f"the fallback {fallback} does not go with {rule}: give a plurality of the same measure")
        asked = second  # a winner by the first rule also has the plurality
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


def lead_probability(leader: int, runner_up: int, prior: int = PRIOR) -> float:
    """Return the posterior probability that the leader is a more frequent answer than the runner-up.

    Answers are drawn from unknown shares (a multinomial) with a symmetric Dirichlet prior. The leader's part of the two
    shares is then Beta(leader + prior, runner-up + prior), and this is its mass above 1/2, for whole numbers a binomial
    sum. Groups with fewer votes are ignored.

    Source: P. Aggarwal, A. Madaan, Y. Yang and Mausam, "Let's sample step by step: adaptive-consistency for efficient
    reasoning and coding with LLMs", EMNLP 2023.

    Args:
        leader: its votes.
        runner_up: votes of the next group, or 0.
        prior: prior votes of each group; 1 is a uniform prior.

    Raises:
        InputError: a negative count, or a prior below 1.
    """
    check_at_least("leader", leader, 0)
    check_at_least("runner_up", runner_up, 0)
    check_at_least("prior", prior, 1)
    above, below = leader + prior, runner_up + prior
    draws = above + below - 1
    return float(Fraction(sum(math.comb(draws, k) for k in range(above)), 2**draws))


@dataclass(frozen=True)
class StopRule:
    """When to stop: always if the winner is certain, and if the lead's probability reaches `level`.

    Attributes:
        level: 0.5 to 1, or None: only if certain.
        least: the minimum number of ballots.
        prior: see `lead_probability`.

    Raises:
        InputError: a value is out of its range.
    """

    level: float | None = None
    least: int = 1
    prior: int = PRIOR

    def __post_init__(self) -> None:
        if self.level is not None and not 0.5 < self.level <= 1.0:
            raise InputError(f"level is {self.level}: it must be above 0.5 and at most 1")
        check_at_least("least", self.least, 1)
        check_at_least("prior", self.prior, 1)


ONLY_CERTAIN = StopRule()


def reason_to_stop(
    ballots: Sequence[Ballot],
    to_come: Sequence[Ballot],
    stop: StopRule = ONLY_CERTAIN,
    rule: str = DEFAULT_RULE,
    fallback: str | None = None,
) -> str | None:
    """Return why no further samples are needed, or None if they are.

    The lead's probability counts each ballot as one vote; pass one ballot per set of copies.

    Raises:
        InputError: as `is_settled`.
    """
    if not to_come:
        return "all have answered"
    if len(ballots) < stop.least:
        return None
    if is_settled(ballots, to_come, rule, fallback):
        return "no ballots to come can change the decision"
    if stop.level is None:
        return None
    leader, *others = [len(each.voters) for each in decide(ballots, rule, fallback).standings] or [0]
    probability = lead_probability(leader, max(others, default=0), stop.prior)
    if probability >= stop.level:
        return f"the leader is ahead with probability {probability:.3f}, at least {stop.level:g}"
    return None


@dataclass(frozen=True)
class Replayed:
    """A vote with all samples known, stopped by a rule after `taken` samples.

    `winner` is the one at the stop, `full_winner` that of all samples; None: nobody. `tokens` counts the samples taken,
    `tokens_saved` the others.
    """

    taken: int
    why: str
    winner: Group | None
    full_winner: Group | None
    tokens: int
    tokens_saved: int


def replay(
    ballots: Sequence[Ballot],
    tokens: Sequence[int],
    stop: StopRule = ONLY_CERTAIN,
    rule: str = DEFAULT_RULE,
    fallback: str | None = None,
) -> Replayed:
    """Take ballots one by one, in order of arrival, until there is a reason to stop; the others do not count.

    Raises:
        InputError: no ballots, a different number of tokens, or as `is_settled`.
    """
    check_at_least("the number of ballots", len(ballots), 1)
    if len(tokens) != len(ballots):
        raise InputError(f"{len(ballots)} ballots have {len(tokens)} counts of tokens: give one for each")
    taken, why = 0, None
    while why is None:
        taken += 1
        why = reason_to_stop(ballots[:taken], ballots[taken:], stop, rule, fallback)
    return Replayed(
        taken=taken,
        why=why,
        winner=decide(ballots[:taken], rule, fallback).winner,
        full_winner=decide(ballots, rule, fallback).winner,
        tokens=sum(tokens[:taken]),
        tokens_saved=sum(tokens[taken:]),
    )
