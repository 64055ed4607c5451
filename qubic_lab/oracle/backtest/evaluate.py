"""The whole backtest of a strategy: look-ahead check, account, baselines, a sweep over lags, the ledger's entry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.oracle.backtest.account import Account
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.engine import CASH, Rebalance, checked_targets, simulate
from qubic_lab.oracle.backtest.fills import marks
from qubic_lab.oracle.backtest.ledger import RecordedTrial, Trial, TrialLedger, code_hash, data_hash
from qubic_lab.oracle.backtest.signals import decide_at_once, decide_by_bar, name_of, signal_frame
from qubic_lab.oracle.inference.alignment import AvailableText
from qubic_lab.oracle.model.bars import Bars, Floats

if TYPE_CHECKING:
    from qubic_lab.oracle.backtest.lookahead.check import LookaheadReport

Form = Literal["signal", "on_bar"]
FORMS: tuple[Form, ...] = ("signal", "on_bar")
LAGS = (1, 2, 3, 5, 8)
LOOKBACK = 20
"""Momentum compares a close with the close this many bars before."""


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


def compare_baselines(
    account: Account,
    targets: Floats,
    draws: int = 100,
    seed: int = 0,
    *,
    rebalance: Rebalance = "change",
    most_leverage: float = 1.0,
) -> Baselines:
    """Return the baselines of an account that `simulate` made from these targets.

    "hold" buys once and never trades again, even where the others rebalance at every bar. One baseline is a quarter of
    the bars late.

    Args:
        account: of the strategy.
        targets: its weights, [bars, assets].
        draws: number of random timings.
        seed: of the random timings.
        rebalance: as for `simulate`.
        most_leverage: as for `simulate`.

    Raises:
        InputError: targets of another shape, or fewer than 0 draws.
    """
    check_at_least("draws", draws, 0)
    market = account.market
    weights, shift = checked_targets(market, targets, most_leverage), max(1, len(market) // 4)
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
        f"momentum over {LOOKBACK} bars": momentum(market, LOOKBACK, shorts=bool((weights < 0.0).any())),
        "sign flipped": -weights,
        f"{shift} bars late": delayed(weights, shift),
    }
    accounts = {"hold": run(np.full(weights.shape, 1.0 / weights.shape[1]), rebalance="change")}
    accounts |= {name: run(each, rebalance=rebalance) for name, each in others.items()}
    rng = np.random.default_rng(seed)
    drawn = [run(shuffled(weights, rng), rebalance=rebalance) for _ in range(draws)]
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


@dataclass(frozen=True)
class Strategy:
    """A function that decides weights, and its parameters.

    Attributes:
        function: `signal(frame)` returns a weight for each bar; `on_bar(view)` returns one at each bar's close, or None
            to keep the last. For several assets they return one for each.
        parameters: passed to it by name; they are part of a trial's key.
    """

    function: Callable[..., ArrayLike | None]
    form: Form = "signal"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        check_choice("form of a strategy", self.form, FORMS)

    @property
    def title(self) -> str:
        """Its name, or the function's if it has none."""
        return self.name or name_of(self.function)


@dataclass(frozen=True)
class BacktestConfig:
    """How a strategy is tested; see `simulate`, and `compare_baselines` for `draws` and `seed`."""

    costs: Costs = field(default_factory=Costs)
    lag: int = 1
    cash: float = CASH
    rebalance: Rebalance = "change"
    most_leverage: float = 1.0
    lags: Sequence[int] = LAGS
    draws: int = 100
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """Return the settings that change an account, as plain values."""
        names = ("lag", "cash", "rebalance", "most_leverage")
        return {**{name: getattr(self, name) for name in names}, "costs": asdict(self.costs)}


@dataclass(frozen=True, eq=False)
class Backtest:
    """The result of a strategy beside its baselines.

    Attributes:
        targets: the weights decided at each close, [bars, assets].
        lookahead: the report of the look-ahead check; None for `on_bar`, which cannot look ahead.
        lags: the account for each lag: an edge that is gone one bar later may be one that nobody could have traded.
        recorded: its entry in the ledger of trials; None without a ledger.
    """

    strategy: Strategy
    config: BacktestConfig
    targets: Floats
    account: Account
    lookahead: "LookaheadReport | None"
    baselines: Baselines
    lags: dict[int, Account]
    recorded: RecordedTrial | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, without arrays by bar."""
        random = self.baselines.random
        accounts = {self.strategy.title: self.account, **self.baselines.accounts}
        return {
            "strategy": self.strategy.title,
            "form": self.strategy.form,
            "parameters": dict(self.strategy.parameters),
            "settings": self.config.settings(),
            "accounts": [{"name": name, **account.summary().to_dict()} for name, account in accounts.items()],
            "random": {"draws": len(random.total_return), "better": random.better},
            "lags": {str(lag): account.summary().to_dict() for lag, account in self.lags.items()},
            "trial": None if self.recorded is None else asdict(self.recorded),
            "audited": None if self.lookahead is None else str(self.lookahead),
        }


def backtest(
    market: Bars,
    strategy: Strategy,
    config: BacktestConfig | None = None,
    *,
    lookahead: "LookaheadReport | None" = None,
    texts: Sequence[AvailableText] = (),
    ledger: TrialLedger | None = None,
    family: str = "",
) -> Backtest:
    """Return a strategy's backtest.

    Args:
        market: the bars.
        strategy: what decides.
        config: None: without costs, filled at the next open.
        lookahead: the report of an earlier check of the same signal on the same bars; None: check it now.
        texts: as `available_texts` gives them.
        ledger: where the trial is recorded; None: nowhere.
        family: the question that the trial belongs to.

    Raises:
        InputError: a signal that looks ahead, what `simulate` refuses, or a ledger without a family.
    """
    config = config or BacktestConfig()
    if ledger is not None and not family:
        raise InputError("a trial needs a family: name the question that it belongs to")
    decide = partial(strategy.function, **strategy.parameters)
    if strategy.form == "on_bar":
        targets, lookahead = decide_by_bar(market, decide, texts), None
    else:
        found, lookahead = decide_at_once(decide, signal_frame(market, texts), lookahead)  # type: ignore[arg-type]
        targets = found.reshape(len(market), -1)
    options = {name: getattr(config, name) for name in ("costs", "cash", "rebalance", "most_leverage")}
    account, recorded = simulate(market, targets, lag=config.lag, **options), None
    if ledger is not None:
        trial = trial_of(market, strategy, config, texts, family)
        recorded = ledger.record(trial, market.closed_us, account.net_returns)
    lags = {lag: simulate(market, targets, lag=lag, **options) for lag in config.lags if lag < len(market)}
    del options["costs"], options["cash"]  # the account knows them
    baselines = compare_baselines(account, targets, config.draws, config.seed, **options)
    return Backtest(strategy, config, targets, account, lookahead, baselines, lags, recorded)


def trial_of(
    market: Bars, strategy: Strategy, config: BacktestConfig, texts: Sequence[AvailableText], family: str
) -> Trial:
    """Return the trial, which identifies a backtest among all others.

    Raises:
        InputError: parameters that have no form in JSON, or a name that is too long.
    """
    return Trial(
        family=family,
        strategy=strategy.title,
        code_hash=code_hash(strategy.function),
        data_hash=data_hash(market, texts),
        start_us=int(market.opened_us[0]),
        end_us=int(market.closed_us[-1]),
        parameters=strategy.parameters,
        settings=config.settings(),
    )
