"""Whether a signal looks ahead: it is run on the past alone and on changed futures, and must not notice.

A signal takes a frame of bars and gives a number for each, which may use that bar and earlier ones. The frame has one
row a bar; its index, or the column `closed_us`, says when each closes. A column `NAME` with a column `NAME_known_us`
beside it holds cells that become known at those instants, such as the body of a text that appears after its headline.
"""

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.audit_frames import known_at, late_columns, scrambled, time_of, with_other_row
from qubic_lab.oracle.resampling import Floats, is_constant

Signal = Callable[[pd.DataFrame], Any]
Flags = NDArray[np.bool_]

CUTS = 32
LAGS = 5
LEAST_BARS = 20
_TOO_GOOD = 0.3
_ROUNDING = 1e-10
_CLOCK = frozenset({"time", "time_ns", "localtime", "gmtime", "ctime", "now", "utcnow", "today"})
_CLOCK_NAMES = frozenset({"now", "utcnow", "today"})
_CLOCK_MODULES = frozenset({"time", "datetime"})
_LOGGERS = frozenset({"logging", "warnings", "threading"})


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a signal, in one line.

    Attributes:
        kind: shift, centred window, resample, backfill, full-sample scaling, full-sample ranking, whole sample,
            published later, look-ahead or rounding; or error, output, input, state, clock, not repeatable.
        leaks: whether it uses what was not known; else it cannot be audited or trusted for another reason.
        test: prefix or scramble, where it is from one of those.
        bar: the first that changed; `closed`: when it closed; `cut`: bars that were known.
        then: its value from what was known; `later`: its value once later bars are there. None: none, or infinite.
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
    """How a signal goes with the return `lag` bars after its bar: rank correlation and its error if there is none.

    Lag 1 is the first return that can be earned; lag 0 is that of the bar itself.
    """

    lag: int
    correlation: float
    error: float


@dataclass(frozen=True)
class AuditReport:
    """What an audit found; as a text, one line or more.

    Attributes:
        passed: nothing was found.
        bars: of the frame.
        cuts: how many bars were known in each test that could be run.
        findings: what was found, the worst first.
        lags: power by lag, by rising lag; empty without closes or where the signal does not vary.
        notes: what is worth knowing beside it.
    """

    name: str
    bars: int
    cuts: tuple[int, ...]
    findings: tuple[Finding, ...]
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
            return f"{self.name} does not look ahead: {len(self.cuts)} cuts through {self.bars} bars changed nothing"
        return "; ".join(finding.text for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {**asdict(self), "passed": self.passed, "leaks": self.leaks, "text": str(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "AuditReport":
        """Return the report that `to_dict` made plain."""
        return cls(
            name=content["name"],
            bars=content["bars"],
            cuts=tuple(content["cuts"]),
            findings=tuple(Finding(**each) for each in content["findings"]),
            lags=tuple(LagPower(**each) for each in content["lags"]),
            notes=tuple(content["notes"]),
        )


class _Unusable(Exception):
    """A run gave nothing that can be compared; the text says why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, eq=False)
class _Difference:
    """A test in which known bars changed: their values from what was known, and once later bars are there.

    `changed`: by more than rounding, which spreads far in running sums and would hide where a leak is; if all is
    rounding, by that.
    """

    test: str
    cut: int
    then: Floats
    later: Floats
    changed: Flags


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
    except _Unusable as error:
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
        faults.insert(0, _diagnose(function, frame, values, differences, used))
    lags = _lag_sweep(values, frame)
    return AuditReport(name, bars, tuple(used), tuple(_named(name, faults)), lags, (*notes, *_lag_notes(lags)))


def _without_rounding(differences: list[_Difference]) -> tuple[list[_Difference], list[str]]:
    """Return no differences, and a note, where values are rounded by the number of bars, not by what is in them.

    Vectorised functions such as `np.log` may round the last values of an array otherwise than those before.
    """
    if not differences or not all(each.test == "prefix" and _is_rounding(each) for each in differences):
        return differences, []
    return [], ["its values are rounded otherwise by how many bars there are; what the bars hold changes no bit"]


def _named(name: str, findings: Sequence[Finding]) -> Iterator[Finding]:
    for finding in findings:
        yield Finding(**{**asdict(finding), "text": f"{name}: {finding.text}"})


def _run(function: Signal, frame: pd.DataFrame) -> Floats:
    """Return a signal's values, [bars, columns]."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = function(frame)
        except Exception as error:
            raise _Unusable("error", f"it raised {type(error).__name__}: {_one_line(error)}") from None
    if isinstance(found, pd.Series | pd.DataFrame) and len(found) == len(frame) and not found.index.equals(frame.index):
        raise _Unusable(
            "output", "what it returned has another index than the bars: give one number for each, in order"
        )
    try:
        values = np.asarray(found)
        values = values.astype(np.float64) if values.dtype.kind in "biufO" else values
    except (TypeError, ValueError):
        values = np.asarray("nothing")
    if values.dtype != np.float64 or values.ndim not in (1, 2):
        raise _Unusable("output", f"it returned a {type(found).__name__} that is not one number for each bar")
    if len(values) != len(frame):
        raise _Unusable("output", f"it returned {len(values)} values for {len(frame)} bars: give one for each")
    return values.reshape(len(values), -1)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def _first_runs(function: Signal, frame: pd.DataFrame) -> tuple[Floats, list[Finding]]:
    """Run a signal twice on all bars: does it change its input, look at the clock, or differ from itself?"""
    bars = len(frame)
    given = known_at(frame, bars)
    before = _state(function)
    values = _run(function, given)
    after = _state(function)
    faults = []
    if kept := [name for name in after if after[name] != before.get(name)]:
        names = ", ".join(sorted(kept))
        faults.append(Finding("state", f"it keeps something between runs ({names}), which may be from later bars"))
    whole = known_at(frame, bars)
    if not given.equals(whole):
        gone = [str(column) for column in whole if column not in given or not given[column].equals(whole[column])]
        added = [str(column) for column in given if column not in whole]
        what = ", ".join(gone + added) or "the index"
        faults.append(Finding("input", f"it changes the frame that it is given ({what}): work on a copy"))
    seen: set[str] = set()
    with _clock_watched(seen):
        again = _run(function, whole)
    seen |= _clock_names(function)
    if seen:
        faults.append(
            Finding("clock", f"it looks at the wall clock ({', '.join(sorted(seen))}): take times from the frame")
        )
    changed = _changed(values, again)
    if changed.any():
        bar = int(np.flatnonzero(changed)[0])
        where = f"bar {bar}{_when(frame, bar)}"
        faults.append(
            Finding(
                "not repeatable",
                f"two runs on the same bars differ at {where}: seed its random numbers, and keep nothing between runs",
                bar=bar,
            )
        )
    return values, faults


def _changed(first: Floats, second: Floats, tolerance: float = 0.0) -> Flags:
    """Return which rows differ in a bit, or by more than a share of the largest value; NaN equals NaN, and 0 −0."""
    if first.shape != second.shape:
        return np.ones(min(len(first), len(second)), np.bool_)
    differs = _differs(first, second)
    if tolerance and differs.any():
        finite = np.abs(second[np.isfinite(second)])
        with np.errstate(invalid="ignore"):
            near = np.abs(first - second) <= tolerance * (float(finite.max()) if finite.size else 0.0)
        differs &= ~near
    return np.asarray(differs.any(axis=1))


@contextmanager
def _clock_watched(seen: set[str]) -> Iterator[None]:
    """Note calls of the clock, but for those that loggers make; nothing where a profiler is at work."""
    before = sys.getprofile()
    if before is not None and not callable(before):  # one in C, which could not be put back
        yield
        return

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event != "c_call" or getattr(argument, "__name__", "") not in _CLOCK:
            return
        owner = getattr(argument, "__self__", None)
        module = getattr(argument, "__module__", None) or getattr(owner, "__module__", None)
        caller = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if module in _CLOCK_MODULES and caller not in _LOGGERS:
            seen.add(f"{module}.{argument.__name__}")

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


def _clock_names(function: Signal) -> set[str]:
    """Return names such as `now` in a function's own code: calls in compiled libraries are seen in no other way."""
    return {name for code in _own_code(function) for name in _CLOCK_NAMES & set(code.co_names)}


def _own_code(function: Signal) -> set[CodeType]:
    """Return the code of a function, of those within it, and of those of its module that it calls by name."""
    inner, scope = _inner(function)
    module = scope.get("__name__")
    first = getattr(inner, "__code__", None)
    waiting: list[CodeType] = [first] if isinstance(first, CodeType) else []
    done: set[CodeType] = set()
    while waiting:
        part = waiting.pop()
        if part in done:
            continue
        done.add(part)
        waiting += [constant for constant in part.co_consts if isinstance(constant, CodeType)]
        for called in part.co_names:
            other = scope.get(called)
            code = getattr(other, "__code__", None)
            if getattr(other, "__module__", None) == module and isinstance(code, CodeType):
                waiting.append(code)
    return done


def _inner(function: Signal) -> tuple[Any, dict[str, Any]]:
    """Return the plain function behind a partial, a decorator, a method or an object, and its module's names."""
    inner: Any = function
    for name in ("func", "__wrapped__", "__func__"):
        inner = getattr(inner, name, inner)
    if not hasattr(inner, "__code__"):
        inner = getattr(type(inner).__call__, "__wrapped__", type(inner).__call__)
    return inner, getattr(inner, "__globals__", {})


def _state(function: Signal) -> dict[str, tuple[int, int]]:
    """Return what a function could keep between runs, by name: which object it is, and its size."""
    inner, scope = _inner(function)
    found = {name: scope[name] for code in _own_code(function) for name in code.co_names if name in scope}
    for owner in (function, getattr(function, "func", None), getattr(function, "__self__", None), inner):
        found |= dict(getattr(owner, "__dict__", {}))
    cells = dict(
        zip(getattr(getattr(inner, "__code__", None), "co_freevars", ()), inner.__closure__ or (), strict=False)
    )
    for name, cell in cells.items():
        with suppress(ValueError):  # the cell is empty
            found[name] = cell.cell_contents
    return {
        name: (id(value), len(value) if isinstance(value, dict | list | set) else 0) for name, value in found.items()
    }


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
) -> tuple[list[_Difference], list[int], dict[int, str]]:
    """Return where known bars changed, the cuts that could be run, and why others could not."""
    differences: list[_Difference] = []
    used: list[int] = []
    failed: dict[int, str] = {}
    for number, cut in enumerate(places):
        try:
            then = _run(function, known_at(frame, cut))
        except _Unusable as error:
            failed[cut] = str(error)
        else:
            used.append(cut)
            _compare("prefix", cut, then, values[:cut], differences)
        try:
            later = _run(function, scrambled(frame, cut, draw, number))
        except _Unusable:
            continue
        _compare("scramble", cut, values[:cut], later[:cut], differences)
    return differences, used, failed


def _compare(test: str, cut: int, then: Floats, later: Floats, differences: list[_Difference]) -> None:
    if then.shape != later.shape:
        then = np.full_like(later, np.nan)
    changed = _changed(then, later)
    if changed.any():
        much = _changed(then, later, _ROUNDING)
        differences.append(_Difference(test, cut, then, later, much if much.any() else changed))


def _when(frame: pd.DataFrame, bar: int) -> str:
    closed = time_of(frame, bar)
    return "" if closed is None else f" ({closed})"


def _diagnose(
    function: Signal, frame: pd.DataFrame, values: Floats, differences: Sequence[_Difference], used: Sequence[int]
) -> Finding:
    """Return the finding with the first bar that changed and the likely kind of leak."""
    differences = [each for each in differences if not _is_rounding(each)] or differences
    first = min(differences, key=lambda each: (int(each.changed.argmax()), each.test, each.cut))
    bar = int(first.changed.argmax())
    kind, why = _kind(function, frame, values, differences, used)
    column = int(np.flatnonzero(_differs(first.then[bar], first.later[bar]))[0])
    then, later = float(first.then[bar, column]), float(first.later[bar, column])
    shown = "the bars after it were changed" if first.test == "scramble" else f"the {first.cut} bars known then"
    told = (
        f"is {_shown(then)}, and {_shown(later)} once {shown}"
        if first.test == "scramble"
        else f"is {_shown(then)} from {shown}, and {_shown(later)} from all {len(frame)}"
    )
    return Finding(
        kind=kind,
        text=f"bar {bar}{_when(frame, bar)} {told}: {why}",
        leaks=kind != "rounding",
        test=first.test,
        bar=bar,
        closed=time_of(frame, bar),
        cut=first.cut,
        then=then if math.isfinite(then) else None,
        later=later if math.isfinite(later) else None,
    )


def _differs(first: Floats, second: Floats) -> Flags:
    return np.asarray(~((first == second) | (np.isnan(first) & np.isnan(second))))


def _shown(value: float) -> str:
    return "missing" if math.isnan(value) else f"{value:.6g}"


def _kind(
    function: Signal, frame: pd.DataFrame, values: Floats, differences: Sequence[_Difference], used: Sequence[int]
) -> tuple[str, str]:
    """Return the likely kind of leak, and what to say of it."""
    if all(_is_rounding(each) for each in differences):
        return "rounding", "the values differ by rounding alone, so later bars are in the calculation, if not in effect"
    prefixes = [each for each in differences if each.test == "prefix"]
    if columns := _late(function, frame, values, prefixes):
        return "published later", f"it uses {', '.join(columns)} before that was known ({columns[0]}_known_us)"
    told = prefixes or list(differences)
    if _is_warm_up(values, told, used):
        return "backfill", "the bars before its first value are filled in from later ones (bfill)"
    if _is_gap_filling(function, frame, told):
        return "backfill", "what is missing is filled in from later bars (bfill, interpolation or a mean)"
    wide = [each for each in told if _share_changed(each) >= 0.8 and each.cut >= 10]
    if len(wide) >= max(1, len(told) // 2):
        return _whole_sample(wide)
    ahead, behind = _footprint(function, frame, values)
    reaches = [each.cut - int(each.changed.argmax()) for each in told]
    commonest = max(set(reaches), key=reaches.count)
    steady = reaches.count(commonest) >= 0.75 * len(reaches)
    steady &= len(told) >= 0.6 * len(used) or ahead == commonest
    if steady and 0 < ahead == commonest and 0 <= behind - ahead <= 1:  # of returns, a price makes two
        return "centred window", f"each value uses {ahead} bars on both sides: centre no window"
    if steady:
        bars = "the next bar" if commonest == 1 else f"{commonest} bars ahead"
        return "shift", f"each value looks at {bars}, as shift(-{commonest}) does"
    most = max(reaches)
    if most <= len(frame) // 3:
        return (
            "resample",
            f"values look up to {most} bars ahead, some not at all: is a longer bar used before it closes?",
        )
    return "look-ahead", f"values change up to {most} bars before what they depend on"


def _is_rounding(difference: _Difference) -> bool:
    return not _changed(difference.then, difference.later, _ROUNDING).any()


def _late(function: Signal, frame: pd.DataFrame, values: Floats, prefixes: Sequence[_Difference]) -> list[str]:
    """Return the columns with late cells without whose hiding nothing would have changed."""
    late = late_columns(frame)
    if not late or not prefixes:
        return []
    cut = prefixes[-1].cut

    def changes(hidden: dict[Any, Any]) -> bool:
        try:
            return bool(_changed(_run(function, known_at(frame, cut, hidden)), values[:cut]).any())
        except _Unusable:
            return True

    if changes({}):
        return []
    return [str(column) for column, stamp in late.items() if changes({column: stamp})]


def _share_changed(difference: _Difference) -> float:
    known = ~(np.isnan(difference.then) & np.isnan(difference.later)).all(axis=1)
    return float(difference.changed.sum() / max(1, known.sum()))


def _whole_sample(wide: Sequence[_Difference]) -> tuple[str, str]:
    """Tell scaling and ranking apart from other uses of all bars."""
    affine = rising = True
    for each in wide:
        then, later = each.then[:, 0], each.later[:, 0]
        known = ~(np.isnan(then) | np.isnan(later))
        then, later = then[known], later[known]
        if len(then) < 5 or is_constant(then) or is_constant(later):
            continue
        slope, height = np.polyfit(then, later, 1)
        affine &= bool(np.abs(slope * then + height - later).max() <= 1e-6 * np.ptp(later))
        rising &= bool((np.diff(later[np.argsort(then, kind="stable")]) >= -1e-9 * np.ptp(later)).all())
    if affine:
        return (
            "full-sample scaling",
            "all values are scaled by numbers from the whole sample (mean, deviation, extremes)",
        )
    if rising:
        return "full-sample ranking", "all values are ranked or mapped by the whole sample"
    return "whole sample", "nearly all values change with later bars: something is fitted on the whole sample"


def _is_warm_up(values: Floats, told: Sequence[_Difference], used: Sequence[int]) -> bool:
    """Tell whether cuts before some bar changed all that was before, later ones nothing, and all values there are one.

    That is what filling in a warm-up from its first value does.
    """
    last, cuts = max(each.cut for each in told), {each.cut for each in told}
    early = last < len(values) // 2 and all(cut in cuts for cut in used if cut <= last)
    head = values[: last + 1, 0]
    from_start = all(int(each.changed.argmax()) == 0 for each in told)
    return bool(early and from_start and not np.isnan(head).any() and is_constant(head))


def _is_gap_filling(function: Signal, frame: pd.DataFrame, told: Sequence[_Difference]) -> bool:
    """Tell whether nothing would change in a frame that misses nothing."""
    late = late_columns(frame)
    columns = [column for column in frame.columns if column not in late and frame[column].isna().any()]
    if not columns:
        return False
    filled = frame.copy(deep=True)
    for column in columns:
        known = filled[column].dropna()
        filled[column] = filled[column].ffill().fillna(known.iloc[0] if len(known) else 0.0)
    try:
        values = _run(function, known_at(filled, len(filled)))
        cuts = [each.cut for each in told][:: max(1, len(told) // 8)]
        return not any(_changed(_run(function, known_at(filled, cut)), values[:cut]).any() for cut in cuts)
    except _Unusable:
        return False


def _footprint(function: Signal, frame: pd.DataFrame, values: Floats) -> tuple[int, int]:
    """Return how many bars before and after a single changed bar values change, at the most of some bars; 0: none."""
    draw = np.random.default_rng(0)
    ahead = behind = 0
    for place in (0.4, 0.55, 0.7):
        bar = int(place * len(frame))
        try:
            changed = np.flatnonzero(_changed(values, _run(function, with_other_row(frame, bar, draw)), _ROUNDING))
        except _Unusable:
            continue
        if changed.size:
            ahead, behind = max(ahead, bar - int(changed[0])), max(behind, int(changed[-1]) - bar)
    return ahead, behind


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
