"""Volatility, value at risk and warnings on past prices: what they said, on what evidence, and what that was worth.

Warnings are held against a naive rule that warns for the same share of the time: with more time under warning any
rule finds more of what comes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qubic_lab.errors import check_choice
from qubic_lab.oracle.backtest.market import YEAR_US
from qubic_lab.oracle.candles import Candles, Floats
from qubic_lab.oracle.instants import DAY_US, HOUR_US, iso
from qubic_lab.oracle.risk import windows
from qubic_lab.oracle.risk.drawdown import recent_drawdown
from qubic_lab.oracle.risk.measures import MEASURES, Market
from qubic_lab.oracle.risk.rules import LEVELS, Rule, read_rules
from qubic_lab.oracle.risk.tail_tests import TailTest, evaluate_tail
from qubic_lab.oracle.risk.value_at_risk import TailForecast, filtered_historical, historical, normal, student_t
from qubic_lab.oracle.risk.volatility import LEAST_FIT, VolatilityForecast, garch_forecast, realised_volatility
from qubic_lab.oracle.risk.warnings import (
    Assessment,
    Estimate,
    WarningComparison,
    WarningScore,
    assess,
    compare_warnings,
    evaluate_warnings,
    find_falls,
    naive_warnings,
)
from qubic_lab.studies.oracle_backtest import Bars, log_axis
from qubic_lab.studies.style import DARK, INK, LINES, PALE, STYLE, WIDTH_INCHES

Row = dict[str, Any]
VAR_LEVELS = (0.01, 0.05)
ALPHA = 0.05
DAY_BARS, DAY_USUAL, DAY_TAIL = 7, 120, 120
"""Windows of bars of a day or longer: those of shorter ones would take years to warm up."""
SHORT_BARS, SHORT_USUAL = 24, 480
QUANTILES = tuple(number / 100 for number in range(50, 100))
"""Of volatility, that the naive rule may have."""
_SHADES = {"watch": "#e6ebee", "warning": "#bcc9cf", "alarm": "#7f949e"}
_WIDE = 1.5 * WIDTH_INCHES


@dataclass(frozen=True)
class Windows:
    """Lengths in bars: of what is measured now, and of what it is held against."""

    bars: int
    usual_bars: int
    tail_bars: int

    @classmethod
    def of(cls, frame_us: int) -> "Windows":
        """Return those for bars of a length."""
        if frame_us >= DAY_US:
            return cls(DAY_BARS, DAY_USUAL, DAY_TAIL)
        return cls(SHORT_BARS, SHORT_USUAL, 500)


@dataclass(frozen=True, eq=False)
class Tail:
    """A model's forecasts of losses and how they stood the tests."""

    model: str
    forecast: TailForecast
    test: TailTest


@dataclass(frozen=True, eq=False)
class Matched:
    """Our warnings beside the naive rule whose share of time under warning is nearest to theirs.

    Attributes:
        comparison: None where there is nothing to compare, `absent` says why.
        ours_share, naive_share: of the time under warning: within the horizon after one.
        quantile: of volatility, that the naive rule warns above.
        events: bars of the falls.
        fallen: how far, in the median, the price was below its recent high already when the first warning came of a
            fall that was found; None where none was.
    """

    events: NDArray[np.intp]
    fallen: float | None = None
    comparison: WarningComparison | None = None
    ours_share: float = 0.0
    naive_share: float = 0.0
    quantile: float = math.nan
    absent: str = ""


@dataclass(frozen=True, eq=False)
class Risk:
    """All that is measured of some bars.

    Attributes:
        horizon_bars, drop: a warning is right where the close falls so far below a recent high within the horizon.
        level: from which on a level counts as a warning.
    """

    bars: Bars
    windows: Windows
    returns: Floats
    volatility: VolatilityForecast
    tails: tuple[Tail, ...]
    assessment: Assessment
    level: str
    horizon_bars: int
    drop: float
    matched: Matched

    @property
    def name(self) -> str:
        """The bars' length."""
        return self.bars.name


def study_risk(
    bars: Bars, *, horizon_us: int, drop: float, level: str = "warning", rules: str = "", refit_bars: int = 50
) -> Risk:
    """Measure volatility, value at risk and warnings of some bars; the last need bars beyond their warm-up.

    Args:
        bars: of one asset.
        horizon_us: so long a warning looks ahead.
        drop: the fall from the highest close within the horizon that is to be warned of, 0 to 1.
        level: from which on a level counts as a warning.
        rules: a YAML file; empty: those that come with the project.
        refit_bars: from one fit of the GARCH model to the next.

    Raises:
        InputError: rules, a level or a drop that cannot be used.
    """
    check_choice("level", level, LEVELS[1:])
    candles, lengths = bars.candles, Windows.of(bars.frame_us)
    returns = windows.log_returns(candles)
    volatility = garch_forecast(returns, refit_bars)
    horizon_bars = max(2, round(horizon_us / bars.frame_us))
    assessment = assess(Market(candles), rules_of(lengths, rules))
    matched = match_alarm_time(candles, assessment, level, horizon_bars, drop, lengths)
    tails = tuple(_tails(returns, volatility, lengths))
    return Risk(bars, lengths, returns, volatility, tails, assessment, level, horizon_bars, drop, matched)


def rules_of(lengths: Windows, file: str = "") -> tuple[Rule, ...]:
    """Return the rules, with windows for days where bars are so long and the rule does not say its own.

    Raises:
        InputError: a file that cannot be read.
    """
    rules = read_rules(Path(file) if file else None)
    if lengths.bars == SHORT_BARS:
        return rules
    known = {"bars": lengths.bars, "usual_bars": lengths.usual_bars}
    found = []
    for rule in rules:
        usual = MEASURES[rule.measure].parameters
        ours = {"bars": lengths.tail_bars} if "usual_bars" not in usual else known
        given = {name: value for name, value in ours.items() if name in usual}
        found.append(replace(rule, parameters={**given, **rule.parameters}))
    return tuple(found)


def _tails(returns: Floats, volatility: VolatilityForecast, lengths: Windows) -> list[Tail]:
    found = []
    for level in VAR_LEVELS:
        made = {
            "GARCH-t": student_t(volatility, level),
            "filtered historical": filtered_historical(returns, volatility, level, lengths.tail_bars),
            "historical": historical(returns, level, lengths.tail_bars),
            "constant normal": normal(returns, level),
        }
        first = LEAST_FIT + lengths.tail_bars + 1  # the same bars for all of them
        for model, forecast in made.items():
            cut = TailForecast(level, forecast.var.copy(), forecast.es.copy())
            cut.var[:first] = cut.es[:first] = np.nan
            found.append(Tail(model, forecast, evaluate_tail(returns, cut)))
    return found


def match_alarm_time(
    candles: Candles, assessment: Assessment, level: str, horizon_bars: int, drop: float, lengths: Windows
) -> Matched:
    """Compare warnings with the naive rule that is under warning for a share of the time as near to theirs as can be.

    The naive rule's quantile is chosen by that share alone, without a look at what came.

    Raises:
        InputError: a drop that is none.
    """
    falls = find_falls(candles, horizon_bars, drop)
    start = max(assessment.settled, lengths.bars + lengths.usual_bars)
    if all(track.measured.absent for track in assessment.tracks):
        return Matched(falls, absent=f"no rule has a value: {next(iter(assessment.absent.values()))}")
    if len(candles) <= start + 2 * horizon_bars:
        return Matched(falls, absent=f"{len(candles)} bars: warnings begin after {start}, and need time to be judged")
    closed = candles.closed_us
    start_us, end_us = int(closed[start]), int(closed[-1])
    horizon_us = horizon_bars * candles.frame_us
    ours = np.array([each.closed_us for each in assessment.warnings(level)], np.int64)
    events = closed[falls]
    share = evaluate_warnings(ours, events, start_us, end_us, horizon_us).recall_by_chance
    tried = []
    for quantile in QUANTILES:
        naive = closed[naive_warnings(candles, lengths.bars, lengths.usual_bars, quantile)]
        # The share under warning: what random events would be found.
        theirs = evaluate_warnings(naive, events, start_us, end_us, horizon_us).recall_by_chance
        tried.append((abs(theirs - share), quantile, theirs, naive))
    _, quantile, theirs, naive = min(tried, key=lambda each: each[:2])
    comparison = compare_warnings(ours, naive, events, start_us, end_us, horizon_us)
    fallen = _fallen(candles, ours, falls[events > start_us], horizon_bars)
    return Matched(falls, fallen, comparison, share, theirs, quantile)


def _fallen(candles: Candles, warnings_us: NDArray[np.int64], falls: NDArray[np.intp], bars: int) -> float | None:
    """Return the median fall at the first warning within the horizon before each fall."""
    closed, below = candles.closed_us, recent_drawdown(candles, bars)
    places = np.searchsorted(closed, warnings_us)
    found = []
    for fall in falls.tolist():
        before = places[(closed[places] >= closed[fall] - bars * candles.frame_us) & (places < fall)]
        if len(before):
            found.append(float(below[before[0]]))
    return float(np.median(found)) if found else None


def looks_ahead(risk: Risk, cuts: int = 3, seed: int = 0, rules: str = "") -> bool:
    """Say whether any level of the past changes when later bars are cut off, at some bars drawn by chance."""
    market = Market(risk.bars.candles)
    chosen = rules_of(risk.windows, rules)
    low = min(len(market.candles) - 1, risk.assessment.warm_up + 1)
    for until in np.random.default_rng(seed).integers(low, len(market.candles), cuts).tolist():
        if not np.array_equal(assess(market.until(until), chosen).levels, risk.assessment.levels[:until]):
            return True
    return False


def shortfall_is_above(risk: Risk) -> bool:
    """Say whether expected shortfall is at least value at risk wherever there are both."""
    pairs = [(tail.forecast.es, tail.forecast.var) for tail in risk.tails]
    return all(bool((es[known] >= var[known]).all()) for es, var in pairs for known in [~np.isnan(es + var)])


def counts_add_up(risk: Risk) -> bool:
    """Say whether right warnings and found falls are no more than there are, and both rules saw the same falls."""
    found = risk.matched.comparison
    if found is None:
        return bool(risk.matched.absent)
    both = (found.ours, found.naive)
    counted = all(each.right <= each.warnings and each.found <= each.events for each in both)
    alike = found.ours.found - found.only_ours == found.naive.found - found.only_naive
    return counted and alike and found.ours.events == found.naive.events


def tail_rows(risks: Sequence[Risk]) -> list[Row]:
    """Return how forecasts of losses stood against what came; p-values below 0.05 reject them."""
    return [
        {
            "bars of": risk.name,
            "model": tail.model,
            "level_pct": 100 * tail.test.level,
            "bars": tail.test.bars,
            "beyond": tail.test.violations,
            "expected": tail.test.expected,
            "kupiec_p": None if tail.test.unconditional is None else tail.test.unconditional.p,
            "independent_p": None if tail.test.independent is None else tail.test.independent.p,
            "christoffersen_p": None if tail.test.conditional is None else tail.test.conditional.p,
            "shortfall_p": tail.test.shortfall_p,
            "not tested because": tail.test.absent,
        }
        for risk in risks
        for tail in risk.tails
    ]


def score_rows(risks: Sequence[Risk]) -> list[Row]:
    """Return what our warnings and the matched naive rule's were worth, with 95 % intervals."""
    rows = []
    for risk in risks:
        found = risk.matched
        if found.comparison is None:
            continue
        both = (("ours", found.comparison.ours, found.ours_share), ("naive", found.comparison.naive, found.naive_share))
        for name, score, share in both:
            rows.append(
                {
                    "bars of": risk.name,
                    "warnings": name,
                    "time under warning_pct": 100 * share,
                    "raised": score.warnings,
                    "right": score.right,
                    "precision": _shown(score.precision),
                    "by chance": f"{score.precision_by_chance:.2f}",
                    "falls": score.events,
                    "found": score.found,
                    "recall": _shown(score.recall),
                    "false a month": _shown(score.false_alarms_a_month),
                    "lead_h": _shown(score.lead_h),
                }
            )
    return rows


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "none"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f} (too few)"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def warning_rows(risks: Sequence[Risk], count: int = 5) -> list[Row]:
    """Return the last warnings of each with the evidence that raised them."""
    return [
        {
            "bars of": risk.name,
            "at": iso(each.closed_us),
            "level": each.level,
            "before": each.before,
            "evidence": "; ".join(str(evidence) for evidence in each.evidence),
        }
        for risk in risks
        for each in risk.assessment.warnings(risk.level)[-count:]
    ]


def now_rows(risks: Sequence[Risk]) -> list[Row]:
    """Return the level of each rule at the last bar, with its value and what it must reach for a warning."""
    rows = []
    for risk in risks:
        for track in risk.assessment.tracks:
            value = float(track.measured.values[-1])
            rows.append(
                {
                    "bars of": risk.name,
                    "at": iso(int(risk.assessment.closed_us[-1])),
                    "rule": track.rule.name,
                    "level": "unknown" if track.measured.absent else LEVELS[int(track.levels[-1])],
                    "value": None if math.isnan(value) else value,
                    "warning from": track.rule.warning,
                    "unit": MEASURES[track.rule.measure].unit,
                    "not known because": track.measured.absent,
                }
            )
    return rows


def to_dict(risk: Risk) -> Row:
    """Return it as plain values for JSON, without arrays by bar."""
    matched = risk.matched
    return {
        "bars_of": risk.name,
        "bars": len(risk.bars.bars),
        "drop": risk.drop,
        "horizon_bars": risk.horizon_bars,
        "level": risk.level,
        "warm_up": risk.assessment.warm_up,
        "settled": risk.assessment.settled,
        "now": risk.assessment.at(-1).to_dict(),
        "absent": dict(risk.assessment.absent),
        "garch": {"fits": risk.volatility.fits, "failed": risk.volatility.failed, "absent": risk.volatility.absent},
        "tails": [{"model": tail.model, **tail.test.to_dict()} for tail in risk.tails],
        "warnings": {
            "comparison": None if matched.comparison is None else matched.comparison.to_dict(),
            "ours_share": matched.ours_share,
            "naive_share": matched.naive_share,
            "fallen_at_warning": matched.fallen,
            "naive_quantile": None if math.isnan(matched.quantile) else matched.quantile,
            "absent": matched.absent,
        },
    }


def volatilities(risk: Risk, bars: int = 1_000) -> Figure:
    """Draw volatility of the last bars by three estimators, and what GARCH forecasts for the next bar; a year's."""
    with plt.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = plt.subplots(figsize=(_WIDE, 3.4), layout="constrained")
        scale = 100 * math.sqrt(YEAR_US / risk.bars.frame_us)
        candles = risk.bars.candles
        for name, line in zip(("close-to-close", "parkinson", "garman-klass"), LINES, strict=False):
            values = _broken(candles, scale * realised_volatility(candles, risk.windows.bars, name))
            axes.plot(
                _times(candles)[-bars:], values[-bars:], line, color=INK, linewidth=0.9, label=f"realised, {name}"
            )
        sigma = _broken(candles, scale * risk.volatility.sigma)
        axes.plot(_times(candles)[-bars:], sigma[-bars:], color=DARK, linewidth=1.2, label="GARCH forecast")
        if np.nanmax(sigma, initial=0.0) > 0.0:
            log_axis(axes)
        axes.set_ylabel("volatility of a year (%)")
        axes.set_title(f"bars of {risk.name}", fontsize=10, loc="left")
        _date_axis(axes)
        figure.legend(loc="outside upper left", ncols=2, fontsize=9)
    return figure


def losses(risk: Risk, level: float = 0.01) -> Figure:
    """Draw returns with value at risk of two models, and the losses that were beyond the first."""
    with plt.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = plt.subplots(figsize=(_WIDE, 3.4), layout="constrained")
        times, returns = _times(risk.bars.candles), 100 * risk.returns
        axes.plot(times, _broken(risk.bars.candles, returns), color=PALE, linewidth=0.6, label="return")
        for model, line, colour in (("GARCH-t", "-", DARK), ("constant normal", "--", INK)):
            tail = next(each for each in risk.tails if each.model == model and each.test.level == level)
            var = -100 * tail.forecast.var[:-1]
            axes.plot(times[1:], var, line, color=colour, linewidth=1.1, label=f"value at risk, {model}")
            if model == "GARCH-t":
                beyond = np.flatnonzero(returns[1:] < var) + 1
                axes.plot(times[beyond], returns[beyond], "x", color=INK, markersize=5, label="loss beyond it")
        axes.set_ylabel("log return of a bar (%)")
        axes.set_title(f"bars of {risk.name}, {100 * level:g} %", fontsize=10, loc="left")
        _date_axis(axes)
        figure.legend(loc="outside upper left", ncols=2, fontsize=9)
    return figure


def timeline(risk: Risk) -> Figure:
    """Draw levels over time behind the price, warnings, and the falls that they should have told of."""
    with plt.rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure, axes = plt.subplots(figsize=(_WIDE, 3.8), layout="constrained")
        candles, assessment = risk.bars.candles, risk.assessment
        times = _times(candles)
        for name, shade in _SHADES.items():
            at = assessment.levels == LEVELS.index(name)
            for begin, end in _spans(at):
                span = (float(times[begin]), float(times[end - 1]) + candles.frame_us / DAY_US)
                axes.axvspan(*span, color=shade, linewidth=0)
            axes.fill_between([], [], color=shade, label=name)
        axes.plot(times, _broken(candles, candles.close), color=INK, linewidth=1.0, label="close")
        bars = [each.bar for each in assessment.warnings(risk.level)]
        axes.plot(
            times[bars], candles.close[bars], "^", color=DARK, markersize=5, label=f"rises to {risk.level} or above"
        )
        falls = risk.matched.events
        label = f"{100 * risk.drop:g} % below the high"
        axes.plot(times[falls], candles.close[falls], "x", color=INK, markersize=7, label=label)
        begins = min(assessment.warm_up, len(times) - 1)
        axes.axvline(times[begins], linestyle=":", color=INK, linewidth=1.0, label="first rule has a value")
        log_axis(axes)
        axes.set_ylabel(f"price ({risk.bars.currency})")
        _date_axis(axes)
        figure.legend(loc="outside upper left", ncols=4, fontsize=9)
    return figure


def worth(risks: Sequence[Risk]) -> Figure:
    """Draw precision and recall of both rules with 95 % intervals, and what chance would give with as many warnings."""
    known = [risk for risk in risks if risk.matched.comparison is not None]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, 2, sharey=True, figsize=(_WIDE, 1.6 + 0.7 * max(1, len(known))), layout="constrained"
        )
        labels, place = [], 0
        for risk in known:
            comparison = risk.matched.comparison
            assert comparison is not None
            for name, score, fill in (("ours", comparison.ours, DARK), ("naive", comparison.naive, "white")):
                for axes, estimate, chance in zip(panels, *_pairs(score), strict=True):
                    _draw_share(axes, place, estimate, chance, fill)
                labels.append(f"{name}, {risk.name}")
                place += 1
        panels[0].plot([], [], "o", color=DARK, label="found, with 95 % interval")
        panels[0].plot([], [], "|", color=INK, markersize=10, label="by chance")
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(place - 0.4, -0.6)
        for axes, what in zip(panels, ("warnings that were right (%)", "falls that were found (%)"), strict=True):
            axes.set_xlim(-4, 104)
            axes.set_xlabel(what)
        figure.legend(loc="outside upper left", ncols=2, fontsize=9)
    return figure


def _pairs(score: WarningScore) -> tuple[tuple[Estimate, Estimate], tuple[float, float]]:
    return (score.precision, score.recall), (score.precision_by_chance, score.recall_by_chance)


def _draw_share(axes: Axes, place: int, estimate: Estimate, chance: float, fill: str) -> None:
    axes.plot(100 * chance, place, "|", color=INK, markersize=14)
    if estimate.value is not None and estimate.low is not None and estimate.high is not None:
        axes.plot([100 * estimate.low, 100 * estimate.high], [place] * 2, "-", color=INK, linewidth=1.2)
        axes.plot(100 * estimate.value, place, "o", color=DARK, markerfacecolor=fill)


def findings(risks: Sequence[Risk]) -> list[str]:
    """Say how forecasts of losses stood, what warnings were worth beside the matched rule, and the level at the end."""
    return [
        sentence for risk in risks for sentence in (_tail_sentence(risk), _warning_sentence(risk), _now_sentence(risk))
    ]


def _tail_sentence(risk: Risk) -> str:
    said = []
    for level in VAR_LEVELS:
        tested = [tail for tail in risk.tails if tail.test.level == level and tail.test.conditional is not None]
        kept = [tail for tail in tested if tail.test.conditional is not None and tail.test.conditional.p >= ALPHA]
        if not tested:
            why = next(tail.test.absent for tail in risk.tails if tail.test.level == level)
            said.append(f"none could be tested at {100 * level:g} % ({why})")
            continue
        names = f"{', '.join(tail.model for tail in kept) or 'none'} of {len(tested)} models"
        if len(kept) == len(tested):
            names = f"all {len(tested)} models"
        said.append(f"at {100 * level:g} % {names} stood Christoffersen's test")
    return f"Value at risk, bars of {risk.name}: {'; '.join(said)}."


def _warning_sentence(risk: Risk) -> str:
    found, what = risk.matched, f"falls of {100 * risk.drop:g} % within {_span(risk)}"
    if found.comparison is None:
        return f"Warnings, bars of {risk.name}: not judged ({found.absent})."
    ours, naive = found.comparison.ours, found.comparison.naive
    if not ours.events:
        return f"Warnings, bars of {risk.name}: not judged, as there were no {what}."
    better = found.comparison.p < ALPHA and found.comparison.only_ours > found.comparison.only_naive
    worse = found.comparison.p < ALPHA and found.comparison.only_ours < found.comparison.only_naive
    verdict = "more than" if better else "fewer than" if worse else "not shown to be more than"
    lead = "" if ours.lead_h.value is None else f", {ours.lead_h.value:.1f} h before"
    if found.fallen is not None:
        lead += f" when the price was {100 * found.fallen:.1f} % below its recent high already (medians)"
    return (
        f"Warnings, bars of {risk.name}: {ours.found} of {ours.events} {what} were found{lead}, {ours.right} of "
        f"{ours.warnings} warnings were right ({100 * ours.precision_by_chance:.0f} % would be by chance), with "
        f"{100 * found.ours_share:.0f} % of the time under warning; this is {verdict} what a rule on volatility alone "
        f"finds ({naive.found}, with {100 * found.naive_share:.0f} % of the time; p = {found.comparison.p:.2g})."
    )


def _span(risk: Risk) -> str:
    hours = risk.horizon_bars * risk.bars.frame_us / HOUR_US
    return f"{hours:g} h" if hours < 48 else f"{hours / 24:g} days"


def _now_sentence(risk: Risk) -> str:
    last = risk.assessment.at(-1)
    because = f" ({'; '.join(map(str, last.evidence))})" if last.evidence else ""
    if len(risk.assessment.absent) == len(risk.assessment.tracks):
        return f"The level at {iso(last.closed_us)} is not known: no rule has a value."
    return f"The level at {iso(last.closed_us)}, by bars of {risk.name}, is {last.level}{because}."


def _spans(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _broken(candles: Candles, values: Floats) -> Floats:
    """Return values with NaN right after each gap, so that no line is drawn over it."""
    found = values.copy()
    found[1:][np.diff(candles.closed_us) > candles.frame_us] = np.nan
    return found


def _times(candles: Candles) -> Floats:
    """Return closes as matplotlib counts instants, in days."""
    return np.asarray(candles.closed_us / DAY_US, np.float64)


def _date_axis(axes: Axes) -> None:
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("time (UTC)")
