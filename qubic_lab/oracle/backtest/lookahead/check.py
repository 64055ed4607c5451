"""Whether a signal looks ahead: it is run on the past alone and on changed futures, and must not notice.

A signal takes a frame of bars and gives a number for each, which may use that bar and earlier ones. The frame has one
row a bar; its index, or the column `closed_us`, says when each closes. A column `NAME` with a column `NAME_known_us`
beside it holds cells that become known at those instants, such as the body of a text that appears after its headline.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.backtest.lookahead.afresh import Afresh
from qubic_lab.oracle.backtest.lookahead.frames import closes_us, known_at, scrambled, time_of
from qubic_lab.oracle.backtest.lookahead.kinds import diagnose, when
from qubic_lab.oracle.backtest.lookahead.report import AuditReport, Finding, LagPower
from qubic_lab.oracle.backtest.lookahead.runs import (
    ROUNDING,
    Difference,
    Signal,
    Unusable,
    changed_rows,
    is_rounding,
    run_signal,
)
from qubic_lab.oracle.backtest.lookahead.watch import clock_names, clock_watched, data_held, reads_watched, state_of
from qubic_lab.oracle.inference.bootstrap import is_constant
from qubic_lab.oracle.model.bars import Floats

CUTS = 32
LAGS = 5
LEAST_BARS = 20
_TOO_GOOD = 0.3
_ROUNDING_OF_FLOAT32 = 1e-5
"""A share of the largest value, taken as rounding only where changed futures change no bit."""
_LEAST_AFRESH_S = 5.0


def audit(function: Signal, frame: pd.DataFrame, cuts: int = CUTS, seed: int = 0) -> AuditReport:
    """Return whether a signal looks ahead, where, and how.

    At each cut the signal is run on the bars before it as they were known then, and on all bars with those after the
    cut changed; up to the cut both must give, bit for bit, what all bars give.

    Args:
        function: takes a frame, gives a number for each row: [bars] or [bars, assets], NaN where it has none.
        frame: of bars, see above; it is copied for every run.
        cuts: half of them crowd at the first bars, where warm-ups are filled in; some are put where data are missing.
        seed: of the cuts and of the changed values.

    Raises:
        InputError: too few bars or cuts, or bars out of order. Errors of the function are findings.
    """
    check_at_least("cuts", cuts, 1)
    check_at_least("bars to audit", len(frame), LEAST_BARS)
    _check_frame(frame)
    name = str(getattr(getattr(function, "func", function), "__qualname__", type(function).__name__))
    bars, half, started = len(frame), len(frame) // 2, time.monotonic()
    draw = np.random.default_rng(seed)
    with Afresh(function, known_at(frame, half)) as afresh:
        try:
            values, faults = _first_runs(function, frame)
        except Unusable as error:
            return AuditReport(name, bars, (), (Finding(error.kind, f"{name}: {error}"),))
        if any(fault.kind == "not repeatable" for fault in faults):
            return AuditReport(name, bars, (), tuple(_named(name, faults)))
        runs = _cut_runs(function, frame, values, _places(frame, cuts, draw), draw)
        alone = afresh.wait(max(_LEAST_AFRESH_S, time.monotonic() - started))
    kept, notes = _kept(function, frame, half, alone)
    if all(fault.kind != "state" for fault in faults):
        faults[:0] = kept
    differences, told = _without_rounding(runs.differences)
    notes += told
    found, told = _failures(runs, bars)
    faults += found
    notes += told
    if differences:
        earliest = _earliest(function, frame, values, differences, runs.used)
        faults.insert(0, diagnose(function, frame, values, differences, runs.used, earliest))
    if np.isnan(values).all():
        notes.append("it gives no number at any bar, so nothing could be seen to change")
    lags = _lag_sweep(values, frame)
    return AuditReport(name, bars, tuple(runs.used), tuple(_named(name, faults)), lags, (*notes, *_lag_notes(lags)))


def _check_frame(frame: pd.DataFrame) -> None:
    """Check that rows go by time, so that those before a cut are the past.

    Raises:
        InputError: they do not, or columns have one name.
    """
    if not frame.columns.is_unique:
        raise InputError(f"the frame has columns twice: {list(frame.columns[frame.columns.duplicated()])}")
    closed = closes_us(frame)
    if closed is None:
        return
    back = np.diff(closed) <= 0
    if back.any():
        bar = int(back.argmax()) + 1
        raise InputError(
            f"bar {bar}{when(frame, bar)} does not close after the one before: sort bars by time, one row each"
        )


def _kept(function: Signal, frame: pd.DataFrame, half: int, alone: Floats | None) -> tuple[list[Finding], list[str]]:
    """Tell whether this process, which has seen all bars, gives other values for the first half than a fresh one did.

    Args:
        function: the signal.
        frame: of all bars.
        half: how many bars the fresh process saw.
        alone: what it gave; None: nothing, or not in time.
    """
    try:
        again = run_signal(function, known_at(frame, half))
    except Unusable:
        return [], []
    if alone is None:
        return [], ["it gave nothing in a process of its own, so not all that it may keep between runs was looked at"]
    changed = changed_rows(alone, again, _ROUNDING_OF_FLOAT32)  # a copy of a process may share work among fewer threads
    if not changed.any():
        return [], []
    bar = int(changed.argmax())
    text = (
        f"bar {bar}{when(frame, bar)} is another where only the first {half} bars were ever seen: it keeps "
        "something of later bars between runs"
    )
    return [Finding("state", text, leaks=True, bar=bar, closed=time_of(frame, bar), cut=half)], []


def _without_rounding(differences: list[Difference]) -> tuple[list[Difference], list[str]]:
    """Return no differences, and a note, where values are rounded by the number of bars, not by what is in them.

    Vectorised functions such as `np.log` may round the last values of an array otherwise than those before, and
    products of matrices in float32 do it by more.
    """
    by_length = all(each.test == "prefix" and is_rounding(each, _ROUNDING_OF_FLOAT32) for each in differences)
    if not differences or not by_length:
        return differences, []
    return [], ["its values are rounded otherwise by how many bars there are; what the bars hold changes no bit"]


def _named(name: str, findings: Sequence[Finding]) -> Iterator[Finding]:
    for finding in findings:
        yield Finding(**{**asdict(finding), "text": f"{name}: {finding.text}"})


def _first_runs(function: Signal, frame: pd.DataFrame) -> tuple[Floats, list[Finding]]:
    """Run a signal twice on all bars: does it change its input, look elsewhere, or differ from itself?"""
    bars = len(frame)
    given, whole = known_at(frame, bars), known_at(frame, bars)
    before = state_of(function)
    read: set[str] = set()
    clocks: set[str] = set()
    with reads_watched(function, read):
        values = run_signal(function, given)
        after = state_of(function)
        with clock_watched(function, clocks):
            again = run_signal(function, whole.copy(deep=True))
    faults = []
    if kept := sorted(name for name in after if after[name] != before.get(name)):
        text = f"it keeps something between runs ({', '.join(kept)}), which may be from later bars"
        faults.append(Finding("state", text))
    if not given.equals(whole):
        gone = [str(column) for column in whole if column not in given or not given[column].equals(whole[column])]
        added = [str(column) for column in given if column not in whole]
        what = ", ".join(gone + added) or "the index"
        faults.append(Finding("input", f"it changes the frame that it is given ({what}): work on a copy"))
    if clocks := clocks | clock_names(function):
        text = f"it looks at the wall clock ({', '.join(sorted(clocks))}): take times from the frame"
        faults.append(Finding("clock", text))
    if outside := sorted(read | data_held(function, bars)):
        text = f"it reads from outside of its frame ({', '.join(outside)}), where no future can be cut off: add columns"
        faults.append(Finding("outside", text))
    changed = changed_rows(values, again)
    if changed.any():
        bar = int(np.flatnonzero(changed)[0])
        where = f"bar {bar}{when(frame, bar)}"
        faults.append(
            Finding(
                "not repeatable",
                f"two runs on the same bars differ at {where}: seed its random numbers, and keep nothing between runs",
                bar=bar,
            )
        )
    return values, faults


def _places(frame: pd.DataFrame, cuts: int, draw: np.random.Generator) -> list[int]:
    """Return how many bars are known at each cut: by halves crowding at the first bars and spread, some at gaps."""
    bars = len(frame)
    early = np.geomspace(2, bars - 1, max(1, cuts // 2))
    even = cuts - len(early)
    edges = np.linspace(1, bars - 1, even + 1)
    spread = draw.uniform(edges[:-1], edges[1:]) if even else np.array([])
    chosen = {min(bars - 1, max(1, round(place))) for place in (*early, *spread)}
    missing = frame.isna().any(axis=1).to_numpy()
    gaps = np.flatnonzero(missing[:-1]) + 1  # the cut comes right after a bar that lacks something
    if gaps.size:
        chosen |= set(draw.choice(gaps, min(len(gaps), cuts // 4 + 1), replace=False).tolist())
    # Rounding makes some cuts one; others take their place, where there are bars enough.
    while len(chosen) < min(cuts, bars - 2):
        chosen.add(int(draw.integers(1, bars)))
    return sorted(chosen)


@dataclass
class _CutRuns:
    """What the runs at all cuts gave.

    Attributes:
        differences: where known bars changed.
        used: the cuts at which the past alone could be run.
        failed: why it could not, by cut.
        refused: why it could not be run on a changed future, by cut, where it could on the past.
    """

    differences: list[Difference] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


def _cut_runs(
    function: Signal, frame: pd.DataFrame, values: Floats, places: Sequence[int], draw: np.random.Generator
) -> _CutRuns:
    """Run a signal on the past alone and on a changed future at each cut."""
    runs = _CutRuns()
    for number, cut in enumerate(places):
        try:
            then = run_signal(function, known_at(frame, cut))
        except Unusable as error:
            runs.failed[cut] = str(error)
        else:
            runs.used.append(cut)
            _compare("prefix", cut, then, values[:cut], runs.differences)
        try:
            later = run_signal(function, scrambled(frame, cut, draw, number))
        except Unusable as error:
            if cut not in runs.failed:
                runs.refused[cut] = str(error)
            continue
        _compare("scramble", cut, values[:cut], later[:cut], runs.differences)
    return runs


def _failures(runs: _CutRuns, bars: int) -> tuple[list[Finding], list[str]]:
    """Return what to say of runs that failed: findings where too few are left to tell, else notes."""
    findings, notes = [], []
    if runs.failed:
        most, why = max(runs.failed.items())
        if not runs.used or most > bars // 2:
            findings.append(Finding("error", f"on the first {most} of {bars} bars {why}, so it cannot be audited"))
        else:
            notes.append(f"on {most} bars or fewer {why}; those cuts were left out")
    if runs.refused:
        cut, why = next(iter(runs.refused.items()))
        told = f"on {len(runs.refused)} of {len(runs.used)} changed futures {why} (after {cut} bars that stayed)"
        if len(runs.refused) > len(runs.used) // 2:
            findings.append(Finding("error", f"{told}, so it cannot be audited"))
        else:
            notes.append(f"{told}; those were left out")
    return findings, notes


def _earliest(
    function: Signal, frame: pd.DataFrame, values: Floats, differences: Sequence[Difference], used: Sequence[int]
) -> list[Difference]:
    """Return where the past alone first gives other values, by halving the bars between two cuts; none: not known."""
    cuts = [each.cut for each in differences if each.test == "prefix" and not is_rounding(each)]
    if not cuts:
        return []
    changes = min(cuts)
    agrees = max((cut for cut in used if cut < changes), default=0)
    found: list[Difference] = []
    while changes - agrees > 1:
        cut, there = (agrees + changes) // 2, list[Difference]()
        try:
            _compare("prefix", cut, run_signal(function, known_at(frame, cut)), values[:cut], there)
        except Unusable:
            there = []
        if there and not is_rounding(there[0]):
            changes, found = cut, there
        else:
            agrees = cut
    return found


def _compare(test: str, cut: int, then: Floats, later: Floats, differences: list[Difference]) -> None:
    if then.shape != later.shape:
        then = np.full_like(later, np.nan)
    changed = changed_rows(then, later)
    if changed.any():
        much = changed_rows(then, later, ROUNDING)
        differences.append(Difference(test, cut, then, later, much if much.any() else changed))


def _lag_sweep(values: Floats, frame: pd.DataFrame) -> tuple[LagPower, ...]:
    """Return the rank correlation of a signal with returns before and after it."""
    if values.shape[1] != 1 or "close" not in frame.columns or frame["close"].ndim != 1:
        return ()
    close = pd.to_numeric(frame["close"], errors="coerce").to_numpy(np.float64)
    returns = np.full(len(close), np.nan)
    good = (close[1:] > 0) & (close[:-1] > 0)
    returns[1:] = np.log(np.divide(close[1:], close[:-1], out=np.full(len(close) - 1, np.nan), where=good))
    found = []
    for lag in range(-LAGS, LAGS + 1):
        signal = values[max(0, -lag) : len(values) - max(0, lag), 0]
        outcome = returns[max(0, lag) : len(returns) - max(0, -lag)]
        known = np.isfinite(signal) & np.isfinite(outcome)
        if known.sum() < LEAST_BARS or is_constant(signal[known]) or is_constant(outcome[known]):
            return ()
        ranks = [pd.Series(each[known]).rank().to_numpy() for each in (signal, outcome)]
        found.append(LagPower(lag, float(np.corrcoef(*ranks)[0, 1]), 1.0 / math.sqrt(int(known.sum()) - 1)))
    return tuple(found)


def _lag_notes(lags: Sequence[LagPower]) -> Iterator[str]:
    power = {each.lag: each for each in lags}
    if not power:
        return
    following = max((power[lag] for lag in range(1, LAGS + 1)), key=lambda each: abs(each.correlation))
    if abs(following.correlation) >= _TOO_GOOD:
        yield (
            f"its rank correlation with the return {following.lag} bar(s) later is {following.correlation:.2f}, more "
            "than anybody has: do the data themselves hold the future?"
        )
    past = max((power[lag] for lag in (-1, 0)), key=lambda each: abs(each.correlation))
    if abs(past.correlation) > 4 * past.error and abs(following.correlation) < 3 * following.error:
        yield (
            f"it tells what has happened (rank correlation {past.correlation:.2f} at lag {past.lag}, which nobody can "
            f"earn), not what will (at lag 1 it is {power[1].correlation:.3f} ± {power[1].error:.3f})"
        )


def check_function(function: Any, name: str) -> Signal:
    """Return a function that can be audited.

    Raises:
        InputError: it cannot be called.
    """
    if not callable(function):
        raise InputError(f"{name} is a {type(function).__name__}: name a function that takes a frame of bars")
    return function  # type: ignore[no-any-return]
