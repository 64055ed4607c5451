"""What rules and measures say at the last bar: the level, since when, how far it is to the next, and how unusual."""

import math
from dataclasses import dataclass

import numpy as np

from qubic_lab.oracle.model.candles import Floats
from qubic_lab.oracle.risk.measures import MEASURES, Market, Measured, measure
from qubic_lab.oracle.risk.rules import LEVELS, Level, Rule, Windows
from qubic_lab.oracle.risk.warnings import Assessment, Track


@dataclass(frozen=True)
class Standing:
    """The level at the last bar; it stands since the close of a bar, `bars` bars ago, and was `before` until then.

    `before` is None where it was the same ever since rules had values.
    """

    level: Level
    before: Level | None
    since_us: int
    bars: int


def standing(assessment: Assessment) -> Standing:
    """Return the level at the last bar; there is at least one bar after the warm-up."""
    levels = assessment.levels
    last = len(levels) - 1
    changed = np.flatnonzero(np.diff(levels[assessment.warm_up :]) != 0)
    since = assessment.warm_up + (int(changed[-1]) + 1 if changed.size else 0)
    before = LEVELS[int(levels[since - 1])] if changed.size else None
    return Standing(LEVELS[int(levels[last])], before, int(assessment.closed_us[since]), last - since)


@dataclass(frozen=True)
class Ahead:
    """What a rule needs for the next level, and where it would leave its own.

    Attributes:
        next_level: None at the highest one.
        to_next: how much more its measure must be for it; None where the bar has no value.
        clears_below: below this for as many bars as the rule holds a level, it is left; None where the rule is calm.
    """

    next_level: Level | None
    to_next: float | None
    clears_below: float | None


def ahead(rule: Rule, level: int, value: float) -> Ahead:
    """Return what a rule at a level needs for the next one."""
    clears = rule.thresholds[level - 1] * rule.clear if level else None
    if level == len(rule.thresholds):
        return Ahead(None, None, clears)
    return Ahead(LEVELS[level + 1], None if math.isnan(value) else rule.thresholds[level] - value, clears)


@dataclass(frozen=True)
class Rank:
    """A value among those before it: `percentile` is the share of them that are not above it, of `bars` with one."""

    value: float | None
    percentile: float | None
    bars: int


def rank(values: Floats) -> Rank:
    """Return the last value among the earlier ones; None where it, or all before it, are not known."""
    earlier = values[:-1][~np.isnan(values[:-1])]
    value = float(values[-1]) if len(values) else math.nan
    if math.isnan(value):
        return Rank(None, None, len(earlier))
    return Rank(value, float((earlier <= value).mean()) if len(earlier) else None, len(earlier))


def measure_all(market: Market, tracks: tuple[Track, ...], lengths: Windows, refit_bars: int) -> dict[str, Measured]:
    """Return all measures of a market by name, those of the rules with the rules' own parameters.

    Args:
        market: bars, and what is known beside them.
        tracks: of the rules; of two rules with the same measure the first one's is taken.
        lengths: of other measures' windows.
        refit_bars: from one fit of a model to the next, for measures that have one.
    """
    found: dict[str, Measured] = {}
    for track in tracks:
        found.setdefault(track.rule.measure, track.measured)
    for name, each in MEASURES.items():
        if name not in found:
            own = {"refit_bars": refit_bars} if "refit_bars" in each.parameters else {}
            found[name] = measure(name, market, {**lengths.parameters(name), **own})
    return {name: found[name] for name in MEASURES}
