"""What all benchmark results have in common: where they come from, their JSON, and their report for people."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from qubic_lab.provenance import machine, source_commit


@dataclass(frozen=True)
class Table:
    """A table of a report; every row has as many cells as the header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class BenchResult(ABC):
    """The result of one benchmark run, with the commit that produced it."""

    commit: str = field(default_factory=lambda: str(source_commit()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @abstractmethod
    def report(self) -> Iterator[Table | str]:
        """Yield the tables and sentences that the command prints."""


@dataclass(frozen=True, kw_only=True)
class MeasuredResult(BenchResult):
    """A result with speeds or sizes, which depend on the machine."""

    machine: str = field(default_factory=lambda: str(machine()))


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def text(self, form: str = ".2f") -> str:
        """Return the median with both ends, each in a number format such as `.1%`."""
        return interval_text(self.median, self.low, self.high, form)


def interval_text(value: float, low: float | None, high: float | None, form: str) -> str:
    """Return a value with the ends of its interval; an end that is not known is `?`."""
    ends = ["?" if end is None else f"{end:{form}}" for end in (low, high)]
    return f"{value:{form}} ({ends[0]} to {ends[1]})"
