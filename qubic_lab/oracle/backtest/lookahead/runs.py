"""Runs of a signal, in this process or in a fresh copy of it, with values that can be compared bit by bit."""

import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import numpy as np
import pandas as pd

from qubic_lab.lifeline import end_when_parent_dies
from qubic_lab.oracle.model.bars import Flags, Floats

Signal = Callable[[pd.DataFrame], Any]
ROUNDING = 1e-10
"""Differences by a smaller share of the largest value are rounding."""


class UnusableRun(Exception):
    """A run gave no values that can be compared; the message says why.

    `kind` is "error" where the signal raised, "output" where it returned something else than numbers for all bars.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, eq=False)
class ChangedBars:
    """A test in which bars before the cut changed.

    Attributes:
        test: "prefix" or "scramble".
        cut: number of bars that were known.
        then, later: the values from what was known, and those with other or later bars after the cut.
        changed: where they differ by more than rounding; if all differences are rounding, where they differ at all.
            Rounding errors spread far in running sums and would hide the bar at which a leak shows.
    """

    test: str
    cut: int
    then: Floats
    later: Floats
    changed: Flags

    @property
    def first(self) -> int:
        """The first bar that changed."""
        return int(self.changed.argmax())

    def is_rounding(self, share: float = ROUNDING) -> bool:
        """Return whether no value changed by more than a share of the largest one."""
        return not changed_rows(self.then, self.later, share).any()


def run_signal(function: Signal, frame: pd.DataFrame) -> Floats:
    """Return a signal's values, [bars, columns].

    Raises:
        UnusableRun: the signal raised, or did not return a number for each bar.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = function(frame)
        except (Exception, SystemExit) as error:
            message = " ".join(str(error).split())
            message = message if len(message) <= 200 else f"{message[:199]}…"
            raise UnusableRun("error", f"it raised {type(error).__name__}: {message}") from None
    if isinstance(found, pd.Series | pd.DataFrame) and len(found) == len(frame) and not found.index.equals(frame.index):
        raise UnusableRun("output", "it returned another index than the bars: return one number for each bar, in order")
    try:
        values = np.asarray(found)
        values = values.astype(np.float64) if values.dtype.kind in "biufO" else values
    except Exception:  # whatever the library raises that the result comes from
        values = np.asarray("nothing")
    if values.dtype != np.float64 or values.ndim not in (1, 2):
        raise UnusableRun("output", f"it returned a {type(found).__name__} that is not one number for each bar")
    if len(values) != len(frame):
        raise UnusableRun("output", f"it returned {len(values)} values for {len(frame)} bars: return one for each")
    return values.reshape(len(values), -1)


def compare(test: str, cut: int, then: Floats, later: Floats) -> ChangedBars | None:
    """Return how values of the same bars differ; None where they are equal in every bit."""
    if then.shape != later.shape:
        then = np.full_like(later, np.nan)
    changed = changed_rows(then, later)
    if not changed.any():
        return None
    much = changed_rows(then, later, ROUNDING)
    return ChangedBars(test, cut, then, later, much if much.any() else changed)


def changed_rows(first: Floats, second: Floats, tolerance: float = 0.0) -> Flags:
    """Return which rows differ by more than a share of the largest value; NaN equals NaN, and 0 equals −0."""
    if first.shape != second.shape:
        return np.ones(min(len(first), len(second)), np.bool_)
    found = ~((first == second) | (np.isnan(first) & np.isnan(second)))
    if tolerance and found.any():
        finite = np.abs(second[np.isfinite(second)])
        with np.errstate(invalid="ignore"):
            found &= ~(np.abs(first - second) <= tolerance * (float(finite.max()) if finite.size else 0.0))
    return np.asarray(found.any(axis=1))


class FreshRun:
    """A run of a signal in a copy of this process that sees no other bars and keeps nothing afterwards.

    It goes on while this process does other work. Threads are not copied, so a signal that waits for one started before
    may never end: `wait` gives up.
    """

    def __init__(self, function: Signal, frame: pd.DataFrame) -> None:
        self._file, parent = tempfile.TemporaryFile(), os.getpid()  # noqa: SIM115  (closed by __exit__)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of copying a process that has threads
            self._child = os.fork()
        if not self._child:
            self._run(function, frame, parent)

    def _run(self, function: Signal, frame: pd.DataFrame, parent: int) -> NoReturn:
        try:
            end_when_parent_dies(parent)
            np.save(self._file, run_signal(function, frame))
            self._file.flush()
        finally:
            os._exit(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._file.close()

    def wait(self, limit_s: float) -> Floats | None:
        """Return the values, [bars, columns]; None if there are none, or none within this many seconds from now."""
        end = time.monotonic() + limit_s
        while self._child:
            if os.waitpid(self._child, os.WNOHANG) != (0, 0):
                self._child = 0
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.002)
        self._file.seek(0)
        return np.load(self._file, allow_pickle=False) if os.fstat(self._file.fileno()).st_size else None
