"""Whether a signal looks ahead: it is run on the past alone and on changed futures, and must not notice.

A signal takes a frame of bars and gives a number for each, which may use that bar and earlier ones. The frame has one
row a bar; its index, or the column `closed_us`, says when each closes. A column `NAME` with a column `NAME_known_us`
beside it holds cells that become known at those instants, such as the body of a text that appears after its headline.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.audit.frames import known_at, scrambled
from qubic_lab.oracle.audit.kinds import diagnose, when
from qubic_lab.oracle.audit.report import AuditReport, Finding, LagPower
from qubic_lab.oracle.audit.runs import ROUNDING, Difference, Signal, Unusable, changed_rows, is_rounding, run_signal
from qubic_lab.oracle.audit.watch import clock_names, clock_watched, data_held, reads_watched, state_of
from qubic_lab.oracle.resampling import Floats, is_constant

CUTS = 32
LAGS = 5
LEAST_BARS = 20
_TOO_GOOD = 0.3


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
        InputError: too few bars or cuts. Errors of the function are findings.
    """
    check_at_least("cuts", cuts, 1)
    check_at_least("bars to audit", len(frame), LEAST_BARS)
    name = str(getattr(getattr(function, "func", function), "__qualname__", type(function).__name__))
    bars = len(frame)
    try:
        values, faults = _first_runs(function, frame)
    except Unusable as error:
        return AuditReport(name, bars, (), (Finding(error.kind, f"{name}: {error}"),))
    if any(fault.kind == "not repeatable" for fault in faults):
        return AuditReport(name, bars, (), tuple(_named(name, faults)))
    draw = np.random.default_rng(seed)
    differences, used, failed = _cut_runs(function, frame, values, _places(frame, cuts, draw), draw)
    notes = []
    differences, told = _without_rounding(differences)
    notes += told
    if failed:
        most, why = max(failed.items())
        if not used or most > bars // 2:
            faults.append(Finding("error", f"on the first {most} of {bars} bars {why}, so it cannot be audited"))
        else:
            notes.append(f"on {most} bars or fewer {why}; those cuts were left out")
    if differences:
        faults.insert(0, diagnose(function, frame, values, differences, used))
    if np.isnan(values).all():
        notes.append("it gives no number at any bar, so nothing could be seen to change")
    lags = _lag_sweep(values, frame)
    return AuditReport(name, bars, tuple(used), tuple(_named(name, faults)), lags, (*notes, *_lag_notes(lags)))


def _without_rounding(differences: list[Difference]) -> tuple[list[Difference], list[str]]:
    """Return no differences, and a note, where values are rounded by the number of bars, not by what is in them.

    Vectorised functions such as `np.log` may round the last values of an array otherwise than those before.
    """
    if not differences or not all(each.test == "prefix" and is_rounding(each) for each in differences):
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


def _cut_runs(
    function: Signal, frame: pd.DataFrame, values: Floats, places: Sequence[int], draw: np.random.Generator
) -> tuple[list[Difference], list[int], dict[int, str]]:
    """Return where known bars changed, the cuts that could be run, and why others could not."""
    differences: list[Difference] = []
    used: list[int] = []
    failed: dict[int, str] = {}
    for number, cut in enumerate(places):
        try:
            then = run_signal(function, known_at(frame, cut))
        except Unusable as error:
            failed[cut] = str(error)
        else:
            used.append(cut)
            _compare("prefix", cut, then, values[:cut], differences)
        try:
            later = run_signal(function, scrambled(frame, cut, draw, number))
        except Unusable:
            continue
        _compare("scramble", cut, values[:cut], later[:cut], differences)
    return differences, used, failed


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
