"""Decides when further samples are unnecessary: once the winner is certain, or certain enough.

The winner is certain if no outstanding ballot can change it; this costs nothing. It is certain enough if it is
certified (`certificate`), or if the posterior probability that the leader is the voters' most frequent answer reaches a
level, which promises nothing; `replay` measures how often that errs.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from qubic_lab.consensus.certificate import Certifier
from qubic_lab.consensus.voting import DEFAULT_RULE, RULES, Ballot, Group, decide

LIKELY = 0.8
"""Where no certificate can come any more, a lead with this probability ends a vote that waits for one."""


def is_settled(
    ballots: Sequence[Ballot], to_come: Sequence[Ballot], rule: str = DEFAULT_RULE, fallback: str | None = None
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


@cache
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
    certifier: Certifier | None = None,
) -> str | None:
    """Return why no further samples are needed, or None if they are.

    The probability `stop_at` of the winner's lead is enough, if given. With a `certifier` that has taken the ballots, a
    certificate of the winner is; only if none can come any more, `stop_at`, or else LIKELY. Both count each ballot as
    one vote; pass one ballot per set of copies.
    """
    if not to_come:
        return "all have answered"
    decision = decide(ballots, rule, fallback)
    if is_settled(ballots, to_come, rule, fallback):
        if decision.winner is None:
            return "no answer can win any more"
        return "no ballots to come can change the decision"
    if certifier:
        if decision.winner is not None and certifier.certificate.winner == decision.winner:
            return str(certifier.certificate)
        if not certifier.is_hopeless(len(to_come)):
            return None
        stop_at = stop_at or LIKELY
    if stop_at is None or not decision.standings:
        return None
    leader, *others = [len(each.voters) for each in decision.standings]
    probability = lead_probability(leader, max(others, default=0))
    if probability >= stop_at:
        return f"the leader is ahead with probability {probability:.3f}, at least {stop_at:g}"
    return None


def ballots_to_ask(ballots: Sequence[Ballot], left: int, certifier: Certifier) -> int:
    """Return the fewest of the `left` ballots, at least 1, after which a certified vote could end."""
    if not certifier.is_hopeless(left):
        return max(1, min(certifier.missing, left))
    counts = Counter(each.group for each in ballots if each.group is not None)
    most, next_most, *_ = [*sorted(counts.values(), reverse=True), 0, 0]
    could_end = (more for more in range(1, left) if lead_probability(most + more, next_most) >= LIKELY)
    return next(could_end, left)


@dataclass(frozen=True)
class Replayed:
    """A vote with all samples known, stopped by a rule after `taken` samples.

    `winner` is the one at the stop, `full_winner` that of all samples; None: nobody. It is `certified` if it is
    known to be the voters' most frequent answer.
    """

    taken: int
    why: str
    winner: Group | None
    full_winner: Group | None
    tokens_saved: int
    certified: bool = False


def replay(
    ballots: Sequence[Ballot],
    tokens: Sequence[int],
    stop_at: float | None = None,
    rule: str = DEFAULT_RULE,
    fallback: str | None = None,
    error: float | None = None,
) -> Replayed:
    """Take ballots one by one, in the order asked, until there is a reason to stop; the others do not count.

    There must be at least one ballot; `tokens` are those of each. With an `error`, a certificate is a reason.
    """
    taken, why = 0, None
    certifier = Certifier(error, most=len(ballots)) if error else None
    while why is None:
        if certifier:
            certifier.add([ballots[taken].group])
        taken += 1
        why = reason_to_stop(ballots[:taken], ballots[taken:], stop_at, rule, fallback, certifier)
    winner = decide(ballots[:taken], rule, fallback).winner
    return Replayed(
        taken=taken,
        why=why,
        winner=winner,
        full_winner=decide(ballots, rule, fallback).winner,
        tokens_saved=sum(tokens[taken:]),
        certified=certifier is not None and winner is not None and certifier.certificate.winner == winner,
    )
