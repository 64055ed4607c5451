"""Certified winners are wrong as seldom as promised: exactly, over all votes; and what a certificate takes, by hand."""

import random
from collections.abc import Callable, Sequence
from itertools import product
from math import prod

import pytest

from qubic_lab.consensus.certificate import GAIN, LEAST_ERROR, Certificate, Certifier, points_needed
from qubic_lab.consensus.stopping import ballots_to_ask, reason_to_stop, replay
from qubic_lab.consensus.voting import Ballot, decide
from qubic_lab.errors import InputError


def counted(answers: Sequence[str | int | None], error: float = 0.05) -> Certifier:
    certifier = Certifier(error)
    for each in answers:
        certifier.add([None if each == "-" else each])
    return certifier


def certified(answers: Sequence[str | int | None], error: float = 0.05) -> Certificate:
    return counted(answers, error).certificate


def test_a_fair_bet_gains_as_much_as_it_loses():
    assert pytest.approx(1 - GAIN**-3, abs=1e-15) == GAIN - 1
    assert [points_needed(error) for error in (0.1, 0.05, 0.01)] == [4, 5, 8]


@pytest.mark.parametrize(
    ("answers", "winner", "without_last"),
    [
        ("AAAAA", "A", None),
        ("AABAAAAAA", "A", None),  # B took three points from the case against it, and the ballot
        ("ABAAAAAAAA", "A", None),  # the first two differ: three points less
        ("BAAAAAAAAAA", "A", None),  # and the first ballot after them is a bet on B
        ("A-AA--AA", "A", None),  # no answer says nothing
        ("ABCABCABCABCABCA", None, None),
    ],
)
def test_certificates_by_hand(answers: str, winner: str | None, without_last: str | None):
    assert certified(answers).winner == winner
    assert certified(answers[:-1]).winner == without_last


def test_what_was_excluded_stays_so_and_what_comes_late_too():
    assert certified("AAAAABBCDEF").winner == "A"
    assert str(certified("AAAAA")) == "certified at 5 %"
    assert str(certified("ABABAB")) == "not certified after 6"
    assert str(certified("AAAAAAAAA", 0.005)) == "certified at 0.5 %"


def wrong(shares: Sequence[Sequence[float]], of: Callable[[tuple[int, ...]], list[list[int]]]) -> float:
    """The exact probability that an answer other than 0 is ever certified; shares are those of each ballot."""
    total = 0.0
    for answers in product(range(len(shares[0])), repeat=len(shares)):
        certifier, found = Certifier(), False
        for block in of(answers):
            certifier.add(block)
            found = found or certifier.certificate.winner not in (None, 0)
        total += found * prod(share[answer] for share, answer in zip(shares, answers, strict=True))
    return total


def single(answers: tuple[int, ...]) -> list[list[int]]:
    return [[each] for each in answers]


@pytest.mark.parametrize(
    "shares", [(0.5, 0.5), (0.55, 0.45), (0.7, 0.3), (0.34, 0.33, 0.33), (0.45, 0.45, 0.1), (0.5, 0.4, 0.1)]
)
def test_the_error_is_at_most_the_promised_one_whenever_one_stops(shares: tuple[float, ...]):
    """All votes of 12 ballots for two answers, or 8 for three."""
    ballots = 12 if len(shares) == 2 else 8
    assert wrong([shares] * ballots, single) <= 0.05


def test_the_promise_is_not_kept_by_never_certifying():
    assert wrong([(0.5, 0.5)] * 12, single) > 0.015
    assert sum(wrong([share] * 12, single) for share in [(0.0, 1.0), (0.1, 0.9)]) > 1.7


def test_ballots_of_different_sources_count_in_blocks_for_the_mean_of_their_shares():
    """Two sources that like different answers, equally much: in blocks the promise holds, one after the other not."""
    first, second = (0.1, 0.9), (0.9, 0.1)
    assert wrong([first, second] * 6, lambda answers: [list(answers[n : n + 2]) for n in range(0, 12, 2)]) <= 0.05
    assert wrong([first] * 6 + [second] * 6, single) > 0.5


def test_told_correlation_takes_more_points_and_a_lone_copy_none():
    assert points_needed(0.05, 0.0, 16) < points_needed(0.05, 0.01, 16) < points_needed(0.05, 0.1, 16)
    assert points_needed(0.05, 1.0, 16) == 17 + points_needed(0.025)
    certifier = Certifier(correlation=0.3)
    for _ in range(16):
        certifier.add(["A"])
    assert certifier.certificate.winner is None, "sixteen equal answers may be one"
    for error, correlation, problem in [
        (0.0, 0.0, "error"),
        (1e-17, 0.5, "error"),
        (0.6, 0.0, "error"),
        (0.05, 1.5, "correlation is 1.5"),
    ]:
        with pytest.raises(InputError, match=problem):
            points_needed(error, correlation)
    assert points_needed(LEAST_ERROR, 0.5, most=32) < 100, "with the least error the sum still ends"


def test_no_certificate_comes_before_the_ballots_that_are_missing():
    draw, certificates = random.Random(0), 0
    for _ in range(400):
        answers = [draw.choice("AAAAAAAAAB-C") for _ in range(30)]
        certifier, lacking = Certifier(), [5]
        assert certifier.missing == 5
        for number, each in enumerate(answers, start=1):
            certifier.add([None if each == "-" else each])
            lacking.append(number + certifier.missing)
            if certifier.certificate.winner is not None:
                assert all(at <= number for at in lacking)
                certificates += 1
                break
    assert certificates > 200


def test_a_certificate_ends_a_vote_where_it_is_the_winners():
    five = [Ballot(f"v{number}", 0) for number in range(5)]
    to_come = [Ballot(f"w{number}", None) for number in range(20)]
    assert reason_to_stop(five, to_come, rule="plurality") is None
    assert reason_to_stop(five, to_come, rule="plurality", certifier=counted([0] * 5)) == "certified at 5 %"
    assert reason_to_stop(five, to_come, rule="plurality", certifier=counted([1] * 5)) is None


def test_without_a_chance_of_a_certificate_a_likely_lead_ends_the_vote():
    answers = "ABABABAAA"
    ballots = [Ballot(f"v{number}", group) for number, group in enumerate(answers)]
    to_come = [Ballot(f"w{number}", None) for number in range(20)]
    certifier = counted(answers)
    assert certifier.missing == 9, "the first two differ, and B has two more ballots and five against it: 5 + 3 + 6 - 5"
    assert reason_to_stop(ballots, to_come[:10], rule="plurality", certifier=certifier) is None
    why = reason_to_stop(ballots, to_come[:8], rule="plurality", certifier=certifier)
    assert why == "the leader is ahead with probability 0.828, at least 0.8"
    assert ballots_to_ask(ballots, 10, certifier) == 9
    assert ballots_to_ask(ballots[:7], 8, certifier) == 2, "six against three are likely, five are not"
    assert ballots_to_ask([], 16, Certifier()) == 5
    few = counted("AA")
    assert reason_to_stop(ballots[::2][:2], to_come[:2], rule="plurality", certifier=few) is None, "too few to guess"


def test_replay_stops_at_the_certificate():
    ballots = [Ballot(f"v{number:02}", group) for number, group in enumerate("AAAAAABBBBBBBBBB")]
    assert decide(ballots, "plurality").winner == "B"
    done = replay(ballots, [10] * 16, rule="plurality", error=0.05)
    assert (done.taken, done.winner, done.full_winner, done.tokens_saved) == (5, "A", "B", 110)
    assert done.certified and done.why == "certified at 5 %"
    mixed = replay([Ballot(f"v{n:02}", n % 3) for n in range(16)], [1] * 16, rule="plurality", error=0.05)
    assert (mixed.taken, mixed.certified) == (16, False)
