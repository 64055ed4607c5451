"""Pictures of forecasts: errors beside those of simpler ones, and calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.oracle.backtest.forecast_accuracy import STAYS
from qubic_lab.oracle.backtest.past_forecasts import BINS, DailyEstimate
from qubic_lab.studies.forecast_accuracy import ForecastStudy, Horizon
from qubic_lab.studies.style import DARK, INK, PALE, WIDE, WIDTH_INCHES, dots, plot

FAR = 0.9
"""Where our error is below this share of a rival's at every horizon, the picture leaves that rival out."""


def errors(study: ForecastStudy) -> Figure:
    """Draw our error over that of each simpler forecast, by horizon; lines are 95 % intervals."""
    lengths, ratios = study.lengths, _shown_ratios(study)
    options: dict[str, Any] = {"grid": "y", "ncols": len(ratios), "fontsize": 9, "sharey": True, "squeeze": False}
    looks = (("o", DARK), ("s", "white"), ("^", PALE), ("D", "white"))
    with plot((1, len(lengths)), (WIDE, 3.2), **options) as (figure, panels):
        for axes, bars in zip(panels[0], lengths, strict=True):
            for number, (rival, found) in enumerate(ratios.items()):
                shown = {each.hours: ratio for each, ratio in found.items() if each.bars == bars}
                at = np.array(list(shown)) + 0.16 * (number - (len(ratios) - 1) / 2)
                dots(axes, at, list(shown.values()), *looks[number], f'beside "{rival}"', scale=100)
            axes.axhline(100, linestyle="--", color=INK, linewidth=1.0)
            axes.set_title(f"bars of {bars}", fontsize=10, loc="left")
            axes.set_xlabel("forecast ahead (h)")
            axes.set_xticks([each.hours for each in study.on(bars)])
        panels[0][0].set_ylabel("our error (% of the other's)")
    return figure


def _shown_ratios(study: ForecastStudy) -> dict[str, dict[Horizon, DailyEstimate]]:
    """Return our error over that of each rival which is drawn, by horizon."""
    ratios: dict[str, dict[Horizon, DailyEstimate]] = {}
    for horizon in study.horizons:
        for rival in horizon.accuracy.comparisons:
            ratios.setdefault(rival.baseline, {})[horizon] = rival.error_ratio
    return {
        rival: found
        for rival, found in ratios.items()
        if rival == STAYS or max(each.value for each in found.values()) > FAR
    }


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
    dots(axes, levels, [each.held for each in horizon.coverage], label="forecast", scale=100)


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
    for rises, look, fill, label in (
        (found.raw, "o-", DARK, "forecast"),
        (found.recalibrated, "s", "white", "corrected by earlier outcomes"),
    ):
        at, rose = ([100 * getattr(each, name) for each in rises.bins] for name in ("probability", "rose"))
        axes.plot(at, rose, look, color=DARK, markerfacecolor=fill, label=label)
    axes.set_ylabel("rose (%)")


def _widths(axes: Axes, horizon: Horizon) -> None:
    levels = [100 * each.level for each in horizon.coverage]
    axes.plot(levels, [each.flat_wide_pct for each in horizon.coverage], "--", color=INK, linewidth=1.0)
    axes.plot(levels, [each.wide_pct for each in horizon.coverage], "o-", color=DARK)
    axes.set_ylabel("mean width (%)")
