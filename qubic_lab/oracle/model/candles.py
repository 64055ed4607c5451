"""Bars of one length as arrays that can be calculated with: complete, checked, in order of time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.timestamps import iso

Floats = NDArray[np.float64]
Instants = NDArray[np.int64]
Flags = NDArray[np.bool_]
T = TypeVar("T")
RANGE = ("open", "high", "low")
LEAST, MOST = 1e-30, 1e30
"""Prices and volumes outside are refused: squares of their ratios would overflow."""


class Columns(Protocol):
    """What candles are made from: `Bars` has it, and more."""

    @property
    def closed_us(self) -> Instants: ...  # noqa: D102
    @property
    def open(self) -> Floats: ...  # noqa: D102
    @property
    def high(self) -> Floats: ...  # noqa: D102
    @property
    def low(self) -> Floats: ...  # noqa: D102
    @property
    def close(self) -> Floats: ...  # noqa: D102
    @property
    def volume(self) -> Floats: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Candles:
    """Closed bars, [bars], by time; `volume` is NaN where it is not known. Made by `Candles.of`.

    Bars may be missing: they are not filled in. Indicators count bars, so a gap is one step for them; returns after a
    gap are judged by the time that it took (`steps`), and the regression uses times, not places.

    Attributes:
        frame_us: length of the bars, in microseconds.
    """

    frame_us: int
    closed_us: Instants
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, columns: Columns, frame_us: int) -> "Candles":
        """Return the candles of some columns; where a bar has no open, high or low, its close stands for it.

        Raises:
            InputError: arrays of unequal lengths, times that do not rise, a price that is no number from 1e-30 to 1e30,
                a volume that is negative or above that, a high below a low, or bars without a length.
        """
        check_at_least("length of the bars in microseconds", frame_us, 1)
        closed_us = np.ascontiguousarray(columns.closed_us, np.int64)
        numbers = {
            name: np.ascontiguousarray(getattr(columns, name), np.float64) for name in (*RANGE, "close", "volume")
        }
        for name, values in numbers.items():
            if values.shape != closed_us.shape or values.ndim != 1:
                raise InputError(f"{name} has shape {values.shape}, the times {closed_us.shape}: give one per bar")
        late = np.flatnonzero(np.diff(closed_us) <= 0)
        if late.size:
            raise InputError(f"bar of {iso(int(closed_us[late[0] + 1]))} does not follow the one before it: sort them")
        for name in RANGE:
            numbers[name] = np.where(np.isnan(numbers[name]), numbers["close"], numbers[name])
        for name in (*RANGE, "close"):
            _check(name, numbers[name], (numbers[name] >= LEAST) & (numbers[name] <= MOST), closed_us)
        volume = numbers["volume"]
        _check("volume", volume, np.isnan(volume) | ((volume >= 0.0) & (volume <= MOST)), closed_us)
        _check("high", numbers["high"], numbers["high"] >= numbers["low"], closed_us)
        return cls(frame_us, closed_us, *(numbers[name] for name in (*RANGE, "close", "volume")))

    def __len__(self) -> int:
        return len(self.closed_us)

    def slice(self, start: int, end: int) -> "Candles":
        """Return the bars from one place up to before another."""
        rows = np.s_[start:end]
        prices = (each[rows] for each in (self.open, self.high, self.low, self.close, self.volume))
        return Candles(self.frame_us, self.closed_us[rows], *prices)

    def until(self, at_us: int) -> "Candles":
        """Return the bars that are closed at an instant."""
        return self.slice(0, int(np.searchsorted(self.closed_us, at_us, side="right")))

    @cached_property
    def scale(self) -> float:
        """A power of two that brings the first close to between 1 and 2.

        TA-Lib takes values below 1e-14 for 0, so variances of prices of 1e-6 would be lost. Times a power of two is
        exact. (Prices that are 1e-4 of the first one lose their least Bollinger bands even so.)
        """
        return 2.0 ** (1 - math.frexp(float(self.close[0]))[1]) if len(self) else 1.0

    @cached_property
    def scaled(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Open, high, low and close, times `scale`."""
        return (self.open * self.scale, self.high * self.scale, self.low * self.scale, self.close * self.scale)

    @cached_property
    def log_close(self) -> Floats:
        """Natural logarithm of each close."""
        return exact_logs(self.close)

    @cached_property
    def steps(self) -> Floats:
        """How many bars' time passed since the bar before, at least 1; 1 for the first."""
        steps = np.ones(len(self))
        steps[1:] = np.maximum(1.0, np.rint(np.diff(self.closed_us) / self.frame_us))
        return steps

    @cached_property
    def step_returns(self) -> Floats:
        """Log return of each bar since the one before, over √steps: of equal spread for a random walk; 0 at first."""
        returns = np.zeros(len(self))
        returns[1:] = np.diff(self.log_close) / np.sqrt(self.steps[1:])
        return returns

    def once(self, name: str, compute: "Callable[[Candles], T]") -> T:
        """Return what `compute` gives for these bars; computed with the first call by a name, then kept."""
        if name not in self._known:
            self._known[name] = compute(self)
        return cast(T, self._known[name])


def exact_logs(values: Floats) -> Floats:
    """Return natural logarithms that depend on each value alone.

    `np.log` may round the last few values of an array otherwise than those before, which later bars would change.
    """
    return np.fromiter(map(math.log, values.tolist()), np.float64, len(values))


def held(warm_up: int, values: Floats) -> Floats:
    """Return a copy whose first `warm_up` values are NaN."""
    held = np.array(values, np.float64)
    held[:warm_up] = np.nan
    return held


def absent(bars: int) -> Floats:
    """Return as many NaN as there are bars."""
    return np.full(bars, np.nan)


def _check(name: str, values: Floats, good: Flags, closed_us: Instants) -> None:
    bad = np.flatnonzero(~good)
    if bad.size:
        rule = {"volume": f"a number from 0 to {MOST:g}, or NaN", "high": "a price that is not below the low"}
        raise InputError(
            f"{name} of the bar of {iso(int(closed_us[bad[0]]))} is {values[bad[0]]}: it must be "
            f"{rule.get(name, f'a number from {LEAST:g} to {MOST:g}')}"
        )
