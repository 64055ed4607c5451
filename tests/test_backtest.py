"""Backtests: three trades computed by hand, exact accounts, no look-ahead, and costs that never raise equity."""

import json
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from markets import START_US, market_of, random_market, random_weights, with_gaps, with_holes

from qubic_lab.bench.backtest import crossover, plain_equity
from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.engine import REBALANCE, Account, checked_targets, simulate
from qubic_lab.oracle.backtest.evaluate import (
    BacktestConfig,
    Strategy,
    backtest,
    compare_baselines,
    decide,
    delayed,
    momentum,
    out_of_sample,
    shuffled,
    signal_frame,
    walk_forward,
)
from qubic_lab.oracle.backtest.fills import Charges, Orders, fill_at_once, fill_by_bar, marks
from qubic_lab.oracle.inference.alignment import AvailableText, available_texts, text_columns
from qubic_lab.oracle.model.bars import COLUMNS, Bars, join_bars
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US

pytestmark = pytest.mark.usefixtures("quick_audits")
NAN = float("nan")
SEEDS, ASSETS, BPS = st.integers(0, 10_000), st.integers(1, 3), st.floats(0.0, 200.0)
REBALANCED, VOLATILITY = st.sampled_from(REBALANCE), st.sampled_from([0.02, 0.4])
COSTS = st.builds(
    Costs,
    fee_bps=st.sampled_from([0.0, 10.0, 100.0]),
    half_spread_bps=st.sampled_from([0.0, 5.0]),
    funding_per_year=st.sampled_from([0.0, 0.2, -0.2]),
    borrow_per_year=st.sampled_from([0.0, 0.3]),
    margin_per_year=st.sampled_from([0.0, 0.4]),
)
IMPACT = {"impact_bps": 50.0, "most_participation": 0.2}


def test_three_trades_by_hand() -> None:
    market = market_of(open=[100, 100, 110, 100, 80], close=[100, 120, 100, 90, 50])
    costs = Costs(fee_bps=100.0, half_spread_bps=100.0, borrow_per_year=0.365, funding_per_year=0.73)
    account = simulate(market, [1.0, 0.0, -0.5, NAN, NAN], costs, cash=10_201.0)
    trades = account.trades

    # Bar 1: all of 10,201 buys at 101 (open 100 and 1 %) and pays a fee of 1 %: 10,201 / (101 × 1.01) = 100 units.
    assert trades.bar.tolist() == [1, 2, 3]
    assert trades.units[0] == pytest.approx(100.0, rel=1e-14)
    assert (trades.price[0], trades.slippage[0], trades.fee[0]) == pytest.approx((101.0, 100.0, 101.0), rel=1e-14)
    assert account.units[1, 0] == trades.units[0]
    assert account.turnover[1] == pytest.approx(10_000.0 / 10_201.0, rel=1e-14)
    # Funding for a day: 100 units × 120 at the close × 0.73 / 365 = 24, from cash that was 0.
    assert account.carry[1] == pytest.approx(24.0, rel=1e-14)
    assert (account.cash[1], account.equity[1]) == pytest.approx((-24.0, 11_976.0), rel=1e-13)

    # Bar 2: 100 units are sold at 108.90 (open 110 less 1 %): 10,890, less a fee of 108.90.
    assert (trades.units[1], trades.price[1]) == pytest.approx((-100.0, 108.9), rel=1e-14)
    assert (trades.slippage[1], trades.fee[1]) == pytest.approx((110.0, 108.9), rel=1e-14)
    assert account.units[2, 0] == 0.0
    assert account.cash[2] == account.equity[2] == pytest.approx(10_890.0 - 108.9 - 24.0, rel=1e-14)

    # Bar 3: short for half of what is left after costs. A sale of value v at the open costs 0.01 v of slippage and
    # 0.01 × 0.99 v of fee, so v = 0.5 × (10,757.1 − 0.0199 v): v = 5,378.55 / 1.00995.
    value = 5_378.55 / 1.00995
    assert trades.units[2] == pytest.approx(-value / 100.0, rel=1e-14)
    assert (trades.slippage[2], trades.fee[2]) == pytest.approx((0.01 * value, 0.0099 * value), rel=1e-14)
    # A day's borrowing at 90: 0.001 of the position's value; funding is received: 0.002 of it.
    carried = -0.001 * 0.9 * value
    assert account.carry[3] == pytest.approx(carried, rel=1e-13)
    cash = 10_757.1 + 0.9801 * value - carried
    assert account.cash[3] == pytest.approx(cash, rel=1e-14)
    assert account.equity[3] == pytest.approx(cash - 0.9 * value, rel=1e-14)
    # Bar 4: nothing is wanted, nothing is traded; the close at 50 is what counts.
    assert account.equity[4] == pytest.approx(cash + 0.001 * 0.5 * value - 0.5 * value, rel=1e-14)
    assert account.net_returns[4] == account.equity[4] / account.equity[3] - 1.0
    assert account.fees.sum() == trades.fee.sum() and account.slippage.sum() == trades.slippage.sum()


def test_slippage_grows_with_the_share_of_a_bars_volume_and_what_exceeds_that_share_waits_for_the_next() -> None:
    market = market_of(open=[100.0] * 6, close=[100.0] * 6, volume=100.0)
    for exponent in (0.5, 1.0):
        costs = Costs(impact_bps=100.0, impact_exponent=exponent)
        account = simulate(market, [0.4, *[NAN] * 5], costs, cash=10_000.0)
        size, slip = account.trades.units[0], account.fills.slip[0, 0]
        assert slip == pytest.approx(0.01 * (size / 100.0) ** exponent, rel=1e-12)
        assert size * 100.0 == pytest.approx(0.4 * account.equity[1], rel=1e-12)
        assert account.equity[1] == pytest.approx(10_000.0 - size * 100.0 * slip, rel=1e-14)
    account = simulate(market, [1.0] * 6, Costs(most_participation=0.4), cash=10_000.0)
    assert account.units[:, 0].tolist() == pytest.approx([0, 40, 80, 100, 100, 100], abs=1e-9)
    assert account.cash.tolist() == pytest.approx([10_000, 6_000, 2_000, 0, 0, 0], abs=1e-8)
    assert any("waited 2 times" in note for note in account.notes())


def flows_are_whole(account: Account) -> None:
    """Check the account against its own trades, summed up here without the engine."""
    market, trades = account.market, account.trades
    assert np.array_equal(account.equity, account.cash + np.einsum("ba,ba->b", account.units, marks(market)[1]))
    end = len(market) if account.ruin is None else account.ruin.bar
    paid, bought = account.carry.copy(), np.zeros(market.close_BA.shape)
    np.add.at(paid, trades.bar, trades.units * trades.price + trades.fee)
    np.add.at(bought, (trades.bar, trades.asset), trades.units)
    size = np.maximum(account.equity, 0.0) + np.abs(account.positions).sum(axis=1) + np.abs(paid)
    change = np.diff(account.cash, prepend=account.initial_cash)
    (opens, closes), held = marks(market), np.vstack([np.zeros((1, len(market.assets))), account.units[:-1]])
    before = np.vstack([opens[:1], closes[:-1]])
    earned = (held * (opens - before) + account.units * (closes - opens)).sum(axis=1)
    last = np.append(account.initial_cash, account.equity[:-1])
    gross, worth = account.gross_returns * last, size + np.abs(last)
    assert (np.abs(gross - earned)[:end] <= 1e-11 * worth[:end]).all()
    assert (np.abs(change + paid)[:end] <= 1e-12 * size[:end]).all()
    held = np.cumsum(bought, axis=0)
    rounding = 1e-10 * (1.0 + np.abs(held[:end]).max(initial=0.0))
    assert np.allclose(held[:end], account.units[:end], rtol=0.0, atol=rounding)
    slip = np.sign(trades.units) * trades.slippage / np.abs(trades.value)
    assert np.allclose(trades.price, market.open_BA[trades.bar, trades.asset] * (1 + slip))


@settings(max_examples=80)
@given(SEEDS, ASSETS, COSTS, st.sampled_from([0.0, 0.3]), st.booleans(), REBALANCED, st.integers(1, 3), VOLATILITY)
def test_cash_and_positions_are_equity_at_every_bar_and_cash_moves_by_trades_and_carry_alone(
    seed: int, assets: int, costs: Costs, holes: float, impact: bool, rebalance: Any, lag: int, volatility: float
) -> None:
    market = with_gaps(with_holes(random_market(40, assets, seed, volatility=volatility), holes, seed), holes / 2, seed)
    if impact:
        costs = replace(costs, **IMPACT)
    targets = 2.0 * random_weights(market, seed)
    flows_are_whole(simulate(market, targets, costs, lag=lag, rebalance=rebalance, most_leverage=2.0))


@example(543, 1, Costs(half_spread_bps=5.0), False, True, 0.4)  # costs take the last of the equity
@example(3397, 1, Costs(fee_bps=100.0), False, True, 0.4)  # so do these, and the next bar's price would restore it
@example(2030, 1, Costs(borrow_per_year=0.3), True, True, 0.4)  # equity is a small part of what is held
@settings(max_examples=60)
@given(SEEDS, ASSETS, COSTS, st.booleans(), st.booleans(), VOLATILITY)
def test_fills_by_arrays_and_fills_bar_by_bar_agree(
    seed: int, assets: int, costs: Costs, impact: bool, always: bool, volatility: float
) -> None:
    market = with_gaps(random_market(70, assets, seed, volatility=volatility), 0.1, seed)
    cash = 500.0 if volatility < 0.1 else 1e-3  # so that no trade exceeds its share of a bar's volume
    costs = replace(costs, **IMPACT) if impact else costs
    weights = checked_targets(market, random_weights(market, seed))
    changes = np.append(0, 1 + np.flatnonzero((np.diff(weights, axis=0) != 0.0).any(axis=1)))
    bars = np.arange(len(market)) if always else changes
    orders = Orders(market, costs, cash, bars, weights[bars], Charges.of(market) if costs.holding else None)
    first, second = fill_at_once(orders), fill_by_bar(orders)
    assume(first is not None)  # seldom a trade is larger than its share of a bar after all
    assert first is not None and second.waited == 0
    assert np.array_equal(first.bars, second.bars)
    assert np.allclose(first.units, second.units, rtol=1e-11, atol=1e-13)
    assert np.allclose(first.cash, second.cash, rtol=1e-11, atol=1e-9)
    assert np.allclose(first.traded, second.traded, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(SEEDS, ASSETS, COSTS, REBALANCED, st.integers(5, 49))
def test_an_account_does_not_depend_on_later_bars(
    seed: int, assets: int, costs: Costs, rebalance: Any, cut: int
) -> None:
    market = random_market(50, assets, seed)
    targets = random_weights(market, seed)
    whole = simulate(market, targets, costs, rebalance=rebalance)
    part = simulate(market.slice(0, cut), targets[:cut], costs, rebalance=rebalance)
    for name in ("units", "cash", "equity", "net_returns", "fees", "carry"):
        assert np.array_equal(getattr(whole, name)[:cut], getattr(part, name)), name
    slipping = replace(costs, **IMPACT)
    whole = simulate(market, targets, slipping, rebalance=rebalance)
    part = simulate(market.slice(0, cut), targets[:cut], slipping, rebalance=rebalance)
    assert np.allclose(whole.equity[:cut], part.equity, rtol=1e-13)


@settings(max_examples=40)
@given(SEEDS, ASSETS, st.sampled_from(["fee_bps", "half_spread_bps", "impact_bps"]), BPS, BPS)
def test_higher_costs_never_give_more(seed: int, assets: int, name: str, first: float, second: float) -> None:
    market = random_market(60, assets, seed)
    targets = random_weights(market, seed)
    low, high = sorted((first, second))
    base = Costs(fee_bps=1.0, impact_bps=1.0)
    cheap, dear = (simulate(market, targets, replace(base, **{name: bps}), cash=500.0) for bps in (low, high))
    assert (dear.equity <= cheap.equity * (1 + 1e-12)).all()


def test_another_engine_agrees_where_there_are_no_costs() -> None:
    market = random_market(500)
    frame = market.frame()
    weights = crossover(frame["close"], 5, 20)
    account = simulate(market, weights, rebalance="always", cash=1.0)
    at_opens = account.cash[:-1] + account.units[:-1, 0] * market.open_BA[1:, 0]
    assert np.allclose(plain_equity(frame, weights, 0.0).to_numpy()[:-1], at_opens, rtol=1e-12)
    assert len(account.trades) > 10


def test_a_decision_is_filled_at_the_next_bars_open_or_later_and_never_at_its_own() -> None:
    market = random_market(30)
    targets = random_weights(market, 3, held=0.5)
    first = simulate(market, [NAN] * 10 + [1.0] + [NAN] * 19)
    assert first.trades.bar.tolist() == [11]
    assert first.trades.price[0] == market.open_BA[11, 0]
    third = simulate(market, targets, Costs(fee_bps=5.0), lag=3)
    late = simulate(market, delayed(checked_targets(market, targets), 2), Costs(fee_bps=5.0))
    assert np.array_equal(third.equity, late.equity)


def test_an_account_without_equity_ends() -> None:
    at_close = simulate(market_of([100, 100, 100, 100, 100], [100, 100, 250, 100, 100]), [-1.0] * 5, cash=1_000.0)
    assert (at_close.ruin.bar, at_close.ruin.at) == (2, "close")  # 2,000 of cash, and 10 units owed at 250
    assert at_close.ruin.equity == -500.0
    assert at_close.equity.tolist() == [1_000.0, 1_000.0, 0.0, 0.0, 0.0] and not at_close.cash[2:].any()
    assert at_close.net_returns.tolist() == [0.0, 0.0, -1.0, 0.0, 0.0]
    assert not at_close.units[2:].any() and at_close.trades.bar.tolist() == [1]
    at_open = simulate(market_of([100, 100, 300, 100, 100], [100, 100, 100, 100, 100]), [-1.0, -1.0, 0.5, 0.5, 0.5])
    assert (at_open.ruin.bar, at_open.ruin.at, at_open.ruin.equity) == (2, "open", -10_000.0)
    assert at_open.trades.bar.tolist() == [1]
    owed = simulate(at_open.market, [-1.0] * 5, Costs(borrow_per_year=0.365))
    # A day's borrowing of 100 units at 100 is 10; at the open of bar 2 it ends, and nothing is charged for that bar.
    assert owed.carry.tolist() == pytest.approx([0.0, 10.0, 0.0, 0.0, 0.0])
    assert owed.ruin.equity == pytest.approx(-10_010.0)
    summary = at_open.summary()
    assert (summary.final_equity, summary.total_return, summary.cagr, summary.most_drawdown) == (0.0, -1.0, None, 1.0)
    assert summary.ended == "2024-01-03T00:00:00Z"
    assert any("ended at the open" in note and "counts as −100 %" in note for note in summary.notes)


@pytest.mark.parametrize("way", [fill_at_once, fill_by_bar])
@pytest.mark.parametrize("last", [60.0, 110.0])
def test_an_account_whose_last_equity_goes_for_costs_is_not_brought_back_within_the_bar(
    last: float, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qubic_lab.oracle.backtest.engine.fill", way)
    # At the open of bar 2 little is left of a long position of 4 times equity; to turn it round costs more than that.
    market = market_of([100.0, 100.0, 75.2, last, last], [100.0, 100.0, last, last, last])
    account = simulate(market, [4.0, -4.0, -4.0, -4.0, -4.0], Costs(fee_bps=200.0), most_leverage=4.0)
    assert (account.ruin.bar, account.ruin.at) == (2, "close")
    assert account.trades.bar.tolist() == [1, 2]
    left = account.fills.cash[1] + account.fills.units[1, 0] * 75.2
    assert left < 0.0 and account.ruin.equity <= left
    assert not account.equity[2:].any() and not account.units[2:].any()
    assert account.summary().most_drawdown == 1.0


def test_positions_wait_for_bars_that_are_missing_and_keep_their_last_price() -> None:
    market = market_of([100, 101, 102, 103, 104], [101, 102, 103, 104, 105])
    gone = np.array([False, True, False, True, True])[:, None]
    values = {f"{name}_BA": np.where(gone, NAN, getattr(market, f"{name}_BA")) for name in COLUMNS}
    account = simulate(replace(market, assets=("a",), **values), [1.0] * 5, cash=1_020.0)
    assert account.trades.bar.tolist() == [2]
    assert account.equity.tolist() == pytest.approx([1_020.0, 1_020.0, 1_030.0, 1_030.0, 1_030.0])
    notes = " ".join(account.notes())
    assert "3 bars are missing" in notes and "a is held at the end without a current price" in notes
    flows_are_whole(account)


def test_growth_a_year_is_by_the_calendar_and_not_by_bars() -> None:
    prices = np.linspace(100.0, 400.0, 731).tolist()
    market = market_of(prices[:-1], prices[1:])  # 730 days, times 4 in all
    held = [1.0] * len(market)
    assert simulate(market, held).summary().cagr == pytest.approx((400.0 / prices[1]) ** 0.5 - 1.0, rel=1e-12)
    rows = np.append(np.arange(0, 729, 3), 729)
    sparse = join_bars([market.slice(row, row + 1) for row in rows.tolist()])
    summary = simulate(sparse, held[: len(rows)]).summary()
    assert summary.years == pytest.approx(2.0) and summary.bars == 244
    assert summary.cagr == pytest.approx((400.0 / prices[3]) ** 0.5 - 1.0, rel=1e-12)
    assert simulate(market.slice(0, 20), held[:20]).summary().cagr is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": [1.5] * 9}, "add up to 1.5"),
        ({"targets": [float("inf")] * 9}, "add up to inf"),
        ({"targets": ["long"] * 9}, "targets are not numbers"),
        ({"targets": [0.0] * 8}, "9 bars of 1 assets"),
        ({"cash": 0.0}, "cash is 0"),
        ({"rebalance": "changes"}, "did you mean 'change'"),
        ({"costs": Costs(fee_bps=6_000.0)}, "a trade may cost 60%"),
        ({"lag": 0}, "lag is 0: a decision at a bar's close knows that close"),
        ({"lag": 9}, "lag is 9 with 9 bars"),
        ({"market": random_market(2), "targets": [0.0] * 2}, "there are 2 bars"),
        ({"market": Bars.of(np.arange(1, 10) * DAY_US, np.ones(9))}, "make bars of quotes first"),
        ({"fee_bps": -1.0}, "fee_bps is -1"),
        ({"impact_bps": NAN}, "impact_bps is nan"),
        ({"most_participation": 1.5}, "at most 1"),
        ({"impact_exponent": 0.0}, "impact_exponent is 0"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    given = {"market": random_market(9), "targets": [0.0] * 9, **change}
    costs = {each.name: given.pop(each.name) for each in fields(Costs) if each.name in given}
    with pytest.raises(InputError, match=message) as caught:
        simulate(**{"costs": Costs(**costs), **given})
    assert "\n" not in str(caught.value)


def test_reports_say_what_is_odd() -> None:
    flat = market_of([5.0] * 40, [5.0] * 40)
    idle = simulate(flat, [0.0] * 40)
    assert any("no trades" in note for note in idle.notes())
    assert any("constant price" in note for note in idle.notes())
    assert (idle.summary().volatility, idle.summary().trades, idle.summary().cagr) == (None, 0, 0.0)
    unknown = replace(random_market(10), volume_BA=np.full((10, 1), NAN))
    assert simulate(unknown, [1.0] * 10, Costs(fee_bps=1.0)).summary().trades == 1
    with pytest.raises(InputError, match="no bar has a volume"):
        simulate(unknown, [1.0] * 10, Costs(impact_bps=1.0))
    some = replace(unknown, volume_BA=np.where(np.arange(10) == 4, 1e6, NAN)[:, None])
    late = simulate(some, [1.0] * 10, Costs(impact_bps=1.0))
    assert late.trades.bar.tolist() == [4]
    assert any("9 bars have no known volume" in note for note in late.notes())


# Signals.


def up(frame: Any, leak: int = 0) -> Any:
    """Long where the close rose; with a leak of 1, where it will rise."""
    return (frame["close"].diff() > 0).astype("float64").shift(-leak).fillna(0.0)


def test_a_signal_that_looks_ahead_is_refused_and_one_of_several_assets_gives_a_column_for_each() -> None:
    with pytest.raises(InputError, match="signal up is refused: up: "):
        decide(partial(up, leak=1), signal_frame(random_market(60)))
    market = random_market(40, 2)
    frame = signal_frame(market)

    def falling(frame: Any) -> Any:
        return (frame["close"].diff() < 0)[["asset1", "asset0"]] / 2

    targets, report = decide(falling, frame)
    assert report.passed and np.array_equal(targets[1:], (np.diff(market.close_BA, axis=0) < 0) / 2)
    with pytest.raises(InputError, match="is refused"):
        decide(lambda frame: falling(frame.shift(-1)), frame)
    with pytest.raises(InputError, match="give one for each of"):
        decide(lambda frame: frame["close"][["asset0"]], frame)
    with pytest.raises(InputError, match="39 values for 40 bars"):
        decide(lambda frame: np.zeros(len(frame) - 1), frame)


def test_texts_are_available_once_published_and_fetched_and_read() -> None:
    texts = [
        AvailableText("late", "", START_US, START_US + 3 * DAY_US, scores={"m": 1.0}),
        AvailableText("early", "", START_US + DAY_US, START_US + HOUR_US, scores={"m": -0.5}),
        AvailableText("same bar", "", START_US, START_US + DAY_US, scores={"m": 0.0, "other": 1.0}),
    ]
    found = available_texts(texts, latency_us=HOUR_US)
    late = [(text.id, text.available_us - START_US - HOUR_US) for text in found]
    assert late == [("early", DAY_US), ("same bar", DAY_US), ("late", 3 * DAY_US)]
    assert [text.available_us - START_US for text in available_texts(texts)] == [DAY_US, DAY_US, 3 * DAY_US]
    market = random_market(5)
    columns = text_columns(market, found)
    assert columns["texts"][:, 0].tolist() == [0.0, 2.0, 0.0, 1.0, 0.0]
    assert np.array_equal(columns["score m"][:, 0], [NAN, -0.25, NAN, 1.0, NAN], equal_nan=True)
    assert list(signal_frame(market, found).columns[-3:]) == ["texts", "score m", "score other"]
    about = [AvailableText("x", "", START_US, START_US + HOUR_US, coins=("asset1",))]
    assert text_columns(random_market(3, 2), about)["texts"].tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


# Baselines.


@settings(max_examples=40)
@given(SEEDS, ASSETS)
def test_random_timing_has_the_same_exposure_and_turnover(seed: int, assets: int) -> None:
    market = random_market(80, assets, seed)
    weights = checked_targets(market, random_weights(market, seed))
    other = shuffled(weights, np.random.default_rng(seed))
    assert np.array_equal(np.sort(other, axis=0), np.sort(weights, axis=0))

    def turnover(values: Any) -> float:
        return float(np.abs(np.roll(values, 1, axis=0) - values).sum())

    assert turnover(other) == pytest.approx(turnover(weights))
    assert np.array_equal(other, shuffled(weights, np.random.default_rng(seed)))


def test_baselines_stand_beside_a_result() -> None:
    market = random_market(200)
    targets = checked_targets(market, random_weights(market, 1, held=0.9))
    account = simulate(market, targets, Costs(fee_bps=10.0), lag=2)
    found = compare_baselines(account, targets, draws=20)
    names = list(found.accounts)
    assert names == ["hold", "cash", "momentum over 20 bars", "sign flipped", "50 bars late"]
    hold = found.accounts["hold"]
    assert hold.equity[-1] == pytest.approx(10_000.0 / 1.001 * market.close_BA[-1, 0] / market.open_BA[2, 0], rel=1e-13)
    assert (found.accounts["cash"].equity == 10_000.0).all()
    assert all(each.costs == account.costs and each.lag == 2 for each in found.accounts.values())
    assert np.array_equal(found.accounts["sign flipped"].units[:3] * -1.0, account.units[:3])
    assert len(found.random_returns) == 20 and len(set(found.random_returns.tolist())) > 15
    assert found.random_better == (1 + (found.random_returns >= account.summary().total_return).sum()) / 21
    several = random_market(50, 3)
    weights = checked_targets(several, random_weights(several, 1))
    account = simulate(several, weights, rebalance="always")
    always = compare_baselines(account, weights, draws=0, rebalance="always")
    assert set(always.accounts["hold"].trades.bar.tolist()) == {1}, "who holds does not rebalance"
    rising = market_of(list(range(10, 60)), list(range(11, 61)))
    assert momentum(rising, 5)[:, 0].tolist() == [0.0] * 5 + [1.0] * 45
    assert momentum(market_of(list(range(60, 10, -1)), list(range(59, 9, -1))), 5, shorts=True)[-1, 0] == -1.0


def test_a_whole_backtest() -> None:
    market = random_market(120)
    config = BacktestConfig(costs=Costs(fee_bps=10.0), draws=5)
    result = backtest(market, Strategy(up, {"leak": 0}), config)
    assert [row["name"] for row in result.to_dict()["accounts"]][:2] == ["up", "hold"]
    told = result.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False))["random"] == told["random"]
    assert told["audited"].startswith("up does not look ahead: no cut through 120 bars changed")
    assert list(told["lags"]) == ["1", "2", "3", "5", "8"]
    assert told["accounts"][0]["total_return"] == result.lags[1].summary().total_return
    with pytest.raises(InputError, match="refused"):
        backtest(market, Strategy(up, {"leak": 1}), config)


# Walk-forward splits.


@settings(max_examples=60)
@given(st.integers(20, 80), st.integers(0, 6), st.integers(14, 20), st.integers(1, 10), st.integers(0, 6))
def test_training_uses_labels_that_end_before_the_test(
    bars: int, horizon: int, train: int, test: int, embargo: int
) -> None:
    assume(train + test <= bars)
    splits = walk_forward(bars, horizon, train=train, test=test, embargo=embargo)
    for split in splits:
        start = int(split.test[0])
        assert split.test.tolist() == list(range(start, start + test))
        assert split.train.tolist() == [bar for bar in range(start - train, start) if bar + horizon + embargo < start]
    assert [int(split.test[0]) for split in splits] == list(range(train, bars - test + 1, test))


def test_weights_out_of_sample_come_from_the_fit_before_them_and_impossible_splits_are_refused() -> None:
    splits = walk_forward(30, 1, train=10, test=5)
    weights = out_of_sample(splits, lambda train, test: np.full(len(test), float(train[-1])), 30)
    assert weights.tolist() == [0.0] * 10 + [8.0] * 5 + [13.0] * 5 + [18.0] * 5 + [23.0] * 5
    with pytest.raises(InputError, match="for 5 test bars"):
        out_of_sample(splits, lambda train, test: np.zeros(3), 30)
    with pytest.raises(InputError, match="too few to train on 18 and test on 5"):
        walk_forward(20, 2, train=18, test=5)
    with pytest.raises(InputError, match="leave none of 2 train bars"):
        walk_forward(20, 2, train=2, test=5)
