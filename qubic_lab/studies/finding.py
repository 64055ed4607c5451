"""A finding: an English sentence whose values have names, kept as data, so that it can be written in any language.

In a template `{name:rule}` stands for a value. The rule says how it is written: by a format of Python (`.1f`, `,`), by
one of `RULES`, or counted with a noun (`{nodes:node}`: "1 node", "2 nodes"). The template is the message that is
translated; a translation has the same names in the same order.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qubic_lab.studies.style import counted, percent, points

QUESTIONS = {
    "speed": "How fast is each way to spread the model, and which is best?",
    "sameness": "Is the split model the same model?",
    "loss": "Does the cluster lose or delay anything?",
    "voting": "Does voting make answers better?",
    "prediction": "Do prices or texts predict anything?",
    "warning": "Do risk warnings come in time?",
}
"""The questions that a week answers, in their order. Each study names its own as QUESTION."""
HEADLINE_WORDS = 20
"""A study's first finding has no more."""
MISSING = "–"
LIST = ", "
"""What stands between the items of a list; languages have their own."""
FIGURE, FIGURE_WITH_INTERVAL = "{key} {unit}", "{key} {unit} ({low}\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}{high})"
PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
NOUN = re.compile(r"[a-z][a-z -]+")
SMALLEST_P = 1e-4

Translate = Callable[[str], str]


def _signed_points(share: float) -> str:
    written = points(share)
    return "0" if written in ("0.0", "−0.0") else written if share < 0 else f"+{written}"


RULES: dict[str, Callable[[Any], str]] = {
    "percent": lambda share: percent(share).replace("-", "−"),
    "signed percent": lambda share: f"{share:+.0%}".replace("-", "−").replace("%", "\N{NO-BREAK SPACE}%"),
    "points": _signed_points,
    "p": lambda p: f"= {p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P}",
}
"""A share or a change in per cent; a difference of shares in percentage points; a p-value, as in "p = 0.04"."""


@dataclass(frozen=True)
class Finding:
    """A sentence, or a part of one, with its values, and the key of the question that it answers.

    Values are numbers, texts that no language changes (names, versions), parts that are translated (`Finding`), or
    lists of these. A part's placeholders without a rule take that of its own place.

    A headline with a key figure has it as `key`, with `unit` and, where they are known, `low` and `high`: the ends of
    its 95 % interval, or the lowest and the highest measurement. The figure stands beside the headline, so that this
    need not repeat it; `rule` then says how it is written.
    """

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    question: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {name: _value(each) for name, each in self.values.items()})

    @classmethod
    def read(cls, recorded: "str | Mapping[str, Any] | Finding") -> "Finding":
        """Return a finding from what a run recorded; a plain sentence is one without values.

        Raises:
            ValueError: what was recorded is no finding.
        """
        if isinstance(recorded, Finding):
            return recorded
        try:
            return cls(recorded) if isinstance(recorded, str) else cls(**recorded)
        except (AttributeError, TypeError) as error:  # a damaged file has other names, or other types
            raise ValueError(f"no finding: {error}") from error

    def __str__(self) -> str:
        return self.text()

    def text(self, translate: Translate = str, rule: str = "") -> str:
        """Return the sentence, in the language that its templates are translated to."""
        if not self.values:
            return translate(self.template)

        def fill(place: re.Match[str]) -> str:
            return write(self.values[place[1]], place[2] or rule, translate)

        return PLACEHOLDER.sub(fill, translate(self.template))

    def figure(self, translate: Translate = str) -> str:
        """Return the key figure with its unit and interval; empty if there is none."""
        if self.values.get("key") is None:
            return ""
        named = (rule for name, rule in PLACEHOLDER.findall(self.template) if name == "key")
        rule = self.values.get("rule") or next(named, "")
        known = self.values.get("low") is not None and self.values.get("high") is not None
        return replace(self, template=FIGURE_WITH_INTERVAL if known else FIGURE).text(translate, rule)


def say(template: str, **values: Any) -> Finding:
    """Return a finding with those of the values that its template, or its key figure, has a place for."""
    named = {name for name, _ in PLACEHOLDER.findall(template)}
    assert named <= values.keys(), f"{template!r} has no {named - values.keys()}"
    named |= {"key", "rule", "low", "high", "unit"} if "key" in named or "rule" in values else set()
    return Finding(template, {name: value for name, value in values.items() if name in named})


def _value(value: Any) -> Any:
    """Return a value as plain JSON has it, and parts as findings."""
    if isinstance(value, Mapping):
        return Finding(**value)
    if isinstance(value, list | tuple):
        return tuple(map(_value, value))
    if hasattr(value, "item"):  # of NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(value: Any, rule: str = "", translate: Translate = str) -> str:
    """Write a value of a finding by a rule."""
    if value is None:
        return MISSING
    if isinstance(value, Finding):
        return value.text(translate, rule)
    if isinstance(value, tuple):
        return translate(LIST).join(write(each, rule, translate) for each in value)
    if isinstance(value, str):
        return value
    if rule in RULES:
        return RULES[rule](value)
    if NOUN.fullmatch(rule):
        return counted(value, rule)
    return format(value, rule or ",").replace("-", "−")


def estimate(value: float | None, low: float | None, high: float | None) -> Finding:
    """Return a value with its interval, as far as it is known."""
    if value is None:
        return say("unknown")
    if low is None or high is None:
        return say("{value} (too few for an interval)", value=value)
    return say("{value} ({low} to {high})", value=value, low=low, high=high)


def extent(values: Iterable[float]) -> Finding:
    """Return the least and the largest of some values, or the one that all are."""
    known = [each for each in values if math.isfinite(each)]
    if not known:
        return say("undefined")
    if min(known) == max(known):
        return say("{value}", value=known[0])
    return say("{low} to {high}", low=min(known), high=max(known))


def answering(question: str, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with the question that they answer, a key of QUESTIONS."""
    assert question in QUESTIONS
    return [replace(each, question=question) for each in findings]
