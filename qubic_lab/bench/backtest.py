"""Checks the backtest's error rates on noise, its power at the detectable effect, its risk models, and its speed.

All data are simulated with a known truth and judged by the code that judges real strategies.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qubic_lab.bench.result import MeasuredResult, Table, counted, interval_text, seconds_of
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.backtest.costs import BPS, Costs
from qubic_lab.oracle.backtest.engine import simulate
from qubic_lab.oracle.inference.multiple_testing import judge, sharpe_ratios
from qubic_lab.oracle.inference.performance import ALPHA, annual_sharpe, break_even_bps
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.timestamps import DAY_US, MINUTE_US
from qubic_lab.oracle.risk.forecast_tests import evaluate_tail
from qubic_lab.oracle.risk.models import garch_forecast, normal, simulate_garch, student_t
from qubic_lab.provenance import usable_cores
from qubic_lab.stats import wilson_interval

if TYPE_CHECKING:
    import pandas as pd

Noise = Literal["gaussian", "garch-t"]
NOISES: tuple[Noise, ...] = ("gaussian", "garch-t")
MOST_FALSE = 0.065
LEAST_POWER = 0.75
LEAST_COVERAGE = 0.90
MOST_PBO_AWAY = 0.05
MOST_RIGHT_REJECTED = 0.08
LEAST_WRONG_REJECTED = 0.80
MOST_SECONDS = 1.0
SIGNALS = 20
BARS = 750
PER_YEAR = 365.0
RESAMPLES = 500
PERSISTENCE = 0.9
"""Autocorrelation of the process whose sign is a simulated signal; a position lasts about 7 bars."""
GARCH = (1e-6, 0.1, 0.88, 5.0)
"""omega, alpha, beta and degrees of freedom of the simulated process."""
VAR_BARS = 4_000
VAR_LEVELS = (0.01, 0.05)
REFIT_BARS, FIT_BARS, LEAST_FIT_BARS = 50, 2_000, 500
SPEED_BARS, SETS, SET_BARS = 1_000_000, 1_000, 100_000
_A_TASK = 5
"""Runs that a process gets at a time."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Rate:
    """A share of runs with its 95 % interval (Wilson)."""

    count: int
    runs: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, runs: int) -> "Rate":
        return cls(count, runs, count / runs, *wilson_interval(count, runs))

    def text(self) -> str:
        return interval_text(self.value, self.low, self.high, ".1%")


@dataclass(frozen=True)
class NullResult:
    """The best of several signals without skill, on prices without drift and without costs.

    `false_rate` is the share of runs that were called evidence, with its 95 % interval. `mean_pbo` is the mean
    probability of backtest overfitting, with its standard error.
    """

    runs: int
    bars: int
    signals: int
    alpha: float
    false_rate: float
    low: float
    high: float
    by_noise: dict[str, Rate]
    mean_pbo: float
    pbo_error: float
    within: bool
    pbo_within: bool


@dataclass(frozen=True)
class EffectResult:
    """One of the signals has an edge as large as the minimum detectable effect that a report states.

    `mean_sharpe` is the mean of these edges, as annual Sharpe ratios. `detected` runs called their best trial evidence,
    in `chosen` ones it was the one with the edge, in `covered` ones the interval contained its true Sharpe ratio.
    """

    runs: int
    mean_sharpe: float
    detected: Rate
    chosen: Rate
    covered: Rate
    detected_within: bool
    covered_within: bool


@dataclass(frozen=True)
class TailRow:
    """Rate at which Christoffersen's test of conditional coverage at 5 % rejected the forecasts of a model."""

    model: str
    level: float
    rejected: Rate
    limit: float
    within: bool


@dataclass(frozen=True)
class TailResult:
    """Value at risk on simulated GARCH series, refitted every `refit_bars` bars."""

    series: int
    bars: int
    refit_bars: int
    rows: tuple[TailRow, ...]
    failed_fits: int


@dataclass(frozen=True)
class SpeedResult:
    """Median times; `ratio` is pandas_ms / set_ms.

    `full_s` is of one signal on `bars` bars: account, all its figures, and statistics without bootstrap. `set_ms` is of
    one of `sets` parameter sets on `set_bars` bars with given weights: account and equity. `pandas_ms` is of the same
    with a plain vectorised pandas version; blocks of both take turns.
    """

    bars: int
    full_s: float
    sets: int
    set_bars: int
    set_ms: float
    pandas_ms: float
    ratio: float
    full_within: bool
    sets_within: bool


@dataclass(frozen=True)
class BacktestResult(MeasuredResult):
    """All parts; None for those that were not requested. `within_limits` says whether all requested ones met theirs."""

    null: NullResult | None
    effect: EffectResult | None
    var: TailResult | None
    speed: SpeedResult | None
    within_limits: bool
    seed: int
    processes: int
    seconds: float

    def report(self) -> Iterator[Table | str]:
        yield Table(("what", "found (95 % interval)", "runs", "limit", "verdict"), list(self._rows()))
        yield f"{'All' if self.within_limits else 'NOT all'} within their limits."

    def _rows(self) -> Iterator[tuple[str, ...]]:
        if (null := self.null) is not None:
            found = interval_text(null.false_rate, null.low, null.high, ".1%")
            yield "evidence on noise", found, str(null.runs), "at most 6.5 %", _met(null.within)
            found = f"{null.mean_pbo:.3f} (error {null.pbo_error:.3f})"
            yield "mean PBO on noise", found, str(null.runs), "0.45 to 0.55", _met(null.pbo_within)
        if (effect := self.effect) is not None:
            name, runs = f"found, Sharpe ratio {effect.mean_sharpe:.2f}", str(effect.runs)
            yield name, effect.detected.text(), runs, "at least 75 %", _met(effect.detected_within)
            yield "truth in interval", effect.covered.text(), runs, "at least 90 %", _met(effect.covered_within)
        for row in self.var.rows if self.var else ():
            limit = f"at {'most' if row.model == 'GARCH-t' else 'least'} {100 * row.limit:.0f} %"
            name = f"{row.model} rejected, VaR {100 * row.level:g} %"
            yield name, row.rejected.text(), str(row.rejected.runs), limit, _met(row.within)
        if (speed := self.speed) is not None:
            yield f"{speed.bars:,} bars, all figures", f"{speed.full_s:.2f} s", "3", "1 s", _met(speed.full_within)
            name, limit = f"a set of {speed.set_bars:,} bars", f"{speed.pandas_ms:.2f} ms (pandas)"
            yield name, f"{speed.set_ms:.2f} ms", str(speed.sets), limit, _met(speed.sets_within)


def _met(within: bool) -> str:
    return "met" if within else "MISSED"


def bench_backtest(
    null: int = 1_000,
    effect: int = 300,
    var: int = 0,
    *,
    var_bars: int = VAR_BARS,
    speed: bool = True,
    seed: int = 0,
    progress: Progress = no_progress,
) -> BacktestResult:
    """Check the backtest on simulated prices, half of them Gaussian and half GARCH with Student's t.

    There are `null` runs without any skill, `effect` runs at the minimum detectable effect, and `var` series of
    `var_bars` bars for value at risk, each of them none with 0. On 2,000 bars at most 71 % of the tests rejected a
    normal distribution of constant variance, so the default is 4,000. Each part and run has its own stream of random
    numbers.

    Raises:
        InputError: nothing is requested, or there are too few bars for value at risk.
    """
    for name, value in (("null", null), ("effect", effect), ("var", var)):
        check_at_least(name, value, 0)
    check_at_least("var_bars", var_bars, 2 * LEAST_FIT_BARS)
    if not (null or effect or var or speed):
        raise InputError("nothing is requested: give null, effect, var or speed")
    started = time.perf_counter()
    parts: dict[str, tuple[Callable[[int], Any], int]] = {
        "null": (partial(null_run, seed=seed), null),
        "effect": (partial(effect_run, seed=seed), effect),
        "var": (partial(tail_run, bars=var_bars, seed=seed), var),
    }
    found = run_parts(parts, progress)
    nulls = sum_up_null(found["null"]) if null else None
    effects = sum_up_effect(found["effect"]) if effect else None
    tails = sum_up_var(found["var"], var_bars) if var else None
    fast = measure_speed() if speed else None
    limits = [row.within for row in tails.rows] if tails else []
    limits += [nulls.within, nulls.pbo_within] if nulls else []
    limits += [effects.detected_within, effects.covered_within] if effects else []
    limits += [fast.full_within, fast.sets_within] if fast else []
    return BacktestResult(
        null=nulls,
        effect=effects,
        var=tails,
        speed=fast,
        within_limits=all(limits),
        seed=seed,
        processes=usable_cores(),
        seconds=time.perf_counter() - started,
    )


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes whose libraries use one thread each; they read the variables when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def run_parts(parts: Mapping[str, tuple[Callable[[int], Any], int]], progress: Progress) -> dict[str, list[Any]]:
    """Make the numbered runs of all parts in a pool of processes; return the results of each part in order."""
    note = counted(progress, sum(runs for _, runs in parts.values()))

    def noted(part: str, result: Any) -> Any:
        note(part)
        return result

    with _pool() as pool:
        running = {part: pool.map(run, range(runs), chunksize=_A_TASK) for part, (run, runs) in parts.items()}
        return {part: [noted(part, each) for each in results] for part, results in running.items()}


def simulated_market(returns: Floats, bar_us: int = DAY_US) -> Bars:
    """Return bars with these returns from open to close; each bar opens at the previous close."""
    close = np.asarray(100.0 * np.cumprod(1.0 + returns), np.float64)
    before = np.append(100.0, close[:-1])
    opened = np.arange(len(close), dtype=np.int64) * bar_us
    high, low = np.maximum(before, close), np.minimum(before, close)
    prices = {"open": before, "high": high, "low": low, "volume": np.ones(len(close))}
    return Bars.of(opened + bar_us, close, **prices, frame_us=bar_us, assets=("simulated",))


def draw(noise: Noise, seed: tuple[int, ...], bars: int = BARS, signals: int = SIGNALS) -> tuple[Floats, Floats, float]:
    """Return returns without drift [bars], independent signals ±1 [bars, signals], and the process's true deviation."""
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    omega, alpha, beta, _ = GARCH
    deviation = math.sqrt(omega / (1.0 - alpha - beta))
    if noise == "gaussian":
        returns = deviation * rng.standard_normal(bars)
    else:
        returns = simulate_garch(bars, *GARCH, int(rng.integers(1 << 31)))[0]
    walks = lfilter([1.0], [1.0, -PERSISTENCE], rng.standard_normal((bars, signals)), axis=0)
    return returns, np.sign(walks), deviation


def trial_returns(returns: Floats, signals: Floats) -> Floats:
    """Return the net returns of each signal's account without costs, [bars, signals]."""
    market = simulated_market(returns)
    accounts = (simulate(market, signal, rebalance="always") for signal in signals.T)
    return np.stack([account.net_returns for account in accounts], axis=1)


def _best_trial(returns: Floats, signals: Floats) -> tuple[Floats, int]:
    trials = trial_returns(returns, signals)
    return trials, int(np.nanargmax(sharpe_ratios(trials)))


def null_run(number: int, seed: int = 0) -> tuple[Noise, bool, float]:
    """Run without skill; return the noise, whether it was called evidence, and the probability of overfitting."""
    noise = NOISES[number % 2]
    returns, signals, _ = draw(noise, (seed, 1, number))
    trials, best = _best_trial(returns, signals)
    verdict = judge(trials, best, PER_YEAR, resamples=RESAMPLES, seed=number)
    assert verdict.overfitting is not None
    return noise, verdict.evidence, verdict.overfitting


def effect_run(number: int, seed: int = 0) -> tuple[float, bool, bool, bool]:
    """Plant the edge that one report calls detectable in another draw; return the edge, detected, chosen and covered.

    The first report is about another draw of the same process without an edge, so it cannot know the second draw.
    """
    noise = NOISES[number % 2]
    returns, signals, _ = draw(noise, (seed, 2, number))
    trials, best = _best_trial(returns, signals)
    options: dict[str, Any] = {"resamples": RESAMPLES, "parts": None, "seed": number}
    edge = judge(trials, best, PER_YEAR, **options).detectable
    assert edge is not None
    returns, signals, deviation = draw(noise, (seed, 3, number))
    returns[1:] += edge / math.sqrt(PER_YEAR) * deviation * signals[:-1, 0]
    trials, best = _best_trial(returns, signals)
    verdict = judge(trials, best, PER_YEAR, **options)
    assert verdict.interval is not None
    low, high = verdict.interval
    return edge, verdict.evidence, best == 0, low <= (edge if best == 0 else 0.0) <= high


def tail_run(number: int, bars: int = VAR_BARS, seed: int = 0) -> tuple[dict[str, tuple[bool, ...]], int]:
    """Return whether each model was rejected at each level on one simulated series, and the number of failed fits."""
    draws = int(np.random.default_rng((seed, 4, number)).integers(1 << 31))
    returns, _ = simulate_garch(bars, *GARCH, draws)
    forecast = garch_forecast(returns, REFIT_BARS, FIT_BARS, LEAST_FIT_BARS)
    found = {}
    for model, make in (("GARCH-t", None), ("constant normal", normal)):
        rejected = []
        for level in VAR_LEVELS:
            tail = student_t(forecast, level) if make is None else make(returns, level)
            test = evaluate_tail(returns, tail).conditional
            rejected.append(test is not None and test.p < ALPHA)
        found[model] = tuple(rejected)
    return found, forecast.failed


def sum_up_null(runs: Sequence[tuple[Noise, bool, float]]) -> NullResult:
    """Summarize runs without skill."""
    rate = Rate.of(sum(evidence for _, evidence, _ in runs), len(runs))
    by_noise: dict[str, Rate] = {
        noise: Rate.of(sum(evidence for kind, evidence, _ in runs if kind == noise), count)
        for noise in NOISES
        if (count := sum(kind == noise for kind, _, _ in runs))
    }
    places = [pbo for _, _, pbo in runs]
    mean = statistics.fmean(places)
    return NullResult(
        runs=len(runs),
        bars=BARS,
        signals=SIGNALS,
        alpha=ALPHA,
        false_rate=rate.value,
        low=rate.low,
        high=rate.high,
        by_noise=by_noise,
        mean_pbo=mean,
        pbo_error=statistics.stdev(places) / math.sqrt(len(places)) if len(places) > 1 else math.nan,
        within=rate.value <= MOST_FALSE and rate.low <= ALPHA,
        pbo_within=abs(mean - 0.5) <= MOST_PBO_AWAY,
    )


def sum_up_effect(runs: Sequence[tuple[float, bool, bool, bool]]) -> EffectResult:
    """Summarize runs at the minimum detectable effect."""
    edges, *marks = zip(*runs, strict=True)
    detected, chosen, covered = (Rate.of(sum(each), len(runs)) for each in marks)
    return EffectResult(
        runs=len(runs),
        mean_sharpe=statistics.fmean(edges),
        detected=detected,
        chosen=chosen,
        covered=covered,
        detected_within=detected.value >= LEAST_POWER,
        covered_within=covered.value >= LEAST_COVERAGE,
    )


def sum_up_var(series: Sequence[tuple[dict[str, tuple[bool, ...]], int]], bars: int = VAR_BARS) -> TailResult:
    """Summarize value at risk: the right model must be rejected rarely, the wrong one often."""
    rows = []
    for model in series[0][0]:
        right = model == "GARCH-t"
        for place, level in enumerate(VAR_LEVELS):
            rate = Rate.of(sum(found[model][place] for found, _ in series), len(series))
            limit = MOST_RIGHT_REJECTED if right else LEAST_WRONG_REJECTED
            within = rate.value <= limit if right else rate.value >= limit
            rows.append(TailRow(model, level, rate, limit, within))
    return TailResult(len(series), bars, REFIT_BARS, tuple(rows), sum(failed for _, failed in series))


def measure_speed(bars: int = SPEED_BARS, sets: int = SETS, set_bars: int = SET_BARS, block: int = 25) -> SpeedResult:
    """Measure one signal on many bars with all its figures, and many parameter sets against plain pandas."""
    rng = np.random.default_rng(0)
    market = simulated_market(1e-4 * rng.standard_normal(bars), MINUTE_US)
    signal = np.sign(np.convolve(rng.standard_normal(bars), np.ones(50), mode="same"))

    def evaluate() -> None:
        account = simulate(market, signal, Costs(fee_bps=1.0))
        account.summary()
        annual_sharpe(account.net_returns, account.bars_per_year)
        break_even_bps(account.gross_returns, account.turnover)

    full_s = statistics.median(seconds_of(evaluate) for _ in range(3))
    ours, plain = _sets(simulated_market(1e-3 * rng.standard_normal(set_bars), MINUTE_US), sets, block)
    set_ms, pandas_ms = 1e3 * statistics.median(ours), 1e3 * statistics.median(plain)
    return SpeedResult(
        bars=bars,
        full_s=full_s,
        sets=sets,
        set_bars=set_bars,
        set_ms=set_ms,
        pandas_ms=pandas_ms,
        ratio=pandas_ms / set_ms,
        full_within=full_s < MOST_SECONDS,
        sets_within=pandas_ms >= set_ms,
    )


def _sets(market: Bars, sets: int, block: int) -> tuple[list[float], list[float]]:
    frame = market.frame()
    costs = Costs(fee_bps=1.0)
    pairs = [(5 + number % 25, 40 + 4 * (number // 25)) for number in range(sets)]
    ours, plain = [], []
    for first in range(0, sets, block):
        weights = [crossover(frame["close"], *pair) for pair in pairs[first : first + block]]
        arrays = [each.to_numpy() for each in weights]
        started = time.perf_counter()
        for array in arrays:
            _ = simulate(market, array, costs).equity
        between = time.perf_counter()
        for each in weights:
            plain_equity(frame, each, costs.fee_bps)
        ours.append((between - started) / len(arrays))
        plain.append((time.perf_counter() - between) / len(arrays))
    return ours, plain


def plain_equity(frame: "pd.DataFrame", weights: "pd.Series", cost_bps: float) -> "pd.Series":
    """Return equity as a share of its start by plain pandas, for one asset that is rebalanced at every bar's open.

    Weights, on the frame's index, are decided at a close and held from the next open to the one after it. Costs are
    subtracted to first order, so it agrees with an exact account only without costs. The last open is the last
    valuation.
    """
    held = weights.shift(1).fillna(0.0)
    gross = held * (frame["open"].shift(-1) / frame["open"] - 1.0).fillna(0.0)
    traded = held.diff().abs().fillna(held.abs())
    equity: pd.Series = (1.0 + gross - traded * cost_bps * BPS).cumprod()
    return equity


def crossover(close: "pd.Series", fast: int, slow: int) -> "pd.Series":
    """Return 1 where the mean of the last `fast` closes is above that of the last `slow` ones, else 0."""
    above: pd.Series = (close.rolling(fast).mean() > close.rolling(slow).mean()).astype("float64")
    return above
