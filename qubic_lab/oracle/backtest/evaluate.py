"""The whole backtest of a strategy: look-ahead check, account, baselines, a sweep over lags, the ledger's entry.

Walk-forward splits fit on the past and test on the next bars. The label of bar i is made from the bars i to its end,
such as the return up to i + horizon. Purging removes the train bars whose labels overlap with the test; the embargo
removes further bars (López de Prado, "Advances in Financial Machine Learning", 2018, chapters 7 and 12).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.engine import CASH, Account, Rebalance, checked_targets, simulate
from qubic_lab.oracle.backtest.fills import marks
from qubic_lab.oracle.backtest.ledger import RecordedTrial, Trial, TrialLedger, code_hash, data_hash
from qubic_lab.oracle.inference.alignment import AvailableText, assumption, text_columns
from qubic_lab.oracle.model.bars import Bars, Floats, Integers

if TYPE_CHECKING:
    import pandas as pd

    from qubic_lab.oracle.backtest.lookahead import LookaheadReport

LAGS = (1, 2, 3, 5, 8)
LOOKBACK = 20
"""Momentum compares a close with the close this many bars before."""


def signal_frame(market: Bars, texts: Sequence[AvailableText] = ()) -> "pd.DataFrame":
    """Return the frame that a signal is given: the bars, and the columns of `text_columns` if there are texts."""
    frame = market.frame()
    for name, values in text_columns(market, texts).items() if texts else ():
        for place, asset in enumerate(market.assets):
            frame[name if len(market.assets) == 1 else (name, asset)] = values[:, place]
    return frame


def decide(
    signal: "Callable[[pd.DataFrame], ArrayLike]", frame: "pd.DataFrame", report: "LookaheadReport | None" = None
) -> tuple[Floats, "LookaheadReport"]:
    """Return the weights that a signal gives for all bars, and the report that it does not look ahead.

    It may return an array, [bars] or [bars, assets], or a Series or DataFrame on the frame's index; a DataFrame has a
    column for each asset. `report` is that of the same signal on the same frame; None: check it now.

    Raises:
        InputError: the signal looks ahead, or does not give a weight for each bar.
    """
    if report is None:
        from qubic_lab.oracle.backtest.lookahead import check_lookahead

        report = check_lookahead(signal, frame)
    if not report.passed:
        raise InputError(f"signal {report.name} is refused: {report}")
    wanted: Any = signal(frame.copy())
    if frame.columns.nlevels > 1 and hasattr(wanted, "columns"):
        assets = list(dict.fromkeys(frame.columns.get_level_values(1)))
        if set(wanted.columns) != set(assets):
            raise InputError(f"signal {report.name} gave columns {list(wanted.columns)}: give one for each of {assets}")
        wanted = wanted[assets]
    return np.array(wanted, np.float64), report


@dataclass(frozen=True, eq=False)
class Baselines:
    """What a strategy is compared with, under the same costs and lag: accounts by name, and random timing.

    `random_returns` are total returns of the same positions at random times, [draws]; `random_better` is the share of
    these that are at least the strategy's, the strategy itself counted as one.
    """

    accounts: dict[str, Account]
    random_returns: Floats
    random_better: float


def compare_baselines(
    account: Account,
    targets: Floats,
    draws: int = 100,
    seed: int = 0,
    *,
    rebalance: Rebalance = "change",
    most_leverage: float = 1.0,
) -> Baselines:
    """Return the baselines of an account that `simulate` made from these targets, [bars, assets].

    "hold" buys once and never trades again, even where the others rebalance at every bar. One baseline is a quarter of
    the bars late. `draws` is the number of random timings.

    Raises:
        InputError: targets of another shape, or fewer than 0 draws.
    """
    check_at_least("draws", draws, 0)
    market = account.market
    weights, shift = checked_targets(market, targets, most_leverage), max(1, len(market) // 4)
    run = partial(
        simulate, market, costs=account.costs, lag=account.lag, cash=account.initial_cash, most_leverage=most_leverage
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
    return Baselines(accounts, totals, better)


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
    """A signal: a function that takes the frame of bars and returns weights, see `decide`, and its parameters.

    Parameters are passed to it by name; they are part of a trial's key.
    """

    function: Callable[..., ArrayLike]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The function's name."""
        inner = getattr(self.function, "func", self.function)
        return str(getattr(inner, "__qualname__", type(inner).__name__))

    @property
    def name(self) -> str:
        """The title with the parameters; see `signal_name`."""
        return signal_name(self.title, self.parameters)


def signal_name(title: str, parameters: Mapping[str, Any]) -> str:
    """Return the name of a signal with its parameters, such as momentum (20)."""
    values = ", ".join(each if isinstance(each, str) else f"{each:g}" for each in parameters.values())
    return f"{title} ({values})" if values else title


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
    """The result of a strategy beside its baselines; its entry in the ledger is None without a ledger.

    `targets` are the weights decided at each close, [bars, assets]. `lags` has the account for each lag: an edge that
    is gone one bar later may be one that nobody could have traded.
    """

    strategy: Strategy
    config: BacktestConfig
    targets: Floats
    account: Account
    lookahead: "LookaheadReport"
    baselines: Baselines
    lags: dict[int, Account]
    recorded: RecordedTrial | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, without arrays by bar."""
        accounts = {self.strategy.title: self.account, **self.baselines.accounts}
        return {
            "strategy": self.strategy.title,
            "form": "signal",
            "parameters": dict(self.strategy.parameters),
            "settings": self.config.settings(),
            "accounts": [{"name": name, **asdict(account.summary())} for name, account in accounts.items()],
            "random": {"draws": len(self.baselines.random_returns), "better": self.baselines.random_better},
            "lags": {str(lag): asdict(account.summary()) for lag, account in self.lags.items()},
            "trial": None if self.recorded is None else asdict(self.recorded),
            "audited": str(self.lookahead),
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
        lookahead: see `decide`.
        texts: as `available_texts` gives them.
        ledger: where the trial is recorded; None: nowhere.
        family: the question that the trial belongs to.

    Raises:
        InputError: a signal that looks ahead, what `simulate` refuses, a ledger without a family, or parameters that
            have no form in JSON.
    """
    config = config or BacktestConfig()
    if ledger is not None and not family:
        raise InputError("a trial needs a family: name the question that it belongs to")
    signal = partial(strategy.function, **strategy.parameters)
    found, lookahead = decide(signal, signal_frame(market, texts), lookahead)
    told = tuple(line for line in assumption(texts) if line not in lookahead.notes)
    lookahead = replace(lookahead, notes=(*lookahead.notes, *told)) if told else lookahead
    targets = found.reshape(len(market), -1)
    trading: dict[str, Any] = {"rebalance": config.rebalance, "most_leverage": config.most_leverage}
    run = partial(simulate, market, targets, config.costs, cash=config.cash, **trading)
    account, recorded = run(lag=config.lag), None
    if ledger is not None:
        trial = Trial(
            family=family,
            strategy=strategy.title,
            code_hash=code_hash(strategy.function),
            data_hash=data_hash(market, texts),
            start_us=int(market.opened_us[0]),
            end_us=int(market.closed_us[-1]),
            parameters=strategy.parameters,
            settings=config.settings(),
        )
        recorded = ledger.record(trial, market.closed_us, account.net_returns)
    lags = {lag: run(lag=lag) for lag in config.lags if lag < len(market)}
    baselines = compare_baselines(account, targets, config.draws, config.seed, **trading)
    return Backtest(strategy, config, targets, account, lookahead, baselines, lags, recorded)


class Split(NamedTuple):
    """Rows of the bars to fit on and of those to test on, each in order."""

    train: Integers
    test: Integers


def walk_forward(bars: int, horizon: int, *, train: int, test: int, embargo: int = 0) -> list[Split]:
    """Return splits that go forward in time; their tests follow each other without overlap.

    Each test has `test` bars; of the `train` bars before it those are trained on whose label ends, and `embargo` bars
    pass, before the test begins. A label ends `horizon` bars after its bar: lag + h for a position that is filled `lag`
    bars after its decision and held for h bars.

    Raises:
        InputError: too few bars for a split with train bars.
    """
    if horizon + embargo >= train:
        raise InputError(
            f"purge and embargo leave none of {train} train bars: train on more, or shorten labels or embargo"
        )
    splits = []
    for start in range(train, bars - test + 1, test):
        kept = np.arange(start - train, start - horizon - embargo, dtype=np.int64)
        splits.append(Split(kept, np.arange(start, start + test, dtype=np.int64)))
    if not splits:
        raise InputError(f"{bars} bars are too few to train on {train} and test on {test}: make them shorter")
    return splits


def out_of_sample(splits: Sequence[Split], fit: Callable[[Integers, Integers], Floats], bars: int) -> Floats:
    """Return the weights at all test bars, [bars]; 0 outside the tests.

    `fit` returns the weights at a split's test bars from the rows of its train and test bars.

    Raises:
        InputError: `fit` does not return a weight for each test bar.
    """
    weights = np.zeros(bars)
    for split in splits:
        values = np.asarray(fit(split.train, split.test), np.float64)
        if values.shape != split.test.shape:
            raise InputError(f"fit gave {values.shape} weights for {len(split.test)} test bars: give one for each")
        weights[split.test] = values
    return weights
