"""Walk-forward splits: fit on the past, test on the next bars; purge and embargo keep fitted labels out of the test.

The label of bar i is made from the bars i to its end, such as the return up to i + horizon. Purging removes the train
bars whose labels overlap with the test; the embargo removes further bars (López de Prado, "Advances in Financial
Machine Learning", 2018, chapters 7 and 12).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.bars import Floats, Integers


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the bars to fit on and of those to test on, each in order."""

    train: Integers
    test: Integers


def label_ends(bars: int, horizon: int) -> Integers:
    """Return the row of the last bar in each bar's label: `horizon` bars later, also beyond the last bar.

    A position that is filled `lag` bars after its decision and held for h bars has a horizon of lag + h.

    Raises:
        InputError: a horizon below 0.
    """
    check_at_least("horizon", horizon, 0)
    return np.arange(bars, dtype=np.int64) + horizon


def walk_forward(ends: Integers, *, train: int, test: int, embargo: int = 0) -> list[Split]:
    """Return splits that go forward in time; their tests follow each other without overlap.

    A bar is trained on if its label ends, and `embargo` bars pass, before the test begins.

    Args:
        ends: the row of the last bar in each bar's label, as `label_ends` gives them.
        train: number of bars before the test.
        test: number of bars in a test.
        embargo: number of bars between the end of a label and the test.

    Raises:
        InputError: lengths below 1, a label that ends before its bar, or too few bars for a split with train bars.
    """
    for name, value, least in (("train", train, 1), ("test", test, 1), ("embargo", embargo, 0)):
        check_at_least(name, value, least)
    early = ends < np.arange(len(ends))
    if early.any():
        raise InputError(f"label of bar {int(early.argmax())} ends before it: give the row of each label's last bar")
    splits = []
    for start in range(train, len(ends) - test + 1, test):
        candidates = np.arange(start - train, start, dtype=np.int64)
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


def out_of_sample(splits: Sequence[Split], fit: Callable[[Integers, Integers], Floats], bars: int) -> Floats:
    """Return the weights at all test bars, each from a fit on its split's train bars, [bars]; 0 outside the tests.

    Args:
        splits: as `walk_forward` gives them.
        fit: returns the weights at the test bars, from the rows of train and test bars.
        bars: number of bars.

    Raises:
        InputError: `fit` does not return a weight for each test bar.
    """
    weights = np.zeros(bars)
    for split in splits:
        values = np.asarray(fit(split.train, split.test), np.float64)
        if values.shape != split.test.shape:
            raise InputError(f"fit gave {values.shape} weights for {len(split.test)} test bars: give one for each")
        weights[split.test] = values
    return weights
