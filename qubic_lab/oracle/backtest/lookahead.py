"""Does a signal look ahead? It runs on the past alone and with other futures, and its past values must not change.

A signal takes a frame of bars and returns a number for each bar, which may depend on that bar and earlier ones. The
frame has one row for each bar; its index, or the column `closed_us`, says when each bar closes. A column `NAME` with a
column `NAME_known_us` beside it holds cells that become known at those instants, such as the body of a text that
appears after its headline.

`python -m qubic_lab.oracle.backtest.lookahead MODULE:FUNCTION FRAME RESULT CUTS SEED` reads a frame (Parquet) and
writes a report, or an error, as JSON.
"""

import contextlib
import importlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from qubic_lab.errors import InputError, QubicLabError, check_at_least, did_you_mean
from qubic_lab.oracle.backtest.lookahead_cuts import choose_cuts
from qubic_lab.oracle.backtest.lookahead_runs import (
    ROUNDING_OF_FLOAT32,
    ChangedBars,
    CutRuns,
    FreshRun,
    Signal,
    UnusableRun,
    changed_rows,
    closes_us,
    known_at,
    large_value,
    run_prefixes,
    run_scrambles,
    run_signal,
    timed,
)
from qubic_lab.oracle.model.bars import Floats, is_constant
from qubic_lab.oracle.model.timestamps import iso

CUTS = 32
EXTRA_S = 2.0
"""Processor time for more cuts than asked for."""
LAGS = 5
LEAST_BARS = 20
TIME_LIMIT_S = 120.0
_TOO_GOOD = 0.3


@dataclass(frozen=True)
class LookaheadFinding:
    """One thing that is wrong with a signal, in one line.

    Attributes:
        kind: look-ahead or state; or error, output, input or not repeatable.
        leaks: whether it uses what was not known; otherwise it cannot be checked, or trusted, for another reason.
        test: prefix or scramble, or neither.
        bar: the first bar that changed at any cut; `closed`: when it closed; `cut`: number of bars that were known.
        then: the bar's value from what was known; `later`: its value with later or other bars. None: missing or
            infinite.
    """

    kind: str
    text: str
    leaks: bool = False
    test: str = ""
    bar: int | None = None
    closed: str | None = None
    cut: int | None = None
    then: float | None = None
    later: float | None = None


@dataclass(frozen=True)
class LagPower:
    """Rank correlation of a signal with the return `lag` bars after its bar (1: the first that can be earned).

    `error` is its standard error without skill.
    """

    lag: int
    correlation: float
    error: float


@dataclass(frozen=True)
class LookaheadReport:
    """What a check found, the worst first; as text, one line for all findings.

    `cuts` are the numbers of known bars in the tests that could be run; `lags` are empty without closes, or where the
    signal does not vary.
    """

    name: str
    bars: int
    cuts: tuple[int, ...]
    findings: tuple[LookaheadFinding, ...]
    lags: tuple[LagPower, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def leaks(self) -> bool:
        """Whether the signal uses what was not known."""
        return any(finding.leaks for finding in self.findings)

    def __str__(self) -> str:
        if self.passed:
            return f"{self.name} does not look ahead: no cut through {self.bars} bars changed what was before it"
        return f"{self.name}: " + "; ".join(finding.text for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {**asdict(self), "passed": self.passed, "leaks": self.leaks, "text": str(self)}


def check_lookahead(
    function: Signal, frame: pd.DataFrame, cuts: int = CUTS, seed: int = 0, extra_s: float = EXTRA_S
) -> LookaheadReport:
    """Check whether a signal looks ahead.

    Another process runs it on all bars. This process, which has seen none, runs it on the bars before each cut as they
    were known then (prefix), in order of time, so that a signal cannot keep what it has seen of later bars. At some of
    the cuts it also runs on all bars with those after the cut changed (scramble). The values before each cut must not
    differ, except for rounding.

    Args:
        function: takes a frame, returns a number for each row: [bars] or [bars, assets], NaN where it has none.
        frame: of bars, see the module; each run gets a copy.
        cuts: least number of cuts; half of them crowd at the first bars, where warm-ups are filled in.
        seed: of cuts and changed values.
        extra_s: processor time for more cuts: at unusual bars and ends of days, then anywhere, up to every bar; they
            end where a leak is found.

    Raises:
        InputError: too few bars or cuts, or bars out of order. Errors of the function are findings.
    """
    check_at_least("cuts", cuts, 1)
    check_at_least("bars to audit", len(frame), LEAST_BARS)
    _check_frame(frame)
    inner = getattr(function, "func", function)
    name = str(getattr(inner, "__qualname__", type(inner).__name__))
    bars, draw, notes = len(frame), np.random.default_rng(seed), list[str]()
    whole, copy_s = timed(lambda: known_at(frame, bars))
    with FreshRun(function, whole) as fresh:
        seen = fresh.wait()
    try:
        if seen is None:
            notes.append("a run in a fresh process gave nothing, so kept state was not checked")
        values, run_s = seen or timed(lambda: run_signal(function, known_at(frame, bars)))
        most = _affordable(cuts, bars, copy_s + run_s, extra_s)
        both, more = choose_cuts(frame, values, cuts, most, draw)
        runs = run_prefixes(function, frame, values, both, more)
        again, faults = _run_twice(function, frame)
    except UnusableRun as error:
        return LookaheadReport(name, bars, (), (LookaheadFinding(error.kind, str(error)),))
    if any(fault.kind == "not repeatable" for fault in faults):
        return LookaheadReport(name, bars, (), tuple(faults))
    state = _kept_state(function, frame, values, again, runs.differences)
    if state is not None:
        runs.differences.clear()
    run_scrambles(runs, function, frame, again, both, draw)
    shown = [each for each in runs.differences if not _is_rounding(each, runs.differences)]
    if runs.differences and not shown:
        notes.append(_rounding_note(runs.differences))
    findings = [state] if state is not None else []
    findings += [_describe(frame, shown)] if shown else []
    findings += faults
    _report_failures(runs, bars, findings, notes)
    if np.isnan(values).all():
        notes.append("it gives no number at any bar, so no change could be seen")
    lags = _lag_sweep(values, frame)
    return LookaheadReport(name, bars, tuple(runs.used), tuple(findings), lags, (*notes, *_lag_notes(lags)))


def _affordable(cuts: int, bars: int, run_s: float, extra_s: float) -> int:
    """Return how many cuts fit in a time; doubling the number keeps it the same from run to run."""
    most = cuts
    while most < bars and 2 * most * run_s <= extra_s:
        most *= 2
    return most


def _is_rounding(change: ChangedBars, among: Sequence[ChangedBars]) -> bool:
    """Return whether a difference is rounding: a tiny one, or a small one where other futures change no bit.

    `np.log` rounds the last values of an array differently, and products of matrices in float32 do so by more.
    """
    scramble = any(each.test == "scramble" for each in among)
    return change.is_rounding() or (not scramble and change.is_rounding(ROUNDING_OF_FLOAT32))


def _rounding_note(differences: Sequence[ChangedBars]) -> str:
    if any(each.test == "scramble" for each in differences):
        return "later bars are in the calculation, but change its values by rounding alone"
    return "its values are rounded differently by the number of bars; what the bars hold changes no bit"


def _check_frame(frame: pd.DataFrame) -> None:
    """Check that columns have different names, and that rows go by time, so that those before a cut are the past."""
    if not frame.columns.is_unique:
        raise InputError(f"the frame has columns twice: {list(frame.columns[frame.columns.duplicated()])}")
    closed = closes_us(frame)
    back = np.zeros(0, np.bool_) if closed is None else np.diff(closed) <= 0
    if back.any():
        bar = int(back.argmax()) + 1
        raise InputError(f"bar {_named(frame, bar)} does not close after the one before: sort bars by time")


def _named(frame: pd.DataFrame, bar: int) -> str:
    closed = _closed(frame, bar)
    return str(bar) if closed is None else f"{bar} ({closed})"


def _closed(frame: pd.DataFrame, bar: int) -> str | None:
    closed = closes_us(frame)
    return None if closed is None else iso(int(closed[bar]))


def _run_twice(function: Signal, frame: pd.DataFrame) -> tuple[Floats, list[LookaheadFinding]]:
    """Return a signal's values on all bars, and whether it changes its input or differs from itself."""
    given, whole = known_at(frame, len(frame)), known_at(frame, len(frame))
    values = run_signal(function, given)
    changed = changed_rows(values, run_signal(function, whole.copy(deep=True)))
    faults = []
    if not given.equals(whole):
        gone = [str(column) for column in whole if column not in given or not given[column].equals(whole[column])]
        what = ", ".join(gone + [str(column) for column in given if column not in whole]) or "the index"
        faults.append(LookaheadFinding("input", f"it changes the frame that it is given ({what}): work on a copy"))
    if changed.any():
        bar = int(changed.argmax())
        text = f"two runs on the same bars differ at bar {_named(frame, bar)}: seed its random numbers"
        faults.append(LookaheadFinding("not repeatable", text, bar=bar))
    return values, faults


def _kept_state(
    function: Signal, frame: pd.DataFrame, values: Floats, again: Floats, differences: Sequence[ChangedBars]
) -> LookaheadFinding | None:
    """Return a finding where the order of runs decides: the signal keeps something of later bars between them.

    `values` are those of a process that saw all bars at once, `again` those of this one, which saw fewer before.
    """
    margin = ROUNDING_OF_FLOAT32 * large_value(values)  # processes may use other numbers of threads
    cut, changed = len(frame), changed_rows(values, again, margin)
    if not changed.any():
        real = [each for each in differences if not each.is_rounding(ROUNDING_OF_FLOAT32)]
        if not real:
            return None
        first = min(real, key=lambda each: each.cut)
        try:  # now that all bars have been seen, is the difference gone?
            later = run_signal(function, known_at(frame, first.cut))
        except UnusableRun:
            return None
        cut, changed = first.cut, first.changed & ~changed_rows(later, first.later, margin)
        if not changed.any():
            return None
    bar = int(changed.argmax())
    text = (
        f"bar {_named(frame, bar)} on {'all' if cut == len(frame) else f'the first {cut}'} bars depends on what was "
        "run before: it keeps something of other bars between runs"
    )
    return LookaheadFinding("state", text, leaks=True, bar=bar, closed=_closed(frame, bar), cut=cut)


def _report_failures(runs: CutRuns, bars: int, findings: list[LookaheadFinding], notes: list[str]) -> None:
    """Report failed runs: a finding where too few are left to judge by, otherwise a note."""
    if runs.failed:
        most, why = max(runs.failed.items())
        if not runs.used or most > bars // 2:
            text = f"on the first {most} of {bars} bars {why}, so it cannot be audited"
            findings.append(LookaheadFinding("error", text))
        else:
            notes.append(f"on {most} bars or fewer {why}; those cuts were left out")
    if runs.refused:
        cut, why = next(iter(runs.refused.items()))
        text = f"on {len(runs.refused)} of {runs.futures} changed futures {why} (after {cut} bars that stayed)"
        if len(runs.refused) > runs.futures // 2:
            findings.append(LookaheadFinding("error", f"{text}, so it cannot be audited"))
        else:
            notes.append(f"{text}; those were left out")


def _describe(frame: pd.DataFrame, differences: Sequence[ChangedBars]) -> LookaheadFinding:
    """Return the finding with the first bar that changed, its two values, and how far ahead values look."""
    first = min(differences, key=lambda each: (each.first, each.test, each.cut))
    bar, cut, reach = first.first, first.cut, max(each.cut - each.first for each in differences)
    column = int(np.flatnonzero(changed_rows(first.then[bar][:, None], first.later[bar][:, None]))[0])
    then, later = float(first.then[bar, column]), float(first.later[bar, column])
    known = "the only bar known then" if cut == 1 else f"the {cut} bars known then"
    before, after = ("missing" if math.isnan(value) else f"{value:.6g}" for value in (then, later))
    if first.test == "scramble":
        how = f"is {before}, and {after} once the bars after it were changed"
    else:
        how = f"is {before} from {known}, and {after} from all {len(frame)}"
    why = f"values depend on up to {reach} later bar{'s' if reach > 1 else ''}"
    return LookaheadFinding(
        kind="look-ahead",
        text=f"bar {_named(frame, bar)} {how}: {why}",
        leaks=True,
        test=first.test,
        bar=bar,
        closed=_closed(frame, bar),
        cut=cut,
        then=then if math.isfinite(then) else None,
        later=later if math.isfinite(later) else None,
    )


def _lag_sweep(values: Floats, frame: pd.DataFrame) -> tuple[LagPower, ...]:
    """Return the rank correlation of a signal with returns before and after its bar."""
    if values.shape[1] != 1 or "close" not in frame.columns or frame["close"].ndim != 1:
        return ()
    close = pd.to_numeric(frame["close"], errors="coerce").to_numpy(np.float64, copy=True)
    close[~(close > 0.0)] = np.nan
    returns = np.log(np.append(np.nan, close[1:] / close[:-1]))
    found = []
    for lag in range(-LAGS, LAGS + 1):
        scores = values[max(0, -lag) : len(values) - max(0, lag), 0]
        outcome = returns[max(0, lag) : len(returns) - max(0, -lag)]
        known = np.isfinite(scores) & np.isfinite(outcome)
        if known.sum() < LEAST_BARS or is_constant(scores[known]) or is_constant(outcome[known]):
            return ()
        ranks = [pd.Series(each[known]).rank() for each in (scores, outcome)]  # SciPy's statistics take 0.7 s to import
        correlation = float(np.corrcoef(*ranks)[0, 1])
        found.append(LagPower(lag, correlation, 1.0 / math.sqrt(int(known.sum()) - 1)))
    return tuple(found)


def _lag_notes(lags: Sequence[LagPower]) -> Iterator[str]:
    power = {each.lag: each for each in lags}
    if not power:
        return
    following = max((power[lag] for lag in range(1, LAGS + 1)), key=lambda each: abs(each.correlation))
    if abs(following.correlation) >= _TOO_GOOD:
        yield (
            f"its rank correlation with the return {following.lag} bar(s) later is {following.correlation:.2f}, which "
            "is too good to be true: do the data themselves hold the future?"
        )
    past = max((power[lag] for lag in (-1, 0)), key=lambda each: abs(each.correlation))
    if abs(past.correlation) > 4 * past.error and abs(following.correlation) < 3 * following.error:
        yield (
            f"it describes the past (rank correlation {past.correlation:.2f} at lag {past.lag}, which nobody can earn) "
            f"and not the future (at lag 1 it is {power[1].correlation:.3f} ± {power[1].error:.3f})"
        )


def check_by_name(
    target: str, frame: pd.DataFrame, cuts: int = CUTS, seed: int = 0, time_limit_s: float = TIME_LIMIT_S
) -> LookaheadReport:
    """Check the function MODULE:FUNCTION, found from the working folder, in a process of its own.

    The process, and what it started, is ended after the time limit; for the rest see `check_lookahead`.

    Raises:
        InputError: the function cannot be found, or took too long.
        QubicLabError: the process ended without a report.
    """
    _split(target)
    with tempfile.TemporaryDirectory(prefix="qubic-lab-audit-") as folder:
        data, result, errors = (Path(folder) / name for name in ("frame.parquet", "report.json", "errors.txt"))
        frame.to_parquet(data)
        command = [sys.executable, "-P", "-m", "qubic_lab.lifeline", str(os.getpid()), __name__]
        command += [target, str(data), str(result), str(cuts), str(seed)]
        with (
            errors.open("wb") as said,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            ) as process,
        ):
            try:
                status = process.wait(time_limit_s)
            except subprocess.TimeoutExpired:
                raise InputError(
                    f"{target} was not audited within {time_limit_s:g} s: give fewer bars or cuts, or more time"
                ) from None
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it started
        if not result.exists():
            last = errors.read_text("utf-8", "replace").strip().splitlines()[-1:]
            said_last = f" ({last[0][:200]})" if last else ""
            raise QubicLabError(f"{target} ended its process with status {status} before the audit was done{said_last}")
        content = json.loads(result.read_text("utf-8"))
    if "error" in content:
        raise InputError(content["error"])
    return TypeAdapter(LookaheadReport).validate_python(content)


def _split(target: str) -> tuple[str, str]:
    module, colon, name = target.partition(":")
    if not (colon and module and name):
        raise InputError(f"{target!r} names no function: give MODULE:FUNCTION, such as my_signals:momentum")
    if "/" in module:
        path = os.path.relpath(module)
        if path.startswith(".."):
            raise InputError(f"{module!r} is not below the working folder: go to its folder first, or name a module")
        module = path
    return module.removesuffix(".py").replace("/", "."), name


def load_function(target: str) -> Signal:
    """Return the function MODULE:FUNCTION, found from the working folder.

    Raises:
        InputError: there is none; the message says why.
    """
    module_name, name = _split(target)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(f"module {module_name!r} cannot be imported ({type(error).__name__}: {text})") from error
    if not hasattr(module, name):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"module {module_name!r} has no {name!r}: {did_you_mean(name, known)}")
    function: Signal = getattr(module, name)
    if not callable(function):
        raise InputError(f"{target} is a {type(function).__name__}: name a function that takes a frame of bars")
    return function


def main() -> None:
    """Check one function and write what was found."""
    target, data, result, cuts, seed = sys.argv[1:]
    sys.stdin = io.StringIO()  # a function that asks for input gets none, and does not wait
    content: dict[str, Any]
    try:
        content = asdict(check_lookahead(load_function(target), pd.read_parquet(data), int(cuts), int(seed)))
    except InputError as error:
        content = {"error": str(error)}
    part = Path(result).with_suffix(".part")
    part.write_text(json.dumps(content), "utf-8")
    part.replace(result)


if __name__ == "__main__":
    main()
