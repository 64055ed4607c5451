"""What an audit found: findings, the signal's power by lag, and the whole report, plain enough for JSON."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a signal, in one line.

    Attributes:
        kind: shift, centred window, resample, backward filter, backfill, full-sample scaling, full-sample ranking,
            whole sample, published later, look-ahead or rounding; or error, output, input, state, clock, outside, not
            repeatable.
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
