"""Pictures of studies: one style, readable in grey and at half size, a unit on every axis."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.runs.comparison import Comparison, case_label, measured_cases

INK = "#1c2733"
DARK = "#0f5f6b"
PALE = "#a9cdd2"
WIDTH_INCHES = 5.0
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
}

# The logarithmic axis begins here; exact zeros stand apart to the left of it.
SMALLEST_SHOWN = 1e-8


def logit_differences(comparison: Comparison) -> Figure:
    """Draw each case's largest logit difference, split against whole, beside ours against the reference library."""
    cases = measured_cases(comparison)
    references = comparison["reference"]
    labels = [case_label(case, comparison) for case in cases] + [f"{each['dtype']}, one rank" for each in references]
    with _rows(labels) as (figure, axes):
        axes.set_xscale("symlog", linthresh=SMALLEST_SHOWN, linscale=0.6)
        axes.axvline(SMALLEST_SHOWN, color=INK, linewidth=0.8, linestyle=":")
        axes.axhline(len(cases) - 0.5, color=INK, linewidth=0.8, linestyle=":")
        split = [case["logits_max_abs"] for case in cases]
        axes.plot(split, range(len(cases)), "o", color=DARK, markersize=7, label="split against whole")
        if references:
            axes.plot(
                [each["logits_max_abs"] for each in references],
                range(len(cases), len(labels)),
                "D",
                color=DARK,
                markerfacecolor="white",
                markersize=7,
                label=f"ours against {references[0]['library']}",
            )
        top = max(1.0, comparison["logits_max_abs"], *(each["logits_max_abs"] for each in references))
        axes.set_xlim(-SMALLEST_SHOWN / 2, top * 3)
        axes.set_xticks([0.0, 1e-6, 1e-4, 1e-2, 1.0], ["0\nexactly", "10⁻⁶", "10⁻⁴", "10⁻²", "1"])
        axes.minorticks_off()
        axes.set_xlabel("largest difference of a logit (no unit)")
    return figure


def speeds(comparison: Comparison) -> Figure:
    """Draw the tokens per second of each case beside those of one rank."""
    cases = measured_cases(comparison)
    rows = range(len(cases))
    with _rows([case_label(case, comparison) for case in cases], inches_per_row=0.42) as (figure, axes):
        split = [case["tokens_per_s"] for case in cases]
        whole = [case["one_rank_tokens_per_s"] for case in cases]
        axes.barh([row - 0.19 for row in rows], split, height=0.36, color=DARK, label="split")
        axes.barh(
            [row + 0.19 for row in rows],
            whole,
            height=0.36,
            color=PALE,
            edgecolor=DARK,
            linewidth=0.6,
            hatch="////",
            label="one rank",
        )
        axes.set_xlabel("speed of the whole batch (tokens/s)")
    return figure


@contextmanager
def _rows(labels: list[str], inches_per_row: float = 0.3) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure with one row a label, the first one on top, and a legend above it."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH_INCHES, 1.3 + inches_per_row * len(labels)), layout="constrained")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        yield figure, axes
        figure.legend(loc="outside upper left", ncols=2)
