"""Where a look-ahead check cuts: at warm-ups, gaps, unusual bars and ends of days, and where there is time, anywhere.

A leak of the next bar at few bars shows only where a cut falls right after one of them.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from qubic_lab.oracle.backtest.lookahead_runs import closes_us
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.model.timestamps import DAY_US

_EXTREMES = 3
"""Unusual bars of each column, of its changes, of the signal and of its changes."""
_RARE = 0.1
"""Days end at no more than this share of bars; otherwise all bars are ends of days."""


def choose_cuts(
    frame: pd.DataFrame, values: Floats, cuts: int, most: int, draw: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Return the numbers of known bars at the cuts where both tests run, and at further ones for the prefix test.

    Args:
        frame: of bars.
        values: of the signal on all bars, [bars, columns].
        cuts: least number of cuts with both tests; there are up to twice as many, where bars are unusual.
        most: number of all cuts, if more than `cuts`.
        draw: what is left to chance.
    """
    both = _spread(frame, cuts, draw)
    room = max(0, most - len(both))
    rare = [cut for cut in dict.fromkeys(_unusual(frame, values)) if 0 < cut < len(frame) and cut not in both]
    rest = draw.permutation(np.setdiff1d(np.arange(1, len(frame)), [*both, *rare])).tolist()
    further = [*rare, *rest][:room]
    among = min(cuts, len(rare))
    return sorted([*both, *further[:among]]), sorted(further[among:])


def _spread(frame: pd.DataFrame, cuts: int, draw: np.random.Generator) -> list[int]:
    """Return cuts of which half crowd at the first bars, half are spread, and some lie at gaps."""
    bars = len(frame)
    early = np.geomspace(2, bars - 1, max(1, cuts // 2))
    even = cuts - len(early)
    edges = np.linspace(1, bars - 1, even + 1)
    spread = draw.uniform(edges[:-1], edges[1:]) if even else np.array([])
    chosen = {min(bars - 1, max(1, round(place))) for place in (*early, *spread)}
    missing = frame.isna().any(axis=1).to_numpy()
    gaps = np.flatnonzero(missing[:-1]) + 1  # the cut comes right after a bar with a missing value
    if gaps.size:
        chosen |= set(draw.choice(gaps, min(len(gaps), cuts // 4 + 1), replace=False).tolist())
    while len(chosen) < min(cuts, bars - 2):  # some places were rounded to the same bar
        chosen.add(int(draw.integers(1, bars)))
    return sorted(chosen)


def _unusual(frame: pd.DataFrame, values: Floats) -> Iterator[int]:
    """Yield cuts right after unusual bars: ends of days and months, then extremes, the largest of all columns first."""
    yield from _ends(frame)
    found = []
    for column in _numbers(frame, values):
        change = np.diff(column, prepend=np.nan)
        for series in (column, change):
            known = series[np.isfinite(series)]
            if known.size:
                away = np.nan_to_num(np.abs(series - np.median(known)), nan=-1.0, posinf=-1.0)
                found.append(np.argsort(-away, kind="stable")[:_EXTREMES] + 1)
    for cuts in zip(*found, strict=True):
        yield from (int(cut) for cut in cuts)


def _numbers(frame: pd.DataFrame, values: Floats) -> Iterator[Floats]:
    """Yield the columns of a signal, then the columns of a frame that are numbers but no instants."""
    yield from values.T
    for place, column in enumerate(frame.columns):
        name = str(column[0] if isinstance(column, tuple) else column)
        series = frame.iloc[:, place]
        if pd.api.types.is_float_dtype(series.dtype) and not name.endswith("_us"):
            yield series.to_numpy(np.float64, na_value=np.nan)


def _ends(frame: pd.DataFrame) -> Iterator[int]:
    """Yield cuts around the ends of months, then of days, unless almost every bar ends one."""
    closed = closes_us(frame)
    if closed is None:
        return
    stamps = pd.DatetimeIndex(closed.astype("datetime64[us]"))
    for unit in (stamps.year * 12 + stamps.month, closed // DAY_US):
        ends = np.flatnonzero(np.diff(np.asarray(unit)))
        if len(ends) <= _RARE * len(frame):
            # A bar that closes at midnight belongs to either day, by the rule of the signal.
            yield from (int(end) + step for end in ends for step in (1, 2, 0))
