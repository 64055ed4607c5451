"""Walk-forward splits: no train label reaches into a test, the embargo holds, and weights come from earlier fits."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.walk_forward import label_ends, out_of_sample, walk_forward
from qubic_lab.oracle.model.bars import Integers

SMALL = st.integers(0, 6)


@st.composite
def labels(draw: st.DrawFn) -> Integers:
    """Ends of labels of different lengths."""
    lengths = draw(st.lists(SMALL, min_size=20, max_size=80))
    return np.arange(len(lengths)) + np.array(lengths)


@given(labels(), st.integers(8, 20), st.integers(1, 10), SMALL)
def test_training_uses_labels_that_end_before_the_test(ends: Integers, train: int, test: int, embargo: int) -> None:
    assume(train + test <= len(ends))
    try:
        splits = walk_forward(ends, train=train, test=test, embargo=embargo)
    except InputError as error:
        assert "purge and embargo leave none" in str(error)
        return
    for split in splits:
        start = int(split.test[0])
        assert split.test.tolist() == list(range(start, start + test))
        candidates = range(start - train, start)
        assert split.train.tolist() == [bar for bar in candidates if ends[bar] + embargo < start]
    firsts = [int(split.test[0]) for split in splits]
    assert firsts == list(range(train, len(ends) - test + 1, test))


def test_splits_by_hand() -> None:
    ends = label_ends(20, 2)
    assert ends.tolist() == list(range(2, 22))
    first, second = walk_forward(ends, train=8, test=5, embargo=1)
    assert first.train.tolist() == [0, 1, 2, 3, 4]  # label of bar 4 ends at 6, then one bar more, then the test at 8
    assert first.test.tolist() == [8, 9, 10, 11, 12]
    assert second.train.tolist() == [5, 6, 7, 8, 9] and second.test.tolist() == [13, 14, 15, 16, 17]


def test_weights_out_of_sample_come_from_the_fit_before_them() -> None:
    splits = walk_forward(label_ends(30, 1), train=10, test=5)
    weights = out_of_sample(splits, lambda train, test: np.full(len(test), float(train[-1])), 30)
    assert weights.tolist() == [0.0] * 10 + [8.0] * 5 + [13.0] * 5 + [18.0] * 5 + [23.0] * 5
    with pytest.raises(InputError, match="for 5 test bars"):
        out_of_sample(splits, lambda train, test: np.zeros(3), 30)


@pytest.mark.parametrize(
    ("message", "ends", "lengths"),
    [
        ("too few to train on 18 and test on 5", label_ends(20, 2), {"train": 18, "test": 5}),
        ("leave none of 2 train bars before bar 2", label_ends(20, 2), {"train": 2, "test": 5}),
        ("test is 0", label_ends(20, 2), {"train": 5, "test": 0}),
        ("label of bar 3 ends before it", np.array([0, 1, 2, 2]), {"train": 1, "test": 1}),
    ],
)
def test_impossible_splits_are_refused(message: str, ends: Integers, lengths: dict[str, int]) -> None:
    with pytest.raises(InputError, match=message):
        walk_forward(ends, **lengths)
    with pytest.raises(InputError, match="horizon is -1"):
        label_ends(5, -1)
