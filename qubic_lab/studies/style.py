"""How the studies' pictures and numbers look: one style, readable in grey and at half size, a unit on every axis."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from qubic_lab.core import attributes

if TYPE_CHECKING:  # who only writes numbers, such as the dashboard, starts without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

INK = "#1c2733"
DARK = "#0f5f6b"
PALE = "#a9cdd2"
EDGES = {DARK: DARK, PALE: "#6b4fa0", "white": "#b45309"}
"""The colour of a marker's edge and line by its fill; colour-blind eyes can tell them, and in grey they differ, too."""
OUTAGE = "#e6ebee"
"""The background where nothing happened or was measured."""
columns = attributes
"""As cells of a table, or values of a finding."""
WIDTH_INCHES = 6.0
WIDE = 1.25 * WIDTH_INCHES
LINES = ("-", "--", ":", "-.")
"""Line styles that can be distinguished in grey."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.w_pad": 0.08,  # else the longest label touches the edge
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#dfe5e9",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.markersize": 5,
    "path.simplify_threshold": 1.0,  # a third of the bytes for a line of thousands of points, and no other look
}


@contextmanager
def plot(
    panels: tuple[int, int] = (1, 1),
    size: tuple[float, float] = (WIDTH_INCHES, 3.2),
    *,
    grid: str = "both",
    ncols: int = 3,
    fontsize: int = 10,
    font_size: int = 10,
    **options: Any,
) -> "Iterator[tuple[Figure, Any]]":
    """Give a figure in the studies' style with one panel, or an array of them, and put its legend above it.

    `panels` are rows and columns, `size` is in inches, `grid` is x, y, both or none, `ncols` and `fontsize` are of the
    legend, `font_size` is of everything else, and `options` are for `pyplot.subplots`.
    """
    import matplotlib.pyplot as plt

    style = STYLE | ({"axes.grid": False} if grid == "none" else {"axes.grid.axis": grid})
    with plt.rc_context(style | {"font.size": font_size}):
        figure, axes = plt.subplots(*panels, figsize=size, layout="constrained", **options)
        yield figure, axes
        named = (each.get_legend_handles_labels() for each in figure.axes)
        shown = {label: handle for found in named for handle, label in zip(*found, strict=True)}
        if shown:
            figure.legend(shown.values(), shown.keys(), loc="outside upper left", ncols=ncols, fontsize=fontsize)


@contextmanager
def rows(labels: list[str], inches_per_row: float = 0.3) -> "Iterator[tuple[Figure, Axes]]":
    """Give a figure with one row a label, the first one on top, and a legend above it."""
    with plot(size=(WIDTH_INCHES, 1.3 + inches_per_row * len(labels)), grid="x", ncols=2) as (figure, axes):
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        yield figure, axes


class Dot(NamedTuple):
    """A value to be drawn with its interval; an end that is None is not known."""

    value: float
    low: float | None
    high: float | None


def dots(
    axes: "Axes",
    at: "ArrayLike",
    found: Sequence[Any],
    look: str = "o",
    fill: str = DARK,
    label: str | None = None,
    *,
    scale: float = 1.0,
    across: bool = False,
) -> None:
    """Draw values (`Dot`s, or other estimates with value, low and high) over their intervals.

    They are joined if `look` has a line. `across`: values run along the x-axis, and `at` along the y-axis.
    """
    values = [scale * each.value for each in found]
    low, high = (
        [scale * (each.value if end is None else end) for each in found for end in [getattr(each, name)]]
        for name in ("low", "high")
    )
    draw_lines = axes.hlines if across else axes.vlines
    draw_lines(at, low, high, color=INK, linewidth=1.2)
    colour = EDGES.get(fill, DARK)
    axes.plot(*((values, at) if across else (at, values)), look, color=colour, markerfacecolor=fill, label=label)


def percent(share: float) -> str:
    """Write a share as a percentage; 100 is said only of all."""
    rounded = round(share * 100, 1)
    return f"{min(rounded, 99.9) if share < 1.0 else rounded:g}\N{NO-BREAK SPACE}%"


def points(share: float) -> str:
    """Write a difference of shares in percentage points."""
    return f"{share * 100:.1f}".replace("-", "−")


def magnitude(value: float) -> str:
    """Write a number with two significant digits and no exponent."""
    return f"{Decimal(f'{value:.2g}'):f}"


def counted(number: int, what: str) -> str:
    """Return a number with its noun, as in '1 node' and '1,000 nodes'."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def log_axis(axes: "Axes") -> None:
    """Make the y-axis logarithmic, with plain numbers that do not run into each other."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high > 8.0 * low else MaxNLocator(5))
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.yaxis.set_minor_locator(NullLocator())


def date_axis(axes: "Axes") -> None:
    """Make the x-axis a time axis with short labels."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("time (UTC)")
