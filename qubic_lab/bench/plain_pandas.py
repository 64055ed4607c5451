"""The usual backtest in a few lines of pandas, which accounts are compared with for speed and for growth."""

from typing import TYPE_CHECKING

from qubic_lab.oracle.backtest.costs import BPS

if TYPE_CHECKING:
    import pandas as pd


def plain_equity(frame: "pd.DataFrame", weights: "pd.Series", cost_bps: float) -> "pd.Series":
    """Return equity as a share of its start by plain pandas, for one asset that is rebalanced at every bar's open.

    Weights decided at a close are held from the next open to the one after it. Costs are subtracted to first order, so
    it agrees with an exact account only without costs. The last bar's open is the last valuation.

    Args:
        frame: with the column open.
        weights: on the frame's index.
        cost_bps: of the value traded.
    """
    held = weights.shift(1).fillna(0.0)
    gross = held * (frame["open"].shift(-1) / frame["open"] - 1.0).fillna(0.0)
    traded = held.diff().abs().fillna(held.abs())
    equity: pd.Series = (1.0 + gross - traded * cost_bps * BPS).cumprod()
    return equity


def crossover(close: "pd.Series", fast: int, slow: int) -> "pd.Series":
    """Return 1 where the mean of the last `fast` closes is above that of the last `slow` ones, else 0."""
    above: pd.Series = (close.rolling(fast).mean() > close.rolling(slow).mean()).astype("float64")
    return above
