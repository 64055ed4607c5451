"""How pictures of studies look: one style, readable in grey and at half size, a unit on every axis."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

INK = "#1c2733"
DARK = "#0f5f6b"
PALE = "#a9cdd2"
WIDTH_INCHES = 5.0
LINES = ("-", "--", ":", "-.")
"""Kinds of lines, to be told apart in grey."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#dfe5e9",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "path.simplify_threshold": 1.0,  # a third of the bytes for a line of thousands of points, and no other look
}


@contextmanager
def rows(labels: list[str], inches_per_row: float = 0.3) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure with one row a label, the first one on top, and a legend above it."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH_INCHES, 1.3 + inches_per_row * len(labels)), layout="constrained")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        yield figure, axes
        figure.legend(loc="outside upper left", ncols=2)


def log_axis(axes: Axes) -> None:
    """Make the y-axis logarithmic, with plain numbers that do not run into each other."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high > 8.0 * low else MaxNLocator(5))
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.yaxis.set_minor_locator(NullLocator())


def date_axis(axes: Axes) -> None:
    """Make the x-axis one of times, as short as they can be told apart."""
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("time (UTC)")
