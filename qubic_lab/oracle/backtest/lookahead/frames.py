"""What an audit shows to a signal: the bars up to a cut as they were known then, and bars changed after it."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.oracle.model.records import Price
from qubic_lab.oracle.model.timestamps import iso

KNOWN = "_known_us"
"""A column `body` with a column `body_known_us` beside it holds cells that become known at those instants."""
_PRICES = ("open", "high", "low", "close")
_DRIFTS = (0.0, 2.0, -2.0, None)
"""By how much prices after a cut drift, in logarithms, beside their noise; None: nothing moves any more."""
_NOISE, _CALM = 0.3, 1e-4
"""What is measured by the whole sample's spread gets a larger one by noise, a smaller one by calm."""


def name_of(column: Hashable) -> str:
    """Return a column's name, without the asset that it is of."""
    return str(column[0]) if isinstance(column, tuple) and column else str(column)


def closes_us(frame: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return when each bar closes: the column `closed_us`, or the index of instants; None where neither is there."""
    if "closed_us" in frame.columns:
        return np.asarray(frame["closed_us"].to_numpy(np.int64))
    if isinstance(frame.index, pd.DatetimeIndex):
        naive = frame.index.tz_convert("UTC").tz_localize(None) if frame.index.tz is not None else frame.index
        return np.asarray(naive.to_numpy().astype("datetime64[us]").astype(np.int64))
    return None


def time_of(frame: pd.DataFrame, bar: int) -> str | None:
    """Return when a bar closes, in ISO 8601, where the frame says so."""
    closed = closes_us(frame)
    return None if closed is None else iso(int(closed[bar]))


def late_columns(frame: pd.DataFrame) -> dict[Hashable, Hashable]:
    """Return the columns whose cells become known later than their bar, each with the column of those instants."""
    found: dict[Hashable, Hashable] = {}
    for column in frame.columns:
        stamp = (f"{column[0]}{KNOWN}", *column[1:]) if isinstance(column, tuple) else f"{column}{KNOWN}"
        if stamp in frame.columns:
            found[column] = stamp
    return found


def known_at(frame: pd.DataFrame, bars: int, hidden: dict[Hashable, Hashable] | None = None) -> pd.DataFrame:
    """Return a copy of the first bars as they were known at the last one's close: late cells are missing.

    Args:
        frame: all bars.
        bars: so many.
        hidden: columns of late cells, as of `late_columns`; None: all of them.
    """
    part = frame.iloc[:bars].copy(deep=True)
    part.attrs = {}  # what is there cannot be cut off
    closed = closes_us(frame)
    late = late_columns(frame) if hidden is None else hidden
    if closed is None or not late:
        return part
    for column, stamp in late.items():
        part[column] = _without(part[column], _late_cells(part, stamp, int(closed[bars - 1])))
    return part


def scrambled(frame: pd.DataFrame, bars: int, draw: np.random.Generator, kind: int = 0) -> pd.DataFrame:
    """Return a copy whose rows after the first `bars`, and cells known only later, hold other values; times stay.

    Args:
        frame: all bars.
        bars: that stay as they are.
        draw: of the values.
        kind: prices after the cut go on at their level (0), rise (1) or fall (2), with more noise than before; or
            hardly anything moves any more (3).
    """
    changed: dict[int, Any] = {}
    closed, late = closes_us(frame), late_columns(frame)
    rows = np.zeros(len(frame), np.bool_)
    rows[bars:] = True
    drift, trend = _DRIFTS[kind % len(_DRIFTS)], np.zeros(len(frame))
    calm = drift is None
    trend[bars:] = (drift or 0.0) * np.linspace(0.2, 1.0, len(frame) - bars)
    # One factor for all prices of a bar: its low stays its low.
    factors = np.exp(draw.normal(0.0, _CALM if calm else _NOISE, len(frame)) + trend)
    for place, column in enumerate(frame.columns):
        name, series = name_of(column), frame[column]
        if name.endswith("_us") or pd.api.types.is_datetime64_any_dtype(series.dtype):
            changed[place] = series
            continue
        where = rows
        if column in late and closed is not None:
            where = rows | _late_cells(frame, late[column], int(closed[bars - 1]))
        if name in _PRICES:
            values = series.to_numpy(np.float64, copy=True)
            base = _flat(frame, column, bars) if calm else values
            values[where] = base[where] * factors[where]
            changed[place] = values
        elif calm and pd.api.types.is_float_dtype(series.dtype):
            changed[place] = _calm_values(series, where, bars, draw)
        else:
            changed[place] = _other_values(series, where, draw)
    found = pd.DataFrame(changed, index=frame.index, copy=True)
    found.columns = frame.columns
    return found


def with_other_row(frame: pd.DataFrame, bar: int, draw: np.random.Generator) -> pd.DataFrame:
    """Return a copy in which one bar alone holds other values."""
    changed = frame.copy(deep=True)
    for column in frame.columns:
        name = name_of(column)
        series = frame[column]
        if name.endswith("_us") or not pd.api.types.is_float_dtype(series.dtype):
            continue
        values = series.to_numpy(np.float64, copy=True)
        if not np.isnan(values[bar]):
            values[bar] = values[bar] * 1.5 if name in _PRICES else values[bar] * 1.5 + draw.normal()
            values[bar] = abs(values[bar]) if name == "volume" else values[bar]
        changed[column] = values
    return changed


def _late_cells(frame: pd.DataFrame, stamp: Hashable, now_us: int) -> NDArray[np.bool_]:
    stamps = pd.to_numeric(frame[stamp], errors="coerce").to_numpy(np.float64)
    return np.asarray(~(stamps <= now_us))  # a cell of which nobody knows when it came counts as late


def _without(series: pd.Series, cells: NDArray[np.bool_]) -> Any:
    if pd.api.types.is_bool_dtype(series.dtype) or not pd.api.types.is_numeric_dtype(series.dtype):
        values = series.astype(object).to_numpy(copy=True)
        values[cells] = None
        return values
    numbers = series.to_numpy(np.float64, copy=True)
    numbers[cells] = np.nan
    return numbers


def _flat(frame: pd.DataFrame, column: Hashable, bars: int) -> NDArray[np.float64]:
    """Return prices that stay at the last close before a cut, with a hundredth of each bar's own range."""
    values: NDArray[np.float64] = frame[column].to_numpy(np.float64)
    name = ("close", *column[1:]) if isinstance(column, tuple) else "close"
    closes = frame[name].to_numpy(np.float64) if name in frame.columns else values
    known = closes[:bars][np.isfinite(closes[:bars])]
    if not known.size:
        return values
    with np.errstate(all="ignore"):
        return np.asarray(known[-1] * (values / closes) ** 0.01)


def _calm_values(series: pd.Series, where: NDArray[np.bool_], bars: int, draw: np.random.Generator) -> Any:
    """Return a column of numbers that hardly moves in some cells, about the middle of what was before the cut."""
    values = series.to_numpy(np.float64, copy=True)
    known = values[:bars][np.isfinite(values[:bars])]
    middle, spread = (float(np.median(known)), float(known.std())) if known.size else (1.0, 1.0)
    values[where] = middle + _CALM * (spread or 1.0) * draw.normal(0.0, 1.0, int(where.sum()))
    return values


def _other_values(series: pd.Series, where: NDArray[np.bool_], draw: np.random.Generator) -> Any:
    """Return a column with other values in some cells, of the same kind and about the same size."""
    count = int(where.sum())
    if isinstance(series.dtype, pd.CategoricalDtype) or _is_nullable(series):
        other = series.array.copy()
        other[where] = other[where].take(draw.permutation(count))
        return other
    if pd.api.types.is_bool_dtype(series.dtype):
        flags = series.to_numpy(np.bool_, copy=True)
        flags[where] = draw.random(count) < 0.5
        return flags
    if pd.api.types.is_integer_dtype(series.dtype):
        whole = series.to_numpy(np.int64, copy=True)
        whole[where] = draw.permutation(whole[where]) + draw.integers(0, 3, count)
        return whole
    if pd.api.types.is_float_dtype(series.dtype):
        values = series.to_numpy(np.float64, copy=True)
        moved = draw.permutation(values[where]) * np.exp(draw.normal(0.0, 1.0, count))
        if name_of(series.name) != "volume":
            moved = moved + draw.normal(0.0, 1.0, count)
        gaps = np.isnan(moved) & (draw.random(count) < 0.5)
        known = moved[~np.isnan(moved)]
        moved[gaps] = draw.choice(known, int(gaps.sum())) if known.size else 1.0
        values[where] = moved
        return values
    objects = series.astype(object).to_numpy(copy=True)
    for place, text in zip(np.flatnonzero(where), objects[draw.permutation(np.flatnonzero(where))], strict=True):
        objects[place] = f"other {text}" if isinstance(text, str) else text
    return objects


def _is_nullable(series: pd.Series) -> bool:
    """Return whether a column of numbers or flags lacks some, for which NumPy has no value."""
    own = pd.api.types.is_extension_array_dtype(series.dtype) and not pd.api.types.is_string_dtype(series.dtype)
    return bool(own and series.isna().any())


def prices_frame(prices: Sequence[Price]) -> pd.DataFrame:
    """Return bars as a signal is given them, indexed by the instants of their close in UTC (named `closed`).

    Its columns are opened_us, open, high, low, close and volume, with NaN where there is none.
    """
    index = pd.DatetimeIndex(
        np.array([price.closed_us for price in prices], np.int64).astype("datetime64[us]"), name="closed"
    )
    columns: dict[str, NDArray[Any]] = {"opened_us": np.array([price.opened_us for price in prices], np.int64)}
    for name in (*_PRICES, "volume"):
        columns[name] = np.array([getattr(price, name) for price in prices], np.float64)
    return pd.DataFrame(columns, index=index.tz_localize("UTC"))
