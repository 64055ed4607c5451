"""How pictures of studies look: one style, readable in grey and at half size, a unit on every axis."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
