"""Rules that turn measures into levels of warning: read from YAML, checked, and slow to calm down again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_at_least, did_you_mean
from qubic_lab.oracle.model.candles import Floats
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.risk.measures import MEASURES, check_parameters

Level = Literal["calm", "watch", "warning", "alarm"]
LEVELS: tuple[Level, ...] = ("calm", "watch", "warning", "alarm")
"""By rising danger; numbers of levels count from 0."""
RULES = Path(__file__).parents[3] / "data" / "risk" / "rules.yaml"
_INSTALLED = Path(__file__).with_name("rules.yaml")
SHORT_BARS, SHORT_USUAL, SHORT_TAIL = 24, 480, 500
DAY_BARS, DAY_USUAL, DAY_TAIL = 7, 120, 120
"""Windows of bars of a day or longer: those of shorter ones would take years to warm up."""
FORGOTTEN_BARS = 48
"""After so many bars in a row without a value a level is calm again, as it says nothing of now. One hole in the data
takes windows of short bars about half as many."""
_KEYS = ("name", "measure", "parameters", *LEVELS[1:], "clear", "hold")


@dataclass(frozen=True)
class Rule:
    """What a measure must reach for each level.

    Attributes:
        name: of the rule.
        measure: its name.
        watch: the least value for the level; likewise `warning` and `alarm`.
        parameters: of the measure, where they are not the usual ones.
        clear: a level is left once the measure is below its least value times this, 0 to 1,
        hold: for so many bars in a row.
    """

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
                f"rule {self.name!r}: watch {self.watch:g}, warning {self.warning:g}, alarm {self.alarm:g}: "
                "they must rise from above 0"
            )
        if not 0.0 < self.clear <= 1.0:
            raise InputError(f"rule {self.name!r}: clear is {self.clear}: it must be above 0 and at most 1")
        check_at_least(f"rule {self.name!r}: hold", self.hold, 1)

    @property
    def thresholds(self) -> tuple[float, float, float]:
        """The least values for the levels above calm."""
        return self.watch, self.warning, self.alarm


def levels_of(rule: Rule, values: Floats) -> NDArray[np.int8]:
    """Return the number of the level at each bar, [bars].

    A level is raised at once. It is left when the measure was below its least value × `clear` at `hold` bars in a row,
    for the level whose own such value it still reaches. Bars without a value change nothing
    until `FORGOTTEN_BARS` of them in a row leave it calm.
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


@dataclass(frozen=True)
class Windows:
    """Lengths in bars: of what is measured now, of what it is held against, and of what value at risk looks at."""

    bars: int
    usual_bars: int
    tail_bars: int

    @classmethod
    def of(cls, frame_us: int) -> "Windows":
        """Return those for bars of a length."""
        if frame_us >= DAY_US:
            return cls(DAY_BARS, DAY_USUAL, DAY_TAIL)
        return cls(SHORT_BARS, SHORT_USUAL, SHORT_TAIL)

    def parameters(self, measure: str) -> dict[str, int]:
        """Return the parameters of a measure that these lengths set; those of short bars are the usual ones.

        Raises:
            KeyError: there is no such measure.
        """
        usual = MEASURES[measure].parameters
        if self.bars == SHORT_BARS:
            return {}
        known = {"bars": self.bars, "usual_bars": self.usual_bars}
        ours = known if "usual_bars" in usual else {"bars": self.tail_bars}
        return {name: value for name, value in ours.items() if name in usual}


def fit_rules(rules: Sequence[Rule], lengths: Windows) -> tuple[Rule, ...]:
    """Return the rules, with windows for days where bars are so long and a rule does not say its own."""
    return tuple(replace(rule, parameters={**lengths.parameters(rule.measure), **rule.parameters}) for rule in rules)


def read_rules(path: Path | None = None) -> tuple[Rule, ...]:
    """Return rules from YAML, a map with a list `rules`; None: those that come with the project.

    Raises:
        InputError: there is no such file, or a name or a value in it is not what it must be.
    """
    path = path or (RULES if RULES.exists() else _INSTALLED)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _rules(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _rules(content: Any) -> tuple[Rule, ...]:
    if not isinstance(content, dict):
        raise InputError("give a map with a list `rules`")
    _check_names("", content, ("rules",))
    entries = content.get("rules")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"rules is {entries!r}: give a list of at least one rule")
    rules = tuple(_rule(number, entry) for number, entry in enumerate(entries, 1))
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two rules are called {name!r}: give each a name of its own")
    return rules


def _rule(number: int, entry: Any) -> Rule:
    if not isinstance(entry, dict):
        raise InputError(f"rule {number} is {entry!r}: give a map of names and values")
    where = f"rule {entry.get('name', number)!r}: "
    _check_names(where, entry, _KEYS)
    missing = [name for name in ("name", "measure", *LEVELS[1:]) if name not in entry]
    if missing:
        raise InputError(f"{where}{missing[0]} is missing: add it")
    for name in ("name", "measure"):
        if not isinstance(entry[name], str):
            raise InputError(f"{where}{name} is {entry[name]!r}: give a text")
    values = {name: _number(f"{where}{name}", entry[name]) for name in (*LEVELS[1:], "clear") if name in entry}
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict) or not all(isinstance(name, str) for name in parameters):
        raise InputError(f"{where}parameters is {parameters!r}: give a map of names and numbers of bars")
    hold = entry.get("hold", 3)
    if isinstance(hold, bool) or not isinstance(hold, int):
        raise InputError(f"{where}hold is {hold!r}: give a whole number of bars")
    return Rule(name=entry["name"], measure=entry["measure"], parameters=parameters, hold=hold, **values)


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{what} is {value!r}: give a number")
    return float(value)


def _check_names(where: str, content: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for name in content:
        if name not in known:
            raise InputError(f"{where}unknown name {name!r}: {did_you_mean(str(name), known)}")
