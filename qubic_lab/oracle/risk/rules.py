"""Rules that turn measures into levels of risk: read from YAML, and applied to bars, with evidence for each level."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from qubic_lab.checked_yaml import STRICT, check_content, read_yaml
from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.bars import Floats, Integers
from qubic_lab.oracle.model.coins import coin_ids
from qubic_lab.oracle.model.response import Frame, Instant, Part
from qubic_lab.oracle.risk.measures import (
    LEVELS,
    MEASURES,
    Level,
    MeasureValues,
    RiskInputs,
    WindowLengths,
    check_parameters,
    compute_measure,
)
from qubic_lab.provenance import data_file

RULES = data_file("risk/rules.yaml", __file__)
FORGOTTEN_BARS = 48
"""After this number of bars in a row without a value the level is calm: about two windows of short bars."""


@dataclass(frozen=True)
class RiskRule:
    """The values of a measure at which each level begins.

    Attributes:
        watch, warning, alarm: the least value for the level.
        parameters: of the measure, if they differ from its defaults.
        clear: a level is left once the measure is below its least value times this, 0 to 1,
        hold: at this number of bars in a row.

    Raises:
        InputError: an unknown measure or parameter, thresholds that do not rise, or a number out of range.
    """

    __pydantic_config__ = STRICT

    name: str
    measure: str
    watch: float
    warning: float
    alarm: float
    parameters: Mapping[str, int] = field(default_factory=dict)
    clear: float = 0.9
    hold: int = 3

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("a rule has no name: give it one")
        check_parameters(self.measure, self.parameters)
        if not (0.0 < self.watch < self.warning < self.alarm < math.inf):
            raise InputError(
                f"watch {self.watch:g}, warning {self.warning:g}, alarm {self.alarm:g}: they must rise from above 0"
            )
        if not 0.0 < self.clear <= 1.0:
            raise InputError(f"clear is {self.clear}: it must be above 0 and at most 1")
        check_at_least("hold", self.hold, 1)

    @property
    def thresholds(self) -> tuple[float, float, float]:
        """The least values for the levels above calm."""
        return self.watch, self.warning, self.alarm


@dataclass(frozen=True)
class _RulesFile:
    __pydantic_config__ = STRICT

    rules: tuple[RiskRule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise InputError("rules is empty: give a list of at least one rule")
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two rules are called {name!r}: give each its own name")


def read_rules(path: Path | None = None) -> tuple[RiskRule, ...]:
    """Return rules from a YAML file, a map with a list `rules`; None: the rules that come with the project.

    Raises:
        InputError: the file cannot be read, or a name or a value in it is wrong.
    """
    path = path or RULES
    return check_content(_RulesFile, read_yaml(path), path).rules


@dataclass(frozen=True)
class RiskConfig:
    """The settings of risk and its alerts.

    Attributes:
        rules: of the levels; None: the rules that come with the project.
        alerts: whether a collector emits alerts.
        coins: that alerts are emitted for; empty: all coins that are collected.
        level: an episode begins with a bar at this level or above,
        cool_down: and ends with this number of bars in a row below it.
        no_prices: whether an alert is emitted for a coin without fresh prices, whose risk is then not known.

    Raises:
        InputError: a cool-down below 1.
    """

    __pydantic_config__ = STRICT

    rules: tuple[RiskRule, ...] | None = None
    alerts: bool = True
    coins: Annotated[tuple[str, ...], AfterValidator(coin_ids)] = ()
    frame: Frame = "1h"
    level: Literal["watch", "warning", "alarm"] = "warning"
    cool_down: int = 6
    no_prices: bool = True

    def __post_init__(self) -> None:
        check_at_least("cool_down", self.cool_down, 1)


RISK = RiskConfig()


def fit_rules(rules: Sequence[RiskRule], frame_us: int) -> tuple[RiskRule, ...]:
    """Return the rules with windows that suit the length of bars; parameters that a rule names stay."""
    lengths = WindowLengths.of(frame_us)
    return tuple(replace(rule, parameters={**lengths.parameters(rule.measure), **rule.parameters}) for rule in rules)


def levels_of(rule: RiskRule, values: Floats) -> NDArray[np.int8]:
    """Return the number of the level at each bar, [bars].

    A level rises at once. It falls once the measure was below its least value × `clear` at `hold` bars in a row, to the
    highest level whose least value × `clear` is still reached. Bars without a value change nothing, until
    `FORGOTTEN_BARS` of them in a row make the level calm.
    """
    found = np.zeros(len(values), np.int8)
    level = below = silent = 0
    for bar, value in enumerate(values.tolist()):
        if math.isnan(value):
            silent += 1
            if silent >= FORGOTTEN_BARS:
                level = below = 0
        else:
            silent = 0
            reached = sum(value >= least for least in rule.thresholds)
            if reached > level:
                level, below = reached, 0
            elif level and value < rule.thresholds[level - 1] * rule.clear:
                below += 1
                if below >= rule.hold:
                    level, below = sum(value >= least * rule.clear for least in rule.thresholds), 0
            else:
                below = 0
        found[bar] = level
    return found


@dataclass(frozen=True, kw_only=True)
class RiskEvidence(Part):
    """Why a rule is at its level: the value of its measure, if the bar has one, and the least value for the level."""

    rule: Annotated[str, Field(description="the rule's name")]
    measure: Annotated[str, Field(description="what it watches")]
    level: Annotated[Level, Field(description="the level that it gives")]
    value: Annotated[float | None, Field(description="of the measure; null: the bar has none")]
    threshold: Annotated[float, Field(description="the least value for this level")]
    unit: Annotated[str, Field(description="of the value")]
    text: Annotated[str, Field(description="the same in words")]

    @classmethod
    def of(cls, rule: RiskRule, level: int, value: float) -> "RiskEvidence":
        """Return the evidence of a rule at a level above calm; `value` is NaN where the bar has none."""
        unit, threshold = MEASURES[rule.measure].unit, rule.thresholds[level - 1]
        known = None if math.isnan(value) else value
        shown = "not known at this bar" if known is None else f"{known:.2f} {unit}"
        left = ", not left yet" if value < threshold else ""
        return cls(
            rule=rule.name,
            measure=rule.measure,
            level=LEVELS[level],
            value=known,
            threshold=threshold,
            unit=unit,
            text=f"{rule.name}: {shown} ({LEVELS[level]} from {threshold:g}{left})",
        )


@dataclass(frozen=True, kw_only=True)
class RiskWarning(Part):
    """The level at the close of a bar, the level at the bar before, and the evidence."""

    bar: int
    at_us: Instant
    level: Level
    before: Level
    evidence: tuple[RiskEvidence, ...]


@dataclass(frozen=True, eq=False)
class RuleLevels:
    """A rule over time: the values of its measure, and its levels, [bars]."""

    rule: RiskRule
    measured: MeasureValues
    levels: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Assessment:
    """The level of risk over time: at each bar the level of the highest rule.

    Attributes:
        levels: numbers of levels, [bars].
        warm_up: number of bars before the first rule has a value; the level there is calm, and means nothing.
        settled: number of bars before each rule with any value has one.
    """

    closed_us: Integers
    levels: NDArray[np.int8]
    rules: tuple[RuleLevels, ...]
    warm_up: int
    settled: int

    @property
    def missing(self) -> dict[str, str]:
        """Why a rule has no value at any bar, by rule."""
        return {each.rule.name: each.measured.missing for each in self.rules if each.measured.missing}

    @property
    def why_unknown(self) -> str:
        """Why the level is not known, as no rule has a value; empty if it is known."""
        if len(self.missing) < len(self.rules):
            return ""
        return f"no rule has a value: {next(iter(self.missing.values()))}"

    def at(self, bar: int) -> RiskWarning:
        """Return the level at a bar with the evidence of all rules at that level; −1 is the last bar."""
        bar %= len(self.levels)
        level = int(self.levels[bar])
        evidence = tuple(
            RiskEvidence.of(each.rule, level, float(each.measured.values[bar]))
            for each in self.rules
            if level and int(each.levels[bar]) == level
        )
        return RiskWarning(
            bar=bar,
            at_us=int(self.closed_us[bar]),
            level=LEVELS[level],
            before=LEVELS[int(self.levels[bar - 1])] if bar else LEVELS[0],
            evidence=evidence,
        )

    def warnings(self, least: str = "watch") -> tuple[RiskWarning, ...]:
        """Return the bars at which the level rose to `least` or above."""
        rises = np.flatnonzero(np.diff(self.levels, prepend=np.int8(0)) > 0)
        return tuple(self.at(int(bar)) for bar in rises if self.levels[bar] >= LEVELS.index(least))

    def silent_rules(self, bar: int = -1) -> str:
        """Return how many rules have no value at a bar, in brackets after a space; empty if each has one."""
        silent = sum(math.isnan(each.measured.values[bar]) for each in self.rules)
        return f" ({silent} of {len(self.rules)} rules have no value here)" if silent else ""


def assess(inputs: RiskInputs, rules: Sequence[RiskRule]) -> Assessment:
    """Return the level of risk at each bar by at least one rule, from this bar and earlier ones only."""
    found = []
    for rule in rules:
        measured = compute_measure(rule.measure, inputs, rule.parameters)
        found.append(RuleLevels(rule, measured, levels_of(rule, measured.values)))
    warm_ups = [each.measured.warm_up for each in found if not each.measured.missing]
    return Assessment(
        closed_us=inputs.bars.closed_us,
        levels=np.max([each.levels for each in found], axis=0),
        rules=tuple(found),
        warm_up=min(warm_ups, default=len(inputs.bars)),
        settled=max(warm_ups, default=len(inputs.bars)),
    )
