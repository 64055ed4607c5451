"""Levels of warning over time with the evidence that raised them, and what past warnings were worth."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.candles import Candles, Floats, Instants
from qubic_lab.oracle.model.timestamps import DAY_US, iso
from qubic_lab.oracle.risk import windows
from qubic_lab.oracle.risk.drawdown import recent_drawdown
from qubic_lab.oracle.risk.measures import MEASURES, Market, Measured, measure
from qubic_lab.oracle.risk.rules import LEVELS, Level, Rule, levels_of, read_rules
from qubic_lab.oracle.risk.volatility import realised_volatility
from qubic_lab.stats import bootstrap_interval, mcnemar_exact, wilson_interval

MONTH_US = 365 * DAY_US // 12
_LEAST_LEADS = 5


@dataclass(frozen=True)
class Evidence:
    """Why a rule is at its level: the measure's value at a bar, and the least one for the level.

    `value` is None where the bar has none, and may be below `threshold` where the level is still to be left.
    """

    rule: str
    measure: str
    level: Level
    value: float | None
    threshold: float
    unit: str

    def __str__(self) -> str:
        value = "not known at this bar" if self.value is None else f"{self.value:.2f} {self.unit}"
        left = "" if self.value is None or self.value >= self.threshold else ", not left yet"
        return f"{self.rule}: {self.measure} is {value} ({self.level} from {self.threshold:g}{left})"


@dataclass(frozen=True)
class RiskWarning:
    """A level with its evidence, at the close of a bar; `before` was the level at the bar before."""

    bar: int
    closed_us: int
    level: Level
    before: Level
    evidence: tuple[Evidence, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        found = asdict(self)
        found["at"] = iso(found.pop("closed_us"))
        return found | {"evidence": [asdict(each) | {"text": str(each)} for each in self.evidence]}


@dataclass(frozen=True, eq=False)
class Track:
    """One rule over time: its measure's values and its levels, each [bars]."""

    rule: Rule
    measured: Measured
    levels: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Assessment:
    """The level of risk over time: that of the highest rule.

    Attributes:
        closed_us: of the bars.
        levels: numbers of `LEVELS`, [bars].
        tracks: of the rules.
        warm_up: bars before any rule has a value; the level is calm there, which means nothing.
        settled: bars before every rule that has values at all has one.
        absent: rule → why it has no value at any bar.
    """

    closed_us: Instants
    levels: NDArray[np.int8]
    tracks: tuple[Track, ...]
    warm_up: int
    settled: int
    absent: dict[str, str]

    def at(self, bar: int) -> RiskWarning:
        """Return the level at a bar with the evidence of all rules that are at it; −1 is the last one.

        Raises:
            InputError: there is no such bar.
        """
        bars = len(self.levels)
        if not -bars <= bar < bars:
            raise InputError(f"bar is {bar}: there are {bars}, counted from 0")
        bar %= bars
        level = int(self.levels[bar])
        before = LEVELS[int(self.levels[bar - 1])] if bar else LEVELS[0]
        evidence = tuple(_evidence(track, bar) for track in self.tracks if level and int(track.levels[bar]) == level)
        return RiskWarning(bar, int(self.closed_us[bar]), LEVELS[level], before, evidence)

    def warnings(self, least: str = "watch") -> tuple[RiskWarning, ...]:
        """Return where the level rose, to `least` or above."""
        rises = np.flatnonzero(np.diff(self.levels, prepend=np.int8(0)) > 0)
        return tuple(self.at(int(bar)) for bar in rises if self.levels[bar] >= LEVELS.index(least))


def _evidence(track: Track, bar: int) -> Evidence:
    value, level = float(track.measured.values[bar]), int(track.levels[bar])
    rule = track.rule
    shown = None if math.isnan(value) else value
    threshold = rule.thresholds[level - 1]
    return Evidence(rule.name, rule.measure, LEVELS[level], shown, threshold, MEASURES[rule.measure].unit)


def assess(market: Market, rules: Sequence[Rule] | None = None) -> Assessment:
    """Return the level of risk at each bar, from it and earlier bars alone.

    Args:
        market: bars and what is known beside them.
        rules: None: those that come with the project.
    """
    chosen = read_rules() if rules is None else tuple(rules)
    if not chosen:
        raise InputError("there are no rules: give at least one")
    tracks = []
    known: dict[tuple[str, tuple[tuple[str, int], ...]], Measured] = {}
    for rule in chosen:
        key = (rule.measure, tuple(sorted(rule.parameters.items())))
        if key not in known:
            known[key] = measure(rule.measure, market, rule.parameters)
        tracks.append(Track(rule, known[key], levels_of(rule, known[key].values)))
    warm_ups = [track.measured.warm_up for track in tracks if not track.measured.absent]
    return Assessment(
        closed_us=market.candles.closed_us,
        levels=np.max([track.levels for track in tracks], axis=0),
        tracks=tuple(tracks),
        warm_up=min(warm_ups, default=len(market.candles)),
        settled=max(warm_ups, default=len(market.candles)),
        absent={track.rule.name: track.measured.absent for track in tracks if track.measured.absent},
    )


def find_falls(candles: Candles, bars: int, drop: float) -> NDArray[np.intp]:
    """Return the bars at which the close is first a share `drop` below the highest of the last `bars` closes.

    After one, the next counts once the close was less far below such a high again, and `bars` bars later at least.

    Raises:
        InputError: fewer than 2 bars, or a drop that is not between 0 and 1.
    """
    if not 0.0 < drop < 1.0:
        raise InputError(f"drop is {drop}: give a share between 0 and 1, such as 0.1")
    deep = recent_drawdown(candles, bars) >= drop
    begins = np.flatnonzero(deep & ~np.concatenate([[False], deep[:-1]]))
    kept: list[int] = []
    for bar in begins.tolist():
        if not kept or bar - kept[-1] >= bars:
            kept.append(bar)
    return np.array(kept, np.intp)


def naive_warnings(candles: Candles, bars: int = 24, usual_bars: int = 480, quantile: float = 0.95) -> NDArray[np.intp]:
    """Return where realised volatility rises above a quantile of its last values: what warnings have to beat.

    Warm-up: `bars` + `usual_bars` bars.

    Raises:
        InputError: a quantile that is not between 0 and 1, or too few bars to a window.
    """
    if not 0.0 < quantile < 1.0:
        raise InputError(f"quantile is {quantile}: it must lie between 0 and 1")
    check_at_least("usual_bars", usual_bars, 2)
    # It is above the k-th lowest of its last values where k of them are below it.
    below = candles.once(f"volatility ranks {bars} {usual_bars}", lambda each: _ranks(each, bars, usual_bars))
    above = below >= math.ceil(quantile * usual_bars)
    return np.flatnonzero(above & ~np.concatenate([[False], above[:-1]]))


def _ranks(candles: Candles, bars: int, usual_bars: int) -> Floats:
    """Return how many of the last `usual_bars` values of realised volatility each one is above, [bars]."""

    def count(part: Floats) -> Floats:
        found = np.asarray((part[:, :-1] < part[:, -1:]).sum(axis=1), np.float64)
        found[np.isnan(part).any(axis=1)] = np.nan
        return found

    return windows.rolling(realised_volatility(candles, bars), usual_bars + 1, count)


@dataclass(frozen=True)
class Estimate:
    """A number with its interval of 95 %; None where there is nothing to estimate it from."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class WarningScore:
    """What warnings were worth.

    Attributes:
        warnings: raised while none stood: one stands for the horizon.
        events: that were to be warned of.
        right: warnings with an event within the horizon; `precision` is their share.
        found: events with a warning raised within the horizon before; `recall` is their share.
        precision_by_chance: of warnings at random times; `recall_by_chance`: of as many at random times.
        false_alarms_a_month: of 365 / 12 days.
        lead_h: median hours from the first warning within the horizon to its event.
        months: of the period.
    """

    warnings: int
    events: int
    right: int
    found: int
    precision: Estimate
    precision_by_chance: float
    recall: Estimate
    recall_by_chance: float
    false_alarms_a_month: Estimate
    lead_h: Estimate
    months: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


def evaluate_warnings(
    warnings_us: ArrayLike, events_us: ArrayLike, start_us: int, end_us: int, horizon_us: int, seed: int = 0
) -> WarningScore:
    """Return how good warnings were, with intervals of 95 %.

    Args:
        warnings_us: when they were raised.
        events_us: when what they warn of was there; a warning at the same instant is too late.
        start_us: of the period in which warnings could be raised: after the warm-up.
        end_us: of the period; a warning whose horizon ends later is not judged.
        horizon_us: so long does a warning look ahead, and stand: others raised meanwhile belong to it.
        seed: of the bootstrap of the lead time.

    Intervals: Wilson's for shares, P. Garwood's (Biometrika 28, 1936) for the rate of false alarms, the bootstrap for
    the lead; standing warnings do not overlap, so they count as independent.

    Raises:
        InputError: a period or a horizon without a length.
    """
    check_at_least("horizon in microseconds", horizon_us, 1)
    if end_us - horizon_us <= start_us:
        raise InputError(f"the period from {iso(start_us)} to {iso(end_us)} is no longer than the horizon")
    raised = _inside(warnings_us, start_us, end_us)
    judged = _standing(raised[raised <= end_us - horizon_us], horizon_us)
    events = _inside(events_us, start_us + 1, end_us)
    after = np.searchsorted(events, judged, side="right")
    ahead = np.append(events, np.iinfo(np.int64).max)[after]
    right = int(np.count_nonzero(ahead - judged <= horizon_us))
    first = np.searchsorted(raised, events - horizon_us, side="left")
    leads = events - np.append(raised, np.iinfo(np.int64).max)[first]
    found = leads > 0
    months = (end_us - start_us) / MONTH_US
    return WarningScore(
        warnings=len(judged),
        events=len(events),
        right=right,
        found=int(found.sum()),
        precision=_share(right, len(judged)),
        precision_by_chance=_covered(events - horizon_us, horizon_us, start_us, end_us - horizon_us),
        recall=_share(int(found.sum()), len(events)),
        recall_by_chance=time_under_warning(raised, start_us, end_us, horizon_us),
        false_alarms_a_month=_rate(len(judged) - right, (end_us - horizon_us - start_us) / MONTH_US),
        lead_h=_lead(leads[found] / (DAY_US / 24), seed),
        months=months,
    )


@dataclass(frozen=True)
class WarningComparison:
    """Warnings beside a naive rule's on the same events, and the exact McNemar test of who finds more of them."""

    ours: WarningScore
    naive: WarningScore
    only_ours: int
    only_naive: int
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


def compare_warnings(
    ours_us: ArrayLike, naive_us: ArrayLike, events_us: ArrayLike, start_us: int, end_us: int, horizon_us: int
) -> WarningComparison:
    """Evaluate warnings and a naive rule's over one period; arguments as of `evaluate_warnings`.

    Raises:
        InputError: as of `evaluate_warnings`.
    """
    ours = evaluate_warnings(ours_us, events_us, start_us, end_us, horizon_us)
    naive = evaluate_warnings(naive_us, events_us, start_us, end_us, horizon_us)
    events = _inside(events_us, start_us + 1, end_us)

    def finds(warnings_us: ArrayLike) -> NDArray[np.bool_]:
        raised = _inside(warnings_us, start_us, end_us)
        return np.asarray(
            np.searchsorted(raised, events, side="left") > np.searchsorted(raised, events - horizon_us, side="left")
        )

    first, second = finds(ours_us), finds(naive_us)
    only_ours, only_naive = int((first & ~second).sum()), int((second & ~first).sum())
    return WarningComparison(ours, naive, only_ours, only_naive, mcnemar_exact(only_ours, only_naive))


def time_under_warning(warnings_us: ArrayLike, start_us: int, end_us: int, horizon_us: int) -> float:
    """Return the share of a period within the horizon after a warning: what random events would be found."""
    return _covered(_inside(warnings_us, start_us, end_us), horizon_us, start_us, end_us)


def _inside(instants_us: ArrayLike, start_us: int, end_us: int) -> Instants:
    instants = np.sort(np.asarray(instants_us, np.int64).reshape(-1))
    return instants[(instants >= start_us) & (instants <= end_us)]


def _standing(raised: Instants, horizon_us: int) -> Instants:
    kept: list[int] = []
    for instant in raised.tolist():
        if not kept or instant - kept[-1] > horizon_us:
            kept.append(instant)
    return np.array(kept, np.int64)


def _covered(starts: Instants, length_us: int, start_us: int, end_us: int) -> float:
    """Return which share of a period spans of one length cover."""
    covered, reached = 0, start_us
    for begin in np.sort(starts).tolist():
        low, high = max(begin, reached), min(begin + length_us, end_us)
        covered += max(0, high - low)
        reached = max(reached, high)
    return covered / (end_us - start_us)


def _share(successes: int, trials: int) -> Estimate:
    if not trials:
        return Estimate(None)
    return Estimate(successes / trials, *wilson_interval(successes, trials))


def _rate(count: int, months: float) -> Estimate:
    from scipy.stats import chi2

    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    high = float(chi2.ppf(0.975, 2 * count + 2)) / 2
    return Estimate(count / months, low / months, high / months)


def _lead(hours: NDArray[np.float64], seed: int) -> Estimate:
    if not len(hours):
        return Estimate(None)
    middle = float(np.median(hours))
    if len(hours) < _LEAST_LEADS:
        return Estimate(middle)
    return Estimate(middle, *bootstrap_interval(lambda rows: float(np.median(hours[rows])), len(hours), seed=seed))
