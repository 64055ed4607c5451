"""Splits in time: no train label reaches into a test, the embargo holds, and paths go through every bar once."""

from math import comb

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.walk_forward import (
    Split,
    combinatorial,
    combinatorial_paths,
    join_paths,
    label_ends,
    out_of_sample,
    purged,
    purged_folds,
    walk_forward,
)
from qubic_lab.oracle.model.bars import Integers

BARS = st.integers(20, 80)
SMALL = st.integers(0, 6)


@st.composite
def labels(draw: st.DrawFn) -> Integers:
    """Ends of labels of different lengths."""
    bars = draw(BARS)
    lengths = draw(st.lists(SMALL, min_size=bars, max_size=bars))
    return np.arange(bars) + np.array(lengths)


def span(ends: Integers, bar: int) -> set[int]:
    return set(range(bar, int(ends[bar]) + 1))


def check_apart(ends: Integers, split: Split, embargo: int) -> None:
    """Check, bar by bar, that no train label has a bar in common with a test one, nor begins in an embargo."""
    tested = set().union(*(span(ends, bar) for bar in split.test.tolist()))
    forbidden = set(tested)
    runs = np.split(split.test, np.flatnonzero(np.diff(split.test) != 1) + 1)
    for run in runs:
        last = int(ends[run].max())
        forbidden |= set(range(last + 1, last + 1 + embargo))
    for bar in split.train.tolist():
        assert not span(ends, bar) & tested
        assert bar not in forbidden
    assert not set(split.train.tolist()) & set(split.test.tolist())


@given(labels(), st.integers(2, 6), st.integers(1, 2), SMALL)
def test_combinatorial_splits_are_apart_and_test_each_bar_equally_often(
    ends: Integers, groups: int, tests: int, embargo: int
) -> None:
    assume(tests < groups)
    try:
        splits = combinatorial(ends, groups=groups, tests=tests, embargo=embargo)
    except InputError as error:
        assert "nothing to train on" in str(error)
        return
    assert len(splits) == comb(groups, tests)
    for split in splits:
        check_apart(ends, split, embargo)
        assert len(split.groups) == tests
    counts = np.bincount(np.concatenate([split.test for split in splits]), minlength=len(ends))
    assert (counts == comb(groups - 1, tests - 1)).all()


@given(labels(), st.data(), SMALL)
def test_purging_takes_no_more_than_it_must(ends: Integers, data: st.DataObject, embargo: int) -> None:
    start = data.draw(st.integers(0, len(ends) - 1))
    test = np.arange(start, data.draw(st.integers(start + 1, len(ends))))
    reach = max(int(ends[test].max()), int(test[-1]))
    for bar in sorted(set(range(len(ends))) - set(purged(ends, test, embargo).tolist())):
        overlaps = bool(span(ends, bar) & set(range(start, reach + 1)))
        assert overlaps or reach < bar <= reach + embargo


@given(labels(), st.integers(8, 20), st.integers(1, 10), SMALL, st.booleans(), st.sampled_from([None, 3]))
def test_walking_forward_trains_on_the_past_alone(
    ends: Integers, train: int, test: int, embargo: int, expanding: bool, step: int | None
) -> None:
    assume(train + test <= len(ends))
    try:
        splits = walk_forward(ends, train=train, test=test, embargo=embargo, expanding=expanding, step=step)
    except InputError as error:
        assert "purge and embargo leave none" in str(error)
        return
    for split in splits:
        check_apart(ends, split, 0)
        assert int(ends[split.train].max()) + embargo < split.test[0]
        assert len(split.test) == test and (np.diff(split.test) == 1).all()
        assert expanding or split.train[0] >= split.test[0] - train
    firsts = [int(split.test[0]) for split in splits]
    assert firsts == list(range(train, len(ends) - test + 1, step or test))


def test_splits_by_hand() -> None:
    ends = label_ends(20, 2)
    assert ends.tolist() == list(range(2, 22))
    first, second = walk_forward(ends, train=8, test=5, embargo=1)
    assert first.train.tolist() == [0, 1, 2, 3, 4]  # label of bar 4 ends at 6, then one bar more, then the test at 8
    assert first.test.tolist() == [8, 9, 10, 11, 12]
    assert second.train.tolist() == [5, 6, 7, 8, 9] and second.test.tolist() == [13, 14, 15, 16, 17]
    (whole,) = walk_forward(ends, train=15, test=5, expanding=True)
    assert whole.train.tolist() == list(range(13))
    folds = purged_folds(ends, 4, embargo=3)
    assert folds[1].test.tolist() == [5, 6, 7, 8, 9]
    # Labels of bars up to 2 end before 5; the test's last label ends at 11, then 3 bars of embargo.
    assert folds[1].train.tolist() == [0, 1, 2, 15, 16, 17, 18, 19]
    two = combinatorial(ends, groups=4, tests=2)
    assert [split.groups for split in two] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert two[1].train.tolist() == [7, 17, 18, 19]


def test_paths_by_hand() -> None:
    # Of 4 groups, 2 tested: splits (0,1) (0,2) (0,3) (1,2) (1,3) (2,3); each group is tested in 3: that makes 3 paths.
    assert combinatorial_paths(4, 2).tolist() == [[0, 0, 1, 2], [1, 3, 3, 4], [2, 4, 5, 5]]


@given(st.integers(3, 6), st.integers(1, 3), st.integers(20, 40))
def test_each_path_takes_each_bar_once_from_a_split_that_tested_it(groups: int, tests: int, bars: int) -> None:
    assume(tests < groups)
    splits = combinatorial(label_ends(bars, 0), groups=groups, tests=tests)
    numbered = [number * 1_000.0 + split.test for number, split in enumerate(splits)]
    paths = join_paths(splits, numbered, bars)
    assert paths.shape == (comb(groups - 1, tests - 1), bars)
    assert np.array_equal(paths % 1_000, np.tile(np.arange(bars), (len(paths), 1)))
    for bar in range(bars):
        tested_by = {number for number, split in enumerate(splits) if bar in split.test}
        assert set((paths[:, bar] // 1_000).tolist()) == tested_by
    with pytest.raises(InputError, match="paths need all of them"):
        join_paths(splits[1:] + splits[-1:] * 2, [*numbered[1:], *numbered[-1:] * 2], bars)
    with pytest.raises(InputError, match="give one for each that combinatorial gave"):
        join_paths(splits, numbered[:-1], bars)


def test_what_is_wanted_out_of_sample_comes_from_the_fit_before_it() -> None:
    splits = walk_forward(label_ends(30, 1), train=10, test=5)
    wanted = out_of_sample(splits, lambda train, test: np.full(len(test), float(train[-1])), 30)
    assert wanted.tolist() == [0.0] * 10 + [8.0] * 5 + [13.0] * 5 + [18.0] * 5 + [23.0] * 5
    with pytest.raises(InputError, match="for 5 test bars"):
        out_of_sample(splits, lambda train, test: np.zeros(3), 30)


def test_splits_that_cannot_be_made_are_told() -> None:
    ends = label_ends(20, 2)
    for message, wrong in (
        ("too few to train on 18 and test on 5", lambda: walk_forward(ends, train=18, test=5)),
        ("leave none of 2 train bars before bar 2", lambda: walk_forward(ends, train=2, test=5)),
        ("test is 0", lambda: walk_forward(ends, train=5, test=0)),
        ("at least one must be left", lambda: combinatorial(ends, groups=3, tests=3)),
        ("cannot be parted into 21 groups", lambda: combinatorial(ends, groups=21, tests=1)),
        ("nothing to train on beside groups", lambda: combinatorial(ends, groups=2, tests=1, embargo=20)),
        ("label of bar 3 ends before it", lambda: purged(np.array([0, 1, 2, 2]), np.array([0]))),
        ("horizon is -1", lambda: label_ends(5, -1)),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
