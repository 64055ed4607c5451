"""Does sentiment or a price signal predict anything? Signals judged after costs, corrected for all trials.

Signals decide at a bar's close and are filled at a later one's open. Every trial goes into a ledger, and the verdict on
a family counts all of its trials there. Simulated sentiment has a known effect and is labelled as a simulation.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.engine import Account, simulate
from qubic_lab.oracle.backtest.evaluate import Backtest, BacktestConfig, Strategy, backtest, out_of_sample, walk_forward
from qubic_lab.oracle.backtest.ledger import TrialLedger
from qubic_lab.oracle.backtest.price_claims import price_outcome, signal_claim
from qubic_lab.oracle.inference.alignment import AvailableText, available_texts
from qubic_lab.oracle.inference.multiple_testing import Verdict, beyond, judge, sharpe_ratios
from qubic_lab.oracle.inference.performance import annual_sharpe, break_even_bps
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.store.claims import ClaimLedger
from qubic_lab.studies.market_bars import StudyBars
from qubic_lab.studies.own_signals import OWN_SIGNALS, OwnSignal
from qubic_lab.studies.style import columns

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
SENTIMENT = "simulated"
FEES_BPS = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0)


def momentum(frame: "pd.DataFrame", bars: int) -> "pd.Series":
    """Return long where the close is above that of some bars before, short where it is below."""
    return _sides(frame["close"].diff(bars))


def crossover(frame: "pd.DataFrame", fast: int, slow: int) -> "pd.Series":
    """Return long where the mean of a few closes is above that of many, short where it is below."""
    close = frame["close"]
    return _sides(close.rolling(fast).mean() - close.rolling(slow).mean())


def reversion(frame: "pd.DataFrame", bars: int) -> "pd.Series":
    """Return against the move where the close is more than a standard deviation away from its mean, else flat."""
    close = frame["close"]
    spread = close.rolling(bars).std()
    away = (close - close.rolling(bars).mean()) / spread.where(spread > 1e-9 * close)
    return -_sides(away.where(away.abs() > 1.0))


def breakout(frame: "pd.DataFrame", bars: int) -> "pd.Series":
    """Return long from a close above the highest of the bars before, until one below the lowest turns it to short."""
    high, low = (frame[name].shift(1).rolling(bars) for name in ("high", "low"))
    up, down = frame["close"] > high.max(), frame["close"] < low.min()
    side = up.astype("float64") - down.astype("float64")
    return side.where(side != 0.0).ffill().fillna(0.0)


def rsi(frame: "pd.DataFrame", bars: int) -> "pd.Series":
    """Return long where Wilder's relative strength index is below 30, short where it is above 70, else flat."""
    change = frame["close"].diff()
    rise, fall = (
        part.ewm(alpha=1.0 / bars, adjust=False).mean() for part in (change.clip(lower=0), -change.clip(upper=0))
    )
    index = 100.0 * rise / (rise + fall).where(rise + fall > 0.0)
    index.iloc[: 4 * bars] = math.nan
    return (index < 30.0).astype("float64") - (index > 70.0).astype("float64")


def sentiment(frame: "pd.DataFrame", bars: int, least: float, model: str) -> "pd.Series":
    """Return the side of the mean score of the last bars' texts, flat where it is not far enough from 0."""
    score = frame[f"score {model}"].fillna(0.0).rolling(bars, min_periods=1).mean()
    return _sides(score.where(score.abs() > least))


def _sides(values: "pd.Series") -> "pd.Series":
    return np.sign(values).fillna(0.0)


def price_strategies() -> list[Strategy]:
    """Return the price signals to try; their parameters are round numbers, none chosen by its result."""
    return [
        *(Strategy(momentum, parameters={"bars": bars}) for bars in (5, 20, 60, 120)),
        *(
            Strategy(crossover, parameters={"fast": fast, "slow": slow})
            for fast, slow in ((5, 20), (10, 50), (20, 100))
        ),
        *(Strategy(reversion, parameters={"bars": bars}) for bars in (10, 20, 50)),
        *(Strategy(breakout, parameters={"bars": bars}) for bars in (20, 50, 100)),
        *(Strategy(rsi, parameters={"bars": bars}) for bars in (7, 14, 21)),
    ]


def sentiment_strategies(models: Sequence[str] = (SENTIMENT,)) -> list[Strategy]:
    """Return the signals to try on the scores of each model."""
    grid = ((1, 0.0), (1, 0.5), (3, 0.0), (12, 0.0))
    return [
        Strategy(sentiment, parameters={"bars": bars, "least": least, "model": model})
        for model in models
        for bars, least in grid
    ]


def simulated_texts(market: Bars, effect: float, seed: int = 0) -> tuple[AvailableText, ...]:
    """Return invented texts, one at each bar's close, whose scores correlate with the next return by `effect`.

    A score is tanh of effect × the standardised return from the next open to the one after it, plus noise.

    Raises:
        InputError: an effect that is not between −1 and 1, or a seed below 0.
    """
    check_at_least("seed", seed, 0)
    if not -1.0 <= effect <= 1.0:
        raise InputError(f"effect is {effect}: it is a correlation, so give a number from -1 to 1")
    opens = market.open
    ahead = np.zeros(len(market))
    ahead[:-2] = np.diff(np.log(opens[1:]))
    spread = float(ahead.std())
    scaled = (ahead - ahead.mean()) / spread if spread > 0.0 else ahead
    noise = np.random.default_rng((seed, 5)).standard_normal(len(market))
    scores = np.tanh(effect * scaled + math.sqrt(1.0 - effect**2) * noise)
    closes = market.closed_us.tolist()
    return available_texts(
        AvailableText(f"invented {number}", "SIMULATION", at_us, at_us, scores={SENTIMENT: float(score)})
        for number, (at_us, score) in enumerate(zip(closes, scores, strict=True))
    )


@dataclass(frozen=True)
class ScoredTexts:
    """Texts as `available_texts` returns them, with the models that scored them, and the question that they answer.

    `effect` is planted in simulated texts; None for collected ones.
    """

    question: str
    texts: tuple[AvailableText, ...]
    models: tuple[str, ...] = (SENTIMENT,)
    effect: float | None = None

    @classmethod
    def simulated(cls, market: Bars, effect: float, seed: int = 0) -> "ScoredTexts":
        """Return invented texts with a planted effect: see `simulated_texts`."""
        question = f"SIMULATION: sentiment with effect {effect:g}"
        return cls(question, simulated_texts(market, effect, seed), effect=effect)


PRICES_ALONE = ScoredTexts("price signals", (), ())


def strategies_of(scored: ScoredTexts) -> list[Strategy]:
    """Return the signals that are tried: on the sentiment of texts, or on prices where there are none."""
    return sentiment_strategies(scored.models) if scored.models else price_strategies()


def quick_config(costs: Costs, lag: int) -> BacktestConfig:
    """Return how every signal is tried."""
    return BacktestConfig(costs, lag, lags=(lag,), draws=0)


def full_config(quick: BacktestConfig, draws: int, seed: int) -> BacktestConfig:
    """Return how the best signal is tried once more: with later fills, and random timing."""
    return replace(quick, lags=tuple(each + quick.lag - 1 for each in BacktestConfig().lags), draws=draws, seed=seed)


@dataclass(frozen=True, eq=False)
class Family:
    """All trials for one question, and the verdicts on the best of them.

    Attributes:
        effect: planted in simulated sentiment; None for price signals and for collected texts.
        tried: backtests of this run; `recorded`: the family's trials in the ledger, those of earlier runs included.
        best: the one of `tried` with the highest Sharpe ratio after costs, with all baselines and random draws.
        verdict: on its net returns, against cash.
        timing: on the part of them that holding does not explain.
        forward: the walk-forward account, which holds in each period the signal that was best in the period before.
        forward_verdict: on its net returns out of sample, as one trial.
    """

    question: str
    bars: StudyBars
    effect: float | None
    tried: tuple[Backtest, ...]
    recorded: int
    best: Backtest
    verdict: Verdict
    timing: Verdict
    forward: Account
    forward_verdict: Verdict
    folds: int

    @property
    def simulated(self) -> bool:
        """Whether it is a simulation."""
        return self.effect is not None

    @property
    def evidence(self) -> bool:
        """Whether something is predicted: more than luck gives, and more than holding explains.

        The first alone is not enough: while prices rise, a signal without skill that is mostly long passes it.
        """
        return self.verdict.evidence and self.timing.evidence

    @property
    def title(self) -> str:
        """Return the question with the bars' length."""
        return f"{self.question}, {self.bars.name}"


def study_family(
    bars: StudyBars,
    ledger: TrialLedger,
    costs: Costs,
    *,
    scored: ScoredTexts = PRICES_ALONE,
    signals: Sequence[OwnSignal] = (),
    draws: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> Family:
    """Backtest a family of signals on some bars: price signals, signals on the sentiment of scored texts, or own ones.

    Own `signals` were audited on these bars, with the texts. All own signals that were ever tried on bars of this coin,
    source and length are one family: whoever tries many pays for it.

    Trials are kept in the ledger, with what the best signal claims of the next bar, but for a simulation. `draws` are
    of random timing, `resamples` of the bootstrap, both by the seed.

    Raises:
        InputError: a signal that looks ahead, or what the backtest refuses.
    """
    market, texts, question = bars.bars, scored.texts, OWN_SIGNALS if signals else scored.question
    name = f"{question}: {bars.coin} of {bars.source}, {bars.name}"
    quick = quick_config(costs, lag := bars.lag)
    trial: dict[str, Any] = {"texts": texts, "ledger": ledger, "family": name}
    tried = tuple(backtest(market, each.strategy, quick, lookahead=each.report, **trial) for each in signals)
    tried = tried or tuple(backtest(market, each, quick, **trial) for each in strategies_of(scored))
    ratios = sharpe_ratios(np.stack([each.account.net_returns for each in tried], axis=1))
    lost = [each.account.ruin is not None for each in tried]
    promising = tried[int(np.where(np.isnan(ratios) | lost, -np.inf, ratios).argmax())]
    full = full_config(quick, draws, seed)
    best = backtest(market, promising.strategy, full, lookahead=promising.lookahead, texts=texts)
    trials, recorded = ledger.trials(name, market.closed_us), promising.recorded
    assert recorded is not None
    chosen, per_year = trials.keys.index(recorded.key), best.account.bars_per_year
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    hold = best.baselines.accounts["hold"].net_returns
    forward, tested, folds = _walk_forward(market, tried, costs, lag)
    if scored.effect is None:
        _claim(name, bars, float(best.targets[-1, 0]), ledger)
    return Family(
        question=question,
        bars=bars,
        effect=scored.effect,
        tried=tried,
        recorded=len(trials),
        best=best,
        verdict=judge(trials.returns, chosen, per_year, **options),
        timing=judge(beyond(trials.returns, hold), chosen, per_year, **options),
        forward=forward,
        forward_verdict=judge(forward.net_returns[tested], 0, per_year, **options),
        folds=folds,
    )


def _claim(family: str, bars: StudyBars, weight: float, ledger: TrialLedger) -> None:
    """Score the family's earlier claims by these bars; then enter what a weight at the last one says of the next."""
    claims = ClaimLedger(ledger.engine, ledger.clock)
    for each in claims.unscored(family=family):
        if (outcome := price_outcome(each.claim, bars.bars)) is not None:
            claims.score(each.number, outcome)
    series = Series(bars.coin, bars.source, bars.frame_us // SECOND_US, bars.currency.lower())
    claim = signal_claim(family, bars.bars, weight, series)
    if claim is not None and claim.due_us > ledger.clock():
        claims.enter(claim)


def _walk_forward(market: Bars, tried: Sequence[Backtest], costs: Costs, lag: int) -> tuple[Account, slice, int]:
    """Return the walk-forward account, the slice of bars out of sample, and the number of folds."""
    bars = len(market)
    returns = np.stack([each.account.net_returns for each in tried], axis=1)
    targets = np.stack([each.targets[:, 0] for each in tried], axis=1)
    train, test = bars // 3, max(1, bars // 9)
    splits = walk_forward(bars, horizon=1 + lag, train=train, test=test, embargo=1)

    def fit(before: Any, after: Any) -> Floats:
        spread = returns[before].std(axis=0)
        kept = (spread > 0.0) & (returns[before].min(axis=0) > -1.0)
        ratios = np.divide(returns[before].mean(axis=0), spread, out=np.full(len(spread), -np.inf), where=kept)
        return np.asarray(targets[after, int(ratios.argmax())])

    wanted = out_of_sample(splits, fit, bars)
    return simulate(market, wanted, costs, lag=lag), slice(train, int(splits[-1].test[-1]) + 1), len(splits)


def trial_rows(families: Sequence[Family]) -> list[Row]:
    """Return each trial of this run."""
    return [trial_row(family.title, each) for family in families for each in family.tried]


def trial_row(family: str, made: Backtest) -> Row:
    """Return a trial of a family, named by its title."""
    account = made.account
    cost = break_even_bps(account.gross_returns, account.turnover)
    return {
        "family": family,
        "signal": signal_name(made),
        "sharpe": _sharpe(account, account.net_returns),
        "before costs": _sharpe(account, account.gross_returns),
        "turnover a year": account.summary().turnover_per_year,
        "break_even_bps": cost if math.isfinite(cost) else None,
        "new": made.recorded.new if made.recorded else False,
    }


def verdict_rows(families: Sequence[Family]) -> list[Row]:
    """Return the verdict on each family's best trial; ratios are a year's, after costs."""
    return [
        {
            "family": family.title,
            "best of": family.recorded,
            "signal": signal_name(family.best),
            "sharpe": family.verdict.sharpe,
            "low": low,
            "high": high,
            "spa_p": family.verdict.p,
            "spa_p_beyond_holding": family.timing.p,
            "deflated": family.verdict.deflated,
            "pbo": family.verdict.overfitting,
            "independent trials": family.verdict.effective_trials,
            "detectable sharpe": family.verdict.detectable,
            "random as good": family.best.baselines.random_better,
            "walk forward": family.forward_verdict.sharpe,
            "evidence": family.evidence,
        }
        for family in families
        for low, high in [family.verdict.interval or (None, None)]
    ]


def account_rows(family: Family) -> list[Row]:
    """Return the best trial beside its baselines and the walk forward, after costs."""
    accounts = {
        signal_name(family.best): family.best.account,
        **family.best.baselines.accounts,
        "walk forward": family.forward,
    }
    return [
        {
            "account": name,
            "return_pct": 100 * found.total_return,
            "sharpe": _sharpe(account, account.net_returns),
            "most_drawdown_pct": 100 * found.most_drawdown,
            **columns(found, "trades", "exposure"),
            "fees_and_slippage_pct": 100 * (found.fees + found.slippage) / found.initial_cash,
        }
        for name, account in accounts.items()
        for found in [account.summary()]
    ]


def notes(families: Sequence[Family]) -> list[str]:
    """Return what a reader must know about the accounts and their bars, a line each, once.

    A note on one account alone, such as that it lost all, begins with its name.
    """
    found = []
    for family in families:
        of_bars = family.best.baselines.accounts["hold"].notes()
        for name, account in ((signal_name(family.best), family.best.account), ("walk forward", family.forward)):
            for note in account.notes():
                whose = family.bars.name if note in of_bars else f"{family.title}, {name}"
                found.append(f"{whose}: {note}")
    return list(dict.fromkeys([*found, *(line for family in families for line in family.bars.caveats)]))


def fee_sweep(family: Family) -> list[tuple[float, float]]:
    """Return the best trial's annual Sharpe ratio at each fee, all other costs as they were."""
    best = family.best
    found = []
    for fee in FEES_BPS:
        account = simulate(family.bars.bars, best.targets, replace(best.config.costs, fee_bps=fee), lag=best.config.lag)
        if (ratio := _sharpe(account, account.net_returns)) is not None:
            found.append((fee, ratio))
    return found


def to_dict(family: Family) -> Row:
    """Return a family as plain values for JSON."""
    return {
        "question": family.title,
        "simulation": family.simulated,
        "effect": family.effect,
        "trials": family.recorded,
        "best": family.best.to_dict(),
        "verdict": asdict(family.verdict),
        "timing": asdict(family.timing),
        "walk_forward": {"folds": family.folds, **asdict(family.forward_verdict)},
        "fees": [{"fee_bps": fee, "sharpe": ratio} for fee, ratio in fee_sweep(family)],
    }


def worst_gap(families: Sequence[Family]) -> float:
    """Return the largest difference of a last equity from the sum over its trades, as a share of the traded value.

    The sum is start − Σ bought units × price − fees − costs of holding + the value of the last units. An account that
    lost all is checked one bar earlier.
    """
    accounts = (account for each in families for account in (*(made.account for made in each.tried), each.forward))
    return max((_gap(account) for account in accounts), default=0.0)


def _gap(account: Account) -> float:
    last = len(account) - 1 if account.ruin is None else account.ruin.bar - 1
    if last < 0:
        return 0.0
    trades = account.trades
    made = trades.bar <= last
    paid = float((trades.units * trades.price)[made].sum() + trades.fee[made].sum() + account.carry[: last + 1].sum())
    worth = float(account.positions[last].sum())
    scale = account.initial_cash + float(np.abs(trades.value[made]).sum())
    return abs(account.initial_cash - paid + worth - float(account.equity[last])) / scale


def signal_name(made: Backtest) -> str:
    """Return a trial's signal with its parameters."""
    return made.strategy.name


def _sharpe(account: Account, returns: Floats) -> float | None:
    if account.ruin is not None:
        return None
    found = annual_sharpe(returns, account.bars_per_year)
    return None if found is None else found[0]
