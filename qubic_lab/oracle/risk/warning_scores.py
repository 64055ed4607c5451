"""What past warnings were worth: beside chance, and beside a rule on volatility that warns for as much of the time."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.response import Instant, Part, Share
from qubic_lab.oracle.model.timestamps import DAY_US, iso
from qubic_lab.oracle.risk.forecast_tests import ALPHA
from qubic_lab.oracle.risk.measures import Level, WindowLengths
from qubic_lab.oracle.risk.models import realised_volatility
from qubic_lab.oracle.risk.rolling import recent_drawdown, rolling
from qubic_lab.stats import bootstrap_interval, mcnemar_exact, wilson_interval

MONTH_US = 365 * DAY_US // 12
QUANTILES = tuple(number / 100 for number in range(50, 100))
"""Quantiles of volatility that the naive rule may have."""
_LEAST_LEADS = 5


def find_falls(bars: Bars, window: int, drop: float) -> NDArray[np.intp]:
    """Return the bars at which the close is first a share `drop` below the highest of the last `window` closes.

    The next fall counts once the close has been less far below such a high, and after `window` bars at least.

    Raises:
        InputError: fewer than 2 bars, or a drop outside 0 to 1.
    """
    if not 0.0 < drop < 1.0:
        raise InputError(f"drop is {drop}: give a share between 0 and 1, such as 0.1")
    kept: list[int] = []
    for bar in _first_of_each_run(recent_drawdown(bars.close, window) >= drop).tolist():
        if not kept or bar - kept[-1] >= window:
            kept.append(bar)
    return np.array(kept, np.intp)


def naive_warnings(bars: Bars, window: int = 24, usual_bars: int = 480, quantile: float = 0.95) -> NDArray[np.intp]:
    """Return where realised volatility rises above a quantile of its last values: the baseline for warnings.

    Warm-up: `window` + `usual_bars` bars.

    Raises:
        InputError: a quantile outside 0 to 1, or windows that are too short.
    """
    if not 0.0 < quantile < 1.0:
        raise InputError(f"quantile is {quantile}: it must lie between 0 and 1")
    check_at_least("usual_bars", usual_bars, 2)
    # A value is above the k-th lowest of the last values if k of them are below it.
    below = bars.once(f"volatility ranks {window} {usual_bars}", lambda each: _ranks(each, window, usual_bars))
    return _first_of_each_run(below >= math.ceil(quantile * usual_bars))


def _ranks(bars: Bars, window: int, usual_bars: int) -> Floats:
    """Return how many of the last `usual_bars` values of realised volatility are below each value, [bars]."""

    def count(part: Floats) -> Floats:
        found = np.asarray((part[:, :-1] < part[:, -1:]).sum(axis=1), np.float64)
        found[np.isnan(part).any(axis=1)] = np.nan
        return found

    return rolling(realised_volatility(bars, window), usual_bars + 1, count)


def _first_of_each_run(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    return np.flatnonzero(flags & ~np.concatenate([[False], flags[:-1]]))


@dataclass(frozen=True, kw_only=True)
class IntervalEstimate(Part):
    """A number with its 95 % interval; null where there are no data, or too few, to estimate it."""

    value: float | None
    low: float | None
    high: float | None


_NO_ESTIMATE = IntervalEstimate(value=None, low=None, high=None)


@dataclass(frozen=True, kw_only=True)
class WarningScore(Part):
    """What warnings were worth.

    Attributes:
        warnings: raised while no earlier one was standing; a warning stands for the horizon.
        right: warnings with a fall within the horizon.
        precision: right / warnings.
        precision_by_chance: precision of warnings at random times.
        falls: that should have been warned of.
        found: falls with a warning raised within the horizon before.
        recall: found / falls.
        recall_by_chance: recall of falls at random times, which is the share of the time under warning.
        false_alarms_a_month: per 365 / 12 days.
        lead_h: median hours from the first warning within the horizon to its fall.
    """

    warnings: int
    right: int
    precision: IntervalEstimate
    precision_by_chance: Share
    falls: int
    found: int
    recall: IntervalEstimate
    recall_by_chance: Share
    false_alarms_a_month: IntervalEstimate
    lead_h: IntervalEstimate


def evaluate_warnings(
    warnings_us: ArrayLike, falls_us: ArrayLike, start_us: int, end_us: int, horizon_us: int, seed: int = 0
) -> WarningScore:
    """Return how good warnings were, with 95 % intervals.

    Args:
        warnings_us: when they were raised.
        falls_us: when the falls came; a warning at the same instant is too late.
        start_us: start of the period in which warnings could be raised: the end of the warm-up.
        end_us: end of the period; a warning whose horizon ends later is not judged.
        horizon_us: how far a warning looks ahead, and how long it stands: warnings raised meanwhile belong to it.
        seed: of the bootstrap of the lead time.

    Intervals: Wilson's for shares, P. Garwood's (Biometrika 28, 1936) for the rate of false alarms, the bootstrap for
    the lead time. Standing warnings do not overlap, so they count as independent.

    Raises:
        InputError: a horizon below 1, or a period that is no longer than the horizon.
    """
    check_at_least("horizon in microseconds", horizon_us, 1)
    if end_us - horizon_us <= start_us:
        raise InputError(f"the period from {iso(start_us)} to {iso(end_us)} is no longer than the horizon")
    raised = _inside(warnings_us, start_us, end_us)
    judged = _standing(raised[raised <= end_us - horizon_us], horizon_us)
    falls = _inside(falls_us, start_us + 1, end_us)
    following = np.append(falls, np.iinfo(np.int64).max)[np.searchsorted(falls, judged, side="right")]
    right = int(np.count_nonzero(following - judged <= horizon_us))
    first = np.searchsorted(raised, falls - horizon_us, side="left")
    leads = falls - np.append(raised, np.iinfo(np.int64).max)[first]
    found = leads > 0
    return WarningScore(
        warnings=len(judged),
        right=right,
        precision=_share(right, len(judged)),
        precision_by_chance=_covered(falls - horizon_us, horizon_us, start_us, end_us - horizon_us),
        falls=len(falls),
        found=int(found.sum()),
        recall=_share(int(found.sum()), len(falls)),
        recall_by_chance=time_under_warning(raised, start_us, end_us, horizon_us),
        false_alarms_a_month=_rate(len(judged) - right, (end_us - horizon_us - start_us) / MONTH_US),
        lead_h=_lead(leads[found] / (DAY_US / 24), seed),
    )


@dataclass(frozen=True)
class WarningComparison:
    """Warnings and a naive rule's on the same falls, and the exact McNemar test of which finds more.

    Attributes:
        only_ours: falls that only our warnings found; likewise `only_naive`.
        p: p-value of the test.
        months: length of the period, in months of 365 / 12 days.
    """

    ours: WarningScore
    naive: WarningScore
    only_ours: int
    only_naive: int
    p: float
    months: float


def compare_warnings(
    ours_us: ArrayLike, naive_us: ArrayLike, falls_us: ArrayLike, start_us: int, end_us: int, horizon_us: int
) -> WarningComparison:
    """Evaluate warnings and a naive rule's over one period; see `evaluate_warnings` for the arguments.

    Raises:
        InputError: see `evaluate_warnings`.
    """
    ours = evaluate_warnings(ours_us, falls_us, start_us, end_us, horizon_us)
    naive = evaluate_warnings(naive_us, falls_us, start_us, end_us, horizon_us)
    falls = _inside(falls_us, start_us + 1, end_us)

    def finds(warnings_us: ArrayLike) -> NDArray[np.bool_]:
        raised = _inside(warnings_us, start_us, end_us)
        before, early = (np.searchsorted(raised, each, side="left") for each in (falls, falls - horizon_us))
        return np.asarray(before > early)

    first, second = finds(ours_us), finds(naive_us)
    only_ours, only_naive = int((first & ~second).sum()), int((second & ~first).sum())
    months = (end_us - start_us) / MONTH_US
    return WarningComparison(ours, naive, only_ours, only_naive, mcnemar_exact(only_ours, only_naive), months)


@dataclass(frozen=True, eq=False)
class MatchedWarnings:
    """Our warnings beside the naive rule that is under warning for the most similar share of the time.

    Attributes:
        falls: bars of the falls.
        fallen: median drawdown at the first warning of each fall that was found, 0 to 1; None: none was found.
        comparison: None if there is nothing to compare; `missing` says why.
        ours_share, naive_share: share of the time under warning: within the horizon after a warning.
        quantile: of volatility, above which the naive rule warns.
        start: index of the bar from which on warnings are judged.
    """

    falls: NDArray[np.intp]
    fallen: float | None = None
    comparison: WarningComparison | None = None
    ours_share: float = 0.0
    naive_share: float = 0.0
    quantile: float = math.nan
    missing: str = ""
    start: int = 0


def match_alarm_time(
    bars: Bars, warnings_us: Integers, settled: int, horizon_bars: int, drop: float, lengths: WindowLengths
) -> MatchedWarnings:
    """Compare warnings with the naive rule whose share of time under warning is nearest to theirs.

    Only that share chooses the quantile of the naive rule: what happened later does not.

    Args:
        bars: of one asset.
        warnings_us: when warnings were raised: closes of bars.
        settled: number of bars before warnings can be judged.
        horizon_bars: how far a warning looks ahead.
        drop: depth of the falls that should be warned of, 0 to 1.
        lengths: of the naive rule's windows.

    Raises:
        InputError: a drop outside 0 to 1.
    """
    falls = find_falls(bars, horizon_bars, drop)
    start = max(settled, lengths.bars + lengths.usual_bars)
    if len(bars) <= start + 2 * horizon_bars:
        return MatchedWarnings(
            falls, missing=f"{len(bars)} bars: warnings begin after {start}, and need time to be judged"
        )
    closed = bars.closed_us
    start_us, end_us = int(closed[start]), int(closed[-1])
    horizon_us = horizon_bars * bars.frame_us
    share = time_under_warning(warnings_us, start_us, end_us, horizon_us)
    tried = []
    for quantile in QUANTILES:
        naive = closed[naive_warnings(bars, lengths.bars, lengths.usual_bars, quantile)]
        naive_share = time_under_warning(naive, start_us, end_us, horizon_us)
        tried.append((abs(naive_share - share), quantile, naive_share, naive))
    _, quantile, naive_share, naive = min(tried, key=lambda each: each[:2])
    comparison = compare_warnings(warnings_us, naive, closed[falls], start_us, end_us, horizon_us)
    fallen = _drawdown_at_warning(bars, warnings_us, falls[closed[falls] > start_us], horizon_bars)
    return MatchedWarnings(falls, fallen, comparison, share, naive_share, quantile, start=start)


def _drawdown_at_warning(bars: Bars, warnings_us: Integers, falls: NDArray[np.intp], horizon: int) -> float | None:
    """Return the median drawdown at the first warning within the horizon before each fall."""
    closed, below = bars.closed_us, recent_drawdown(bars.close, horizon)
    places = np.searchsorted(closed, warnings_us)
    found = []
    for fall in falls.tolist():
        before = places[(closed[places] >= closed[fall] - horizon * bars.frame_us) & (places < fall)]
        if len(before):
            found.append(float(below[before[0]]))
    return float(np.median(found)) if found else None


@dataclass(frozen=True, kw_only=True)
class WarningRecord(Part):
    """What such warnings were worth in this coin's past, beside a naive rule with as much time under warning.

    It is computed now, by today's rules, from the analysed bars; none of these warnings was sent at its time.

    Attributes:
        level: the least level that counts as a warning.
        horizon_h, drop_pct: a warning is right if the close falls this far below a recent high within the horizon.
        naive: of a rule that warns where volatility is above one of its own quantiles; the quantile is chosen for
            equal time under warning, regardless of what happened later.
        only_ours, only_naive, p: falls that only one of them found, and the exact McNemar test of the difference.
        fallen_pct: median fall below the recent high at the first warning of each fall that was found.
    """

    level: Level
    horizon_h: float
    drop_pct: float
    start_us: Instant
    end_us: Instant
    months: float
    ours: WarningScore
    naive: WarningScore
    naive_quantile: Share
    only_ours: int
    only_naive: int
    p: float
    fallen_pct: float | None
    text: str


def record_text(found: MatchedWarnings, drop: float, horizon_h: float) -> str:
    """Return a sentence on what warnings were worth, or on why that is not known."""
    assert found.comparison is not None
    ours, naive, months = found.comparison.ours, found.comparison.naive, found.comparison.months
    period = f"{months:.1f} months" if months >= 2 else f"{months * 365 / 12:.0f} days"
    what = f"falls of {100 * drop:g} % within {span(horizon_h)}"
    if not ours.falls and not ours.warnings:
        return f"Nothing is known of such warnings: in {period} there were none, and no {what}."
    if not ours.falls:
        return f"In {period} there were no {what}, so none of the warnings ({ours.warnings}) was right."
    right = "none was raised"
    if ours.warnings:
        right = f"{ours.right} of {ours.warnings} warnings were right{_between(ours.precision)}"
        right += f", {100 * ours.precision_by_chance:.0f} % would be by chance"
    verdict = "not shown to differ from"
    if found.comparison.p < ALPHA:
        verdict = "more than" if found.comparison.only_ours > found.comparison.only_naive else "fewer than"
    return (
        f"In {period} {ours.found} of {ours.falls} {what} were found{_between(ours.recall)} with "
        f"{100 * found.ours_share:.0f} % of the time under warning; {right}. This is {verdict} what a rule on "
        f"volatility alone finds ({naive.found}, with {100 * found.naive_share:.0f} % of the time; p = "
        f"{found.comparison.p:.2g})."
    )


def span(hours: float) -> str:
    """Return a number of hours in words."""
    return f"{hours:g} h" if hours < 48 else f"{hours / 24:g} days"


def _between(estimate: IntervalEstimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({100 * estimate.low:.0f} to {100 * estimate.high:.0f} %)"


def time_under_warning(warnings_us: ArrayLike, start_us: int, end_us: int, horizon_us: int) -> float:
    """Return the share of a period that lies within the horizon after a warning."""
    return _covered(_inside(warnings_us, start_us, end_us), horizon_us, start_us, end_us)


def _inside(instants_us: ArrayLike, start_us: int, end_us: int) -> Integers:
    instants = np.sort(np.asarray(instants_us, np.int64).reshape(-1))
    return instants[(instants >= start_us) & (instants <= end_us)]


def _standing(raised: Integers, horizon_us: int) -> Integers:
    """Return the warnings that were raised while no earlier one was standing."""
    kept: list[int] = []
    for instant in raised.tolist():
        if not kept or instant - kept[-1] > horizon_us:
            kept.append(instant)
    return np.array(kept, np.int64)


def _covered(starts: Integers, length_us: int, start_us: int, end_us: int) -> float:
    """Return the share of a period that spans of one length cover."""
    covered, reached = 0, start_us
    for begin in np.sort(starts).tolist():
        low, high = max(begin, reached), min(begin + length_us, end_us)
        covered += max(0, high - low)
        reached = max(reached, high)
    return covered / (end_us - start_us)


def _share(successes: int, trials: int) -> IntervalEstimate:
    if not trials:
        return _NO_ESTIMATE
    low, high = wilson_interval(successes, trials)
    return IntervalEstimate(value=successes / trials, low=low, high=high)


def _rate(count: int, months: float) -> IntervalEstimate:
    from scipy.stats import chi2

    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    high = float(chi2.ppf(0.975, 2 * count + 2)) / 2
    return IntervalEstimate(value=count / months, low=low / months, high=high / months)


def _lead(hours: Floats, seed: int) -> IntervalEstimate:
    if not len(hours):
        return _NO_ESTIMATE
    middle = float(np.median(hours))
    if len(hours) < _LEAST_LEADS:
        return replace(_NO_ESTIMATE, value=middle)
    low, high = bootstrap_interval(lambda rows: float(np.median(hours[rows])), len(hours), seed=seed)
    return IntervalEstimate(value=middle, low=low, high=high)
