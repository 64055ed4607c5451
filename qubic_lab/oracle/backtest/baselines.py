"""What a strategy must be held against: doing nothing, holding, momentum, chance, and itself turned round or late."""

from dataclasses import dataclass

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.backtest.account import Account
from qubic_lab.oracle.backtest.engine import Rebalance, checked_targets, simulate
from qubic_lab.oracle.backtest.fills import marks
from qubic_lab.oracle.model.bars import Bars, Floats

LOOKBACK = 20
DRAWS = 100


@dataclass(frozen=True)
class BaselineConfig:
    """How baselines are made.

    Attributes:
        lookback: momentum is up where the close is above that of so many bars before.
        shift: the time-shifted signal is so many bars late; None: a quarter of the bars.
        draws: of random timing; `seed` makes them the same again.
    """

    lookback: int = LOOKBACK
    shift: int | None = None
    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least("lookback", self.lookback, 1)
        check_at_least("draws", self.draws, 0)
        if self.shift is not None:
            check_at_least("shift", self.shift, 1)


@dataclass(frozen=True, eq=False)
class RandomDraws:
    """What chance makes of the same positions.

    Attributes:
        total_return, ratio: of each draw, [draws]; ratio: mean of returns by bar over their standard deviation, NaN
            where they do not vary.
        better: share of draws whose total return is at least the strategy's; counting the strategy itself as one.
    """

    total_return: Floats
    ratio: Floats
    better: float


@dataclass(frozen=True, eq=False)
class Baselines:
    """Accounts under the same costs and lag, by name, and the draws of random timing."""

    accounts: dict[str, Account]
    random: RandomDraws


def compare(
    market: Bars,
    account: Account,
    targets: Floats,
    *,
    config: BaselineConfig | None = None,
    rebalance: Rebalance = "change",
    most_leverage: float = 1.0,
) -> Baselines:
    """Return the baselines of an account that `simulate` made from these targets.

    "hold" buys once and never trades again, also where the others rebalance at every bar.

    Raises:
        InputError: targets of another shape.
    """
    config = config or BaselineConfig()
    weights = checked_targets(market, targets, most_leverage)
    shift = max(1, len(market) // 4) if config.shift is None else config.shift
    wanted = {
        "hold": np.full(weights.shape, 1.0 / weights.shape[1]),
        "cash": np.zeros(weights.shape),
        f"momentum over {config.lookback} bars": momentum(market, config.lookback, shorts=bool((weights < 0.0).any())),
        "sign flipped": -weights,
        f"{shift} bars late": delayed(weights, shift),
    }

    def run(each: Floats, rebalance: Rebalance = rebalance) -> Account:
        return simulate(
            market,
            each,
            account.costs,
            lag=account.lag,
            cash=account.initial_cash,
            rebalance=rebalance,
            most_leverage=most_leverage,
        )

    rng = np.random.default_rng(config.seed)
    draws = [_figures(run(shuffled(weights, rng))) for _ in range(config.draws)]
    totals, ratios = np.array(draws, np.float64).reshape(-1, 2).T
    own = _figures(account)[0]
    better = (1 + int((totals >= own).sum())) / (1 + len(totals))
    accounts = {name: run(each, "change" if name == "hold" else rebalance) for name, each in wanted.items()}
    return Baselines(accounts, RandomDraws(totals, ratios, better))


def momentum(market: Bars, lookback: int = LOOKBACK, *, shorts: bool = False) -> Floats:
    """Return long where a close is above that `lookback` bars before, else flat, or short; [bars, assets], 0 at first.

    Assets share equity equally. NaN (nothing changes) where an asset has no bar.
    """
    closes = marks(market)[1]
    wanted = np.zeros(closes.shape)
    if lookback < len(closes):
        rise = np.sign(closes[lookback:] - closes[:-lookback])
        rise[closes[:-lookback] == 0.0] = 0.0
        wanted[lookback:] = (rise if shorts else np.maximum(rise, 0.0)) / closes.shape[1]
    wanted[~market.traded] = np.nan
    return wanted


def delayed(weights: Floats, bars: int) -> Floats:
    """Return the same wishes so many bars later; nothing before."""
    late = np.zeros(weights.shape)
    late[bars:] = weights[: max(0, len(weights) - bars)]
    return late


def shuffled(weights: Floats, rng: np.random.Generator) -> Floats:
    """Return the same positions at random times, [bars, assets].

    How long each position is held is exchanged among the times that the same one was held, and the whole is turned
    round by a random number of bars: the exposure is the same, and the turnover but for where the end meets the start.
    """
    starts = np.flatnonzero(np.append(True, (weights[1:] != weights[:-1]).any(axis=1)))
    lengths = np.diff(starts, append=len(weights))
    values = weights[starts]
    _, kinds = np.unique(values, axis=0, return_inverse=True)
    order = np.argsort(kinds.ravel(), kind="stable")
    lengths_out = np.empty_like(lengths)
    lengths_out[order] = lengths[_within(kinds.ravel(), rng)]
    return np.roll(np.repeat(values, lengths_out, axis=0), int(rng.integers(len(weights))), axis=0)


def _within(kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the places sorted by kind, at random within each."""
    return np.lexsort((rng.random(len(kinds)), kinds))


def _figures(account: Account) -> tuple[float, float]:
    returns = account.net_returns
    deviation = float(returns.std(ddof=1))
    ratio = float(returns.mean()) / deviation if deviation > 0.0 else float("nan")
    return float(account.equity[-1]) / account.initial_cash - 1.0, ratio
