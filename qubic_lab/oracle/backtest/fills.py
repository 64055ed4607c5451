"""From target weights to fills: in closed form where no trade has to wait, otherwise bar by bar.

Both find the account after each fill such that a position's value is its target share of the equity left after costs:
E' = E − Σ rate(trade) · |w · E' − v|, with E: equity at the open, v: value held before, w: target weight.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from qubic_lab.oracle.backtest.costs import BPS, Costs
from qubic_lab.oracle.model.bars import Bars, Floats, Integers

NOISE = 1e-13
"""A trade of a smaller share of equity is rounding."""
_SETTLED = 1e-15
_MOST_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Orders:
    """At the open of each of these bars [events] all assets are traded to their weights [events, assets].

    Weights are shares of equity; `charges` is None where holding is free.
    """

    market: Bars
    costs: Costs
    cash: float
    bars: Integers
    weights: Floats
    charges: "Charges | None"


@dataclass(frozen=True, eq=False)
class Charges:
    """Charges for holding, cumulated from the first bar up to each bar's open and close.

    These are sums of price × years, [bars, assets], and years, [bars].
    """

    opens: Floats
    closes: Floats
    open_years: Floats
    close_years: Floats

    @classmethod
    def of(cls, market: Bars) -> "Charges":
        """Return the charges: the time before a bar counts at its open's price, its own time at its close's."""
        opens, closes = marks(market)
        gap, bar = market.gap_years, market.bar_years
        ends = np.cumsum(opens * gap[:, None] + closes * bar[:, None], axis=0)
        return cls(ends - closes * bar[:, None], ends, np.cumsum(gap + bar) - bar, np.cumsum(gap + bar))


@dataclass(frozen=True, eq=False)
class Fills:
    """The account right after the open of each of these bars, until it has no equity.

    Units held, their prices `opens` and `slip`, the share of the open by which the fill's price was worse, are
    [fills, assets]. `waited` is the number of times that a trade had to wait, wholly or in part, for a later bar.
    """

    bars: Integers
    units: Floats
    cash: Floats
    opens: Floats
    slip: Floats
    waited: int = 0

    @cached_property
    def traded(self) -> Floats:
        """Units bought, or sold below 0, [fills, assets]; rounding errors are 0."""
        bought = np.diff(self.units, axis=0, prepend=0.0)
        equity = self.cash + added(self.units * self.opens)
        bought[np.abs(bought) * self.opens <= NOISE * equity[:, None]] = 0.0
        return bought

    def first(self, count: int) -> "Fills":
        """Return the first fills."""
        bars, units, cash = self.bars[:count], self.units[:count], self.cash[:count]
        return Fills(bars, units, cash, self.opens[:count], self.slip[:count], self.waited)


def marks(market: Bars) -> tuple[Floats, Floats]:
    """Return the price of a unit at each bar's open and at its close, [bars, assets] each.

    Where an asset has no bar it is its last close; 0 before its first bar, when nobody can hold it.
    """
    return market.once("marks", _marks)


def _marks(market: Bars) -> tuple[Floats, Floats]:
    if market.traded.all():
        return market.open_BA, market.close_BA
    rows = np.arange(len(market))[:, None]
    last = np.maximum.accumulate(np.where(market.traded, rows, -1), axis=0)
    closes = np.where(last < 0, 0.0, np.take_along_axis(market.close_BA, np.maximum(last, 0), axis=0))
    before = np.vstack([np.zeros((1, len(market.assets))), closes[:-1]])
    return np.where(market.traded, market.open_BA, before), closes


def held_per_year(units: Floats, costs: Costs) -> Floats:
    """Return the charge for holding units, per price and year, of the shape of `units`."""
    return costs.funding_per_year * units + costs.borrow_per_year * np.maximum(-units, 0.0)


def added(values: Floats) -> Floats:
    """Return the sum over assets, [rows]; for one asset the values themselves, which is much faster."""
    if values.shape[1] == 1:
        return values[:, 0]
    total: Floats = values.sum(axis=1)
    return total


def fill(orders: Orders) -> Fills:
    """Return the fills of the orders."""
    found = fill_at_once(orders)
    return fill_by_bar(orders) if found is None else found


def fill_at_once(orders: Orders) -> Fills | None:
    """Return the fills by array operations, or None where a trade must wait or impact does not converge.

    Between two fills equity grows by a factor that does not depend on it, so equity is a product of such factors. Where
    impact depends on a trade's size, and so on equity, the whole path is iterated until it converges.
    """
    market, costs, bars = orders.market, orders.costs, orders.bars
    if not market.traded[bars].all():
        return None
    price, weights = market.open_BA[bars], orders.weights
    growth, held = _between(orders, price)
    ended = np.flatnonzero(growth <= 0.0)
    count = int(ended[0]) if len(ended) else len(bars)
    bars, price, weights, growth, held = bars[:count], price[:count], weights[:count], growth[:count], held[:count]
    volume = None if costs.limit is None else market.volume_BA[bars]
    slip = np.broadcast_to(np.float64(costs.half_spread_bps * BPS), (1, 1))
    for _ in range(_MOST_ROUNDS):
        left = _left_after_costs(weights, held, slip, costs.fee_bps * BPS)
        after = orders.cash * np.cumprod(growth * left)
        if volume is None:
            break
        share = np.abs(weights * left[:, None] - held)
        size = np.where(share <= NOISE, 0.0, share) * (after / left)[:, None] / price
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(size > 0.0, size / volume, 0.0)
        if not (part <= costs.limit).all():
            return None  # too large, or the volume is not known
        last, slip = slip, costs.half_spread_bps * BPS + costs.impact_bps * BPS * part**costs.impact_exponent
        if not costs.impact_bps or np.abs(slip - last).max(initial=0.0) <= _SETTLED:
            break
    else:
        return None
    units = weights * after[:, None] / price
    cash, slip = after * (1.0 - added(weights)), np.broadcast_to(slip, units.shape)
    spent = np.flatnonzero(after <= 0.0)  # nothing is traded after costs took the last of it
    count = int(spent[0]) + 1 if len(spent) else len(bars)
    return Fills(bars[:count], units[:count], cash[:count], price[:count], slip[:count])


def _between(orders: Orders, price: Floats) -> tuple[Floats, Floats]:
    """Return the growth of equity since the last fill, and the share of equity in each asset before the fill."""
    weights, costs = orders.weights, orders.costs
    cash_share = 1.0 - added(weights[:-1])
    held = np.zeros_like(weights)
    held[1:] = weights[:-1] * (price[1:] / price[:-1])
    growth = np.ones(len(weights))
    growth[1:] = cash_share + added(held[1:])
    if orders.charges is not None:
        opens, years = orders.charges.opens[orders.bars], orders.charges.open_years[orders.bars]
        growth[1:] -= added(held_per_year(weights[:-1] / price[:-1], costs) * np.diff(opens, axis=0))
        growth[1:] -= costs.margin_per_year * np.maximum(-cash_share, 0.0) * np.diff(years)
    with np.errstate(divide="ignore", invalid="ignore"):
        held /= growth[:, None]
    return growth, held


def _left_after_costs(weights: Floats, held: Floats, slip: Floats, fee: float) -> Floats:
    """Return the share x of equity that is left after trading to w · x, [fills]: x = 1 − Σ rate · |w · x − held|.

    It is linear in x once each trade's side is known; sides are guessed from w − held until they agree.
    """
    buying, buy, sell = weights > held, slip + fee * (1.0 + slip), -slip - fee * (1.0 - slip)
    for _ in range(weights.shape[1] + 3):
        rate = np.where(buying, buy, sell)
        left = (1.0 + added(rate * held)) / (1.0 + added(rate * weights))
        if weights.shape[1] == 1:
            break
        before, buying = buying, weights * left[:, None] > held
        if np.array_equal(before, buying):
            break
    return left


@dataclass
class _State:
    """An account between bars, and for each bar with fills: the bar, units held, slips and cash afterwards."""

    cash: float
    units: list[float]
    bar: int = 0
    rows: list[tuple[int, list[float], list[float], float]] = field(default_factory=list)


def fill_by_bar(orders: Orders) -> Fills:
    """Return the fills bar by bar: what exceeds a bar's volume waits for the next bar.

    A trade also waits where its asset has no bar, or where its size is limited and the bar's volume is not known.
    """
    assets = len(orders.market.assets)
    state, pending, waited = _State(orders.cash, [0.0] * assets), list[int](), 0
    event, count, last = 0, len(orders.bars), len(orders.market)
    while True:
        following = int(orders.bars[event]) if event < count else last
        bar = min(state.bar + 1, following) if pending else following
        if bar >= last:
            break
        if bar == following:
            event, pending = event + 1, list(range(assets))
        rest = _trade(orders, state, bar, orders.weights[event - 1].tolist(), pending)
        if rest is None:
            break
        waited, pending = waited + len(rest), rest
    units, slip = (np.array([row[place] for row in state.rows]).reshape(-1, assets) for place in (1, 2))
    bars, cash = np.array([row[0] for row in state.rows], np.int64), np.array([row[3] for row in state.rows])
    return Fills(bars, units, cash, marks(orders.market)[0][bars], slip, waited)


def _trade(orders: Orders, state: _State, bar: int, weights: list[float], which: list[int]) -> list[int] | None:
    """Trade some assets to their weights at a bar's open, and return those whose trade is not complete.

    None: no equity is left.
    """
    market, costs = orders.market, orders.costs
    opens, volume = marks(market)[0][bar].tolist(), market.volume_BA[bar].tolist()
    there = market.traded[bar].tolist()
    state.cash -= _charged(orders, state, bar)
    values = [units * price for units, price in zip(state.units, opens, strict=True)]
    equity = state.cash + sum(values)
    state.bar = bar
    if equity <= 0.0:
        return None
    if costs.limit is None:
        most = [math.inf if each else 0.0 for each in there]
    else:  # 0 where the volume is not known
        most = [costs.limit * units if each and units > 0.0 else 0.0 for each, units in zip(there, volume, strict=True)]
    sizes, slips, after = _sizes(costs, equity, weights, values, opens, volume, most, which)
    rest = []
    for asset in which:
        wanted = weights[asset] * after - values[asset]
        if abs(sizes[asset]) >= most[asset] and abs(wanted - sizes[asset] * opens[asset]) > NOISE * equity:
            rest.append(asset)
            state.units[asset] += sizes[asset]
        elif opens[asset]:
            state.units[asset] = weights[asset] * after / opens[asset]
    state.cash = after - sum(units * price for units, price in zip(state.units, opens, strict=True))
    state.rows.append((bar, state.units.copy(), slips, state.cash))
    return rest if after > 0.0 else None


def _sizes(
    costs: Costs,
    equity: float,
    weights: list[float],
    values: list[float],
    opens: list[float],
    volume: list[float],
    most: list[float],
    which: list[int],
) -> tuple[list[float], list[float], float]:
    """Return the units to trade and their slips, [assets], and the equity after costs, by iteration."""
    half, impact, fee = costs.half_spread_bps * BPS, costs.impact_bps * BPS, costs.fee_bps * BPS
    after, last = equity, 0.0
    sizes, slips = [0.0] * len(opens), [half] * len(opens)
    for _ in range(200):
        cost = 0.0
        for asset in which:
            wanted = weights[asset] * after - values[asset]
            if abs(wanted) <= NOISE * equity or most[asset] == 0.0:
                sizes[asset] = 0.0
                continue
            size = min(abs(wanted) / opens[asset], most[asset])
            slip = half + impact * (size / volume[asset]) ** costs.impact_exponent if impact else half
            side = 1.0 if wanted > 0.0 else -1.0
            cost += size * opens[asset] * (slip + fee * (1.0 + side * slip))
            sizes[asset], slips[asset] = side * size, slip
        last, after = after, equity - cost
        if abs(after - last) <= 2e-16 * equity:
            break
    return sizes, slips, after


def _charged(orders: Orders, state: _State, bar: int) -> float:
    """Return the charges for holding from the last fill's open to this bar's open."""
    charges, costs = orders.charges, orders.costs
    if charges is None or not state.rows:
        return 0.0
    spans = charges.opens[bar] - charges.opens[state.bar]
    years = float(charges.open_years[bar] - charges.open_years[state.bar])
    held = held_per_year(np.array(state.units), costs)
    return float((held * spans).sum()) + costs.margin_per_year * max(-state.cash, 0.0) * years
