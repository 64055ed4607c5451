"""Pictures of risk: volatility, losses, calibration of forecasts, warnings over time, and their worth."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qubic_lab.oracle.model.bars import YEAR_US, Bars, Floats
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.risk.forecast_tests import MODELS
from qubic_lab.oracle.risk.measures import LEVELS
from qubic_lab.oracle.risk.models import realised_volatility
from qubic_lab.studies.risk_warnings import CALIBRATED_LEVELS, RiskStudy
from qubic_lab.studies.style import DARK, INK, LINES, PALE, WIDE, Dot, date_axis, dots, log_axis, plot

LAST_BARS = 1_000
"""Pictures of single bars show no more."""
_SHADES = {"watch": "#e6ebee", "warning": "#bcc9cf", "alarm": "#7f949e"}


def volatilities(risk: RiskStudy, bars: int = LAST_BARS) -> Figure:
    """Draw volatility of the last bars by three estimators, and what GARCH forecasts for the next bar; a year's."""
    with plot(size=(WIDE, 3.4), ncols=2, fontsize=9) as (figure, axes):
        scale = 100 * math.sqrt(YEAR_US / risk.bars.frame_us)
        closed, times = risk.bars.bars, risk.bars.bars.closed_us[-bars:] / DAY_US
        for name, line in zip(("close-to-close", "parkinson", "garman-klass"), LINES, strict=False):
            values = _broken(closed, scale * realised_volatility(closed, risk.windows.bars, name))
            axes.plot(times, values[-bars:], line, color=INK, linewidth=0.9, label=f"realised, {name}")
        sigma = _broken(closed, scale * risk.volatility.sigma)
        axes.plot(times, sigma[-bars:], color=DARK, linewidth=1.2, label="GARCH forecast")
        if np.nanmax(sigma, initial=0.0) > 0.0:
            log_axis(axes)
        axes.set_ylabel("volatility of a year (%)")
        axes.set_title(f"bars of {risk.name}", fontsize=10, loc="left")
        date_axis(axes)
    return figure


def losses(risk: RiskStudy, level: float = 0.01, bars: int = LAST_BARS) -> Figure:
    """Draw the last returns with value at risk of two models, and the losses that were beyond the first."""
    with plot(size=(WIDE, 3.4), ncols=2, fontsize=9) as (figure, axes):
        times, returns = risk.bars.bars.closed_us[-bars:] / DAY_US, 100 * risk.returns[-bars:]
        axes.plot(times, _broken(risk.bars.bars, 100 * risk.returns)[-bars:], color=PALE, linewidth=0.8)
        axes.plot([], [], color=PALE, label="return")
        for model, line, colour in (("GARCH-t", "-", DARK), ("constant normal", "--", INK)):
            tail = next(each for each in risk.tails if each.model == model and each.test.level == level)
            var = -100 * np.concatenate([[np.nan], tail.forecast.var[:-1]])[-bars:]
            axes.plot(times, var, line, color=colour, linewidth=1.1, label=f"value at risk, {model}")
            if model == "GARCH-t":
                beyond = np.flatnonzero(returns < var)
                axes.plot(times[beyond], returns[beyond], "x", color=INK, label=f"loss beyond that of {model}")
        axes.set_ylabel("log return of a bar (%)")
        axes.set_title(f"bars of {risk.name}, {100 * level:g} %", fontsize=10, loc="left")
        date_axis(axes)
    return figure


def calibration(risk: RiskStudy) -> Figure:
    """Draw how often losses were beyond each level, by model, and where returns lay in GARCH-t's forecasts."""
    with plot((1, 2), (WIDE, 3.6), grid="y", fontsize=9) as (figure, (left, right)):
        _draw_coverage(left, risk)
        _draw_evenness(right, risk)
        left.set_title(f"bars of {risk.name}", fontsize=10, loc="left")
        right.set_title("in the forecasts of GARCH-t", fontsize=10, loc="left")
    return figure


def _draw_coverage(axes: Axes, risk: RiskStudy) -> None:
    axes.axhline(1.0, color=INK, linewidth=1.0, linestyle=":")
    looks = (("o", DARK), ("s", "white"), ("^", DARK), ("D", "white"))
    for number, (model, look) in enumerate(zip(MODELS, looks, strict=True)):
        known = {
            CALIBRATED_LEVELS.index(tail.test.level): Dot(*(np.array([each.share, each.low, each.high]) / each.level))
            for tail, each in zip(risk.tails, risk.coverages, strict=True)
            if tail.model == model and each is not None
        }
        dots(axes, np.array(list(known)) + 0.18 * (number - 1.5), list(known.values()), *look, model)
    axes.set_xticks(range(len(CALIBRATED_LEVELS)), [f"{100 * level:g}" for level in CALIBRATED_LEVELS])
    axes.set_ylim(0.0, None)
    axes.set_xlabel("level of value at risk (%)")
    axes.set_ylabel("losses beyond it / expected")


def _draw_evenness(axes: Axes, risk: RiskStudy) -> None:
    even = risk.evenness
    bins = max(1, len(even.counts))
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel("forecast probability of a lower return")
    axes.set_ylabel("bars")
    if even.missing:
        axes.text(0.5, 0.5, even.missing, ha="center", va="center", wrap=True, transform=axes.transAxes)
        return
    axes.bar((np.arange(bins) + 0.5) / bins, even.counts, 1.0 / bins, color=PALE, edgecolor="white", label="returns")
    axes.axhspan(even.low, even.high, color=INK, alpha=0.15, linewidth=0, label="95 % band if right")
    axes.axhline(even.bars / bins, color=INK, linewidth=1.0, linestyle=":", label="expected")


def timeline(risk: RiskStudy) -> Figure:
    """Draw levels over time behind the price, warnings, and the falls."""
    with plot(size=(WIDE, 3.8), grid="y", ncols=4, fontsize=9) as (figure, axes):
        closed, assessment = risk.bars.bars, risk.assessment
        times = closed.closed_us / DAY_US
        axes.plot(times, _broken(closed, closed.close), color=INK, linewidth=1.0, label="close")
        bars = [each.bar for each in assessment.warnings(risk.level)]
        axes.plot(times[bars], closed.close[bars], "^", color=DARK, label=f"rises to {risk.level} or above")
        falls = risk.matched.falls
        axes.plot(times[falls], closed.close[falls], "x", color=INK, label=f"{100 * risk.drop:g} % below the high")
        begins = min(assessment.warm_up, len(times) - 1)
        axes.axvline(times[begins], linestyle=":", color=INK, linewidth=1.0, label="first rule has a value")
        if risk.matched.comparison is not None:
            axes.axvline(times[risk.matched.start], linestyle="--", color=INK, linewidth=1.0, label="judged from here")
        log_axis(axes)
        _shade_levels(axes, risk)
        axes.set_ylabel(f"price ({risk.bars.currency})")
        date_axis(axes)
    return figure


def _shade_levels(axes: Axes, risk: RiskStudy) -> None:
    """Shade the time of each level over the whole height, behind all else."""
    closed, limits = risk.bars.bars, axes.get_ylim()
    times = closed.closed_us / DAY_US
    for name, shade in _SHADES.items():
        spans = [
            (float(times[begin]), float(times[end - 1] - times[begin]) + closed.frame_us / DAY_US)
            for begin, end in _spans(risk.assessment.levels == LEVELS.index(name))
        ]
        height = axes.get_xaxis_transform()
        axes.broken_barh(spans, (0.0, 1.0), transform=height, color=shade, linewidth=0, zorder=0, label=name)
    axes.set_ylim(limits)


def worth(risks: Sequence[RiskStudy]) -> Figure:
    """Draw precision and recall of both rules with 95 % intervals, and what chance would give with as many warnings."""
    scores = {
        f"{name}, {risk.name}": score
        for risk in risks
        if (both := risk.matched.comparison) is not None
        for name, score in (("ours", both.ours), ("naive", both.naive))
    }
    size = (WIDE, 1.6 + 0.35 * max(2, len(scores)))
    with plot((1, 2), size, grid="x", ncols=2, fontsize=9, sharey=True) as (figure, panels):
        for place, (name, score) in enumerate(scores.items()):
            fill = DARK if name.startswith("ours") else "white"
            for axes, found, chance in (
                (panels[0], score.precision, score.precision_by_chance),
                (panels[1], score.recall, score.recall_by_chance),
            ):
                axes.plot(100 * chance, place, "|", color=INK, markersize=14, label="by chance")
                if found.value is not None:
                    dots(axes, [place], [found], "o", fill, "found, with 95 % interval", scale=100, across=True)
        panels[0].set_yticks(range(len(scores)), scores)
        panels[0].set_ylim(len(scores) - 0.4, -0.6)
        for axes, what in zip(panels, ("warnings that were right (%)", "falls that were found (%)"), strict=True):
            axes.set_xlim(-4, 104)
            if not scores:
                axes.text(0.5, 0.5, "nothing could be judged", ha="center", va="center", transform=axes.transAxes)
            axes.set_xlabel(what)
    return figure


def _spans(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _broken(bars: Bars, values: Floats) -> Floats:
    """Return values with NaN right after each gap, so that no line is drawn over it."""
    found = values.copy()
    found[1:][np.diff(bars.closed_us) > bars.frame_us] = np.nan
    return found
