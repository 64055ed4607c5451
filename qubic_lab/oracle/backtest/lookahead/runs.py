"""Runs of somebody's signal whose values can be compared, row by row and bit by bit."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.oracle.model.bars import Floats

Signal = Callable[[pd.DataFrame], Any]
Flags = NDArray[np.bool_]

ROUNDING = 1e-10
"""Differences by a smaller share of the largest value are rounding."""


class Unusable(Exception):
    """A run gave nothing that can be compared; the text says why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, eq=False)
class Difference:
    """A test in which known bars changed: their values from what was known, and once later bars are there.

    `changed`: by more than rounding, which spreads far in running sums and would hide where a leak is; if all is
    rounding, by that.
    """

    test: str
    cut: int
    then: Floats
    later: Floats
    changed: Flags


def run_signal(function: Signal, frame: pd.DataFrame) -> Floats:
    """Return a signal's values, [bars, columns]."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = function(frame)
        except (Exception, SystemExit) as error:
            raise Unusable("error", f"it raised {type(error).__name__}: {_one_line(error)}") from None
    if isinstance(found, pd.Series | pd.DataFrame) and len(found) == len(frame) and not found.index.equals(frame.index):
        raise Unusable("output", "what it returned has another index than the bars: give one number for each, in order")
    try:
        values = np.asarray(found)
        values = values.astype(np.float64) if values.dtype.kind in "biufO" else values
    except Exception:  # of whatever library the result is from
        values = np.asarray("nothing")
    if values.dtype != np.float64 or values.ndim not in (1, 2):
        raise Unusable("output", f"it returned a {type(found).__name__} that is not one number for each bar")
    if len(values) != len(frame):
        raise Unusable("output", f"it returned {len(values)} values for {len(frame)} bars: give one for each")
    return values.reshape(len(values), -1)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def changed_rows(first: Floats, second: Floats, tolerance: float = 0.0) -> Flags:
    """Return which rows differ in a bit, or by more than a share of the largest value; NaN equals NaN, and 0 −0."""
    if first.shape != second.shape:
        return np.ones(min(len(first), len(second)), np.bool_)
    found = differing(first, second)
    if tolerance and found.any():
        finite = np.abs(second[np.isfinite(second)])
        with np.errstate(invalid="ignore"):
            near = np.abs(first - second) <= tolerance * (float(finite.max()) if finite.size else 0.0)
        found &= ~near
    return np.asarray(found.any(axis=1))


def differing(first: Floats, second: Floats) -> Flags:
    """Return which values differ in a bit; NaN equals NaN, and 0 −0."""
    return np.asarray(~((first == second) | (np.isnan(first) & np.isnan(second))))


def is_rounding(difference: Difference, share: float = ROUNDING) -> bool:
    """Return whether nothing changed by more than rounding."""
    return not changed_rows(difference.then, difference.later, share).any()
