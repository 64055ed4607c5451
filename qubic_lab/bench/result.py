"""What all benchmark results have in common: where they come from, their JSON, their report, and their statistics."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import accumulate, count
from pathlib import Path
from statistics import median
from typing import Any, Self

from qubic_lab.bench.noise import MachineNoise
from qubic_lab.checked_yaml import check_content
from qubic_lab.core import Progress, attributes
from qubic_lab.errors import InputError
from qubic_lab.provenance import machine, source_commit
from qubic_lab.stats import TAIL, wilson_interval

ROUNDING = 1e-9
"""0.95 × 20 is slightly more than 19 in floating point, but its rank is 19."""
FEWEST_PAIRS = 6
"""With fewer, not even the lowest and the highest of some ratios enclose their median with 95 % confidence."""
LEAST_FOR_P95 = 72
"""With fewer values the 95th percentile's interval has no upper end."""


@dataclass(frozen=True)
class Table:
    """A table of a report; every row has as many cells as the header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), f"{self.header}: a row has other cells"


@dataclass(frozen=True, kw_only=True)
class BenchResult(ABC):
    """The result of one benchmark run, with the commit that produced it."""

    commit: str = field(default_factory=lambda: str(source_commit()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, file: Path) -> Self:
        """Read what the command printed with `--json`.

        Raises:
            InputError: the file cannot be read, a name is unknown or missing, or a value has the wrong type.
        """
        content = read_printed(file)
        for each in fields(cls):  # such a default, of commit or machine, is that of this process
            if each.default_factory is not MISSING and each.name not in content:
                raise InputError(f"{file}: {each.name!r} is missing: give what the command printed with --json")
        return check_content(cls, content, file)

    @abstractmethod
    def report(self) -> Iterator[Table | str]:
        """Yield the tables and sentences that the command prints before the single values."""

    def single_values(self) -> str:
        """Return every value that is no list, by its name: settings, totals, and where the result comes from."""
        single = {name: value for name, value in vars(self).items() if isinstance(value, str | int | float)}
        texts = {name: f"{value:g}" if isinstance(value, float) else value for name, value in single.items()}
        return ", ".join(f"{name.replace('_', ' ')}: {text}" for name, text in texts.items() if text != "")


@dataclass(frozen=True, kw_only=True)
class MeasuredResult(BenchResult):
    """A result with speeds or sizes, which depend on the machine; `noise` is None where nobody watched it."""

    machine: str = field(default_factory=lambda: str(machine()))
    noise: MachineNoise | None = None


@dataclass(frozen=True, kw_only=True)
class ModelResult(MeasuredResult):
    """A result of a pipeline with these settings; `threads` are those of a rank unless the result says otherwise."""

    model: str
    meaningless: bool
    dtype: str
    device: str
    threads: int


def read_printed(file: Path) -> dict[str, Any]:
    """Return the object that a command printed with `--json`.

    Raises:
        InputError: the file cannot be read, or is no such object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): check its path") from error
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{file} is no JSON object: give what the command printed with --json")
    return content


def settings_of(used: object, *more: str) -> dict[str, Any]:
    """Return the settings of a resolved pipeline that a `ModelResult` has, and more of them by name."""
    return attributes(used, "model", "meaningless", "dtype", "device", "threads", *more)


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


@dataclass(frozen=True)
class Rate:
    """A share of runs with its 95 % interval (Wilson)."""

    count: int
    runs: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, runs: int) -> "Rate":
        """Return the share of at least one run."""
        return cls(count, runs, count / runs, *wilson_interval(count, runs))

    def text(self) -> str:
        """Return the share with its interval in per cent."""
        return interval_text(self.value, self.low, self.high, ".1%")


def counted(progress: Progress, total: int) -> Callable[[str], None]:
    """Return a function that reports one more step, by its name, of a known number of steps."""
    done = count(1)
    return lambda what: progress(what, next(done), total)


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def interval_text(value: float, low: float | None, high: float | None, form: str) -> str:
    """Return a value with the ends of its interval; an end that is not known is `?`."""
    ends = ["?" if end is None else f"{end:{form}}" for end in (low, high)]
    return f"{value:{form}} ({ends[0]} to {ends[1]})"


@dataclass(frozen=True)
class Percentiles:
    """Percentiles, each with a 95 % interval for any distribution; an end that needs more values is None."""

    p50: float
    p50_low: float | None
    p50_high: float | None
    p95: float
    p95_low: float | None
    p95_high: float | None
    p99: float
    p99_low: float | None
    p99_high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        """Return the percentiles of at least one value."""
        figures = [(quantile(values, share), *quantile_interval(values, share)) for share in (0.5, 0.95, 0.99)]
        return cls(*figures[0], *figures[1], *figures[2])

    def texts(self) -> tuple[str, str, str]:
        """Return the median, the 95th percentile with its interval, and the 99th."""
        p95 = interval_text(self.p95, self.p95_low, self.p95_high, ".1f")
        return f"{self.p50:.1f}", p95, f"{self.p99:.1f}"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least a share of the values does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values) - ROUNDING) - 1)]


def quantile_interval(values: Sequence[float], share: float) -> tuple[float | None, float | None]:
    """Return two of the values that enclose a quantile of any distribution with 95 % confidence.

    An end is None if there are too few values. The number of values below the quantile is binomial with p = share.
    Source: W. J. Conover, "Practical Nonparametric Statistics", 3rd edition (1999), section 3.2.
    """
    ordered, count = sorted(values), len(values)
    below = list(accumulate(_binomial(count, k, share) for k in range(count + 1)))  # below[k] = P(at most k)
    lows = [k for k in range(count) if below[k] <= TAIL]
    highs = [k for k in range(count) if 1 - below[k] <= TAIL]
    return (ordered[lows[-1]] if lows else None), (ordered[highs[0]] if highs else None)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of at least FEWEST_PAIRS values, and two of them that enclose it as in `quantile_interval`."""
    low, high = quantile_interval(values, 0.5)
    assert low is not None and high is not None
    return median(values), low, high


def _binomial(count: int, k: int, p: float) -> float:
    """Return the probability of k successes, computed with logarithms because the coefficients overflow."""
    ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(ways + k * math.log(p) + (count - k) * math.log(1 - p))
