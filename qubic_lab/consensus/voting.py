"""Ballots in, one decision out: by majority, super-majority or weight, with one rule for ties.

Nothing depends on the order in which ballots come, rounding included: weights are added as whole numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from qubic_lab.errors import InputError, check_choice

Group = int | str
Measure = Literal["ballots", "weight"]
OTHER: dict[Measure, Measure] = {"ballots": "weight", "weight": "ballots"}

WEIGHT_UNIT = 2**1074
"""Every double is a whole number of parts of this size: sums of such numbers are exact."""


@dataclass(frozen=True)
class Ballot:
    """What a voter says: the group of equal answers that its own is in, and what its vote weighs.

    `group` is None where a voter was asked and gave no usable answer: it counts among all ballots, and for no group. So
    one answer of three is no majority.

    Raises:
        InputError: the weight is no number of 0 or more.
    """

    voter: str
    group: Group | None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise InputError(f"weight of {self.voter} is {self.weight}: it must be a number of 0 or more")

    def counts(self, measure: Measure) -> int:
        """Return what it adds to a group: 1, or its weight as a whole number of parts of WEIGHT_UNIT."""
        if measure == "ballots":
            return 1
        numerator, denominator = float(self.weight).as_integer_ratio()
        return numerator * (WEIGHT_UNIT // denominator)


@dataclass(frozen=True)
class VoteRule:
    """A group wins with more than this share of all ballots, or of their weight, and more than any other group."""

    name: str
    measure: Measure
    more_than: Fraction

    def is_met(self, support: int, total: int) -> bool:
        """Tell whether this support of that total is enough."""
        return support * self.more_than.denominator > self.more_than.numerator * total


RULES = {
    rule.name: rule
    for rule in (
        VoteRule("majority", "ballots", Fraction(1, 2)),
        VoteRule("super-majority", "ballots", Fraction(2, 3)),
        VoteRule("weighted", "weight", Fraction(1, 2)),
        VoteRule("plurality", "ballots", Fraction(0)),
        VoteRule("weighted-plurality", "weight", Fraction(0)),
    )
}
DEFAULT_RULE = "majority"


@dataclass(frozen=True)
class GroupStanding:
    """A group's support: its voters by name, its share of all ballots, and its share of their weight."""

    group: Group
    voters: tuple[str, ...]
    weight: float
    ballot_share: float
    weight_share: float


@dataclass(frozen=True)
class Decision:
    """What a vote came to.

    Attributes:
        winner: the group that won, or None where the rule was not met.
        rule: the rule that decided: the one that was asked for, or the fallback where that one was not met.
        standings: all groups, the leader first.
        ballots: all of them, those for no group included.
        margin: the leader's share less the next one's, of ballots or of weight as the rule counts.
        tied: the groups that share the highest support; empty where one leads.
        tie_resolved_by: what put the winner before the others it is tied with: weight, ballots or the first voter's
            name; None where nothing was tied or nobody won.
        why: the decision in a line.
    """

    winner: Group | None
    rule: str
    standings: tuple[GroupStanding, ...]
    ballots: int
    margin: float
    tied: tuple[Group, ...]
    tie_resolved_by: str | None
    why: str


@dataclass(frozen=True)
class _Support:
    """A group's ballots: its voters by name, and what they count by each measure."""

    group: Group
    voters: tuple[str, ...]
    by: Mapping[Measure, int]


def decide(ballots: Sequence[Ballot], rule: str = DEFAULT_RULE, fallback: str | None = None) -> Decision:
    """Count ballots by a rule.

    Ties: of groups with the same support the one with more weight leads (under a rule that counts weight: with more
    ballots), then the one whose first voter comes first by name.

    Args:
        ballots: one for each voter that was asked, in any order.
        rule: a name in RULES.
        fallback: another rule, for where the first is not met; such as `plurality`.

    Raises:
        InputError: an unknown rule, or two ballots of the same voter.
    """
    for name in (rule, fallback or rule):
        check_choice("voting rule", name, RULES)
    voters = [each.voter for each in ballots]
    if len(set(voters)) < len(voters):
        twice = next(each for each in sorted(voters) if voters.count(each) > 1)
        raise InputError(f"{twice} has {voters.count(twice)} ballots: give each voter, or each of its samples, one")
    decision = _count(ballots, RULES[rule])
    if decision.winner is not None or fallback is None:
        return decision
    second = _count(ballots, RULES[fallback])
    return replace(second, why=f"{decision.why}; {second.why}")


def _count(ballots: Sequence[Ballot], rule: VoteRule) -> Decision:
    measure, other = rule.measure, OTHER[rule.measure]
    totals = _totals(ballots)
    ranked = sorted(_supports(ballots), key=lambda each: (-each.by[measure], -each.by[other], each.voters[0]))
    most = ranked[0].by[measure] if ranked else 0
    next_most = ranked[1].by[measure] if len(ranked) > 1 else 0
    tied = [each for each in ranked if each.by[measure] == most]
    won = rule.is_met(most, totals[measure])
    resolved_by = None
    if won and len(tied) > 1:
        resolved_by = other if tied[0].by[other] > tied[1].by[other] else "first voter by name"
    return Decision(
        winner=ranked[0].group if won else None,
        rule=rule.name,
        standings=tuple(_standing(each, totals) for each in ranked),
        ballots=len(ballots),
        margin=_share(most - next_most, totals[measure]),
        tied=tuple(each.group for each in tied) if len(tied) > 1 else (),
        tie_resolved_by=resolved_by,
        why=_reason(tied, rule, totals[measure], won, resolved_by),
    )


def _totals(ballots: Sequence[Ballot]) -> dict[Measure, int]:
    return {"ballots": len(ballots), "weight": sum(each.counts("weight") for each in ballots)}


def _supports(ballots: Iterable[Ballot]) -> list[_Support]:
    by_group: dict[Group, list[Ballot]] = {}
    for ballot in ballots:
        if ballot.group is not None:
            by_group.setdefault(ballot.group, []).append(ballot)
    return [_Support(group, tuple(sorted(b.voter for b in cast)), _totals(cast)) for group, cast in by_group.items()]


def _standing(support: _Support, totals: Mapping[Measure, int]) -> GroupStanding:
    return GroupStanding(
        support.group,
        support.voters,
        weight=support.by["weight"] / WEIGHT_UNIT,
        ballot_share=_share(support.by["ballots"], totals["ballots"]),
        weight_share=_share(support.by["weight"], totals["weight"]),
    )


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def _reason(leaders: Sequence[_Support], rule: VoteRule, total: int, won: bool, resolved_by: str | None) -> str:
    if not leaders:
        return "no voter gave an answer"
    support = leaders[0].by[rule.measure]
    counted = rule.measure == "ballots"
    share = f"{support} of {total} ballots" if counted else f"{_share(support, total):.1%} of the weight"
    names = " and ".join(f"{each.group}" for each in leaders)
    has = f"group {names} has {share}" if len(leaders) == 1 else f"groups {names} have {share} each"
    met = "meets" if won else "falls short of"
    chosen = f"; {leaders[0].group} was chosen by {resolved_by}" if resolved_by else ""
    return f"{has}, which {met} {rule.name} (more than {rule.more_than}){chosen}"


@dataclass(frozen=True)
class VoterMeasurement:
    """How a voter answered: seconds to its last token, and the quality of its answer, 0 to 1; None: unknown."""

    voter: str
    latency_s: float | None = None
    quality: float | None = None


@dataclass(frozen=True)
class OutlierLimits:
    """Levels beyond which a voter is an outlier; None: whatever it is.

    Raises:
        InputError: a level is out of its range.
    """

    most_latency_s: float | None = None
    least_quality: float | None = None

    def __post_init__(self) -> None:
        if self.most_latency_s is not None and not self.most_latency_s > 0:
            raise InputError(f"most_latency_s is {self.most_latency_s}: it must be above 0")
        if self.least_quality is not None and not 0 < self.least_quality <= 1:
            raise InputError(f"least_quality is {self.least_quality}: it must be above 0 and at most 1")


@dataclass(frozen=True)
class DroppedBallot:
    """A voter whose ballot does not count, and why."""

    voter: str
    reason: str


def outliers(measured: Sequence[VoterMeasurement], limits: OutlierLimits) -> tuple[DroppedBallot, ...]:
    """Return the voters that are to be dropped, by name: those beyond a limit, but never half of all or more.

    Where too many are beyond a limit, those furthest beyond it go (by the ratio to the limit, then by name): what most
    voters do is no outlier.
    """
    beyond = []
    for each in measured:
        faults = _faults(each, limits)
        if faults:
            worst = max(ratio for ratio, _ in faults)
            beyond.append((-worst, each.voter, ", ".join(text for _, text in faults)))
    most = max(0, (len(measured) - 1) // 2)
    return tuple(
        sorted((DroppedBallot(voter, why) for _, voter, why in sorted(beyond)[:most]), key=lambda each: each.voter)
    )


def _faults(measured: VoterMeasurement, limits: OutlierLimits) -> list[tuple[float, str]]:
    """Return each limit that it is beyond: how far, as a ratio above 1, and a text."""
    found = []
    latency_s, most_s = measured.latency_s, limits.most_latency_s
    if latency_s is not None and most_s is not None and latency_s > most_s:
        found.append((latency_s / most_s, f"its answer took {latency_s:.1f} s, more than {most_s:g} s"))
    quality, least = measured.quality, limits.least_quality
    if quality is not None and least is not None and quality < least:
        ratio = least / quality if quality > 0 else math.inf
        found.append((ratio, f"the quality of its answer is {quality:.2f}, below {least:g}"))
    return found
