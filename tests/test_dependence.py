"""Copies are one vote, and votes that err together count less: by hand, and on votes of known correlation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.bench.consensus import simulate_votes
from qubic_lab.consensus.dependence import PastVote, effective_votes, error_correlation, find_copies, merge_copies
from qubic_lab.consensus.voting import AnswerSource, Ballot
from qubic_lab.core import SamplingParams

GREEDY = SamplingParams()


def test_greedy_answers_of_one_model_to_one_prompt_are_copies_and_so_are_the_same_draws():
    draws = [SamplingParams(temperature=0.7, seed=seed) for seed in (1, 2, 2)]
    sources = {
        "c": AnswerSource("model-1", "Why?", SamplingParams(seed=3, top_k=40, max_new_tokens=64)),
        "a": AnswerSource("model-1", "Why?", GREEDY),
        "b": AnswerSource("model-2", "Why?", GREEDY),
        "d": AnswerSource("model-1", "Why? Think first.", GREEDY),
        **{name: AnswerSource("model-1", "Why?", draw) for name, draw in zip("efg", draws, strict=True)},
        "h": AnswerSource("model-1", "Why?", SamplingParams(temperature=0.8, seed=2)),
    }
    assert find_copies(sources) == (("a", "c"), ("f", "g"))


def test_copies_cast_one_ballot():
    ballots = [Ballot("d", 1), Ballot("c", 0, 0.5), Ballot("b", 0, 0.7), Ballot("a", 2)]
    kept, dropped = merge_copies(ballots, [("a", "b", "c")])
    assert kept == (Ballot("d", 1), Ballot("b", 0, 0.7))  # two of three copies say 0
    assert dropped == {"a": "a copy of b", "c": "a copy of b"}


def test_a_copy_without_an_answer_does_not_silence_the_other():
    kept, dropped = merge_copies([Ballot("a", None), Ballot("b", 3)], [("a", "b")])
    assert (kept, list(dropped)) == ((Ballot("b", 3),), ["a"])
    kept, dropped = merge_copies([Ballot("a", None), Ballot("b", None)], [("a", "b")])
    assert kept == (Ballot("a", None),)
    assert merge_copies([Ballot("a", 1)], [("a", "late")]) == ((Ballot("a", 1),), {})


def history(votes_QK) -> list[PastVote]:
    return [
        PastVote(f"q{question}", f"v{voter}", option, option == 0)
        for question, row in enumerate(votes_QK)
        for voter, option in enumerate(row)
    ]


def test_correlation_by_hand():
    """Wrong together on 1 of 4 questions, one alone on 1 each: joint 1/4, means 1/2, so (1/4 − 1/4) / (1/4) = 0."""
    found = error_correlation(history([[1, 1], [1, 0], [0, 2], [0, 0]]), resamples=50)
    assert found.rho == 0.0
    assert (found.same_wrong, found.both_wrong, found.questions, found.voters) == (1.0, 1, 4, 2)
    alike = error_correlation(history([[1, 2], [1, 1], [2, 1], [0, 0]]), resamples=50)
    assert alike.rho == pytest.approx(1.0)
    assert alike.same_wrong == pytest.approx(1 / 3)
    assert found.rho_interval is None, "four questions are too few for one"
    opposite = error_correlation(history([[1, 0], [0, 1]]), resamples=50)
    assert opposite.rho == -1.0
    assert (opposite.same_wrong, opposite.same_wrong_interval) == (None, None)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.8])
def test_the_correlation_of_simulated_voters_is_found(rho: float):
    votes = simulate_votes(np.random.default_rng(5), 2000, 4, 0.6, rho, 3).tolist()
    found = error_correlation(history(votes), resamples=200)
    assert found.rho == pytest.approx(rho, abs=0.05)
    assert found.rho_interval[0] <= rho <= found.rho_interval[1]
    # Wrong for want of knowing: one of two wrong options each. Wrong by copying: the same one.
    assert found.same_wrong > 0.45 + rho / 2.5


def test_voters_that_were_not_asked_are_left_out_pair_by_pair():
    full = history(simulate_votes(np.random.default_rng(1), 600, 3, 0.6, 0.5, 2).tolist())
    part = [vote for vote in full if vote.voter != "v2" or int(vote.question[1:]) < 300]
    found = error_correlation([*part, PastVote("alone", "v0", 0, True)], resamples=100)
    assert found.questions == 600
    assert found.rho == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("votes", [[], [[1, 0]], [[0, 0], [0, 0]], [[0], [1]]])
def test_nothing_is_said_where_nothing_can_be(votes: list[list[int]]):
    assert error_correlation(history(votes), resamples=10) is None


@given(st.integers(1, 40), st.floats(0, 1))
def test_equal_votes_follow_the_design_effect(n: int, rho: float):
    worth = effective_votes([0.3] * n, rho)
    assert worth == pytest.approx(n / (1 + (n - 1) * rho))
    assert worth >= effective_votes([0.3] * n, min(1.0, rho + 0.1)) - 1e-9


def test_ends_of_dependence():
    assert effective_votes([1, 1, 1, 1], 1.0) == 1.0
    assert effective_votes([1, 1, 1, 1], -0.3) == 4.0
    assert effective_votes([1, 0, 0], 0.0) == 1.0
    assert effective_votes([3, 1], 0.0) == pytest.approx(16 / 10)
    assert effective_votes([], 0.5) == effective_votes([0.0], 0.5) == 0.0
