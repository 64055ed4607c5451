"""When is another sample a waste? Once the winner is certain, or as good as certain.

Certain: no ballots that are still to come can change the winner; that costs nothing. As good as certain: the posterior
probability that the leader is the voters' most frequent answer is beyond a level; that errs now and then, and `replay`
shows how often on votes of which all samples are known.
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
    """Tell whether the winner, or that there is none, is certain whatever the ballots to come say.

    Args:
        ballots: cast so far.
        to_come: a ballot of each voter that has not answered; of their groups nothing is known, nor asked. One that
            fails later must be counted, as a ballot for no group. One that is no longer asked for may be left out: the
            winner is the same with and without it.
        rule: a name in RULES.
        fallback: as of `decide`; it must be a plurality that counts as the rule does, or nothing can be certain here.

    Raises:
        InputError: an unknown rule, or a fallback that does not go with it.
    """
    asked = RULES[check_choice("voting rule", rule, RULES)]
    if fallback is not None:
        second = RULES[check_choice("voting rule", fallback, RULES)]
        if second.measure != asked.measure or second.more_than != 0:
            raise InputError(f"the fallback {fallback} does not go with {rule}: give a plurality of the same measure")
        asked = second  # whoever wins by the first rule has the plurality, too
    rest = sum(each.counts(asked.measure) for each in to_come)
    support: dict[Group, int] = {}
    for ballot in ballots:
        if ballot.group is not None:
            support[ballot.group] = support.get(ballot.group, 0) + ballot.counts(asked.measure)
    total = rest + sum(each.counts(asked.measure) for each in ballots)
    most, next_most, *_ = [*sorted(support.values(), reverse=True), 0, 0]
    if not asked.is_met(most + rest, total):
        return True  # nobody can win any more
    if not asked.is_met(most, total):
        return False
    return asked.more_than >= Fraction(1, 2) or most - next_most > rest


def lead_probability(leader: int, runner_up: int, prior: int = PRIOR) -> float:
    """Return the posterior probability that the leader is a more frequent answer than the runner-up.

    Answers are drawn from unknown shares (a multinomial) with a symmetric Dirichlet prior. Of the two shares alone the
    leader's is then Beta(leader + prior, runner-up + prior), and this is its mass above 1/2. With whole numbers that is
    a binomial sum. Further groups have fewer votes and are left out.

    Source: P. Aggarwal, A. Madaan, Y. Yang and Mausam, "Let's sample step by step: adaptive-consistency for efficient
    reasoning and coding with LLMs", EMNLP 2023.

    Args:
        leader: its votes.
        runner_up: votes of the next group; 0 where there is none.
        prior: votes that each group has beforehand; 1 takes all shares as equally likely.

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
    """When to stop: always where the winner is certain, and where the lead's probability reaches `level`, if given.

    Attributes:
        level: 0.5 to 1; None: only where it is certain.
        least: never before so many ballots.
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
    """Return why no more samples are needed, or None where they are.

    The probability of the lead counts ballots, each as one vote; give it one ballot of each set of copies.

    Raises:
        InputError: as of `is_settled`.
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
    """A vote of which all samples are known, stopped as a rule would have stopped it.

    Attributes:
        taken: samples until then.
        why: the reason to stop.
        winner: then; None: nobody.
        full_winner: of all samples.
        tokens: of the samples that were taken.
        tokens_saved: of those that were not.
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
    """Take ballots one after the other until there is a reason to stop; those not taken do not count.

    Args:
        ballots: in the order in which they come.
        tokens: that each took.
        stop: when to stop.
        rule: a name in RULES.
        fallback: as of `decide`.

    Raises:
        InputError: no ballots, not as many tokens as ballots, or as of `is_settled`.
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
