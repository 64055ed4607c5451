"""Levels keep their promise as often as they say, are given where they can be, and not where too little is known."""

import math

import numpy as np
import pytest

from qubic_lab.consensus.bands import MOST_WRONG, Band, ConfidenceLevel, find_bands, level_of
from qubic_lab.stats import binomial_at_most

ANSWER, NOTE, RECOMPUTE, FALLBACK = ConfidenceLevel


def test_binomial_by_hand():
    assert binomial_at_most(0, 19, 0.15) == pytest.approx(0.85**19)
    assert binomial_at_most(1, 3, 0.25) == pytest.approx(0.75**3 + 3 * 0.25 * 0.75**2)
    assert binomial_at_most(3, 3, 0.25) == 1.0
    assert math.isclose(binomial_at_most(15_000, 100_000, 0.15), 0.5, abs_tol=0.01)


def test_the_fewest_votes_that_show_a_promise():
    """19 right answers of 19 show at most 15 % of errors, 18 do not."""
    for votes, expected in [(18, None), (19, 0.9)]:
        found = find_bands(np.full(50, 0.9), np.ones(50), np.full(votes, 0.9), np.ones(votes))
        assert found[0] == Band(ANSWER, expected, votes if expected else 0, 0)


def test_a_level_goes_down_to_the_last_score_that_keeps_its_promise():
    """At 0.9 all are right, at 0.6 seven of ten, at 0.2 none."""
    scores = np.repeat([0.9, 0.6, 0.2], 100)
    right = np.concatenate([np.ones(100), np.tile([1.0] * 7 + [0.0] * 3, 10), np.zeros(100)])
    answer, note, recompute = find_bands(scores, right, scores, right)
    assert answer == Band(ANSWER, 0.9, 100, 0), "with those at 0.6 it would be 15 %, which is not shown to be less"
    assert note == Band(NOTE, 0.9, 100, 0), "a probability of 0.6 is too low for it, whatever is shown"
    assert recompute == Band(RECOMPUTE, 0.6, 200, 30), "of all 300, 130 are wrong"
    assert [level_of(score, (answer, note, recompute)) for score in (0.95, 0.9, 0.7, 0.6, 0.5)] == [
        *(ANSWER, ANSWER, RECOMPUTE, RECOMPUTE, FALLBACK)
    ]
    assert level_of(0.99, (Band(ANSWER, None, 0, 0),)) is FALLBACK


@pytest.mark.parametrize("votes", [100, 1000])
def test_promises_hold_for_95_percent_of_all_calibrations(votes: int):
    """Scores are uniform, and a winner is right with its score: from s on, (1 - s) / 2 are wrong."""
    draw, runs = np.random.default_rng(votes), 400
    broken, given = dict.fromkeys(MOST_WRONG, 0), dict.fromkeys(MOST_WRONG, 0)
    for _ in range(runs):
        scores = draw.random(votes)
        others = draw.random(votes)
        outcomes = [(draw.random(votes) < each).astype(float) for each in (others, scores)]
        for band in find_bands(others, outcomes[0], scores, outcomes[1]):
            if band.least is not None:
                given[band.level] += 1
                broken[band.level] += (1 - band.least) / 2 > MOST_WRONG[band.level]
    assert max(broken.values()) <= 0.05 * runs + 2 * math.sqrt(0.05 * 0.95 * runs)
    assert given[NOTE] > (0.9 if votes == 1000 else 0.2) * runs


def test_a_score_that_says_nothing_gives_no_level_beyond_what_all_votes_keep():
    draw, runs, broken = np.random.default_rng(1), 400, 0
    for _ in range(runs):
        right = (draw.random((2, 200)) < 0.84).astype(float)  # 16 % are wrong, whatever the score
        broken += find_bands(draw.random(200), right[0], draw.random(200), right[1])[0].least is not None
    assert broken <= 0.05 * runs + 2 * math.sqrt(0.05 * 0.95 * runs)
