"""The backtest: targets decided at closes become fills, and fills become an account at every bar."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.backtest.account import Account, Ruin, valued
from qubic_lab.oracle.backtest.costs import MOST_RATE, Costs
from qubic_lab.oracle.backtest.fills import Charges, Fills, Orders, added, at, fill, held_per_year, marks
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import iso

Rebalance = Literal["change", "always"]
REBALANCE: tuple[Rebalance, ...] = ("change", "always")
CASH = 10_000.0
LEAST_BARS = 3
ROUNDING = 1e-9
"""Weights may exceed the leverage by this."""


def simulate(
    market: Bars,
    targets: ArrayLike,
    costs: Costs | None = None,
    *,
    lag: int = 1,
    cash: float = CASH,
    rebalance: Rebalance = "change",
    most_leverage: float = 1.0,
) -> Account:
    """Return the account that trades to target weights, `lag` bars after each decision.

    In each bar, in this order: positions are charged for the time since the last close, trades are filled at the open,
    positions are charged for the bar, and everything is valued at the close. An account whose equity is 0 or below at
    an open or a close ends there. An account that the costs of a fill leave with 0 or less ends at that bar's close,
    whatever prices do.

    Args:
        market: the bars.
        targets: the value of each asset's position as a share of equity, decided at each bar's close, [bars] or
            [bars, assets]; below 0: short. NaN: the last decision stands; at first, nothing is held.
        costs: None: no costs.
        lag: a decision at the close of bar t is filled at the open of bar t + lag, at the earliest.
        cash: of the account at the start.
        rebalance: "change": trade all assets to their weights when a target changes, otherwise let them drift;
            "always": trade at every bar.
        most_leverage: the largest allowed sum of absolute weights.

    Raises:
        InputError: a lag below 1, fewer than 3 bars, or targets, cash or costs that cannot be used.
    """
    costs = costs or Costs()
    _check(market, costs, lag, cash, most_leverage)
    check_choice("rebalance", rebalance, REBALANCE)
    weights = checked_targets(market, targets, most_leverage)
    due = np.zeros_like(weights)
    due[lag:] = weights[:-lag]
    bars = _events(due, rebalance)
    charges = Charges.of(market) if costs.holding else None
    fills = fill(Orders(market, costs, cash, bars, at(due, bars), charges))
    return _account(market, costs, cash, lag, fills, charges)


def _check(market: Bars, costs: Costs, lag: int, cash: float, most_leverage: float) -> None:
    if len(market) < LEAST_BARS:
        raise InputError(f"there are {len(market)} bars: a backtest needs at least {LEAST_BARS}")
    if (market.opened_us >= market.closed_us).any():
        raise InputError("a bar opens and closes at one instant, as a quote does: make bars of quotes first")
    if lag < 1:
        raise InputError(
            f"lag is {lag}: a decision at a bar's close knows that close, so a fill in the same bar would use what was "
            "not known; it must be at least 1"
        )
    if lag >= len(market):
        raise InputError(
            f"lag is {lag} with {len(market)} bars: nothing would be filled; give more bars or a smaller lag"
        )
    if not (np.isfinite(cash) and cash > 0.0):
        raise InputError(f"cash is {cash}: it must be a number above 0")
    if costs.most_rate * most_leverage >= MOST_RATE:
        raise InputError(
            f"a trade may cost {costs.most_rate:.0%} at leverage {most_leverage:g}: costs × leverage must stay below "
            f"{MOST_RATE:.0%}"
        )
    if costs.limit is not None and not (market.volume_BA > 0.0).any():
        raise InputError(
            "no bar has a volume: slippage by volume needs it; set impact_bps to 0, most_participation off"
        )


def checked_targets(market: Bars, targets: ArrayLike, most_leverage: float = 1.0) -> Floats:
    """Return targets as [bars, assets], with NaN replaced by the last decision.

    Raises:
        InputError: another shape, infinite values, or more than the leverage.
    """
    try:
        weights = np.asarray(targets, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"targets are not numbers ({error}): give weights, NaN to keep the last") from error
    weights = weights.reshape(-1, 1) if weights.ndim == 1 else weights
    if weights.shape != market.close_BA.shape:
        raise InputError(
            f"targets are of shape {np.shape(targets)}: {len(market)} bars of {len(market.assets)} assets need "
            f"{market.close_BA.shape}"
        )
    if np.isnan(weights).any():
        rows = np.arange(len(weights))[:, None]
        last = np.maximum.accumulate(np.where(np.isnan(weights), -1, rows), axis=0)
        weights = np.where(last < 0, 0.0, np.take_along_axis(weights, np.maximum(last, 0), axis=0))
    gross = added(np.abs(weights))
    if not gross.max() <= most_leverage + ROUNDING:
        bar = int((gross > most_leverage + ROUNDING).argmax())
        raise InputError(
            f"targets at {iso(int(market.closed_us[bar]))} add up to {gross[bar]:.6g}: at most {most_leverage:g} is "
            "allowed; make them smaller or set most_leverage"
        )
    return weights


def _events(due: Floats, rebalance: Rebalance) -> Integers:
    """Return the bars at whose open assets are traded to the weights that are due."""
    changed = np.zeros(due.shape, np.bool_)
    changed[1:] = due[1:] != due[:-1]
    wanted = changed | (due != 0.0) if rebalance == "always" else changed
    return np.flatnonzero(wanted[:, 0] if due.shape[1] == 1 else wanted.any(axis=1)).astype(np.int64, copy=False)


def _account(market: Bars, costs: Costs, cash: float, lag: int, fills: Fills, charges: Charges | None) -> Account:
    """Return the account at every bar from the account after each fill."""
    bars = len(market)
    lengths = np.diff(fills.bars, append=bars)
    first = int(fills.bars[0]) if len(fills.bars) else bars
    units, money = np.zeros(market.close_BA.shape), np.full(bars, cash)
    every = len(fills.bars) == bars - first
    units[first:] = fills.units if every else np.repeat(fills.units, lengths, axis=0)
    money[first:] = fills.cash if every else np.repeat(fills.cash, lengths)
    gap_charge = bar_charge = np.zeros(bars)
    if charges is not None and first < bars:
        gap_charge, bar_charge = _charges_by_bar(market, costs, units, money)
        money[first:] -= _charged_since(costs, charges, fills, lengths)
    carry = gap_charge + bar_charge
    equity = money + valued(units, marks(market)[1])
    ruin = None
    if charges is not None or min(fills.units.min(initial=0.0), fills.cash.min(initial=0.0)) < 0.0:
        before = np.full(bars, cash)
        before[1:] = money[:-1] + valued(units[:-1], marks(market)[0][1:]) - gap_charge[1:]
        equity[fills.bars] = _unrevived(equity[fills.bars], fills)
        ruin = _find_ruin(before, equity)
    if ruin is not None:
        fills = fills.first(int(np.searchsorted(fills.bars, ruin.bar, "left" if ruin.at == "open" else "right")))
        if ruin.at == "open":
            carry[ruin.bar] = gap_charge[ruin.bar]
        carry[ruin.bar + 1 :] = units[ruin.bar :] = 0.0
        money[ruin.bar :] = equity[ruin.bar :] = ruin.equity
    return Account(market, costs, lag, cash, units, money, equity, carry, fills, ruin)


def _charges_by_bar(market: Bars, costs: Costs, units: Floats, owed: Floats) -> tuple[Floats, Floats]:
    """Return the charges for holding before each bar's open, and from its open to its close, [bars]."""
    held, (opens, closes) = held_per_year(units, costs), marks(market)
    interest = costs.margin_per_year * np.maximum(-owed, 0.0)
    gap = np.zeros(len(market))
    gap[1:] = (valued(held[:-1], opens[1:]) + interest[:-1]) * market.gap_years[1:]
    return gap, (valued(held, closes) + interest) * market.bar_years


def _charged_since(costs: Costs, charges: Charges, fills: Fills, lengths: Integers) -> Floats:
    """Return the charges since the last fill at each close, from the first fill on."""
    first = int(fills.bars[0])
    spans = charges.closes[first:] - np.repeat(charges.opens[fills.bars], lengths, axis=0)
    years = charges.close_years[first:] - np.repeat(charges.open_years[fills.bars], lengths)
    held = np.repeat(held_per_year(fills.units, costs), lengths, axis=0)
    interest = np.repeat(costs.margin_per_year * np.maximum(-fills.cash, 0.0), lengths)
    return valued(held, spans) + interest * years


def _unrevived(equity: Floats, fills: Fills) -> Floats:
    """Return equity at the closes of bars with fills, at most what the fill left if that is 0 or less.

    Such an account has lost everything: its nominal units must not bring it back within the bar.
    """
    left = fills.cash + valued(fills.units, fills.opens)
    return np.where(left <= 0.0, np.minimum(equity, left), equity)


def _find_ruin(before: Floats, equity: Floats) -> Ruin | None:
    """Return the first open or close at which equity is 0 or below."""
    if min(float(before.min()), float(equity.min())) > 0.0:
        return None
    bar = int(((before <= 0.0) | (equity <= 0.0)).argmax())
    if before[bar] <= 0.0:
        return Ruin(bar, "open", float(before[bar]))
    return Ruin(bar, "close", float(equity[bar]))
