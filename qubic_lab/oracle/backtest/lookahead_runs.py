"""Runs of a look-ahead check: frames cut at a bar or with another future, and a signal's values to compare by bits."""

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Self, TypeVar

import numpy as np
import pandas as pd
import psutil

from qubic_lab.lifeline import end_when_parent_dies
from qubic_lab.oracle.model.bars import PRICES, Flags, Floats, Integers

Signal = Callable[[pd.DataFrame], Any]
Result = TypeVar("Result")
ROUNDING = 1e-10
"""Differences by a smaller share of the size of large values are rounding."""
ROUNDING_OF_FLOAT32 = 1e-5
"""Such a share counts as rounding only where other futures change no bit."""
_IDLE_S = 2.0
"""A copied process that uses no processor time for so long waits for a thread that was not copied."""
_LARGE = 0.95
"""The quantile of all sizes but 0 that is the size of a large value."""
KNOWN = "_known_us"
"""A column `body` with a column `body_known_us` beside it holds cells that become known at those instants."""
FUTURES = ("level", "rise", "fall", "calm", "mild")
"""What prices do after a cut: stay, rise or fall with more noise than before, hardly move, move as before."""
_DRIFTS = {"rise": 2.0, "fall": -2.0}
"""Drift of log prices after a cut."""
_NOISE, _CALM = 0.3, 1e-4
"""Noise raises what is measured by the spread of the whole sample, calm lowers it."""
NEVER_US = 7_258_118_400_000_000  # 2200-01-01
"""The instant of a cell that is not known yet: the true one would tell when it comes."""


def closes_us(frame: pd.DataFrame) -> Integers | None:
    """Return when each bar closes, from the column `closed_us` or a time index; None where the frame has neither."""
    if "closed_us" in frame.columns:
        return np.asarray(frame["closed_us"].to_numpy(np.int64))
    if isinstance(frame.index, pd.DatetimeIndex):
        naive = frame.index.tz_convert("UTC").tz_localize(None) if frame.index.tz is not None else frame.index
        return np.asarray(naive.to_numpy().astype("datetime64[us]").astype(np.int64))
    return None


def known_at(frame: pd.DataFrame, bars: int) -> pd.DataFrame:
    """Return a copy of the first bars as they were known at the last one's close.

    Later cells are missing, and their instants are `NEVER_US`.
    """
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
        instants = part[_stamp(column)]
        if not pd.api.types.is_numeric_dtype(instants.dtype):
            part[_stamp(column)] = instants.mask(late)
        elif late.any():
            part[_stamp(column)] = np.where(late & instants.notna(), NEVER_US, instants)
    return part


def scrambled(frame: pd.DataFrame, bars: int, draw: np.random.Generator, future: str = "level") -> pd.DataFrame:
    """Return a copy whose rows after the first `bars`, and cells known only later, hold other values; times stay.

    `future` is one of `FUTURES`.
    """
    rows = np.arange(len(frame)) >= bars
    calm, trend = future == "calm", np.zeros(len(frame))
    trend[bars:] = _DRIFTS.get(future, 0.0) * np.linspace(0.2, 1.0, len(frame) - bars)
    noise = _usual_move(frame, bars) if future == "mild" else _CALM if calm else _NOISE
    # All prices of a bar get one factor, so that its low stays its low.
    factors = np.exp(draw.normal(0.0, noise, len(frame)) + trend)
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
        stamp = _stamp(column)
        if stamp in frame.columns:
            known_us = pd.to_numeric(frame[stamp], errors="coerce").to_numpy(np.float64)
            found[column] = np.asarray(~(known_us <= closed[bars - 1]))
    return found


def _stamp(column: Hashable) -> Hashable:
    """Return the name of the column with the instants at which the cells of a column become known."""
    return (f"{column[0]}{KNOWN}", *column[1:]) if isinstance(column, tuple) else f"{column}{KNOWN}"


def _usual_move(frame: pd.DataFrame, bars: int) -> float:
    """Return the deviation of log changes of the known closes, or other prices; at most that of wild futures."""
    names = {column[0] if isinstance(column, tuple) else column for column in frame.columns} & set(PRICES)
    if not names:
        return _NOISE
    known = frame["close" if "close" in names else min(names)].iloc[:bars].to_numpy(np.float64)
    with np.errstate(all="ignore"):
        moves = np.diff(np.log(known), axis=0)
    moves = moves[np.isfinite(moves)]
    return min(_NOISE, float(moves.std()) or 0.01) if moves.size else 0.01


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
    running sums and would hide the bar at which a leak shows. `large` is the size of large values on all bars.
    """

    test: str
    cut: int
    then: Floats
    later: Floats
    changed: Flags
    large: float

    @property
    def first(self) -> int:
        """The first bar that changed."""
        return int(self.changed.argmax())

    def is_rounding(self, share: float = ROUNDING) -> bool:
        """Return whether no value changed by more than a share of large ones."""
        return not changed_rows(self.then, self.later, share * self.large).any()


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


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of a call and its seconds of processor time, or a tenth of all, if it waits more than it works.

    On a busy machine the time on a clock says little about a call.
    """
    started, used = time.perf_counter(), time.process_time()
    result = call()
    return result, max(time.process_time() - used, (time.perf_counter() - started) / 10.0)


def compare(test: str, cut: int, then: Floats, later: Floats, large: float) -> Iterator[ChangedBars]:
    """Yield how values of the same bars differ, unless they are equal in every bit; for `large` see `ChangedBars`."""
    if then.shape != later.shape:
        then = np.full_like(later, np.nan)
    changed, much = changed_rows(then, later), changed_rows(then, later, ROUNDING * large)
    if changed.any():
        yield ChangedBars(test, cut, then, later, much if much.any() else changed, large)


def large_value(values: Floats) -> float:
    """Return the size of large values; not the largest, beside which all others might look like rounding."""
    size = np.abs(values[np.isfinite(values) & (values != 0.0)])
    return float(np.quantile(size, _LARGE)) if size.size else 0.0


def changed_rows(first: Floats, second: Floats, tolerance: float = 0.0) -> Flags:
    """Return which rows differ by more than a tolerance; NaN equals NaN, and 0 equals −0."""
    if first.shape != second.shape:
        return np.ones(min(len(first), len(second)), np.bool_)
    found = ~((first == second) | (np.isnan(first) & np.isnan(second)))
    if tolerance and found.any():
        with np.errstate(invalid="ignore"):
            found &= ~(np.abs(first - second) <= tolerance)
    return np.asarray(found.any(axis=1))


@dataclass
class CutRuns:
    """Where known bars changed, and the cuts at which the signal ran on the past alone.

    `failed` says by cut why it did not; `refused`, why it ran on none of the `futures` there that were tried.
    """

    differences: list[ChangedBars] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    futures: int = 0
    refused: dict[int, str] = field(default_factory=dict)


def run_prefixes(
    function: Signal, frame: pd.DataFrame, values: Floats, cuts: Sequence[int], further: Sequence[int]
) -> CutRuns:
    """Run a signal on the bars before each cut, in order, and compare with its values on all bars.

    Once more than rounding has changed, `further` cuts are left out.
    """
    runs, large, left_out, found = CutRuns(), large_value(values), set(further), False
    for cut in sorted([*cuts, *further]):
        if found and cut in left_out:
            continue
        try:
            then = run_signal(function, known_at(frame, cut))
            changed = [*compare("prefix", cut, then, values[:cut], large)]
            runs.differences += changed
            found |= any(not each.is_rounding(ROUNDING_OF_FLOAT32) for each in changed)
            runs.used.append(cut)
        except UnusableRun as error:
            runs.failed[cut] = str(error)
    return runs


def run_scrambles(
    runs: CutRuns, function: Signal, frame: pd.DataFrame, values: Floats, cuts: Sequence[int], draw: np.random.Generator
) -> None:
    """Add runs on changed futures; where a wild one is refused, on one in which prices move as before."""
    large = large_value(values)
    for cut in cuts:
        if cut in runs.failed:
            continue
        for future in dict.fromkeys((FUTURES[runs.futures % len(FUTURES)], "mild")):
            try:
                later = run_signal(function, scrambled(frame, cut, draw, future))
            except UnusableRun as error:
                runs.refused[cut] = str(error)
            else:
                runs.differences += compare("scramble", cut, values[:cut], later[:cut], large)
                runs.refused.pop(cut, None)
                break
        runs.futures += 1


class FreshRun:
    """A run of a signal in a copy of this process that sees no other bars and keeps nothing afterwards.

    Threads are not copied, so a signal that waits for one started before would never end: `wait` gives up.
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

    def wait(self) -> tuple[Floats, float] | None:
        """Return the values, [bars, columns], and the seconds of a run; None if it gave none, or does nothing."""
        child, used_s = psutil.Process(self._child), -1.0
        while not self._values.poll(_IDLE_S):
            before_s, used_s = used_s, sum(child.cpu_times()[:2])
            if used_s == before_s:
                return None
        with contextlib.suppress(EOFError):
            found = np.frombuffer(self._values.recv_bytes(), np.float64)
            return found[1:].reshape(self._bars, -1), float(found[0])
        return None


def _send_values(function: Signal, frame: pd.DataFrame, sender: "Connection[Any, Any]", parent: int) -> NoReturn:
    try:
        end_when_parent_dies(parent)
        values = run_signal(function, frame.copy(deep=True))
        _, seconds = timed(lambda: run_signal(function, frame))  # the first run also loads what it needs
        sender.send_bytes(np.append(seconds, values).tobytes())
    finally:
        os._exit(0)
