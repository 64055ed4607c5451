"""Votes and how their ballots are counted: by majority, super-majority or weight, with one rule for ties.

The order of the ballots does not matter, not even by rounding: weights are added as whole numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import Literal

from qubic_lab.core import SamplingParams

Group = int | str
Measure = Literal["ballots", "weight"]
OTHER: dict[Measure, Measure] = {"ballots": "weight", "weight": "ballots"}

WEIGHT_UNIT = 2**1074
"""Every double is a multiple of 1 / WEIGHT_UNIT, so sums of multiples are exact."""


@dataclass(frozen=True)
class AnswerSource:
    """What determines an answer: the model (by hash), the prompt and the sampling parameters."""

    model_hash: str
    prompt: str
    sampling: SamplingParams


@dataclass(frozen=True)
class Vote:
    """One answer, its voter and its cost: seconds to the last token; `mean_logprob` is over its tokens, in nats.

    `prompt_tokens` is 0 where nobody counted them.
    """

    voter: str
    node: str
    model: str
    source: AnswerSource
    text: str
    finish_reason: str
    new_tokens: int
    seconds: float
    mean_logprob: float | None = None
    prompt_tokens: int = 0


class AbsenceReason(StrEnum):
    """Why a voter gave no vote."""

    LATE = "late"
    FAILED = "failed"
    STOPPED = "not needed"


@dataclass(frozen=True)
class Absence:
    """A voter that gave no vote; unless it was stopped early, it counts as a ballot for no group."""

    voter: str
    why: AbsenceReason
    detail: str


@dataclass(frozen=True)
class Ballot:
    """A voter's ballot: the group of equal answers it is for, and its weight, 0 or more.

    `group` is None if the voter gave no usable answer: the ballot counts in the total, but for no group. So one answer
    out of three is not a majority.
    """

    voter: str
    group: Group | None
    weight: float = 1.0

    def counts(self, measure: Measure) -> int:
        """Return what it adds to a group: 1, or its weight as a whole multiple of 1 / WEIGHT_UNIT."""
        if measure == "ballots":
            return 1
        numerator, denominator = float(self.weight).as_integer_ratio()
        return numerator * (WEIGHT_UNIT // denominator)


@dataclass(frozen=True)
class VoteRule:
    """A group wins with more than this share of all ballots or weight, and more than any other group."""

    name: str
    measure: Measure
    more_than: Fraction

    def is_met(self, support: int, total: int) -> bool:
        """Return whether this support out of that total is enough."""
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
    """A group's support: the names of its voters, and its shares of all ballots and of all weight."""

    group: Group
    voters: tuple[str, ...]
    weight: float
    ballot_share: float
    weight_share: float


@dataclass(frozen=True)
class Decision:
    """The result of counting.

    `winner` is None if the rule is not met; `rule` is the deciding rule: the requested one, or the fallback.
    `standings` has the leader first. `ballots` counts all of them, including those for no group. `margin` is the
    leader's share less the runner-up's, of ballots or weight as the rule counts. `tied` groups share the highest
    support; `tie_resolved_by` says what ranked the winner first among them (weight, ballots or the first voter's name),
    and `why` explains the decision in a line.
    """

    winner: Group | None
    rule: str
    standings: tuple[GroupStanding, ...]
    ballots: int
    margin: float
    tied: tuple[Group, ...]
    tie_resolved_by: str | None
    why: str


def decide(ballots: Sequence[Ballot], rule: str = DEFAULT_RULE, fallback: str | None = None) -> Decision:
    """Count ballots, one per voter, by a rule and, if it is not met, by a fallback such as `plurality` (see RULES).

    Ties: among groups with equal support the one with more weight leads (with more ballots, if the rule counts weight),
    then the one whose first voter comes first by name.
    """
    decision = _count(ballots, RULES[rule])
    if decision.winner is not None or fallback is None:
        return decision
    second = _count(ballots, RULES[fallback])
    return replace(second, why=f"{decision.why}; {second.why}")


def _count(ballots: Sequence[Ballot], rule: VoteRule) -> Decision:
    by_group: dict[Group, list[Ballot]] = {}
    for ballot in ballots:
        if ballot.group is not None:
            by_group.setdefault(ballot.group, []).append(ballot)
    voters = {group: tuple(sorted(ballot.voter for ballot in cast)) for group, cast in by_group.items()}
    support = {group: _totals(cast) for group, cast in by_group.items()}
    totals = _totals(ballots)
    measure, other = rule.measure, OTHER[rule.measure]
    ranked = sorted(by_group, key=lambda group: (-support[group][measure], -support[group][other], voters[group][0]))
    most, next_most, *_ = [*(support[group][measure] for group in ranked), 0, 0]
    tied = [group for group in ranked if support[group][measure] == most]
    won = rule.is_met(most, totals[measure])
    resolved_by = None
    if won and len(tied) > 1:
        resolved_by = other if support[tied[0]][other] > support[tied[1]][other] else "first voter by name"
    return Decision(
        winner=ranked[0] if won else None,
        rule=rule.name,
        standings=tuple(
            GroupStanding(
                group=group,
                voters=voters[group],
                weight=support[group]["weight"] / WEIGHT_UNIT,
                ballot_share=_share(support[group]["ballots"], totals["ballots"]),
                weight_share=_share(support[group]["weight"], totals["weight"]),
            )
            for group in ranked
        ),
        ballots=len(ballots),
        margin=_share(most - next_most, totals[measure]),
        tied=tuple(tied) if len(tied) > 1 else (),
        tie_resolved_by=resolved_by,
        why=_reason(tied, most, totals[measure], rule, won, resolved_by),
    )


def _totals(ballots: Sequence[Ballot]) -> dict[Measure, int]:
    return {"ballots": len(ballots), "weight": sum(each.counts("weight") for each in ballots)}


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def _reason(
    leaders: Sequence[Group], support: int, total: int, rule: VoteRule, won: bool, resolved_by: str | None
) -> str:
    if not leaders:
        return "no voter gave an answer"
    counted = rule.measure == "ballots"
    share = f"{support} of {total} ballots" if counted else f"{_share(support, total):.1%} of the weight"
    names = " and ".join(map(str, leaders))
    has = f"group {names} has {share}" if len(leaders) == 1 else f"groups {names} have {share} each"
    met = "meets" if won else "falls short of"
    chosen = f"; {leaders[0]} was chosen by {resolved_by}" if resolved_by else ""
    return f"{has}, which {met} {rule.name} (more than {rule.more_than}){chosen}"
