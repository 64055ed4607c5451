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
from typing import TYPE_CHECKING, Any

import numpy as np

from qubic_lab.bench.processes import BARS, DEVIATION, PROCESSES, SIGNALS, draw, simulated_market, trial_returns
from qubic_lab.bench.result import MeasuredResult, Rate, Table, counted, seconds_of
from qubic_lab.bench.tails import (
    LEAST_FIT_BARS,
    VAR_BARS,
    WRONG,
    FileTail,
    TailResult,
    file_tails,
    sum_up_var,
    tail_run,
)
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.lifeline import tied_pool
from qubic_lab.oracle.backtest.costs import BPS, Costs
from qubic_lab.oracle.backtest.engine import simulate
from qubic_lab.oracle.inference.multiple_testing import PARTS, Verdict, beyond, judge, sharpe_ratios
from qubic_lab.oracle.inference.performance import ALPHA, annual_sharpe, break_even_bps
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.timestamps import MINUTE_US
from qubic_lab.provenance import usable_cores

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_PROCESSES = ("gaussian", "garch-t")
MOST_FALSE = 0.065
LEAST_POWER = 0.75
LEAST_COVERAGE = 0.90
MOST_PBO_AWAY = 0.05
MOST_SECONDS = 1.0
PER_YEAR = 365.0
RESAMPLES = 500
SPEED_BARS, SETS, SET_BARS = 1_000_000, 1_000, 100_000
_A_TASK = 5
"""Runs that a process gets at a time."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class NullRow:
    """The best of several signals without skill, on prices of one process without drift and without costs.

    `false` is the share of runs that were called evidence of prediction: more than luck, and more than holding
    explains; `against_cash` the share that passed the first of these rules alone. `mean_pbo` is the mean probability
    of backtest overfitting, with its standard error.
    """

    process: str
    bars: int
    false: Rate
    against_cash: Rate
    mean_pbo: float
    pbo_error: float
    within: bool
    pbo_within: bool


@dataclass(frozen=True)
class NullResult:
    """`runs` of each process and number of bars, at a level of `alpha`."""

    runs: int
    signals: int
    alpha: float
    rows: tuple[NullRow, ...]


@dataclass(frozen=True)
class EffectResult:
    """One of the signals has an edge as large as the minimum detectable effect that a report states.

    `mean_sharpe` is the mean of these edges, as annual Sharpe ratios. `detected` runs called their best trial evidence,
    by both rules, in `chosen` ones it was the one with the edge, in `covered` ones the interval contained its true
    Sharpe ratio.
    """

    runs: int
    mean_sharpe: float
    detected: Rate
    chosen: Rate
    covered: Rate
    detected_within: bool
    covered_within: bool


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
    prices: tuple[FileTail, ...]
    speed: SpeedResult | None
    within_limits: bool
    seed: int
    processes: int
    seconds: float

    def report(self) -> Iterator[Table | str]:
        yield Table(("what", "found (95 % interval)", "runs", "limit", "verdict"), list(self._rows()))
        yield f"{'All' if self.within_limits else 'NOT all'} within their limits."

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for null in self.null.rows if self.null else ():
            noise, runs = f"{null.process}, {null.bars} bars", str(null.false.runs)
            yield f"evidence on {noise}", null.false.text(), runs, "at most 6.5 %", _met(null.within)
            yield "  by the first rule", null.against_cash.text(), runs, "", ""
            found = f"{null.mean_pbo:.3f} (error {null.pbo_error:.3f})"
            yield "  mean PBO", found, runs, "0.45 to 0.55", _met(null.pbo_within)
        if (effect := self.effect) is not None:
            name, runs = f"found, Sharpe ratio {effect.mean_sharpe:.2f}", str(effect.runs)
            yield name, effect.detected.text(), runs, "at least 75 %", _met(effect.detected_within)
            yield "truth in interval", effect.covered.text(), runs, "at least 90 %", _met(effect.covered_within)
        for row in self.var.rows if self.var else ():
            limit = f"{'at least' if row.model == WRONG else 'lower end at most'} {100 * row.limit:.0f} %"
            name = f"{row.model} rejected, VaR {100 * row.level:g} %"
            yield name, row.rejected.text(), str(row.rejected.runs), limit, _met(row.within)
        for tail in self.prices:
            name = f"{tail.file}, {tail.model}, VaR {100 * tail.level:g} %"
            yield name, tail.text(), f"{tail.bars:,} bars", "no p below 0.05", "fit" if tail.fit else "UNFIT"
        if (speed := self.speed) is not None:
            yield f"{speed.bars:,} bars, all figures", f"{speed.full_s:.2f} s", "3", "1 s", _met(speed.full_within)
            name, limit = f"a set of {speed.set_bars:,} bars", f"{speed.pandas_ms:.2f} ms (pandas)"
            yield name, f"{speed.set_ms:.2f} ms", str(speed.sets), limit, _met(speed.sets_within)


def _met(within: bool) -> str:
    return "met" if within else "MISSED"


def bench_backtest(
    null: int = 500,
    effect: int = 300,
    var: int = 0,
    *,
    processes: Sequence[str] = DEFAULT_PROCESSES,
    bars: Sequence[int] = (BARS,),
    var_bars: int = VAR_BARS,
    prices: Sequence[str] = (),
    speed: bool = True,
    seed: int = 0,
    progress: Progress = no_progress,
) -> BacktestResult:
    """Check the backtest on simulated prices.

    There are `null` runs without any skill for each of `processes`, names in `PROCESSES`, and each number of `bars`;
    `effect` runs at the minimum detectable effect, half of them Gaussian and half GARCH with Student's t; and `var`
    series of `var_bars` bars for value at risk; each of them none with 0. On 2,000 bars at most 71 % of the tests
    rejected a normal distribution of constant variance, so the default is 4,000. Each part and run has its own stream
    of random numbers. `prices` are files of bars, or "packaged", on which value at risk is tested; whether a model is
    fit there is told, and no limit.

    Raises:
        InputError: nothing is requested, an unknown process, or too few bars.
    """
    if not (null or effect or var or prices or speed):
        raise InputError("nothing is requested: give null, effect, var, prices or speed")
    check_at_least("var_bars", var_bars, 2 * LEAST_FIT_BARS)
    _check_runs({"null": null, "effect": effect, "var": var}, processes, bars)
    cells = {f"{each}, {count} bars": (each, count) for each in processes for count in bars} if null else {}
    started = time.perf_counter()
    parts: dict[str, tuple[Callable[[int], Any], int]] = {
        name: (partial(null_run, process=each, bars=count, seed=seed), null) for name, (each, count) in cells.items()
    }
    parts |= {
        "effect": (partial(effect_run, seed=seed), effect),
        "var": (partial(tail_run, bars=var_bars, seed=seed), var),
        "prices": (partial(file_tails, files=tuple(prices)), len(prices)),
    }
    found = run_parts(parts, progress)
    rows = tuple(sum_up_null(*cell, found[name]) for name, cell in cells.items())
    nulls = NullResult(null, SIGNALS, ALPHA, rows) if null else None
    effects = sum_up_effect(found["effect"]) if effect else None
    tails = sum_up_var(found["var"], var_bars) if var else None
    fast = measure_speed() if speed else None
    limits = [row.within for row in tails.rows] if tails else []
    limits += [met for row in nulls.rows for met in (row.within, row.pbo_within)] if nulls else []
    limits += [effects.detected_within, effects.covered_within] if effects else []
    limits += [fast.full_within, fast.sets_within] if fast else []
    return BacktestResult(
        null=nulls,
        effect=effects,
        var=tails,
        prices=tuple(row for rows in found["prices"] for row in rows),
        speed=fast,
        within_limits=all(limits),
        seed=seed,
        processes=usable_cores(),
        seconds=time.perf_counter() - started,
    )


def _check_runs(runs: Mapping[str, int], processes: Sequence[str], bars: Sequence[int]) -> None:
    for name, number in runs.items():
        check_at_least(name, number, 0)
    for process in processes:
        check_choice("process", process, PROCESSES)
    for count in bars:
        check_at_least("bars", count, 2 * PARTS)


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes whose libraries use one thread each; they read the variables when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with tied_pool(usable_cores()) as pool:
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
        running = {
            part: [pool.submit(_run_some, run, numbers) for numbers in _tasks(runs)]
            for part, (run, runs) in parts.items()
        }
        return {
            part: [noted(part, each) for task in tasks for each in task.result()] for part, tasks in running.items()
        }


def _tasks(runs: int) -> list[range]:
    size = _A_TASK if runs > 2 * _A_TASK else 1
    return [range(first, min(first + size, runs)) for first in range(0, runs, size)]


def _run_some(run: Callable[[int], Any], numbers: range) -> list[Any]:
    return [run(number) for number in numbers]


def _judge_best(returns: Floats, signals: Floats, number: int, parts: int | None) -> tuple[Verdict, bool, int]:
    """Return the verdict on the best signal against cash, whether it is also beyond holding, and which one it is."""
    trials = trial_returns(returns, signals)
    best = int(np.nanargmax(sharpe_ratios(trials)))
    options: dict[str, Any] = {"resamples": RESAMPLES, "seed": number}
    verdict = judge(trials, best, PER_YEAR, parts=parts, **options)
    evidence = verdict.evidence and judge(beyond(trials, returns), best, PER_YEAR, parts=None, **options).evidence
    return verdict, evidence, best


def null_run(number: int, process: str = "gaussian", bars: int = BARS, seed: int = 0) -> tuple[bool, bool, float]:
    """Run without skill; return whether it was evidence by both rules, by the first alone, and its PBO."""
    returns, signals = draw(process, (seed, 1, number), bars)
    verdict, evidence, _ = _judge_best(returns, signals, number, PARTS)
    assert verdict.overfitting is not None
    return evidence, verdict.evidence, verdict.overfitting


def effect_run(number: int, seed: int = 0) -> tuple[float, bool, bool, bool]:
    """Plant the edge that one report calls detectable in another draw; return the edge, detected, chosen and covered.

    The first report is about another draw of the same process without an edge, so it cannot know the second draw.
    """
    process = DEFAULT_PROCESSES[number % 2]
    edge = _judge_best(*draw(process, (seed, 2, number)), number, None)[0].detectable
    assert edge is not None
    returns, signals = draw(process, (seed, 3, number))
    returns[1:] += edge / math.sqrt(PER_YEAR) * DEVIATION * signals[:-1, 0]
    verdict, evidence, best = _judge_best(returns, signals, number, None)
    assert verdict.interval is not None
    low, high = verdict.interval
    return edge, evidence, best == 0, low <= (edge if best == 0 else 0.0) <= high


def sum_up_null(process: str, bars: int, runs: Sequence[tuple[bool, bool, float]]) -> NullRow:
    """Summarize runs without skill."""
    evidence, first, overfitting = zip(*runs, strict=True)
    false, mean = Rate.of(sum(evidence), len(runs)), statistics.fmean(overfitting)
    return NullRow(
        process=process,
        bars=bars,
        false=false,
        against_cash=Rate.of(sum(first), len(runs)),
        mean_pbo=mean,
        pbo_error=statistics.stdev(overfitting) / math.sqrt(len(runs)) if len(runs) > 1 else math.nan,
        within=false.value <= MOST_FALSE and false.low <= ALPHA,
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
