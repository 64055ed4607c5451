"""Each part of a weight is within 0 and 1, goes the right way, and is what its formula says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.consensus.weights import UNKNOWN, TrackRecord, WeightParts, weigh


def record_of(outcomes: str) -> TrackRecord:
    """The record after right (r) and wrong (w) answers, in their order."""
    record = TrackRecord()
    for each in outcomes:
        record = record.after(each == "r")
    return record


def test_the_weight_is_40_20_20_20():
    parts = WeightParts(accuracy=0.9, response=0.5, health=0.8, complexity=0.25)
    assert parts.weight == pytest.approx(0.4 * 0.9 + 0.2 * 0.5 + 0.2 * 0.8 + 0.2 * 0.25)


def test_a_known_voter_by_hand_and_an_unknown_one_in_the_middle():
    assert weigh() == WeightParts(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    parts = weigh(TrackRecord(6, 2), response_s=30.0, health_score=85.0, parameters=10_000_000_000)
    assert parts.accuracy == (4 + 6) / (8 + 8)
    assert parts.response == 10 / 40
    assert parts.health == 0.85
    assert parts.complexity == pytest.approx(2 / 3)


def test_one_early_error_does_not_condemn_and_old_ones_are_forgotten():
    assert record_of("w").accuracy == pytest.approx(4 / 9)
    assert record_of("r" * 10).accuracy > record_of("w" + "r" * 10).accuracy > 0.7
    assert record_of("r" * 250).accuracy - record_of("w" * 50 + "r" * 200).accuracy < 0.02
    assert record_of("r" * 200 + "w" * 50).accuracy < 0.5, "and what was good once does not count for ever"


@given(st.text("rw", max_size=60))
def test_one_answer_moves_accuracy_the_right_way_and_never_far(outcomes: str):
    record = record_of(outcomes)
    right, wrong = record.after(True).accuracy, record.after(False).accuracy
    assert 0.06 < wrong < right < 0.94
    assert right - wrong < 0.12


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_parts_are_monotone_and_within_0_and_1(one: float, other: float):
    fewer, more = (
        weigh(response_s=each, health_score=each / 1e4, parameters=1 + int(each) ** 2) for each in sorted((one, other))
    )
    assert 0 <= more.response <= fewer.response <= 1
    assert 0 <= fewer.complexity <= more.complexity <= 1
    assert 0 <= fewer.health <= more.health <= 1


def test_ends_of_the_scales():
    assert [weigh(response_s=seconds).response for seconds in (0.0, 10.0, float("inf"))] == [1.0, 0.5, 0.0]
    sizes = (50_000_000, 1_000_000_000, 400_000_000_000)
    assert [weigh(parameters=size).complexity for size in sizes] == pytest.approx([0.0, 1 / 3, 1.0])
