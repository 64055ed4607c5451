"""The frames that a signal is tested with: bars up to a cut as they were known then, and bars that differ after it."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.oracle.model.bars import PRICES, Flags, Floats, Integers

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

    Args:
        frame: all bars.
        bars: number of bars that stay as they are.
        draw: of the values.
        kind: what prices do after the cut. 0: stay at their level, 1: rise, 2: fall, each with more noise than before;
            3: hardly move.
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
        if name.endswith("_us") or pd.api.types.is_datetime64_any_dtype(series.dtype):
            changed[place] = series
        elif name in PRICES:
            values = series.to_numpy(np.float64, copy=True)
            base = _flat(frame, column, bars) if calm else values
            values[where] = base[where] * factors[where]
            changed[place] = values
        elif pd.api.types.is_float_dtype(series.dtype) and not pd.api.types.is_extension_array_dtype(series.dtype):
            values = series.to_numpy(np.float64, copy=True)
            values[where] = _calm(values[:bars], where, draw) if calm else _noisy(values[where], name, draw)
            changed[place] = values
        else:
            other = series.array.copy()
            other[where] = other[where].take(draw.permutation(int(where.sum())))
            changed[place] = other
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


def _noisy(values: NDArray[np.float64], name: str, draw: np.random.Generator) -> Floats:
    """Return other values of about the same size; half of the missing ones are filled."""
    moved = draw.permutation(values) * np.exp(draw.normal(0.0, 1.0, len(values)))
    if name != "volume":
        moved = moved + draw.normal(0.0, 1.0, len(values))
    gaps = np.isnan(moved) & (draw.random(len(values)) < 0.5)
    known = moved[~np.isnan(moved)]
    moved[gaps] = draw.choice(known, int(gaps.sum())) if known.size else 1.0
    return np.asarray(moved)
