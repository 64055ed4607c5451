"""Simulated voters are what they are said to be, and a vote of them does what theory says."""

import math
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from commands import Run

from qubic_lab.bench.consensus import ConsensusResult, bench_consensus, simulate_votes, theoretical_accuracy
from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.errors import InputError


@cache
def voted(correlation: float) -> ConsensusResult:
    return bench_consensus(accuracy=0.6, correlation=correlation, k=5, questions=5_000)


@pytest.mark.parametrize(("correlation", "options"), [(0.0, 2), (0.25, 2), (0.5, 5), (1.0, 3)])
def test_voters_have_the_accuracy_and_the_correlation_that_is_asked_for(correlation: float, options: int):
    votes_QK = simulate_votes(np.random.default_rng(0), 60_000, 3, 0.6, correlation, options)
    right_QK = votes_QK == 0
    assert right_QK.mean(axis=0) == pytest.approx([0.6] * 3, abs=0.01)
    for one, other in combinations(range(3), 2):
        assert np.corrcoef(right_QK[:, one], right_QK[:, other])[0, 1] == pytest.approx(correlation, abs=0.015)
    wrong = np.bincount(votes_QK.ravel(), minlength=options)[1:] / votes_QK.size
    assert wrong == pytest.approx([0.4 / (options - 1)] * (options - 1), abs=0.01)


def test_theory_at_its_ends_and_by_hand():
    condorcet = sum(math.comb(5, n) * 0.6**n * 0.4 ** (5 - n) for n in (3, 4, 5))
    assert theoretical_accuracy(5, 0.6, 0.0) == pytest.approx(condorcet)
    assert condorcet == pytest.approx(0.683, abs=0.0005)
    assert theoretical_accuracy(5, 0.6, 1.0) == pytest.approx(0.6)
    assert theoretical_accuracy(1, 0.6, 0.4) == pytest.approx(0.6)
    assert theoretical_accuracy(2, 0.6, 0.0) == pytest.approx(0.6), "the second vote only makes ties"


@pytest.mark.parametrize(("k", "correlation"), [(5, 0.3), (4, 0.1)])
def test_simulated_votes_agree_with_theory(k: int, correlation: float):
    result = bench_consensus(accuracy=0.65, correlation=correlation, k=k, questions=1000, seed=2)
    assert result.expected_majority_accuracy == pytest.approx(theoretical_accuracy(k, 0.65, correlation))
    assert result.majority_accuracy == pytest.approx(result.expected_majority_accuracy, abs=0.04)


def test_independent_voters_gain_what_the_binomial_says_and_copies_nothing():
    independent, copies = voted(0.0), voted(1.0)
    low, high = independent.majority_accuracy_interval
    assert low <= 0.683 <= high
    assert independent.gain_interval[0] > 0.07
    assert independent.gain == pytest.approx(independent.majority_accuracy - independent.single_accuracy)
    assert independent.rho_interval[0] <= 0.0 <= independent.rho_interval[1]
    assert copies.gain_interval[0] <= 0.0 <= copies.gain_interval[1]
    assert copies.gain == 0.0
    assert copies.effective_votes == pytest.approx(1.0)
    assert copies.vote_share_ece > 0.38, "they agree always, and are right six times of ten"


def test_confidence_holds_on_held_out_questions():
    for result in (voted(0.0), voted(1.0)):
        assert result.confidence.items == 5_000
        assert result.ece <= 0.03
        assert result.ece_interval[0] <= result.ece <= 0.03
    levels = bench_consensus(accuracy=0.75, k=5, questions=2000).levels
    for each in levels:
        if each.wrong_interval is not None and each.most_wrong is not None:
            assert each.wrong_interval[0] <= each.most_wrong
    assert levels[0].level is ConfidenceLevel.ANSWER and levels[0].questions > 500
    assert sum(each.questions for each in levels) == 2000


def test_stopping_saves_samples_and_only_the_posterior_changes_winners():
    result = bench_consensus(accuracy=0.8, k=11, options=4, questions=400)
    certain, level, certified = result.stopping
    assert certain.changed == 0.0
    assert 0.1 < certain.samples_saved < certified.samples_saved < level.samples_saved
    assert max(level.changed, certified.changed) < 0.05


def test_equal_seeds_give_equal_results():
    one, same, other = (bench_consensus(questions=200, seed=seed).to_dict() for seed in (3, 3, 4))
    assert one == same
    assert one["majority_accuracy"] != other["majority_accuracy"]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"voters": "simulate"}, "unknown voters 'simulate': did you mean 'simulated'"),
        ({"accuracy": 1.5}, "accuracy is 1.5: it must lie between 0 and 1"),
        ({"correlation": math.nan}, "correlation is nan"),
        ({"k": 33}, "k is 33: it must be at most 32"),
        ({"questions": 199}, "questions is 199"),
    ],
)
def test_impossible_votes_are_refused(wrong: dict, problem: str):
    with pytest.raises(InputError, match=problem):
        bench_consensus(**wrong)


@pytest.mark.parametrize(("k", "accuracy"), [(1, 0.6), (3, 0.0), (3, 1.0), (2, 0.5)])
def test_votes_at_the_ends(k: int, accuracy: float):
    result = bench_consensus(accuracy=accuracy, k=k, questions=200)
    assert 0.0 <= result.ece <= 0.2
    assert (result.rho is None) == (k == 1 or accuracy in (0.0, 1.0))


def test_command_prints_plain_numbers(here: Run):
    arguments = "bench consensus --voters simulated --accuracy 0.6 --correlation 0 --k 5 --questions 500"
    found = here(f"{arguments} --json").json
    for name in ("majority_accuracy", "gain", "ece"):
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high
    shown = here(arguments).out
    assert "0.6826 by theory" in shown
    assert "Simulated: 5 voters" in shown and "accuracy: 0.6, correlation: 0," in shown
