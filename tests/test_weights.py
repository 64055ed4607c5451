"""Each part of a weight is within 0 and 1, goes the right way, and is what its formula says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.consensus.weights import (
    PRIOR,
    UNKNOWN,
    TrackRecord,
    WeightParts,
    accuracy_part,
    complexity_part,
    health_part,
    response_part,
    weigh,
)
from qubic_lab.errors import InputError


def record_of(outcomes: str) -> TrackRecord:
    """The record after right (r) and wrong (w) answers, in their order."""
    record = TrackRecord()
    for each in outcomes:
        record = record.after(each == "r")
    return record


def test_the_weight_is_40_20_20_20():
    parts = WeightParts(accuracy=0.9, response=0.5, health=0.8, complexity=0.25)
    assert parts.weight == pytest.approx(0.4 * 0.9 + 0.2 * 0.5 + 0.2 * 0.8 + 0.2 * 0.25)
    expected = {"weight": parts.weight, "accuracy": 0.9, "response": 0.5, "health": 0.8, "complexity": 0.25}
    assert parts.to_dict() == expected
    assert WeightParts(1, 1, 1, 1).weight == pytest.approx(1.0)
    assert WeightParts(0, 0, 0, 0).weight == 0.0


def test_a_known_voter_by_hand_and_an_unknown_one_in_the_middle():
    assert weigh() == WeightParts(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    parts = weigh(TrackRecord(6, 2), response_s=30.0, health_score=85.0, parameters=10_000_000_000)
    assert parts.accuracy == (4 + 6) / (8 + 8)
    assert parts.response == 10 / 40
    assert parts.health == 0.85
    assert parts.complexity == pytest.approx(2 / 3)


def test_one_early_error_does_not_condemn():
    assert accuracy_part(record_of("w")) == pytest.approx(4 / 9)
    after_ten = accuracy_part(record_of("w" + "r" * 10))
    assert accuracy_part(record_of("r" * 10)) > after_ten > 0.7


def test_old_errors_are_forgotten():
    reformed, steady = record_of("w" * 50 + "r" * 200), record_of("r" * 250)
    assert accuracy_part(steady) - accuracy_part(reformed) < 0.02
    assert accuracy_part(record_of("r" * 200 + "w" * 50)) < 0.5, "and what was good once does not count for ever"


@given(st.text("rw", max_size=60))
def test_one_answer_moves_accuracy_the_right_way_and_never_far(outcomes: str):
    record = record_of(outcomes)
    right, wrong = accuracy_part(record.after(True)), accuracy_part(record.after(False))
    assert 0.06 < wrong < right < 0.94
    assert right - wrong < 0.12


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_parts_are_monotone_and_within_0_and_1(one: float, other: float):
    low, high = sorted((one, other))
    assert 0 <= response_part(high) <= response_part(low) <= 1
    assert 0 <= complexity_part(1 + int(low) ** 2) <= complexity_part(1 + int(high) ** 2) <= 1
    assert 0 <= health_part(low / 1e4) <= health_part(high / 1e4) <= 1


def test_ends_of_the_scales():
    assert response_part(0.0) == 1.0
    assert response_part(10.0) == 0.5
    assert response_part(float("inf")) == 0.0
    assert complexity_part(50_000_000) == 0.0
    assert complexity_part(1_000_000_000) == pytest.approx(1 / 3)
    assert complexity_part(400_000_000_000) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: response_part(-1.0),
        lambda: response_part(float("nan")),
        lambda: response_part(1.0, half_s=0.0),
        lambda: health_part(100.5),
        lambda: complexity_part(0),
        lambda: TrackRecord(-1, 0),
        lambda: TrackRecord(0, float("inf")),
        lambda: accuracy_part(PRIOR, prior=TrackRecord()),
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError):
        wrong()
