"""Our accounts equal those of `bt`, and those of a short loop, after all costs.

`bt` has one price at a time, so each bar becomes two rows: the open, where it trades, and the close, for its value.
Its `Rebalance` applies a weight to equity before costs; we apply it to equity after costs. Neither is wrong, so this
test computes the units to trade from the value, position and prices of `bt`, and passes them to `transact`. `bt` does
the rest: price, spread, commission, cash, position and value.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from markets import random_market

from qubic_lab.oracle.backtest.costs import BPS, Costs
from qubic_lab.oracle.backtest.engine import Account, Rebalance, simulate
from qubic_lab.oracle.model.bars import YEAR_US, Bars, Floats
from qubic_lab.studies.oracle_backtest import rsi

CASH = 1_000_000.0
COSTS = Costs(fee_bps=10.0, half_spread_bps=3.0)
Weigh = Callable[[Bars], Floats]


def even_risk_each_month(market: Bars) -> Floats:
    """Weight two assets by the inverse of their volatility at the first close of each month."""
    closes = market.frame()["close"]
    inverse = 1.0 / closes.pct_change().rolling(60).std()
    weights = inverse.div(inverse.sum(axis=1, min_count=2), axis=0)
    months = pd.Series(closes.index.strftime("%Y-%m"), closes.index)
    return weights.where(months != months.shift(1)).to_numpy()


def half_where_oversold(market: Bars) -> Floats:
    """Half of equity long where the strength index is low, short where it is high, else cash."""
    return 0.5 * rsi(market.frame(), 7).to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weigh", "assets", "rebalance", "least_trades"),
    [
        (even_risk_each_month, 2, "change", 300),
        (half_where_oversold, 1, "always", 1_000),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_bt_has_the_same_equity_at_every_bar(weigh: Weigh, assets: int, rebalance: Rebalance, least_trades: int):
    market = random_market(5_000, assets, seed=4)
    targets = weigh(market)
    ours = simulate(market, targets, COSTS, cash=CASH, rebalance=rebalance)
    theirs = equity_of_bt(ours, _transacting(due_at_opens(ours, targets, rebalance)))
    assert len(ours.trades) >= least_trades and ours.fees.sum() > 0.01 * CASH and ours.ruin is None
    assert np.abs(theirs / ours.equity - 1.0).max() < 1e-9


def due_at_opens(account: Account, targets: Floats, rebalance: Rebalance) -> pd.DataFrame:
    """Return the weights to trade to at each open with a trade: those decided at the close before."""
    market = account.market
    decided = pd.DataFrame(targets.reshape(len(market), -1), columns=list(market.assets)).ffill().fillna(0.0)
    due = decided.shift(1, fill_value=0.0)
    changed = (due != due.shift(1, fill_value=0.0)).any(axis=1)
    traded = changed | (due != 0.0).any(axis=1) if rebalance == "always" else changed
    return due.set_axis(_opens(market))[traded.to_numpy()]


def equity_of_bt(account: Account, *algos: object) -> Floats:
    """Return the equity that `bt` computes at each close, for the same market and costs."""
    bt = pytest.importorskip("bt", reason="bt is not installed: pip install 'qubic-lab[bench]'")
    market, costs = account.market, account.costs
    closed = _instants(market.closed_us)
    names = list(market.assets)
    opens = pd.DataFrame(market.open_BA, _opens(market), names)
    prices = pd.concat([opens, pd.DataFrame(market.close_BA, closed, names)]).sort_index()

    def commission(units: float, price: float) -> float:
        """Return the fee at the price of the fill; `bt` passes the price before the spread."""
        return costs.fee_bps * BPS * abs(units) * price * (1.0 + np.sign(units) * costs.half_spread_bps * BPS)

    test = bt.Backtest(
        bt.Strategy("theirs", list(algos)),
        prices,
        initial_capital=account.initial_cash,
        integer_positions=False,
        commissions=commission,
        additional_data={"bidoffer": 2.0 * costs.half_spread_bps * BPS * prices},
        progress_bar=False,
    )
    test.run()
    return test.strategy.values.loc[closed].to_numpy()


def _transacting(due: pd.DataFrame) -> Callable[..., bool]:
    """Return an algorithm that trades the units whose weights hold for equity after costs."""
    half, fee = COSTS.half_spread_bps * BPS, COSTS.fee_bps * BPS

    def trade(strategy: object) -> bool:
        if strategy.now not in due.index:
            return True
        prices = strategy.universe.loc[strategy.now]
        held = [strategy[name].position if name in strategy.children else 0.0 for name in due.columns]
        worth, weights = held * prices.to_numpy(), due.loc[strategy.now].to_numpy()
        left = strategy.value
        for _ in range(12):  # each round is a thousand times nearer
            bought = weights * left - worth
            left = strategy.value - float((np.abs(bought) * (half + fee * (1.0 + np.sign(bought) * half))).sum())
        for name, units in zip(due.columns, (weights * left - worth) / prices.to_numpy(), strict=True):
            strategy.transact(units, child=name)
        return True

    return trade


def _opens(market: Bars) -> pd.DatetimeIndex:
    """Return the index of opens, 1 ms late because a bar opens at the instant the last one closes."""
    return _instants(market.opened_us + 1_000)


def _instants(at_us: np.ndarray) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(at_us.astype("datetime64[us]"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_loop_of_a_few_lines_has_the_same_equity(seed: int):
    market = random_market(400, seed=seed)
    targets = np.random.default_rng(seed).choice([-1.0, -0.4, 0.0, 0.7, 1.0], len(market)).repeat(5)[: len(market)]
    costs = Costs(fee_bps=20.0, half_spread_bps=5.0, funding_per_year=0.1, borrow_per_year=0.3)
    day, opens, closes = (market.closed_us[0] - market.opened_us[0]) / YEAR_US, market.open, market.close
    cash, units, equity = CASH, 0.0, [CASH]
    for bar in range(1, len(market)):
        if targets[bar - 1] != (targets[bar - 2] if bar > 1 else 0.0):
            value = cash + units * opens[bar]
            # Bisection: the trade whose costs leave an account of which the position is the target's share.
            low, high = -3.0 * value / opens[bar], 3.0 * value / opens[bar]
            for _ in range(200):
                bought = (low + high) / 2.0
                price = opens[bar] * (1.0 + np.sign(bought) * 0.0005)
                left = value - bought * (price - opens[bar]) - 0.002 * abs(bought) * price
                low, high = (bought, high) if (units + bought) * opens[bar] < targets[bar - 1] * left else (low, bought)
            cash -= bought * price + 0.002 * abs(bought) * price
            units += bought
        cash -= (0.1 * units + 0.3 * max(0.0, -units)) * closes[bar] * day
        equity.append(cash + units * closes[bar])
    ours = simulate(market, targets, costs, cash=CASH)
    assert len(ours.trades) > 40
    assert np.abs(np.array(equity) / ours.equity - 1.0).max() < 1e-11
