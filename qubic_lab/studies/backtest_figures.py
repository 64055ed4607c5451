"""Pictures of backtests: equity beside its baselines, and what is left of it when fills are late or fees are others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.oracle.inference.performance import annual_sharpe
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.risk.models import drawdown
from qubic_lab.studies.oracle_backtest import Family, fee_sweep, signal_name
from qubic_lab.studies.style import DARK, INK, LINES, PALE, WIDE, Dot, date_axis, dots, log_axis, plot

LEAST_SHOWN = 0.05
"""Pictures of equity show no less of the start: an account may lose all."""


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
