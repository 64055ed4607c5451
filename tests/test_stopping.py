"""Stopping where it is certain never changes the winner, over all votes; the posterior errs no more than it may."""

import random
from itertools import product

import pytest

from qubic_lab.consensus.stopping import (
    Replayed,
    is_settled,
    lead_probability,
    reason_to_stop,
    replay,
)
from qubic_lab.consensus.voting import Ballot, Group, decide

RULES_WITH_FALLBACK = [
    ("majority", None),
    ("majority", "plurality"),
    ("super-majority", None),
    ("super-majority", "plurality"),
    ("plurality", None),
    ("weighted", None),
    ("weighted", "weighted-plurality"),
]
WEIGHTS = (0.3, 1.0, 0.7, 0.4, 0.9)


def cast(groups: tuple[Group | None, ...], rule: str) -> list[Ballot]:
    """A ballot for each group, of voters whose names do not sort as they come; weights where they count."""
    weights = WEIGHTS if rule.startswith("weighted") else (1.0,) * len(groups)
    return [Ballot(f"v{(3 * n + 2) % 5}", group, weights[n]) for n, group in enumerate(groups)]


@pytest.mark.parametrize(("rule", "fallback"), RULES_WITH_FALLBACK)
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_settled_exactly_where_nothing_to_come_can_change_the_winner(rule: str, fallback: str | None, k: int):
    """All votes of k voters for three groups or none, at each point; a new group may still come.

    Exactly so for rules that count ballots where no tie can be: there, what is not settled could still change.
    """
    choices = (0, 1, 2, None)
    for taken in range(1, k):
        for groups in product(choices, repeat=taken):
            ends = {
                decide(cast((*groups, *rest), rule), rule, fallback).winner
                for rest in product((*choices, 3), repeat=k - taken)
            }
            ballots = cast((*groups, *(None,) * (k - taken)), rule)
            settled = is_settled(ballots[:taken], ballots[taken:], rule, fallback)
            if settled:
                assert len(ends) == 1, (groups, ends)
                assert decide(ballots[:taken], rule, fallback).winner in ends, "nor do those not asked count"
            elif fallback is None and rule in ("majority", "super-majority"):
                assert len(ends) > 1, groups


def test_lead_probability_by_hand():
    assert lead_probability(0, 0) == 0.5
    assert lead_probability(1, 0) == 3 / 4  # Beta(2, 1) above 1/2: 1 − (1/2)²
    assert lead_probability(4, 0) == 31 / 32
    assert lead_probability(2, 1) == 11 / 16
    assert lead_probability(1, 2) == pytest.approx(5 / 16)


def test_reasons():
    level = 0.9
    three = cast((0, 0, 0), "majority")
    to_come = [Ballot(f"w{n}", None) for n in range(9)]
    assert reason_to_stop(three, [], level) == "all have answered"
    assert reason_to_stop(three, to_come, level) == "the leader is ahead with probability 0.938, at least 0.9"
    assert reason_to_stop(three, to_come[:2], level) == "no ballots to come can change the decision"
    assert reason_to_stop(three, to_come) is None
    unusable = cast((None, None, None), "majority")
    assert reason_to_stop(unusable, to_come, level) is None
    assert reason_to_stop(unusable, to_come, 0.5) is None, "nobody leads"
    assert reason_to_stop(unusable, to_come[:2], level) == "no answer can win any more"
    heavy = [Ballot("a", 0, 5.0), *(Ballot(name, 1, 0.1) for name in "bcde")]
    assert decide(heavy, "weighted").winner == 0
    by_weight = reason_to_stop(heavy, [Ballot("z", None, 9.0)], level, "weighted")
    assert by_weight is None, "who leads by weight alone is not ahead in votes"


def test_replay_saves_the_tokens_that_were_not_taken():
    ballots = [Ballot(f"v{n}", group) for n, group in enumerate("AABAB")]
    certain = "no ballots to come can change the decision"
    expected = Replayed(taken=4, why=certain, winner="A", full_winner="A", tokens_saved=50)
    assert replay(ballots, [10, 20, 30, 40, 50]) == expected
    late = replay([Ballot(f"v{n}", group) for n, group in enumerate("AAABBBBBB")], [1] * 9, 0.9)
    assert (late.taken, late.winner, late.full_winner) == (3, "A", "B"), "this is how it errs"
    unanimous = [Ballot(f"v{n:02d}", 0) for n in range(16)]
    certain, never = (replay(unanimous, [1] * 16, rule).taken for rule in (None, 1.0))
    assert certain == never == 9, "a level of 1 is never reached by chance"


def wrong_stops(level: float, questions: int = 400, k: int = 16) -> tuple[float, float]:
    """How often the group ahead at the stop is not the more frequent one, and the share of samples that is saved.

    Shares are drawn from the prior that the rule assumes, two groups a question.
    """
    draw = random.Random(9)
    wrong, saved = 0, 0
    for _ in range(questions):
        share = draw.random()
        ballots = [Ballot(f"v{n:02d}", int(draw.random() > share)) for n in range(k)]
        found = replay(ballots, [1] * k, level, "plurality")
        if "probability" in found.why:
            wrong += (found.winner == 0) != (share > 0.5)
        saved += found.tokens_saved
    return wrong / questions, saved / (questions * k)


def test_the_posterior_errs_no_more_than_its_level_allows():
    """At a level of 0.9 at most a tenth of stops are wrong; a higher level errs less and saves less."""
    loose, strict = wrong_stops(0.9), wrong_stops(0.99)
    assert 0.0 < loose[0] <= 0.1
    assert strict[0] <= 0.01 < loose[0]
    assert loose[1] > strict[1] > wrong_stops(1.0)[1]
