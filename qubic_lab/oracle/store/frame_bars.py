"""Bars, changes and gaps of a series of prices: plain arrays in, plain values out; nothing looks ahead."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qubic_lab.oracle.store.price_store import PriceColumns


@dataclass(frozen=True)
class FrameBars:
    """Closed bars in order of time; arrays of one length. `volume` is NaN where one of a bar's prices has none.

    `points`: prices that a bar is made from; `slots`: in so many of its expected places; `flagged`: flagged ones.
    """

    opened_us: NDArray[np.int64]
    closed_us: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    points: NDArray[np.int64]
    slots: NDArray[np.int64]
    flagged: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.closed_us)


def frame_bars(columns: PriceColumns, frame_us: int, step_us: int, until_us: int) -> FrameBars:
    """Return the bars of a frame that are closed at `until_us`, from quotes or from bars that divide the frame.

    A bar has the prices with opened < closed_us <= closed, so a price that is stamped with a bar's end is its close.
    Frames without a price have no bar.

    Args:
        columns: in order of `closed_us`.
        frame_us: length of the bars, from the epoch on.
        step_us: a price is expected so often.
        until_us: no bar ends later.
    """
    frame_of = (columns.closed_us - 1) // frame_us
    count = int(np.searchsorted((frame_of + 1) * frame_us, until_us, side="right"))
    if not count:
        return FrameBars(*(np.empty(0, dtype=kind) for kind in ("i8",) * 2 + ("f8",) * 5 + ("i8",) * 3))
    frame_of = frame_of[:count]
    starts = np.flatnonzero(np.diff(frame_of, prepend=frame_of[0] - 1))
    ends = np.append(starts[1:], count) - 1
    close = columns.close[:count]
    opens, highs, lows = (
        np.where(np.isnan(values[:count]), close, values[:count])
        for values in (columns.open, columns.high, columns.low)
    )
    slot_is_new = np.diff((columns.closed_us[:count] - 1) // step_us, prepend=-1) != 0
    slot_is_new[starts] = True
    flagged = np.fromiter(map(bool, columns.flags[:count]), dtype=np.int64, count=count)
    return FrameBars(
        opened_us=frame_of[starts] * frame_us,
        closed_us=(frame_of[starts] + 1) * frame_us,
        open=opens[starts],
        high=np.maximum.reduceat(highs, starts),
        low=np.minimum.reduceat(lows, starts),
        close=close[ends],
        volume=np.add.reduceat(columns.volume[:count], starts),
        points=ends - starts + 1,
        slots=np.add.reduceat(slot_is_new.astype(np.int64), starts),
        flagged=np.add.reduceat(flagged, starts),
    )


def price_before(columns: PriceColumns, at_us: int, tolerance_us: int) -> int | None:
    """Return the place of the last price up to `at_us`, or None where that is older than the tolerance."""
    place = int(np.searchsorted(columns.closed_us, at_us, side="right")) - 1
    if place < 0 or at_us - int(columns.closed_us[place]) > tolerance_us:
        return None
    return place


def after(columns: PriceColumns, start_us: int) -> PriceColumns:
    """Return the prices after an instant."""
    first = int(np.searchsorted(columns.closed_us, start_us, side="right"))
    names = [name for name in PriceColumns.__dataclass_fields__ if name != "flags"]
    return PriceColumns(**{name: getattr(columns, name)[first:] for name in names}, flags=columns.flags[first:])


def completeness(columns: PriceColumns, start_us: int, end_us: int, step_us: int) -> float:
    """Return in which share of the expected places after `start_us` up to `end_us` there is a price, at most 1."""
    inside = (columns.closed_us > start_us) & (columns.closed_us <= end_us)
    expected = max(1, (end_us - start_us) // step_us)
    return min(1.0, len(np.unique((columns.closed_us[inside] - 1) // step_us)) / expected)


def change_pct(before: float, now: float) -> float:
    """Return by how many percent a price rose."""
    return 100.0 * (now / before - 1.0)


def count_flags(columns: PriceColumns) -> dict[str, int]:
    """Return how many prices have each flag."""
    return dict(sorted(Counter(flag for flags in columns.flags for flag in flags).items()))
