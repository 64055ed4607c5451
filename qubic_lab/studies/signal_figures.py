"""Pictures of signal studies: one panel for each series of scores, what chance gives beside what was found."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qubic_lab.studies.signal_studies import SignalStudy, shown
from qubic_lab.studies.style import DARK, INK, LINES, PALE, WIDTH_INCHES, plot

MOST_PANELS = 6
_WIDE = 1.5 * WIDTH_INCHES
_COLUMNS = 3
_PANEL_HEIGHT = 2.35
_CHANCE: dict[str, Any] = {"color": PALE, "alpha": 0.6, "linewidth": 0.0}


def coefficients(studies: Sequence[SignalStudy]) -> Figure:
    """Draw the information coefficients by horizon with their intervals, and the band of chance."""

    def draw(axes: Axes, study: SignalStudy) -> None:
        rows = [row for row in study.coefficients if row.found.ic is not None and row.band is not None]
        at = np.arange(len(study.coefficients))[: len(rows)]
        values = np.array([row.found.ic for row in rows])
        ends = np.array([[row.found.low, row.found.high] for row in rows]).reshape(-1, 2)
        band = np.array([row.band for row in rows])
        for place, width in zip(at, band, strict=True):
            label = "chance, all tests counted" if place == 0 else None
            axes.fill_between([place - 0.4, place + 0.4], -width, width, label=label, **_CHANCE)
        if len(rows):
            away = np.abs(ends.T - values)
            look: dict[str, Any] = {"color": DARK, "ecolor": INK, "elinewidth": 1.0, "markersize": 5}
            axes.errorbar(at, values, away, fmt="o", capsize=2.5, label="coefficient, 95 %", **look)
        axes.set_xticks(at, [str(row.horizon) for row in rows])
        axes.set_xlim(-0.6, max(1, len(rows)) - 0.4)

    return _panels(studies, draw, "horizon (bars)", "information\ncoefficient", _absent_coefficients)


def quantiles(studies: Sequence[SignalStudy]) -> Figure:
    """Draw the mean return over one bar by bucket of the score, with intervals."""

    def draw(axes: Axes, study: SignalStudy) -> None:
        buckets = study.spreads[0].buckets
        values = 1e4 * np.array([each.mean for each in buckets])
        ends = 1e4 * np.array([[each.low, each.high] for each in buckets]).reshape(-1, 2)
        at = np.arange(1, len(buckets) + 1)
        fills = ["white", PALE, PALE, PALE, DARK] if len(buckets) == 5 else [PALE] * len(buckets)
        axes.bar(at, values, 0.7, color=fills, edgecolor=INK, linewidth=0.8)
        if len(buckets):
            axes.errorbar(at, values, np.abs(ends.T - values), fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.5)
            axes.set_xticks(at)

    return _panels(
        studies,
        draw,
        "fifth of the score by the past (5: the highest)",
        "next bar's\nreturn (bp)",
        lambda s: s.spreads[0].absent,
    )


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
    """Return a figure with one panel a study; a panel that has nothing to show says why.

    Where not all are drawn the label of x says how many are, and which.
    """
    drawn = shown(studies, MOST_PANELS)
    if len(drawn) < len(studies):
        x_label += f"\n{len(drawn)} of {len(studies)} series: all sources first, then the smallest p; the table has all"
    columns = _columns(drawn)
    reasons = [absent(study) for study in drawn]
    lines = -(-len(drawn) // columns)
    size = (_WIDE, 0.7 + _PANEL_HEIGHT * lines)
    with plot((lines, columns), size, grid="y", fontsize=9, squeeze=False, sharey="row") as (figure, grid):
        for place, axes in enumerate(grid.flat):
            if place >= len(drawn):
                axes.set_axis_off()
                continue
            study = drawn[place]
            reason, first = reasons[place], place - place % columns
            if reason:
                axes.text(
                    0.5, 0.5, textwrap.fill(reason, 34), ha="center", va="center", transform=axes.transAxes, fontsize=8
                )
                axes.set_xticks([])
                axes.grid(visible=False)
                if place > first or all(reasons[first : first + columns]):  # else its numbers are those of the row
                    axes.tick_params(left=False, labelleft=False)
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


def _columns(studies: Sequence[SignalStudy]) -> int:
    """Return how many panels stand side by side: the effects of a simulation, else as many as fit."""
    alike = sum(each.scored.bars is studies[0].scored.bars for each in studies)
    return max(1, min(_COLUMNS, alike if studies[0].simulated else len(studies)))


def _absent_coefficients(study: SignalStudy) -> str:
    return study.coefficients[0].found.absent if all(row.p is None for row in study.coefficients) else ""


def _absent_events(study: SignalStudy) -> str:
    return study.signed_events.absent if all(each.absent for each in study.events) else ""


def _absent_lags(study: SignalStudy) -> str:
    return study.lead.absent
