"""Runs of a look-ahead check: frames cut at a bar or with another future, and a signal's values to compare by bits."""

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Self

import numpy as np
import pandas as pd

from qubic_lab.lifeline import end_when_parent_dies
from qubic_lab.oracle.model.bars import PRICES, Flags, Floats, Integers

Signal = Callable[[pd.DataFrame], Any]
ROUNDING = 1e-10
"""Differences by a smaller share of the largest value are rounding."""
KNOWN = "_known_us"
"""A column `body` with a column `body_known_us` beside it holds cells that become known at those instants."""
_DRIFTS = (0.0, 2.0, -2.0, None)
"""Drift of log prices after a cut, beside their noise; None: prices hardly move."""
_NOISE, _CALM = 0.3, 1e-4
"""Noise raises what is measured by the spread of the whole sample, calm lowers it."""


def closes_us(frame: pd.DataFrame) -> Integers | None:
    """Return when each bar closes, from the column `closed_us` or a time index; None where the frame has neither."""
    if "closed_us" in frame.columns:
        return np.asarray(frame["closed_us"].to_numpy(np.int64))
    if isinstance(frame.index, pd.DatetimeIndex):
        naive = frame.index.tz_convert("UTC").tz_localize(None) if frame.index.tz is not None else frame.index
        return np.asarray(naive.to_numpy().astype("datetime64[us]").astype(np.int64))
    return None


def known_at(frame: pd.DataFrame, bars: int) -> pd.DataFrame:
    """Return a copy of the first bars as they were known at the last one's close: later cells are missing."""
    part = frame.iloc[:bars].copy(deep=True)
    part.attrs = {}  # attributes cannot be cut at a bar
    for column, late in _late_cells(part, bars).items():
        series = part[column]
        if pd.api.types.is_bool_dtype(series.dtype) or not pd.api.types.is_numeric_dtype(series.dtype):
            values, missing = series.astype(object).to_numpy(copy=True), None
        else:
            values, missing = series.to_numpy(np.float64, copy=True), np.nan
        values[late] = missing
        part[column] = values
    return part


def scrambled(frame: pd.DataFrame, bars: int, draw: np.random.Generator, kind: int = 0) -> pd.DataFrame:
    """Return a copy whose rows after the first `bars`, and cells known only later, hold other values; times stay.

    `kind` says what prices do after the cut. 0: stay at their level, 1: rise, 2: fall, each with more noise than
    before; 3: hardly move.
    """
    rows = np.arange(len(frame)) >= bars
    drift = _DRIFTS[kind % len(_DRIFTS)]
    calm, trend = drift is None, np.zeros(len(frame))
    trend[bars:] = (drift or 0.0) * np.linspace(0.2, 1.0, len(frame) - bars)
    # All prices of a bar get one factor, so that its low stays its low.
    factors = np.exp(draw.normal(0.0, _CALM if calm else _NOISE, len(frame)) + trend)
    late, changed = _late_cells(frame, bars), dict[int, Any]()
    for place, column in enumerate(frame.columns):
        name, series = str(column[0] if isinstance(column, tuple) else column), frame[column]
        where = rows | late.get(column, False)
        values: Any = series
        if name.endswith("_us") or pd.api.types.is_datetime64_any_dtype(series.dtype):
            pass  # times stay
        elif name in PRICES:
            values = series.to_numpy(np.float64, copy=True)
            base = _flat(frame, column, bars) if calm else values
            values[where] = base[where] * factors[where]
        elif pd.api.types.is_float_dtype(series.dtype) and not pd.api.types.is_extension_array_dtype(series.dtype):
            values = series.to_numpy(np.float64, copy=True)
            values[where] = _calm(values[:bars], where, draw) if calm else _noisy(values[where], name, draw)
        else:
            values = series.array.copy()
            values[where] = values[where].take(draw.permutation(int(where.sum())))
        changed[place] = values
    found = pd.DataFrame(changed, index=frame.index, copy=True)
    found.columns = frame.columns
    return found


def _late_cells(frame: pd.DataFrame, bars: int) -> dict[Hashable, Flags]:
    """Return, for each column with instants beside it, the cells not known at the close of the last of `bars` bars.

    A cell whose instant is missing counts as late.
    """
    closed, found = closes_us(frame), dict[Hashable, Flags]()
    if closed is None:
        return found
    for column in frame.columns:
        stamp = (f"{column[0]}{KNOWN}", *column[1:]) if isinstance(column, tuple) else f"{column}{KNOWN}"
        if stamp in frame.columns:
            known_us = pd.to_numeric(frame[stamp], errors="coerce").to_numpy(np.float64)
            found[column] = np.asarray(~(known_us <= closed[bars - 1]))
    return found


def _flat(frame: pd.DataFrame, column: Hashable, bars: int) -> Floats:
    """Return prices that stay at the last close before a cut, with a hundredth of each bar's own range."""
    values: Floats = frame[column].to_numpy(np.float64)
    name = ("close", *column[1:]) if isinstance(column, tuple) else "close"
    closes = frame[name].to_numpy(np.float64) if name in frame.columns else values
    known = closes[:bars][np.isfinite(closes[:bars])]
    if not known.size:
        return values
    with np.errstate(all="ignore"):
        return np.asarray(known[-1] * (values / closes) ** 0.01)


def _calm(before: Floats, where: Flags, draw: np.random.Generator) -> Floats:
    """Return values that hardly differ from the median of those before the cut."""
    known = before[np.isfinite(before)]
    middle, spread = (float(np.median(known)), float(known.std())) if known.size else (1.0, 1.0)
    return np.asarray(middle + _CALM * (spread or 1.0) * draw.normal(0.0, 1.0, int(where.sum())))


def _noisy(values: Floats, name: str, draw: np.random.Generator) -> Floats:
    """Return other values of about the same size; half of the missing ones are filled."""
    moved = draw.permutation(values) * np.exp(draw.normal(0.0, 1.0, len(values)))
    if name != "volume":
        moved = moved + draw.normal(0.0, 1.0, len(values))
    gaps = np.isnan(moved) & (draw.random(len(values)) < 0.5)
    known = moved[~np.isnan(moved)]
    moved[gaps] = draw.choice(known, int(gaps.sum())) if known.size else 1.0
    return np.asarray(moved)


class UnusableRun(Exception):
    """A run gave no values that can be compared; the message says why.

    `kind` is "error" where the signal raised, "output" where it returned something else than numbers for all bars.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, eq=False)
class ChangedBars:
    """A test, prefix or scramble, in which some of the bars before the cut changed.

    `then` are the values from what was known, `later` those with other or later bars after the cut; `changed` is where
    they differ by more than rounding, or, if all differences are rounding, at all: rounding errors spread far in
    running sums and would hide the bar at which a leak shows.
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


def compare(test: str, cut: int, then: Floats, later: Floats) -> Iterator[ChangedBars]:
    """Yield how values of the same bars differ, unless they are equal in every bit."""
    if then.shape != later.shape:
        then = np.full_like(later, np.nan)
    changed, much = changed_rows(then, later), changed_rows(then, later, ROUNDING)
    if changed.any():
        yield ChangedBars(test, cut, then, later, much if much.any() else changed)


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
        self._values, sender = Pipe(duplex=False)
        self._bars, parent = len(frame), os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of copying a process that has threads
            self._child = os.fork()
        if not self._child:
            _send_values(function, frame, sender, parent)
        sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._values.close()

    def wait(self, limit_s: float) -> Floats | None:
        """Return the values, [bars, columns]; None if there are none, or none within this many seconds from now."""
        with contextlib.suppress(EOFError):
            if self._values.poll(limit_s):
                return np.frombuffer(self._values.recv_bytes(), np.float64).reshape(self._bars, -1)
        return None


def _send_values(function: Signal, frame: pd.DataFrame, sender: "Connection[Any, Any]", parent: int) -> NoReturn:
    try:
        end_when_parent_dies(parent)
        sender.send_bytes(run_signal(function, frame).tobytes())
    finally:
        os._exit(0)
