"""Whether a measured quantity has changed from one week to another: plain samples in, verdicts out.

Times differ from run to run without a change of the code: a machine has other load, and memory of more than one speed.
So the median of a run is judged by the scatter *between* runs, not by that of the samples within one. That scatter is
a usual one, known from many runs, and what earlier weeks add to it: a moderated variance as of G. K. Smyth, "Linear
models and empirical Bayes methods for assessing differential expression", Statistical Applications in Genetics and
Molecular Biology 3 (2004), article 3. Where a speed of the machine was probed beside each sample, samples count in
units of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from qubic_lab.errors import InputError

Direction = Literal["higher", "lower"]
Verdict = Literal[
    "better",
    "worse",
    "no change beyond noise",
    "too few samples",
    "not measured again",
    "other machine",
    "first measured",
]

FALSE_ALARMS = 0.05
"""The most likely share of weeks without any change in which some measure is said to have changed."""
PRACTICAL_SIZE = 0.05
"""A smaller change is not worth a verdict, however certain it is."""
SHARP = 0.25
"""A measure that cannot show a change of this size is blunt."""
BLUNT_SHARE = 0.1
"""The share of the false alarms that all blunt measures have together: they must not hide what sharp ones show."""
LEAST_SAMPLES = 5
"""Of a run: the scatter of fewer says nothing."""
TIME_UNITS = ("s", "ms", "µs", "us")
MAD_TO_SD = 1.4826
MEDIAN_OF_SQUARE = 0.4549
"""The median of the square of a standard normal variable."""


@dataclass(frozen=True)
class Scatter:
    """The standard deviation of the logarithm from run to run, and the number of runs that this knowledge is worth."""

    sd: float
    worth: int


BESIDE_A_PROBE = Scatter(0.02, 20)
WITHOUT_A_PROBE = Scatter(0.15, 8)


@dataclass(frozen=True)
class Samples:
    """Repeated measurements of one quantity in one run, and a speed of the machine probed beside each, if it was."""

    values: tuple[float, ...]
    probe: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for sample in (*self.values, *self.probe):
            if not (math.isfinite(sample) and sample > 0):
                raise InputError(f"sample {sample}: only positive numbers have a ratio")
        if not self.values:
            raise InputError("no samples: there must be at least one")
        if self.probe and len(self.probe) != len(self.values):
            raise InputError(f"{len(self.probe)} probes beside {len(self.values)} samples: give one for each")


@dataclass(frozen=True)
class Comparison:
    """This week's run, the `before` that it is compared with, and all earlier runs, oldest first."""

    now: Samples
    before: Samples
    earlier: tuple[Samples, ...]
    unit: str
    better: Direction


@dataclass(frozen=True)
class Shift:
    """The ratio of this week to the earlier one, with an interval of the given confidence."""

    ratio: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Judgement:
    """What can be said of a change; `shift` is None where nothing was compared."""

    verdict: Verdict
    shift: Shift | None
    reason: str


@dataclass(frozen=True)
class _Difference:
    """The difference of two logarithms, its standard error, and the degrees of freedom of this error."""

    size: float
    error: float
    freedom: float

    @property
    def p_value(self) -> float:
        from scipy.special import stdtr

        if self.error == 0:
            return 0.0 if self.size else 1.0
        return float(2 * stdtr(self.freedom, -abs(self.size) / self.error))

    def half_width(self, level: float) -> float:
        """Return half the width of the interval that leaves out the truth with probability `level`."""
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, 1 - level / 2)) * self.error


def is_time(unit: str) -> bool:
    """Whether a unit is of a duration or a speed, which depend on the machine."""
    return unit.endswith("/s") or unit in TIME_UNITS


def judge_changes(comparisons: Sequence[Comparison]) -> list[Judgement]:
    """Judge all measures of a week: each both certain and large enough, or no change beyond noise.

    Among all measures of a week without a change there is a false alarm in at most FALSE_ALARMS of the weeks (Holm's
    correction). Blunt measures have BLUNT_SHARE of them. Which these are depends on scatter alone, and not on changes.
    """
    found = {number: _difference(each) for number, each in enumerate(comparisons) if not _too_few(each)}
    level = FALSE_ALARMS / max(1, len(found))
    sharp = {number for number, each in found.items() if each.half_width(level) <= math.log1p(SHARP)}
    groups = [group for group in (sharp, found.keys() - sharp) if group]
    shares = (1 - BLUNT_SHARE, BLUNT_SHARE) if len(groups) == 2 else (1.0,)
    levels: dict[int, float] = {}
    for group, share in zip(groups, shares, strict=False):
        levels |= holm_levels({number: found[number].p_value for number in group}, FALSE_ALARMS * share)
    return [
        _judgement(found[number], levels[number], each.better) if number in found else _no_judgement(each)
        for number, each in enumerate(comparisons)
    ]


def holm_levels(p_values: Mapping[int, float], alarms: float) -> dict[int, float]:
    """Return the level at which each p-value is tested: step down from the smallest until one is not below its level.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979), 65-70.
    """
    levels, left = {}, len(p_values)
    for name in sorted(p_values, key=p_values.__getitem__):
        levels[name] = alarms / left
        if p_values[name] <= levels[name]:
            left = max(1, left - 1)
    return levels


def _too_few(each: Comparison) -> bool:
    return min(len(each.now.values), len(each.before.values)) < LEAST_SAMPLES


def _no_judgement(each: Comparison) -> Judgement:
    counts = f"{len(each.now.values)} against {len(each.before.values)}"
    return Judgement("too few samples", None, f"{counts}: a change takes {LEAST_SAMPLES} on each side")


def _judgement(found: _Difference, level: float, better: Direction) -> Judgement:
    width = found.half_width(level)
    ratio, low, high = map(math.exp, (found.size, found.size - width, found.size + width))
    shift = Shift(ratio, low, high, confidence=1 - level)
    certain = found.p_value <= level
    large = abs(found.size) >= math.log1p(PRACTICAL_SIZE)
    if certain and large:
        return Judgement("better" if (found.size > 0) == (better == "higher") else "worse", shift, "")
    if certain:
        return Judgement("no change beyond noise", shift, f"certain, but smaller than {PRACTICAL_SIZE:.0%}")
    blunt = width > math.log1p(SHARP)
    return Judgement("no change beyond noise", shift, f"too noisy to show {SHARP:.0%}" if blunt else "")


def _difference(each: Comparison) -> _Difference:
    """Return this week's median less that of the earlier run, both as logarithms and at equal speed of the machine."""
    probed = bool(each.now.probe and each.before.probe)
    earlier = [run for run in each.earlier if len(run.values) >= LEAST_SAMPLES and (run.probe or not probed)]
    power = 0 if not probed else 1 if each.better == "higher" else -1
    now, before = _level(each.now, power), _level(each.before, power)
    errors = now.error**2 + before.error**2
    size = now.centre - before.centre
    if not is_time(each.unit):  # what is counted does not depend on the machine
        return _Difference(size, math.sqrt(errors), len(each.now.values) + len(each.before.values) - 2)
    known = BESIDE_A_PROBE if probed else WITHOUT_A_PROBE
    steps = list(pairwise(_level(run, power) for run in earlier))
    between = (known.worth * known.sd**2 + len(steps) * _step_variance(steps)) / (known.worth + len(steps))
    return _Difference(size, math.sqrt(errors + 2 * between), known.worth + len(steps))


@dataclass(frozen=True)
class _Level:
    """The median of a run's logarithms, and its standard error."""

    centre: float
    error: float


def _level(run: Samples, power: int) -> _Level:
    """Return the level of a run; its samples are divided by the probed speed to a power."""
    speeds = run.probe if power else (1.0,) * len(run.values)
    logs = [math.log(value) - power * math.log(speed) for value, speed in zip(run.values, speeds, strict=True)]
    centre = median(logs)
    sd = MAD_TO_SD * median(abs(value - centre) for value in logs)
    return _Level(centre, sd * math.sqrt(math.pi / 2 / len(logs)))


def _step_variance(steps: Sequence[tuple[_Level, _Level]]) -> float:
    """Return the variance from run to run by the steps between successive ones; one real change does not count."""
    if not steps:
        return 0.0
    squares = [(after.centre - before.centre) ** 2 for before, after in steps]
    within = fmean(level.error**2 for step in steps for level in step)
    return max(0.0, median(squares) / MEDIAN_OF_SQUARE / 2 - within)
