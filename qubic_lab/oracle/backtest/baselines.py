"""Baselines of a strategy: holding, cash, momentum, random timing, and the strategy with its sign or time changed."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.backtest.account import Account
from qubic_lab.oracle.backtest.engine import Rebalance, checked_targets, simulate
from qubic_lab.oracle.backtest.fills import marks
from qubic_lab.oracle.model.bars import Bars, Floats


@dataclass(frozen=True)
class BaselineConfig:
    """How baselines are made.

    Attributes:
        lookback: momentum is long where the close is above the close this many bars before.
        shift: bars by which the delayed strategy is late; None: a quarter of all bars.
        draws: number of random timings; `seed` repeats them.
    """

    lookback: int = 20
    shift: int | None = None
    draws: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least("lookback", self.lookback, 1)
        check_at_least("draws", self.draws, 0)
        if self.shift is not None:
            check_at_least("shift", self.shift, 1)


@dataclass(frozen=True, eq=False)
class RandomTimings:
    """The same positions at random times.

    Attributes:
        total_return: of each draw, [draws].
        better: share of draws with a total return of at least the strategy's, the strategy itself counted as one.
    """

    total_return: Floats
    better: float


@dataclass(frozen=True, eq=False)
class Baselines:
    """Accounts under the same costs and lag, by name, and the random timings."""

    accounts: dict[str, Account]
    random: RandomTimings


def compare(
    account: Account,
    targets: Floats,
    config: BaselineConfig | None = None,
    rebalance: Rebalance = "change",
    most_leverage: float = 1.0,
) -> Baselines:
    """Return the baselines of an account that `simulate` made from these targets.

    "hold" buys once and never trades again, even where the others rebalance at every bar.

    Raises:
        InputError: targets of another shape.
    """
    config, market = config or BaselineConfig(), account.market
    weights = checked_targets(market, targets, most_leverage)
    shift = max(1, len(market) // 4) if config.shift is None else config.shift
    run = partial(
        simulate,
        market,
        costs=account.costs,
        lag=account.lag,
        cash=account.initial_cash,
        most_leverage=most_leverage,
    )
    others = {
        "cash": np.zeros(weights.shape),
        f"momentum over {config.lookback} bars": momentum(market, config.lookback, shorts=bool((weights < 0.0).any())),
        "sign flipped": -weights,
        f"{shift} bars late": delayed(weights, shift),
    }
    accounts = {"hold": run(np.full(weights.shape, 1.0 / weights.shape[1]), rebalance="change")}
    accounts |= {name: run(each, rebalance=rebalance) for name, each in others.items()}
    rng = np.random.default_rng(config.seed)
    drawn = [run(shuffled(weights, rng), rebalance=rebalance) for _ in range(config.draws)]
    totals = np.array([_total_return(each) for each in drawn], np.float64)
    better = (1 + int((totals >= _total_return(account)).sum())) / (1 + len(totals))
    return Baselines(accounts, RandomTimings(totals, better))


def _total_return(account: Account) -> float:
    return float(account.equity[-1]) / account.initial_cash - 1.0


def momentum(market: Bars, lookback: int, *, shorts: bool = False) -> Floats:
    """Return weights that are long where a close is above that `lookback` bars before, else 0 or short, [bars, assets].

    Assets share equity equally. NaN (no change) where an asset has no bar; 0 in the first bars.
    """
    closes = marks(market)[1]
    weights = np.zeros(closes.shape)
    if lookback < len(closes):
        rise = np.sign(closes[lookback:] - closes[:-lookback])
        rise[closes[:-lookback] == 0.0] = 0.0
        weights[lookback:] = (rise if shorts else np.maximum(rise, 0.0)) / closes.shape[1]
    weights[~market.traded] = np.nan
    return weights


def delayed(weights: Floats, bars: int) -> Floats:
    """Return the same weights this many bars later; 0 before."""
    late = np.zeros(weights.shape)
    late[bars:] = weights[: max(0, len(weights) - bars)]
    return late


def shuffled(weights: Floats, rng: np.random.Generator) -> Floats:
    """Return the same positions at random times, [bars, assets].

    The holding times of equal positions are permuted among them, and the whole is rotated by a random number of bars.
    So the exposure is the same, and so is the turnover, except where the end meets the start.
    """
    starts = np.flatnonzero(np.append(True, (weights[1:] != weights[:-1]).any(axis=1)))
    lengths = np.diff(starts, append=len(weights))
    values = weights[starts]
    _, kinds = np.unique(values, axis=0, return_inverse=True)
    kinds = kinds.ravel()
    permuted = np.empty_like(lengths)
    permuted[np.argsort(kinds, kind="stable")] = lengths[np.lexsort((rng.random(len(kinds)), kinds))]
    return np.roll(np.repeat(values, permuted, axis=0), int(rng.integers(len(weights))), axis=0)
