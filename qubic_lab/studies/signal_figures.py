"""Pictures of signal studies: one panel for each series of scores, what chance gives beside what was found."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qubic_lab.studies.signal_studies import SignalStudy, shown
from qubic_lab.studies.style import DARK, INK, LINES, PALE, WIDE, Dot, dots, plot

MOST_PANELS = 6
_COLUMNS = 3
_PANEL_HEIGHT = 2.35
_CHANCE: dict[str, Any] = {"color": PALE, "alpha": 0.6, "linewidth": 0.0}


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


def lags(studies: Sequence[SignalStudy]) -> Figure:
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

    return _panels(studies, draw, "returns before (−) and after (+) the score, bars", "rank\ncorrelation", _absent_lags)


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


def _absent_lags(study: SignalStudy) -> str:
    return study.lead.absent
