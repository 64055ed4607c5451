"""Pictures of the notebook `oracle_backtest`: of backtests, of forecasts, and of signals.

Those of signals have one panel for each series of scores, with what chance gives beside what was found.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qubic_lab.oracle.backtest.forecast_accuracy import STAYS
from qubic_lab.oracle.backtest.past_forecasts import BINS, DailyEstimate
from qubic_lab.oracle.inference.performance import annual_sharpe
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.risk.models import drawdown
from qubic_lab.studies.forecast_accuracy import ForecastStudy, Horizon
from qubic_lab.studies.oracle_backtest import Family, fee_sweep, signal_name
from qubic_lab.studies.signal_studies import SignalStudy, shown
from qubic_lab.studies.style import DARK, INK, LINES, PALE, WIDE, WIDTH_INCHES, Dot, date_axis, dots, log_axis, plot

LEAST_SHOWN = 0.05
"""Pictures of equity show no less of the start: an account may lose all."""
FAR = 0.9
"""Where our error is below this share of a baseline's at every horizon, the picture leaves that baseline out."""
MOST_PANELS = 6
_COLUMNS = 3
_PANEL_HEIGHT = 2.35
_CHANCE: dict[str, Any] = {"color": PALE, "alpha": 0.6, "linewidth": 0.0}


def equity(family: Family) -> Figure:
    """Draw the best trial's equity and drawdown beside its baselines."""
    with plot((2, 1), (WIDE, 5.2), fontsize=9, sharex=True, height_ratios=[2, 1]) as (figure, (top, bottom)):
        accounts = family.best.baselines.accounts
        shown = {
            signal_name(family.best): family.best.account,
            "hold": accounts["hold"],
            "walk forward": family.forward,
        }
        shown["sign flipped"] = accounts["sign flipped"]
        looks = zip(shown.items(), LINES, (DARK, INK, DARK, INK), (1.8, 1.0, 1.2, 1.0), strict=True)
        for (name, account), line, colour, width in looks:
            times = account.market.closed_us / DAY_US
            growth = account.equity / account.initial_cash
            top.plot(times, growth, line, color=colour, linewidth=width, label=name)
            if name in (signal_name(family.best), "hold"):
                bottom.plot(times, -100 * drawdown(growth), line, color=colour, linewidth=width)
        draws = 1.0 + family.best.baselines.random_returns
        if len(draws):
            last = float(family.bars.bars.closed_us[-1]) / DAY_US
            ends = np.quantile(draws, (0.05, 0.95))
            where = "here" if ends[1] > LEAST_SHOWN else f"below {LEAST_SHOWN:g}"
            look: dict[str, Any] = {"color": PALE, "linewidth": 5.0, "label": f"90 % of random timings end {where}"}
            top.plot([last] * 2, np.maximum(ends, LEAST_SHOWN), **look)
        least = min(float((account.equity / account.initial_cash).min()) for account in shown.values())
        if least < LEAST_SHOWN:
            top.set_ylim(bottom=LEAST_SHOWN)
        log_axis(top)
        top.set_ylabel("equity (start = 1)" + (f"\nnot shown below {LEAST_SHOWN:g}" if least < LEAST_SHOWN else ""))
        bottom.set_ylabel("drawdown (%)")
        date_axis(bottom)
        figure.align_ylabels()
        _mark(top, [family])
    return figure


def lags_and_costs(families: Sequence[Family]) -> Figure:
    """Draw the best trials' Sharpe ratios against how late they are filled, and against fees; bars are 95 %.

    Families of simulations and others do not belong into one picture.
    """
    with plot((1, 2), (WIDE, 3.8), ncols=2, fontsize=8, sharey=True) as (figure, (left, right)):
        looks = zip(families, (*LINES, *LINES), ("o", "s", "^", "D", "v", "P", "X", "*"), strict=False)
        for number, (family, line, mark) in enumerate(looks):
            fill = DARK if number % 2 == 0 else "white"
            points = {
                lag + 0.08 * number: Dot(found[0], found[0] - 1.96 * found[1], found[0] + 1.96 * found[1])
                for lag, account in family.best.lags.items()
                if (found := annual_sharpe(account.net_returns, account.bars_per_year)) is not None
            }
            if points:
                dots(left, list(points), list(points.values()), line + mark, fill, family.title)
                fees, ratios = np.array(fee_sweep(family)).reshape(-1, 2).T
                right.plot(fees, ratios, line + mark, color=DARK, markerfacecolor=fill)
        for axes in (left, right):
            axes.axhline(0.0, color=INK, linewidth=0.8)
        left.set_xlabel("bars from decision to fill")
        left.set_ylabel("Sharpe ratio of a year")
        right.set_xlabel("fee (basis points of a trade)")
        if not left.get_legend_handles_labels()[0]:
            left.set_title("returns do not vary: there is no ratio", fontsize=10, loc="left")
        _mark(left, families)
    return figure


def _mark(axes: Axes, families: Sequence[Family]) -> None:
    if any(family.simulated for family in families):
        axes.set_title("SIMULATION: invented sentiment", fontsize=10, loc="left")


def forecast_errors(study: ForecastStudy) -> Figure:
    """Draw our error over that of each simpler forecast, by horizon; lines are 95 % intervals."""
    lengths, ratios = study.lengths, _shown_ratios(study)
    options: dict[str, Any] = {"grid": "y", "ncols": len(ratios), "fontsize": 9, "sharey": True, "squeeze": False}
    looks = (("o", DARK), ("s", "white"), ("^", PALE), ("D", "white"))
    with plot((1, len(lengths)), (WIDE, 3.2), **options) as (figure, panels):
        for axes, bars in zip(panels[0], lengths, strict=True):
            for number, (baseline, found) in enumerate(ratios.items()):
                shown = {each.hours: ratio for each, ratio in found.items() if each.bars == bars}
                at = np.array(list(shown)) + 0.16 * (number - (len(ratios) - 1) / 2)
                dots(axes, at, list(shown.values()), *looks[number], f'beside "{baseline}"', scale=100)
            axes.axhline(100, linestyle="--", color=INK, linewidth=1.0)
            axes.set_title(f"bars of {bars}", fontsize=10, loc="left")
            axes.set_xlabel("forecast ahead (h)")
            axes.set_xticks([each.hours for each in study.on(bars)])
        panels[0][0].set_ylabel("our error (% of the other's)")
    return figure


def _shown_ratios(study: ForecastStudy) -> dict[str, dict[Horizon, DailyEstimate]]:
    """Return our error over that of each baseline which is drawn, by horizon."""
    ratios: dict[str, dict[Horizon, DailyEstimate]] = {}
    for horizon in study.horizons:
        for baseline in horizon.accuracy.comparisons:
            ratios.setdefault(baseline.baseline, {})[horizon] = baseline.error_ratio
    return {
        baseline: found
        for baseline, found in ratios.items()
        if baseline == STAYS or max(each.value for each in found.values()) > FAR
    }


def forecast_calibration(horizons: Sequence[Horizon]) -> Figure:
    """Draw a row for each horizon on bars of one length: intervals, positions, probabilities of a rise, and widths."""
    size = (1.6 * WIDTH_INCHES, 1.0 + 1.75 * len(horizons))
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


def coefficients(studies: Sequence[SignalStudy]) -> Figure:
    """Draw the information coefficients by horizon with their intervals, and the band of chance."""

    def draw(axes: Axes, study: SignalStudy) -> None:
        rows = [row for row in study.coefficients if row.found.ic is not None and row.band is not None]
        for place, row in enumerate(rows):
            ends = ([place - 0.4, place + 0.4], -(row.band or 0.0), row.band or 0.0)
            axes.fill_between(*ends, label="chance, all tests counted", **_CHANCE)
        found = [Dot(row.found.ic or 0.0, row.found.low, row.found.high) for row in rows]
        dots(axes, range(len(rows)), found, label="coefficient, 95 %")
        axes.set_xticks(range(len(rows)), [str(row.horizon) for row in rows])
        axes.set_xlim(-0.6, max(1, len(rows)) - 0.4)

    return _panels(studies, draw, "horizon (bars)", "information\ncoefficient", _absent_coefficients)


def quantiles(studies: Sequence[SignalStudy]) -> Figure:
    """Draw the mean return over one bar by bucket of the score, with intervals."""

    def draw(axes: Axes, study: SignalStudy) -> None:
        buckets = study.spreads[0].buckets
        at = range(1, len(buckets) + 1)
        dots(axes, at, [Dot(each.mean, each.low, each.high) for each in buckets], "o-", scale=1e4)
        axes.set_xticks(at)

    x_label = "fifth of the score by the past (5: the highest)"
    return _panels(studies, draw, x_label, "next bar's\nreturn (bp)", lambda study: study.spreads[0].absent)


def event_paths(studies: Sequence[SignalStudy]) -> Figure:
    """Draw the mean abnormal return around events, summed from their next open; the band is that of both signs."""
    looks = (("high scores", "--", DARK), ("low scores", "-.", INK), ("bursts of texts", ":", INK))

    def draw(axes: Axes, study: SignalStudy) -> None:
        both = study.signed_events
        if not both.absent:
            axes.fill_between(both.offsets, 100 * both.low, 100 * both.high, label="95 %", **_CHANCE)
            axes.plot(both.offsets, 100 * both.path, color=DARK, linewidth=2.0, label=f"{both.kind} (low ones turned)")
        for kind, line, colour in looks:
            found = next(each for each in study.events if each.kind == kind)
            if not found.absent:
                axes.plot(found.offsets, 100 * found.path, line, color=colour, linewidth=1.0, label=kind)
        axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.annotate(f"{both.used} events", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=9)

    return _panels(
        studies, draw, "bars from the event's next open", "abnormal return\nsummed from 0 (%)", _absent_events
    )


def lead_and_lag(studies: Sequence[SignalStudy]) -> Figure:
    """Draw the correlation of scores with the returns of each bar, from long before to long after, and chance."""

    def draw(axes: Axes, study: SignalStudy) -> None:
        lead = study.lead
        if lead.band is not None:
            label = "chance, all lags counted"
            axes.fill_between([lead.lags[0] - 0.5, lead.lags[-1] + 0.5], -lead.band, lead.band, label=label, **_CHANCE)
            axes.vlines(lead.lags, 0.0, lead.correlation, color=INK, linewidth=1.0)
            beyond = np.abs(lead.correlation) > lead.band
            axes.plot(lead.lags[~beyond], lead.correlation[~beyond], "o", color=INK, markersize=2.0)
            axes.plot(lead.lags[beyond], lead.correlation[beyond], "o", color=DARK, markersize=5.0, label="beyond it")
            axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=LINES[2])
            axes.annotate(lead.verdict, (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=9)

    x_label = "returns before (−) and after (+) the score, bars"
    return _panels(studies, draw, x_label, "rank\ncorrelation", lambda study: study.lead.absent)


def _panels(
    studies: Sequence[SignalStudy],
    draw: Callable[[Axes, SignalStudy], None],
    x_label: str,
    y_label: str,
    absent: Callable[[SignalStudy], str],
) -> Figure:
    """Return a figure with a panel for each study; one that has nothing to show says why.

    Where not all are drawn the label of x says how many are, and which.
    """
    drawn = shown(studies, MOST_PANELS)
    if len(drawn) < len(studies):
        x_label += f"\n{len(drawn)} of {len(studies)} series: all sources first, then the smallest p; the table has all"
    # The effects of a simulation stand side by side, others as many as fit.
    alike = sum(each.scored.bars is drawn[0].scored.bars for each in drawn)
    columns = max(1, min(_COLUMNS, alike if drawn[0].simulated else len(drawn)))
    lines = -(-len(drawn) // columns)
    size = (WIDE, 0.7 + _PANEL_HEIGHT * lines)
    with plot((lines, columns), size, grid="y", fontsize=9, squeeze=False, sharey="row") as (figure, grid):
        for axes in grid.flat[len(drawn) :]:
            axes.set_axis_off()
        for place, (axes, study) in enumerate(zip(grid.flat, drawn, strict=False)):
            if reason := absent(study):
                look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "transform": axes.transAxes}
                axes.text(0.5, 0.5, textwrap.fill(reason, 34), **look)
                axes.set_xticks([])
                axes.grid(visible=False)
                first = place - place % columns
                if place > first or all(map(absent, drawn[first : first + columns])):
                    axes.tick_params(left=False, labelleft=False)  # else its numbers are those of the row
            else:
                axes.margins(y=0.16)  # room for a word below
                draw(axes, study)
                axes.axhline(0.0, color=INK, linewidth=0.8)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.set_title(study.title, fontsize=9, loc="left")
            if place % columns == 0:
                axes.set_ylabel(y_label)
        figure.supxlabel(x_label, fontsize=10, color=INK)
    return figure


def _absent_coefficients(study: SignalStudy) -> str:
    return study.coefficients[0].found.absent if all(row.p is None for row in study.coefficients) else ""


def _absent_events(study: SignalStudy) -> str:
    return study.signed_events.absent if all(each.absent for each in study.events) else ""
