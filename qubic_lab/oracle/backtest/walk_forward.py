"""Which bars to fit on and which to test on, so that no fitted label reaches into a test: indices in, indices out.

A label at bar i is made from bars i to its end, such as the return up to i + horizon. Purging takes from the train bars
those whose labels overlap with a test one; the embargo takes as many bars more after each test (López de Prado,
"Advances in Financial Machine Learning", 2018, chapters 7 and 12).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.bars import Floats, Integers


@dataclass(frozen=True, eq=False)
class Split:
    """Bars to fit on and bars to test on, each in order.

    `groups`: of combinatorial splits, the tested ones.
    """

    train: Integers
    test: Integers
    groups: tuple[int, ...] = ()


def label_ends(bars: int, horizon: int) -> Integers:
    """Return the last bar that each bar's label is made from: `horizon` bars later; beyond the data at its end.

    A position that is filled `lag` bars after its decision and held for h has a horizon of lag + h.

    Raises:
        InputError: a horizon below 0.
    """
    check_at_least("horizon", horizon, 0)
    return np.arange(bars, dtype=np.int64) + horizon


def walk_forward(
    ends: Integers, *, train: int, test: int, embargo: int = 0, expanding: bool = False, step: int | None = None
) -> list[Split]:
    """Return splits that go forward in time: fitted on the past, tested on the next bars.

    Train bars are `train` bars before the test less those that are purged: a label must end, and `embargo` bars must
    pass, before the test begins.

    Args:
        ends: each bar's label's last bar, as `label_ends` gives them.
        train: how many bars before the test.
        test: how many bars.
        embargo: so many bars more are left out between a label's end and the test.
        expanding: train on everything before the test, `train` bars at least.
        step: from a test's first bar to the next one's; None: tests follow each other without overlap.

    Raises:
        InputError: lengths below 1, or too few bars for one split that has anything to train on.
    """
    for name, value, least in (("train", train, 1), ("test", test, 1), ("embargo", embargo, 0), ("step", step or 1, 1)):
        check_at_least(name, value, least)
    _check_ends(ends)
    splits = []
    for start in range(train, len(ends) - test + 1, step or test):
        candidates = np.arange(0 if expanding else start - train, start, dtype=np.int64)
        kept = candidates[ends[candidates] + embargo < start]
        if not len(kept):
            raise InputError(
                f"purge and embargo leave none of {len(candidates)} train bars before bar {start}: train on more, or "
                "shorten labels or embargo"
            )
        splits.append(Split(kept, np.arange(start, start + test, dtype=np.int64)))
    if not splits:
        raise InputError(f"{len(ends)} bars are too few to train on {train} and test on {test}: make them shorter")
    return splits


def purged(ends: Integers, test: Integers, embargo: int = 0) -> Integers:
    """Return the bars that may be trained on beside a test set.

    A bar is taken out where the time from it to its label's end has a bar in common with that of a test bar, and in the
    `embargo` bars after the last label of each run of test bars.

    Raises:
        InputError: an embargo below 0, or labels that end before they begin.
    """
    check_at_least("embargo", embargo, 0)
    _check_ends(ends)
    bars = np.arange(len(ends), dtype=np.int64)
    allowed = np.ones(len(ends), np.bool_)
    for run in np.split(test, np.flatnonzero(np.diff(test) != 1) + 1):
        if len(run):
            last = ends[run].max()
            allowed &= (ends < run[0]) | (bars > last + embargo)
    return bars[allowed]


def purged_folds(ends: Integers, folds: int, embargo: int = 0) -> list[Split]:
    """Return as many splits as folds, each tested once on all its bars and trained on what purging leaves of others.

    Raises:
        InputError: fewer than 2 folds, too few bars, or nothing left to train on.
    """
    return combinatorial(ends, groups=folds, tests=1, embargo=embargo)


def combinatorial(ends: Integers, *, groups: int, tests: int, embargo: int = 0) -> list[Split]:
    """Return a split for each way to test on `tests` of `groups` equal parts of the bars, in order.

    Raises:
        InputError: groups that do not fit, or nothing left to train on.
    """
    check_at_least("groups", groups, 2)
    check_at_least("tests", tests, 1)
    if tests >= groups:
        raise InputError(f"tests is {tests} of {groups} groups: at least one must be left to train on")
    if len(ends) < groups:
        raise InputError(f"{len(ends)} bars cannot be parted into {groups} groups: use fewer")
    parts = np.array_split(np.arange(len(ends), dtype=np.int64), groups)
    splits = []
    for chosen in combinations(range(groups), tests):
        test = np.concatenate([parts[group] for group in chosen])
        train = purged(ends, test, embargo)
        if not len(train):
            raise InputError(f"purge and embargo leave nothing to train on beside groups {chosen}: use fewer tests")
        splits.append(Split(train, test, chosen))
    return splits


def combinatorial_paths(groups: int, tests: int) -> Integers:
    """Return from which split each path takes each group, [paths, groups]: each group's splits in order.

    There are C(groups, tests) · tests / groups paths, and each goes through all bars once.
    """
    chosen = list(combinations(range(groups), tests))
    by_group = [[split for split, each in enumerate(chosen) if group in each] for group in range(groups)]
    paths = np.array(by_group, np.int64).T
    assert paths.shape == (comb(groups, tests) * tests // groups, groups)
    return paths


def join_paths(splits: Sequence[Split], tested: Sequence[Floats], bars: int) -> Floats:
    """Return each path's values at every bar, [paths, bars].

    Args:
        splits: all that `combinatorial` gave.
        tested: for each split a value for each of its test bars, [test bars].
        bars: how many there are.

    Raises:
        InputError: splits of another kind, or not a value for each test bar.
    """
    if not splits or not all(split.groups for split in splits) or len(splits) != len(tested):
        raise InputError(f"{len(tested)} results of {len(splits)} splits: give one for each that combinatorial gave")
    groups, tests = max(max(split.groups) for split in splits) + 1, len(splits[0].groups)
    if len(splits) != comb(groups, tests):
        raise InputError(f"there are {len(splits)} splits of {comb(groups, tests)}: paths need all of them")
    at_bars = np.full((len(splits), bars), np.nan)
    for row, split, values in zip(at_bars, splits, tested, strict=True):
        if len(values) != len(split.test):
            raise InputError(f"{len(values)} values for {len(split.test)} test bars: give one for each")
        row[split.test] = values
    group_of = np.repeat(np.arange(groups), [len(each) for each in np.array_split(np.arange(bars), groups)])
    joined: Floats = at_bars[combinatorial_paths(groups, tests)[:, group_of], np.arange(bars)]
    return joined


def out_of_sample(splits: Sequence[Split], fit: Callable[[Integers, Integers], Floats], bars: int) -> Floats:
    """Return what was wanted at each test bar by what was fitted without it, [bars]; 0 outside of all tests.

    Args:
        splits: as `walk_forward` gives them; where tests overlap, the later one counts.
        fit: gives, from train and test bars, the weights at the test bars.
        bars: how many there are.

    Raises:
        InputError: it does not give one for each test bar.
    """
    wanted = np.zeros(bars)
    for split in splits:
        values = np.asarray(fit(split.train, split.test), np.float64)
        if values.shape != split.test.shape:
            raise InputError(f"fit gave {values.shape} weights for {len(split.test)} test bars: give one for each")
        wanted[split.test] = values
    return wanted


def _check_ends(ends: Integers) -> None:
    early = ends < np.arange(len(ends))
    if early.any():
        raise InputError(f"label of bar {int(early.argmax())} ends before it: a label's end is its last bar's place")
