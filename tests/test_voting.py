"""Votes counted by hand, and what must hold of every vote: no order, no names, and support never hurts."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.consensus.voting import RULES, Ballot, decide

rules = st.sampled_from(sorted(RULES))
fallbacks = st.sampled_from([None, "plurality", "weighted-plurality"])


@st.composite
def ballot_lists(draw: st.DrawFn, smallest: int = 0) -> list[Ballot]:
    """Ballots of up to nine voters for up to four groups or none, of any weight, tiny and huge ones too."""
    weights = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1e300))
    groups = st.sampled_from([0, 1, 2, 3, None])
    return [
        Ballot(name, draw(groups), draw(weights))
        for name in draw(st.permutations("abcdefghi"))[: draw(st.integers(smallest, 9))]
    ]


def votes(text: str, weights: Sequence[float] | None = None) -> list[Ballot]:
    """A ballot for each letter, of voters v1, v2, …; a dot is for no group."""
    return [
        Ballot(f"v{number + 1}", None if letter == "." else letter, weights[number] if weights else 1.0)
        for number, letter in enumerate(text)
    ]


@pytest.mark.parametrize(
    ("text", "rule", "winner"),
    [
        ("AAB", "majority", "A"),
        ("AABB", "majority", None),  # a half is not more than a half
        ("AAB", "super-majority", None),  # nor two thirds more than two thirds
        ("AAAB", "super-majority", "A"),
        ("AABCD", "majority", None),
        ("AABCD", "plurality", "A"),
        ("A..", "majority", None),  # one answer of three
        ("AA.", "majority", "A"),
        ("...", "plurality", None),
        ("", "plurality", None),
        ("A", "super-majority", "A"),
    ],
)
def test_counted_by_hand(text: str, rule: str, winner: str | None):
    assert decide(votes(text), rule).winner == winner


def test_weight_outvotes_numbers_only_where_weight_is_counted():
    ballots = votes("ABB", [0.9, 0.4, 0.4])
    assert decide(ballots, "majority").winner == "B"
    decision = decide(ballots, "weighted")
    assert decision.winner == "A"
    assert decision.why == "group A has 52.9% of the weight, which meets weighted (more than 1/2)"
    assert decision.margin == pytest.approx(0.1 / 1.7)
    assert [(each.group, each.voters) for each in decision.standings] == [("A", ("v1",)), ("B", ("v2", "v3"))]
    assert decision.standings[1].ballot_share == 2 / 3
    assert decision.standings[1].weight_share == pytest.approx(0.8 / 1.7)


def test_weights_counted_by_hand():
    assert decide(votes("A.", [0.6, 0.4]), "weighted").winner == "A"
    assert decide(votes("A.", [0.4, 0.6]), "weighted").winner is None, "without an answer counts against all"
    nothing = votes("AAB", [0.0, 0.0, 0.0])
    assert (decide(nothing, "weighted").winner, decide(nothing, "weighted", "plurality").winner) == (None, "A")


@pytest.mark.parametrize(
    ("text", "weights", "rule", "winner", "by"),
    [
        ("AABB", [1.0, 1.0, 1.0, 1.5], "plurality", "B", "weight"),
        ("ABBA", None, "plurality", "A", "first voter by name"),
        ("BAAB", None, "plurality", "B", "first voter by name"),
        ("ABB", [1.0, 0.5, 0.5], "weighted-plurality", "B", "ballots"),
        ("AB", [0.5, 0.5], "weighted-plurality", "A", "first voter by name"),
        ("AABB", None, "majority", None, None),
    ],
)
def test_ties_by_the_stated_rule(text: str, weights: list[float] | None, rule: str, winner: str | None, by: str | None):
    decision = decide(votes(text, weights), rule)
    assert (decision.winner, decision.tie_resolved_by) == (winner, by)
    assert set(decision.tied) == {"A", "B"}
    assert decision.margin == 0.0
    assert by is None or decision.why.endswith(f"; {winner} was chosen by {by}")


def test_the_fallback_decides_where_the_rule_was_not_met_and_says_so():
    decision = decide(votes("AABC"), "super-majority", fallback="plurality")
    assert (decision.winner, decision.rule) == ("A", "plurality")
    assert decision.why == (
        "group A has 2 of 4 ballots, which falls short of super-majority (more than 2/3); "
        "group A has 2 of 4 ballots, which meets plurality (more than 0)"
    )
    assert decide(votes("AAAB"), "super-majority", fallback="plurality").rule == "super-majority"


@given(ballot_lists(), rules, fallbacks, st.randoms())
def test_order_does_not_matter(ballots: list[Ballot], rule: str, fallback: str | None, draw):
    shuffled = draw.sample(ballots, len(ballots))
    assert decide(shuffled, rule, fallback) == decide(ballots, rule, fallback)


@given(ballot_lists(smallest=1), rules, fallbacks)
def test_a_unanimous_vote_wins(ballots: list[Ballot], rule: str, fallback: str | None):
    ballots = [replace(each, group=2, weight=each.weight + 1) for each in ballots]
    assert decide(ballots, rule, fallback).winner == 2


@given(ballot_lists(smallest=1), rules, fallbacks, st.integers(0, 8), st.floats(0.0, 1e300))
def test_more_support_never_hurts(ballots: list[Ballot], rule: str, fallback: str | None, place: int, weight: float):
    winner = decide(ballots, rule, fallback).winner
    if winner is None:
        return
    changed = place % len(ballots)
    switched = [replace(b, group=winner) if n == changed else b for n, b in enumerate(ballots)]
    assert decide(switched, rule, fallback).winner == winner
    assert decide([*ballots, Ballot("new", winner, weight)], rule, fallback).winner == winner
    if ballots[changed].group == winner:
        heavier = [replace(b, weight=b.weight + weight) if n == changed else b for n, b in enumerate(ballots)]
        assert decide(heavier, rule, fallback).winner == winner


@given(ballot_lists(), rules, fallbacks, st.permutations(range(4)))
def test_renaming_groups_renames_the_result(ballots: list[Ballot], rule: str, fallback: str | None, names: list[int]):
    def renamed(group):
        return None if group is None else f"group {names[group]}"

    before = decide(ballots, rule, fallback)
    after = decide([replace(each, group=renamed(each.group)) for each in ballots], rule, fallback)
    assert after.winner == renamed(before.winner)
    assert after.tied == tuple(map(renamed, before.tied))
    assert after.standings == tuple(replace(each, group=renamed(each.group)) for each in before.standings)
