"""The backtest: targets decided at closes become fills, and fills an account at every bar, with costs and figures."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.backtest.costs import BPS, MOST_RATE, Costs
from qubic_lab.oracle.backtest.fills import Charges, Fills, Orders, added, fill, held_per_year, marks
from qubic_lab.oracle.model.bars import YEAR_US, Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import DAY_US, iso

Rebalance = Literal["change", "always"]
REBALANCE: tuple[Rebalance, ...] = ("change", "always")
CASH = 10_000.0
LEAST_BARS = 3
ROUNDING = 1e-9
"""Weights may exceed the leverage by this."""
LEAST_YEARS = 30 * DAY_US / YEAR_US
"""Growth over a shorter time is not annualised."""


@dataclass(frozen=True)
class Ruin:
    """Where an account ended: its `equity` was 0 or below at a bar's open or close.

    What is owed beyond the equity is not in the account: its last return is −100 %.
    """

    bar: int
    at: Literal["open", "close"]
    equity: float


@dataclass(frozen=True, eq=False)
class Trades:
    """All trades in order of time, each column [trades].

    `bar` and `asset` are row and column in the bars, `units` is below 0 for sales, `price` has the slippage in it,
    `value` is units × open; `slippage` and `fee` were paid, in money.
    """

    bar: Integers
    asset: Integers
    units: Floats
    price: Floats
    value: Floats
    slippage: Floats
    fee: Floats

    def __len__(self) -> int:
        return len(self.bar)


@dataclass(frozen=True)
class Summary:
    """An account in figures; money in the prices' currency, shares as fractions.

    Attributes:
        years: calendar time from the first open to the last close; a year has 365 days.
        cagr: annual growth by calendar time; None for less than 30 days, or where nothing is left.
        volatility: annual standard deviation of returns by bar; None where returns do not vary.
        most_drawdown: the largest fall from a peak as a share of it.
        exposure: mean of |positions| as a share of equity.
        turnover_per_year: value traded as a share of equity.
        ended: when equity was 0 or below, if ever.
    """

    bars: int
    years: float
    initial_cash: float
    final_equity: float
    total_return: float
    cagr: float | None
    volatility: float | None
    most_drawdown: float
    exposure: float
    trades: int
    turnover_per_year: float
    fees: float
    slippage: float
    carry: float
    ended: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Account:
    """The account of a backtest at each bar's close.

    cash + units × price = equity at every bar, exactly. Cash changes only by trades, fees and carry, to 1e-12 of the
    account's size, and to 0 where the account ends. Units are [bars, assets], cash, equity and carry [bars]; carry is
    paid for holding, below 0: received. `fills` is the account right after each trade.
    """

    market: Bars
    costs: Costs
    lag: int
    initial_cash: float
    units: Floats
    cash: Floats
    equity: Floats
    carry: Floats
    fills: Fills
    ruin: Ruin | None

    def __len__(self) -> int:
        return len(self.equity)

    @cached_property
    def positions(self) -> Floats:
        """Value of each asset's units at the close, [bars, assets]."""
        return self.units * marks(self.market)[1]

    @property
    def fees(self) -> Floats:
        """Fees paid in each bar, [bars]."""
        return self._by_bar[0]

    @property
    def slippage(self) -> Floats:
        """Loss by fills at worse prices than the open, [bars]."""
        return self._by_bar[1]

    @property
    def turnover(self) -> Floats:
        """Value traded in each bar as a share of equity before it, [bars]."""
        return self._by_bar[2]

    @cached_property
    def _by_bar(self) -> tuple[Floats, Floats, Floats]:
        value, slippage, fee = (added(np.abs(each)) for each in self._trade_costs)
        before = self.fills.cash + valued(self.fills.units, self.fills.opens) + slippage + fee
        found = np.zeros((3, len(self)))
        found[:, self.fills.bars] = fee, slippage, value / before
        return found[0], found[1], found[2]

    @cached_property
    def _trade_costs(self) -> tuple[Floats, Floats, Floats]:
        """Each trade's value at the open, its slippage and its fee, [fills, assets]."""
        fills = self.fills
        value = fills.traded * fills.opens
        slippage = np.abs(value) * fills.slip
        return value, slippage, self.costs.fee_bps * BPS * np.abs(value) * (1.0 + np.sign(value) * fills.slip)

    @cached_property
    def net_returns(self) -> Floats:
        """Return of each bar after all costs, [bars]; 0 after the account's end."""
        returns = np.zeros(len(self))
        returns[0] = self.equity[0] / self.initial_cash - 1.0
        returns[1 : self._end] = self.equity[1 : self._end] / self.equity[: self._end - 1] - 1.0
        return returns

    @cached_property
    def gross_returns(self) -> Floats:
        """Return of each bar before costs, [bars]."""
        paid = self.fees + self.slippage + self.carry
        paid[0] /= self.initial_cash
        paid[1 : self._end] /= self.equity[: self._end - 1]
        return self.net_returns + paid

    @property
    def _end(self) -> int:
        """Number of bars in which the account lived."""
        return len(self) if self.ruin is None else self.ruin.bar + 1

    @cached_property
    def trades(self) -> Trades:
        """All trades."""
        row, asset = np.nonzero(self.fills.traded)
        bar, units = self.fills.bars[row], self.fills.traded[row, asset]
        price = self.market.open_BA[bar, asset] * (1.0 + np.sign(units) * self.fills.slip[row, asset])
        return Trades(bar, asset, units, price, *(each[row, asset] for each in self._trade_costs))

    @property
    def bars_per_year(self) -> float:
        """Number of bars in a year of calendar time."""
        return len(self) / self.market.years

    def summary(self) -> Summary:
        """Return the account in figures."""
        final, years = float(self.equity[-1]), self.market.years
        growth = final / self.initial_cash
        deviation = float(self.net_returns.std(ddof=1))
        peaks = np.maximum.accumulate(np.maximum(self.equity, self.initial_cash))
        gross = np.abs(self.positions).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            exposure = np.where(gross > 0.0, gross / self.equity, 0.0)
        ended_us = None
        if self.ruin is not None:
            ended_us = (self.market.opened_us if self.ruin.at == "open" else self.market.closed_us)[self.ruin.bar]
        return Summary(
            bars=len(self),
            years=years,
            initial_cash=self.initial_cash,
            final_equity=final,
            total_return=growth - 1.0,
            cagr=math.expm1(math.log(growth) / years) if years >= LEAST_YEARS and growth > 0.0 else None,
            volatility=deviation * math.sqrt(self.bars_per_year) if deviation > 0.0 else None,
            most_drawdown=float((1.0 - self.equity / peaks).max()),
            exposure=float(exposure.mean()),
            trades=int(np.count_nonzero(self.fills.traded)),
            turnover_per_year=float(self.turnover.sum()) / years,
            fees=float(self.fees.sum()),
            slippage=float(self.slippage.sum()),
            carry=float(self.carry.sum()),
            ended=None if ended_us is None else iso(int(ended_us)),
            notes=self.notes(),
        )

    def notes(self) -> tuple[str, ...]:
        """Return caveats about this account, one line each."""
        market, found = self.market, []
        if not self.fills.traded.any():
            found.append("no trades: only cash was ever wanted, or no order could be filled")
        closes = zip(market.assets, market.close_BA.T, strict=True)
        constant = [name for name, prices in closes if np.nanmin(prices) == np.nanmax(prices)]
        if constant:
            found.append(f"constant price of {', '.join(constant)}: no skill can show")
        if self.ruin is not None:
            found.append(
                f"the account ended at the {self.ruin.at} of the bar that closes at "
                f"{iso(int(market.closed_us[self.ruin.bar]))}: its equity was {self.ruin.equity:.6g}, which counts as "
                "−100 %; a Sharpe ratio is not defined"
            )
        if self.fills.waited:
            found.append(f"trades waited {self.fills.waited} times for a bar, or for the volume of a later bar")
        unknown = int(np.isnan(market.volume_BA[market.traded]).sum())
        if self.costs.limit is not None and unknown:
            found.append(f"{unknown} bars have no known volume: nothing was filled in them")
        if not market.traded.all():
            found.append(f"{int((~market.traded).sum())} bars are missing: positions kept their last price in them")
            gone = (~market.traded[-1]) & (self.units[-1] != 0.0)
            held = [name for name, is_gone in zip(market.assets, gone, strict=True) if is_gone]
            found += [f"{name} is held at the end without a current price" for name in held]
        return tuple(found)


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
    an open or a close ends there, with nothing. An account that the costs of a fill leave with 0 or less ends at that
    bar's close, whatever prices do.

    Args:
        market: the bars.
        targets: the value of each asset's position as a share of equity, decided at each bar's close, [bars] or
            [bars, assets]; below 0: short. NaN: the last decision stands; at first, nothing is held.
        costs: None: none.
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
    fills = fill(Orders(market, costs, cash, bars, due[bars], charges))
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
    wanted = np.zeros(due.shape, np.bool_)
    wanted[1:] = due[1:] != due[:-1]
    if rebalance == "always":
        wanted |= due != 0.0
    return np.flatnonzero(wanted[:, 0] if due.shape[1] == 1 else wanted.any(axis=1)).astype(np.int64, copy=False)


def _account(market: Bars, costs: Costs, cash: float, lag: int, fills: Fills, charges: Charges | None) -> Account:
    """Return the account at every bar from the account after each fill."""
    bars = len(market)
    lengths = np.diff(fills.bars, append=bars)
    first = int(fills.bars[0]) if len(fills.bars) else bars
    units, money = np.zeros(market.close_BA.shape), np.full(bars, cash)
    units[first:] = np.repeat(fills.units, lengths, axis=0)
    money[first:] = np.repeat(fills.cash, lengths)
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
        # What a fill leaves with 0 or less has lost everything: its nominal units must not bring it back in the bar.
        left = fills.cash + valued(fills.units, fills.opens)
        equity[fills.bars] = np.where(left <= 0.0, np.minimum(equity[fills.bars], left), equity[fills.bars])
        ruin = _find_ruin(before, equity)
    if ruin is not None:
        fills = fills.first(int(np.searchsorted(fills.bars, ruin.bar, "left" if ruin.at == "open" else "right")))
        if ruin.at == "open":
            carry[ruin.bar] = gap_charge[ruin.bar]
        carry[ruin.bar + 1 :] = units[ruin.bar :] = 0.0
        money[ruin.bar :] = equity[ruin.bar :] = 0.0
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


def _find_ruin(before: Floats, equity: Floats) -> Ruin | None:
    """Return the first open or close at which equity is 0 or below."""
    lost = (before <= 0.0) | (equity <= 0.0)
    if not lost.any():
        return None
    bar = int(lost.argmax())
    if before[bar] <= 0.0:
        return Ruin(bar, "open", float(before[bar]))
    return Ruin(bar, "close", float(equity[bar]))


def valued(units: Floats, prices: Floats) -> Floats:
    """Return the total value of units, [bars]."""
    if units.shape[1] == 1:
        return units[:, 0] * prices[:, 0]
    values: Floats = np.einsum("ba,ba->b", units, prices)
    return values
