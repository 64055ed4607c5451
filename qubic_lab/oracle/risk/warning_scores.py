"""What past warnings were worth: beside chance, and beside a rule on volatility that warns for as much of the time."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from qubic_lab.errors import InputError
from qubic_lab.oracle.inference.conditional_returns import thinned
from qubic_lab.oracle.model.bars import Bars, Flags, Floats, Integers
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.response import Frame, Instant, Part, Share
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.oracle.risk.forecast_tests import ALPHA
from qubic_lab.oracle.risk.measures import Level, WindowLengths
from qubic_lab.oracle.risk.models import realised_volatility, recent_drawdown, rolling
from qubic_lab.oracle.risk.rules import Assessment
from qubic_lab.oracle.store.claims import Claim, ClaimOutcome
from qubic_lab.stats import LEAST_DRAWN, bootstrap_interval, mcnemar_exact, wilson_interval

MONTH_US = 365 * DAY_US // 12
FALLS: dict[Frame, tuple[int, float]] = {"1h": (DAY_US, 0.04), "4h": (3 * DAY_US, 0.07), "1d": (7 * DAY_US, 0.1)}
"""The horizon, and the depth of the falls that should be warned of: round numbers, chosen before any history."""
QUANTILES = tuple(number / 100 for number in range(50, 100))
"""Quantiles of volatility that the naive rule may have."""
_NEVER = np.iinfo(np.int64).max


def find_falls(bars: Bars, window: int, drop: float) -> Integers:
    """Return the bars at which the close is first a share `drop` below the highest of the last `window` closes.

    The next fall counts once the close has been less far below such a high, and after `window` bars at least.

    Raises:
        InputError: a drop outside 0 to 1.
    """
    if not 0.0 < drop < 1.0:
        raise InputError(f"drop is {drop}: give a share between 0 and 1, such as 0.1")
    return thinned(_first_of_each_run(recent_drawdown(bars.close, window) >= drop), window)


def volatility_ranks(bars: Bars, window: int, usual_bars: int) -> Floats:
    """Return how many of the last `usual_bars` values of realised volatility are below each value, [bars].

    Warm-up: `window` + `usual_bars` bars.
    """

    def count(part: Floats) -> Floats:
        found = np.asarray((part[:, :-1] < part[:, -1:]).sum(axis=1), np.float64)
        found[np.isnan(part).any(axis=1)] = np.nan
        return found

    return rolling(realised_volatility(bars, window), usual_bars + 1, count)


def _first_of_each_run(flags: Flags) -> Integers:
    return np.flatnonzero(flags & ~np.concatenate([[False], flags[:-1]]))


@dataclass(frozen=True, kw_only=True)
class IntervalEstimate(Part):
    """A number with its 95 % interval; null where there are no data, or too few, to estimate it."""

    value: Annotated[float | None, Field(description="null: there are no data")]
    low: Annotated[float | None, Field(description="the interval's lower end; null: too few data")]
    high: Annotated[float | None, Field(description="the interval's upper end; null: too few data")]

    def shown(self) -> str:
        """Return it for a table, with two decimals."""
        if self.value is None:
            return "none"
        if self.low is None or self.high is None:
            return f"{self.value:.2f} (too few)"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


_NO_ESTIMATE = IntervalEstimate(value=None, low=None, high=None)


@dataclass(frozen=True, kw_only=True)
class WarningScore(Part):
    """What warnings were worth.

    Attributes:
        warnings: raised while no earlier one was standing; a warning stands for the horizon.
        right: warnings with a fall within the horizon; `precision` is their share, by chance that at random times.
        found: falls with a warning raised within the horizon before; `recall` is their share.
        recall_by_chance: recall of falls at random times: the share of the time within the horizon after a warning.
        false_alarms_a_month: per 365 / 12 days.
        lead_h: median hours from the first warning within the horizon to its fall.
    """

    warnings: int
    right: int
    precision: IntervalEstimate
    precision_by_chance: Share
    falls: Annotated[int, Field(description="number of falls in the period")]
    found: int
    recall: IntervalEstimate
    recall_by_chance: Share
    false_alarms_a_month: IntervalEstimate
    lead_h: IntervalEstimate


def evaluate_warnings(
    warnings_us: ArrayLike, falls_us: ArrayLike, start_us: int, end_us: int, horizon_us: int
) -> WarningScore:
    """Return how good the warnings of a period were, with 95 % intervals; the period is longer than the horizon.

    A warning at the instant of a fall is too late; one whose horizon ends after the period is not judged. A warning
    stands for the horizon: warnings raised meanwhile belong to it.

    Intervals: Wilson's for shares, P. Garwood's (Biometrika 28, 1936) for the rate of false alarms, the bootstrap for
    the lead time. Standing warnings do not overlap, so they count as independent.
    """
    raised, falls = _inside(warnings_us, start_us, end_us), _inside(falls_us, start_us + 1, end_us)
    judged = thinned(raised[raised <= end_us - horizon_us], horizon_us + 1)
    following = np.append(falls, _NEVER)[np.searchsorted(falls, judged, side="right")]
    right = int(np.count_nonzero(following - judged <= horizon_us))
    leads = _leads(raised, falls, horizon_us)
    found = leads > 0
    return WarningScore(
        warnings=len(judged),
        right=right,
        precision=_share(right, len(judged)),
        precision_by_chance=_covered(falls - horizon_us, horizon_us, start_us, end_us - horizon_us),
        falls=len(falls),
        found=int(found.sum()),
        recall=_share(int(found.sum()), len(falls)),
        recall_by_chance=_covered(raised, horizon_us, start_us, end_us),
        false_alarms_a_month=_rate(len(judged) - right, (end_us - horizon_us - start_us) / MONTH_US),
        lead_h=_lead(leads[found] / HOUR_US),
    )


def _leads(raised: Integers, falls: Integers, horizon_us: int) -> Integers:
    """Return the time from the first warning within the horizon to each fall; 0 or below where there is none."""
    first = np.searchsorted(raised, falls - horizon_us, side="left")
    return np.asarray(falls - np.append(raised, _NEVER)[first])


@dataclass(frozen=True, kw_only=True)
class WarningComparison(Part):
    """Warnings and a naive rule's on the same falls, and the exact McNemar test of which finds more."""

    ours: WarningScore
    naive: WarningScore
    only_ours: Annotated[int, Field(description="falls that only these warnings found")]
    only_naive: Annotated[int, Field(description="falls that only the naive rule found")]
    p: Annotated[float, Field(description="p-value of the exact McNemar test of which finds more")]
    months: Annotated[float, Field(description="length of the period; a month has 365 / 12 days")]


def compare_warnings(
    ours_us: ArrayLike, naive_us: ArrayLike, falls_us: ArrayLike, start_us: int, end_us: int, horizon_us: int
) -> WarningComparison:
    """Evaluate warnings and a naive rule's over one period; see `evaluate_warnings` for the arguments."""
    both = ours_us, naive_us
    ours, naive = (evaluate_warnings(each, falls_us, start_us, end_us, horizon_us) for each in both)
    falls = _inside(falls_us, start_us + 1, end_us)
    by_ours, by_naive = (_leads(_inside(each, start_us, end_us), falls, horizon_us) > 0 for each in both)
    only_ours, only_naive = int((by_ours & ~by_naive).sum()), int((by_naive & ~by_ours).sum())
    return WarningComparison(
        ours=ours,
        naive=naive,
        only_ours=only_ours,
        only_naive=only_naive,
        p=mcnemar_exact(only_ours, only_naive),
        months=(end_us - start_us) / MONTH_US,
    )


@dataclass(frozen=True, eq=False)
class MatchedWarnings:
    """Our warnings beside the naive rule that is under warning for the most similar share of the time.

    Attributes:
        falls: bars of the falls.
        fallen: median drawdown at the first warning of each fall that was found, 0 to 1; None: none was found.
        comparison: None if there is nothing to compare; `missing` says why.
        quantile: of volatility, above which the naive rule warns.
        start: index of the bar from which on warnings are judged.
    """

    falls: Integers
    fallen: float | None = None
    comparison: WarningComparison | None = None
    quantile: float = math.nan
    missing: str = ""
    start: int = 0


def match_alarm_time(
    bars: Bars, assessment: Assessment, level: str, horizon_bars: int, drop: float, lengths: WindowLengths
) -> MatchedWarnings:
    """Compare warnings with the naive rule whose share of time under warning is nearest to theirs.

    Only that share chooses the quantile of the naive rule: what happened later does not.

    Args:
        bars: of one asset.
        assessment: of the bars; rises to `level` or above are warnings, which are judged once it is settled.
        level: the least one that counts as a warning.
        horizon_bars: how far a warning looks ahead.
        drop: depth of the falls that should be warned of, 0 to 1.
        lengths: of the naive rule's windows.

    Raises:
        InputError: a drop outside 0 to 1.
    """
    falls = find_falls(bars, horizon_bars, drop)
    if assessment.why_unknown:
        return MatchedWarnings(falls, missing=assessment.why_unknown)
    start = max(assessment.settled, lengths.bars + lengths.usual_bars)
    if len(bars) <= start + 2 * horizon_bars:
        missing = f"{len(bars)} bars: warnings begin after {start}, and need time to be judged"
        return MatchedWarnings(falls, missing=missing)
    closed, warned_us = bars.closed_us, np.array([each.at_us for each in assessment.warnings(level)], np.int64)
    start_us, end_us = int(closed[start]), int(closed[-1])
    horizon_us = horizon_bars * bars.frame_us

    ranks = volatility_ranks(bars, lengths.bars, lengths.usual_bars)

    def share(raised_us: Integers) -> float:
        return _covered(_inside(raised_us, start_us, end_us), horizon_us, start_us, end_us)

    def naive_us(quantile: float) -> Integers:
        # A value is above the k-th lowest of the last values if k of them are below it.
        return np.asarray(closed[_first_of_each_run(ranks >= math.ceil(quantile * lengths.usual_bars))])

    wanted = share(warned_us)
    quantile = min(QUANTILES, key=lambda each: abs(share(naive_us(each)) - wanted))
    comparison = compare_warnings(warned_us, naive_us(quantile), closed[falls], start_us, end_us, horizon_us)
    judged_us = closed[falls[closed[falls] > start_us]]
    leads = _leads(warned_us, judged_us, horizon_us)
    warned = np.searchsorted(closed, (judged_us - leads)[leads > 0])
    fallen = float(np.median(recent_drawdown(bars.close, horizon_bars)[warned])) if len(warned) else None
    return MatchedWarnings(falls, fallen, comparison, quantile, start=start)


@dataclass(frozen=True, kw_only=True)
class WarningRecord(WarningComparison):
    """What such warnings were worth in this coin's past, beside a naive rule with as much time under warning.

    It is computed now, by today's rules, from the analysed bars; none of these warnings was sent at its time.

    Attributes:
        horizon_h, drop_pct: a warning is right if the close falls this far below a recent high within the horizon.
        naive_quantile: of volatility, above which the naive rule warns; it is chosen for equal time under warning,
            regardless of what happened later.
        fallen_pct: median fall below the recent high at the first warning of each fall that was found.
    """

    level: Annotated[Level, Field(description="the least level that counts as a warning")]
    horizon_h: float
    drop_pct: float
    start_us: Instant
    end_us: Instant
    naive_quantile: Share
    fallen_pct: float | None
    text: Annotated[str, Field(description="the same in words")]


def record_text(found: WarningComparison, drop: float, horizon_h: float) -> str:
    """Return a sentence on what warnings were worth, or on why that is not known."""
    ours, naive, months = found.ours, found.naive, found.months
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
    if found.p < ALPHA:
        verdict = "more than" if found.only_ours > found.only_naive else "fewer than"
    return (
        f"In {period} {ours.found} of {ours.falls} {what} were found{_between(ours.recall)} with "
        f"{100 * ours.recall_by_chance:.0f} % of the time under warning; {right}. This is {verdict} what a rule on "
        f"volatility alone finds ({naive.found}, with {100 * naive.recall_by_chance:.0f} % of the time; p = "
        f"{found.p:.2g})."
    )


def span(hours: float) -> str:
    """Return a number of hours in words."""
    return f"{hours:g} h" if hours < 48 else f"{hours / 24:g} days"


def _between(estimate: IntervalEstimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({100 * estimate.low:.0f} to {100 * estimate.high:.0f} %)"


def _inside(instants_us: ArrayLike, start_us: int, end_us: int) -> Integers:
    instants = np.sort(np.asarray(instants_us, np.int64).reshape(-1))
    return instants[(instants >= start_us) & (instants <= end_us)]


def _covered(starts: Integers, length_us: int, start_us: int, end_us: int) -> float:
    """Return the share of a period that spans of one length cover."""
    starts = np.sort(starts)
    ends = np.minimum(starts + length_us, end_us)
    begins = np.maximum(np.maximum(starts, start_us), np.append(start_us, ends[:-1]))
    return float(np.maximum(0, ends - begins).sum() / (end_us - start_us))


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


def _lead(hours: Floats) -> IntervalEstimate:
    if not len(hours):
        return _NO_ESTIMATE
    middle = float(np.median(hours))
    if len(hours) < LEAST_DRAWN:
        return replace(_NO_ESTIMATE, value=middle)
    low, high = bootstrap_interval(lambda rows: float(np.median(hours[rows])), len(hours))
    return IntervalEstimate(value=middle, low=low, high=high)


def warning_claim(bars: Bars, series: Series, frame: Frame, warned: bool, horizon_us: int, drop: float) -> Claim:
    """Return what a level at the last bar claims: whether a fall begins within the horizon; see `find_falls`."""
    at_us = int(bars.closed_us[-1])
    family = f"fall of {series.coin} by {100 * drop:g} % within {span(horizon_us / HOUR_US)}, bars of {frame}"
    return Claim(family, warned, at_us, at_us + horizon_us, series, bars.frame_us, {"drop": drop})


def fall_outcome(claim: Claim, bars: Bars) -> ClaimOutcome | None:
    """Return whether a fall began in a claim's time; None: its last bar cannot be there yet.

    `bars` begin several horizons before the claim, as a fall is one from a recent high. The outcome cannot be known if
    more than half of the bars of the claim's time are missing.
    """
    if not len(bars) or bars.closed_us[-1] < claim.due_us:
        return None
    window = (claim.due_us - claim.at_us) // claim.frame_us
    inside = (bars.closed_us > claim.at_us) & (bars.closed_us <= claim.due_us)
    if 2 * np.count_nonzero(inside) < window:
        return ClaimOutcome(None)
    return ClaimOutcome(bool(inside[find_falls(bars, window, claim.details["drop"])].any()))
