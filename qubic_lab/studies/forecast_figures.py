"""Pictures of forecasts: errors beside those of simpler ones, and calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.oracle.backtest.forecast_accuracy import STAYS
from qubic_lab.oracle.backtest.past_forecasts import BINS
from qubic_lab.studies.forecast_accuracy import ForecastStudy, Horizon
from qubic_lab.studies.style import DARK, INK, PALE, WIDTH_INCHES, plot

_MARKS = (("o", DARK), ("s", "white"), ("^", PALE), ("D", "white"))
FAR = 0.9
"""Where our error is below this share of a rival's at every horizon, the picture leaves that rival out."""


def errors(study: ForecastStudy) -> Figure:
    """Draw our error over that of each simpler forecast, by horizon; lines are 95 % intervals."""
    lengths, rivals = study.lengths, _shown_rivals(study)
    options: dict[str, Any] = {"grid": "y", "ncols": len(rivals), "fontsize": 9, "sharey": True, "squeeze": False}
    with plot((1, len(lengths)), (1.5 * WIDTH_INCHES, 3.2), **options) as (figure, panels):
        for axes, bars in zip(panels[0], lengths, strict=True):
            for number, rival in enumerate(rivals):
                _beside(axes, study.on(bars), rival, number, len(rivals))
            axes.axhline(100, linestyle="--", color=INK, linewidth=1.0)
            axes.set_title(f"bars of {bars}", fontsize=10, loc="left")
            axes.set_xlabel("forecast ahead (h)")
            axes.set_xticks([each.hours for each in study.on(bars)])
        panels[0][0].set_ylabel("our error (% of the other's)")
    return figure


def _shown_rivals(study: ForecastStudy) -> list[str]:
    ratios: dict[str, list[float]] = {}
    for horizon in study.horizons:
        for rival in horizon.accuracy.comparisons:
            ratios.setdefault(rival.baseline, []).append(rival.error_ratio.value)
    return [rival for rival, values in ratios.items() if rival == STAYS or max(values) > FAR]


def _beside(axes: Axes, horizons: Sequence[Horizon], rival: str, number: int, of: int) -> None:
    ratios = [next(r.error_ratio for r in each.accuracy.comparisons if r.baseline == rival) for each in horizons]
    at = np.array([each.hours for each in horizons]) + 0.16 * (number - (of - 1) / 2)
    axes.vlines(at, [100 * each.low for each in ratios], [100 * each.high for each in ratios], color=INK, linewidth=1.2)
    mark, fill = _MARKS[number % len(_MARKS)]
    values = [100 * each.value for each in ratios]
    axes.plot(at, values, mark, color=DARK, markerfacecolor=fill, markersize=6, label=f'beside "{rival}"')


def calibration(horizons: Sequence[Horizon]) -> Figure:
    """Draw a row for each horizon on bars of one length: intervals, positions, probabilities of a rise, and widths."""
    size = (1.9 * WIDTH_INCHES, 1.0 + 1.75 * len(horizons))
    options: dict[str, Any] = {"ncols": 5, "fontsize": 9, "font_size": 9, "squeeze": False}
    with plot((len(horizons), 4), size, sharex="col", sharey="col", **options) as (figure, panels):
        for row, horizon in zip(panels, horizons, strict=True):
            _intervals(row[0], horizon)
            _positions(row[1], horizon)
            _rises(row[2], horizon)
            _widths(row[3], horizon)
            row[0].set_ylabel(f"{horizon.hours} h ahead\nheld (%)")
        for axes, name in zip(panels[0], ("intervals", "positions", "probability of a rise", "widths"), strict=True):
            axes.set_title(name, fontsize=10, loc="left")
        below = ("promised (%)", "in its distribution (%)", "forecast (%)", "promised (%)")
        for axes, name in zip(panels[-1], below, strict=True):
            axes.set_xlabel(name)
        panels[0][3].set_ylim(bottom=0)
    return figure


def _intervals(axes: Axes, horizon: Horizon) -> None:
    levels = 100 * np.array([each.level for each in horizon.coverage])
    axes.plot(levels, levels, ":", color=INK, linewidth=0.8, label="calibrated")
    flat = [100 * each.flat_held.value for each in horizon.coverage]
    axes.plot(levels, flat, "--", color=INK, linewidth=1.0, label="constant spread")
    held = [each.held for each in horizon.coverage]
    axes.vlines(levels, [100 * each.low for each in held], [100 * each.high for each in held], color=INK, linewidth=1.2)
    axes.plot(levels, [100 * each.value for each in held], "o", color=DARK, markersize=4, label="forecast")


def _positions(axes: Axes, horizon: Horizon) -> None:
    found = horizon.calibration.pit
    edges = np.linspace(0.0, 100.0, BINS + 1)
    axes.stairs(100 * np.array(found.shares), edges, baseline=None, color=DARK, linewidth=1.4)
    low, high = (np.append(each, each[-1:]) * 100 for each in (np.array(found.low), np.array(found.high)))
    axes.fill_between(edges, low, high, step="post", color=INK, alpha=0.18, linewidth=0, label="95 % by chance")
    axes.axhline(100 / BINS, linestyle=":", color=INK, linewidth=0.8)
    axes.set_ylabel("prices (%)")


def _rises(axes: Axes, horizon: Horizon) -> None:
    found = horizon.calibration
    axes.axline((50, 50), slope=1, linestyle=":", color=INK, linewidth=0.8)
    told = [100 * each.probability for each in found.raw.bins]
    low, high = ([100 * getattr(each, name) for each in found.raw.bins] for name in ("low", "high"))
    axes.fill_between(told, low, high, color=INK, alpha=0.18, linewidth=0)
    looks: tuple[tuple[Any, str, str, str], ...] = (
        (found.raw, "o-", DARK, "forecast"),
        (found.recalibrated, "s", "white", "corrected by earlier outcomes"),
    )
    for rises, mark, fill, label in looks:
        at, rose = ([100 * getattr(each, name) for each in rises.bins] for name in ("probability", "rose"))
        axes.plot(at, rose, mark, color=DARK, markerfacecolor=fill, markersize=4, linewidth=1.0, label=label)
    axes.set_ylabel("rose (%)")


def _widths(axes: Axes, horizon: Horizon) -> None:
    levels = [100 * each.level for each in horizon.coverage]
    axes.plot(levels, [each.flat_wide_pct for each in horizon.coverage], "--", color=INK, linewidth=1.0)
    axes.plot(levels, [each.wide_pct for each in horizon.coverage], "o-", color=DARK, markersize=4, linewidth=1.0)
    axes.set_ylabel("mean width (%)")
