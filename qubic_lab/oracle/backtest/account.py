"""An account at every bar: holdings, costs, returns and a summary."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from qubic_lab.oracle.backtest.costs import BPS, Costs
from qubic_lab.oracle.backtest.fills import Fills, added, marks
from qubic_lab.oracle.model.bars import YEAR_US, Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import DAY_US, iso

LEAST_YEARS = 30 * DAY_US / YEAR_US
"""Growth over a shorter time is not annualised."""


@dataclass(frozen=True)
class Ruin:
    """Where an account ended: `equity` is 0 or below at a bar's open or close."""

    bar: int
    at: Literal["open", "close"]
    equity: float


@dataclass(frozen=True, eq=False)
class Trades:
    """All trades in order of time; arrays of one length.

    Attributes:
        bar, asset: row and column in the bars.
        units: bought; below 0: sold.
        price: of the fill, including slippage.
        value: units × open.
        slippage, fee: paid, in money.
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
        volatility: standard deviation of returns by bar, annualised by the number of bars in the calendar time; None
            where returns do not vary.
        most_drawdown: the largest fall from a peak as a share of it, 0..1; above 1 where the account ended below 0.
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

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Account:
    """The account of a backtest; values are at each bar's close.

    cash + units × price = equity at every bar, exactly. Cash changes only by trades, fees and carry, to 1e-12 of the
    account's size.

    Attributes:
        units: held, [bars, assets].
        cash, equity: [bars].
        carry: paid for holding in each bar, [bars]; below 0: received.
        fills: the account right after each trade.
        ruin: where it ended; None if it did not.
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

    @cached_property
    def fees(self) -> Floats:
        """Fees paid in each bar, [bars]."""
        return self._by_bar[0]

    @cached_property
    def slippage(self) -> Floats:
        """Loss by fills at worse prices than the open, in each bar, [bars]."""
        return self._by_bar[1]

    @cached_property
    def turnover(self) -> Floats:
        """Value traded in each bar as a share of equity before it, [bars]."""
        return self._by_bar[2]

    @cached_property
    def _by_bar(self) -> tuple[Floats, Floats, Floats]:
        value, slippage, fee = (added(np.abs(each)) for each in trade_costs(self.costs, self.fills))
        before = self.fills.cash + valued(self.fills.units, self.fills.opens) + slippage + fee
        found = np.zeros((3, len(self)))
        found[:, self.fills.bars] = fee, slippage, value / before
        return found[0], found[1], found[2]

    @cached_property
    def net_returns(self) -> Floats:
        """Return of each bar after all costs, [bars]; 0 after the account's end."""
        returns = np.empty(len(self))
        returns[0] = self.equity[0] / self.initial_cash - 1.0
        end = len(self) if self.ruin is None else self.ruin.bar + 1
        returns[end:] = 0.0
        returns[1:end] = self.equity[1:end] / self.equity[: end - 1] - 1.0
        return returns

    @cached_property
    def gross_returns(self) -> Floats:
        """Return of each bar before costs, [bars]."""
        end = len(self) if self.ruin is None else self.ruin.bar + 1
        paid = self.fees + self.slippage + self.carry
        paid[0] /= self.initial_cash
        paid[1:end] /= self.equity[: end - 1]
        return self.net_returns + paid

    @cached_property
    def trades(self) -> Trades:
        """All trades."""
        value, slippage, fee = trade_costs(self.costs, self.fills)
        row, asset = np.nonzero(self.fills.traded)
        bar, units = self.fills.bars[row], self.fills.traded[row, asset]
        price = self.market.open_BA[bar, asset] * (1.0 + np.sign(units) * self.fills.slip[row, asset])
        return Trades(bar, asset, units, price, value[row, asset], slippage[row, asset], fee[row, asset])

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
                f"{iso(int(market.closed_us[self.ruin.bar]))}: its equity was {self.ruin.equity:.6g}"
            )
        if self.fills.waited:
            found.append(f"trades waited {self.fills.waited} times for a bar, or for the volume of a later bar")
        if self.costs.limit is not None and np.isnan(market.volume_BA[market.traded]).any():
            count = int(np.isnan(market.volume_BA[market.traded]).sum())
            found.append(f"{count} bars have no known volume: nothing was filled in them")
        if not market.traded.all():
            found.append(f"{int((~market.traded).sum())} bars are missing: positions kept their last price in them")
            gone = (~market.traded[-1]) & (self.units[-1] != 0.0)
            found += [
                f"{name} is held at the end without a current price"
                for name, held in zip(market.assets, gone, strict=True)
                if held
            ]
        return tuple(found)


def valued(units: Floats, prices: Floats) -> Floats:
    """Return the total value of units, [bars]."""
    if units.shape[1] == 1:
        return units[:, 0] * prices[:, 0]
    values: Floats = np.einsum("ba,ba->b", units, prices)
    return values


def trade_costs(costs: Costs, fills: Fills) -> tuple[Floats, Floats, Floats]:
    """Return each trade's value at the open, its slippage and its fee, [fills, assets]."""
    value = fills.traded * fills.opens
    slippage = np.abs(value) * fills.slip
    fee = costs.fee_bps * BPS * np.abs(value) * (1.0 + np.sign(value) * fills.slip)
    return value, slippage, fee
