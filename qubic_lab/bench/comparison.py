"""Tells a change between two results of a benchmark from noise.

A side is the JSON of one run, or of several runs of one benchmark. A figure counts as changed only where its intervals
on both sides would still be apart if each were twice as wide around its middle: of two sets of three equal measurements
that happens to 1 in 80, of two sets of five to 1 in 10,000 (normal noise). One value alone says nothing of its noise.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from qubic_lab.bench.result import Table, interval_text, read_printed
from qubic_lab.errors import InputError

Verdict = Literal["better", "worse", "changed", "noise", "unknown"]
WIDER = 2.0
FEWEST_RUNS = 3
"""Of fewer runs the least and the greatest value say little of the noise."""
LEAST = 0.02
"""A smaller change is none that matters, however sure it is."""
SHOWN = 0.05
"""A figure of one value each is shown if it differs by more."""
MORE_IS_BETTER = r"per_s\b|per_s_|goodput|in_time|share_of_peak|accepted|speedup|\bratio|_ratio|_vs_"
LESS_IS_BETTER = (
    r"_(ms|s|us|bytes|mib|gib)\b|errors|failed|\blate|refused|lost|duplicated|wrong|idle|latency|growth|cpu"
)


@dataclass(frozen=True)
class BenchFigure:
    """A value with its interval; without ends it was measured once."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class FigureChange:
    """What became of a figure from A to B; `ratio` is B ÷ A, None where A is 0."""

    name: str
    before: BenchFigure
    after: BenchFigure
    ratio: float | None
    verdict: Verdict

    def cells(self) -> tuple[str, ...]:
        texts = (
            f"{each.value:.4g}" if each.low is None else interval_text(each.value, each.low, each.high, ".4g")
            for each in (self.before, self.after)
        )
        return self.name, *texts, "-" if self.ratio is None else f"{self.ratio:.3f}", self.verdict


@dataclass(frozen=True)
class BenchComparison:
    """All changes between two sides, and what of their settings differs."""

    runs: tuple[int, int]
    differs: dict[str, tuple[str, str]]
    changes: tuple[FigureChange, ...]
    only_one: tuple[str, ...]

    @property
    def is_worse(self) -> bool:
        """Whether a figure got worse by more than noise."""
        return any(each.verdict == "worse" for each in self.changes)

    @property
    def judged(self) -> list[FigureChange]:
        """The figures that have intervals on both sides."""
        return [each for each in self.changes if each.verdict != "unknown"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "is_worse": self.is_worse}

    def report(self) -> Iterator[Table | str]:
        """Yield what differs, first of all what changed."""
        for name, (before, after) in self.differs.items():
            yield f"{name} differs: {before} before, {after} after"
        real = [each for each in self.judged if each.verdict != "noise"]
        header = ("figure", "A", "B", "B ÷ A", "verdict")
        if real:
            yield Table(header, [each.cells() for each in real])
        once = [each for each in self.changes if each.verdict == "unknown" and each.before.value != each.after.value]
        once = [each for each in once if each.ratio is None or abs(each.ratio - 1.0) > SHOWN]
        if once:
            yield f"measured too seldom to be judged (record {FEWEST_RUNS} runs of each side, and compare the folders):"
            yield Table(header, [each.cells() for each in once])
        if self.only_one:
            yield f"only on one side: {', '.join(self.only_one)}"
        if not self.judged:
            yield "NOT JUDGED: no figure has an interval on both sides"
            return
        counts = ", ".join(
            f"{sum(each.verdict == verdict for each in self.judged)} {verdict}"
            for verdict in ("worse", "better", "changed", "noise")
        )
        yield f"{'WORSE' if self.is_worse else 'NOT WORSE'}: of {len(self.judged)} figures with intervals {counts}"


def read_side(place: Path) -> list[dict[str, Any]]:
    """Read the results of one side: a file, or all files of a folder.

    Raises:
        InputError: there is none, or one is no JSON object.
    """
    files = sorted(place.rglob("*.json")) if place.is_dir() else [place]
    if not files:
        raise InputError(f"{place} has no .json: give a result of qubic-lab bench … --json, or a folder of --record")
    return [read_printed(file) for file in files]


def compare_results(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> BenchComparison:
    """Compare two sides, each of at least one run.

    Raises:
        InputError: they have no figure in common.
    """
    sides = before, after
    figures = [_merged([figures_of(run) for run in side]) for side in sides]
    common = [name for name in figures[0] if name in figures[1]]
    if not common:
        raise InputError("the two sides have no figure in common: give results of the same benchmark")
    texts = [_settings_of(side) for side in sides]
    return BenchComparison(
        runs=(len(before), len(after)),
        differs={
            name: (texts[0].get(name, "-"), texts[1].get(name, "-"))
            for name in dict.fromkeys((*texts[0], *texts[1]))
            if texts[0].get(name) != texts[1].get(name)
        },
        changes=tuple(judge(name, figures[0][name], figures[1][name]) for name in common),
        only_one=tuple(sorted(set(figures[0]) ^ set(figures[1]))),
    )


def judge(name: str, before: BenchFigure, after: BenchFigure) -> FigureChange:
    """Return whether a figure has changed by more than noise, and to the better or the worse."""
    ratio = after.value / before.value if before.value else None
    verdict: Verdict = "unknown"
    if None not in (before.low, before.high, after.low, after.high):
        (low_a, high_a), (low_b, high_b) = _widened(before), _widened(after)
        is_large = ratio is None or abs(ratio - 1.0) >= LEAST
        verdict = _direction(name, before, after) if is_large and (low_b > high_a or low_a > high_b) else "noise"
    return FigureChange(name, before, after, ratio, verdict)


def _widened(figure: BenchFigure) -> tuple[float, float]:
    assert figure.low is not None  # `judge` has looked
    assert figure.high is not None
    middle, half = (figure.low + figure.high) / 2, WIDER * (figure.high - figure.low) / 2
    return middle - half, middle + half


def _direction(name: str, before: BenchFigure, after: BenchFigure) -> Verdict:
    grew = after.value > before.value
    for part in reversed(name.split(".")):
        if re.search(MORE_IS_BETTER, part):
            return "better" if grew else "worse"
        if re.search(LESS_IS_BETTER, part):
            return "worse" if grew else "better"
    return "changed"


def figures_of(value: Any, name: str = "") -> dict[str, BenchFigure]:
    """Return all numbers of a result by their path; rows of a list are called by what they are, not by their place."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, int | float):
        return {name: BenchFigure(float(value))}
    if isinstance(value, list):
        found: dict[str, BenchFigure] = {}
        names = set[str]()
        for place, row in enumerate(value):
            called = f"{name}[{_row_name(row, place)}]"
            called = f"{name}[{place}]" if called in names else called
            names.add(called)
            found |= figures_of(row, called)
        return found
    found = {}
    for middle in ("median", "value", "p50", "p95", "p99"):
        ends = ("low", "high") if middle in ("median", "value") else (f"{middle}_low", f"{middle}_high")
        if middle in value and all(end in value for end in ends):
            own = name if middle in ("median", "value") else f"{name}.{middle}"
            found[own] = BenchFigure(float(value[middle]), *(value[end] for end in ends))
    if found:
        return found
    for part, each in value.items():
        if part != "noise":  # of the machine
            found |= figures_of(each, f"{name}.{part}" if name else part)
    return found


def _row_name(row: Any, place: int) -> str:
    """Return the texts of a row, and a whole number among its first parts: that is what it was measured at."""
    if not isinstance(row, dict):
        return str(place)
    texts = [each for part, each in row.items() if isinstance(each, str) and each and "fault" not in part]
    for each in list(row.values())[:3]:
        if isinstance(each, int | float) and not isinstance(each, bool) and float(each).is_integer():
            texts.append(f"{each:g}")
            break
    return " ".join(texts) or str(place)


def _merged(runs: Sequence[dict[str, BenchFigure]]) -> dict[str, BenchFigure]:
    """Return the figures of all runs: of one run its own intervals, of several the least and the greatest value."""
    if len(runs) == 1:
        return runs[0]
    found = {}
    for name in runs[0]:
        values = [run[name].value for run in runs if name in run]
        if len(values) == len(runs):
            is_known = len(values) >= FEWEST_RUNS
            ends = (min(values), max(values)) if is_known else (None, None)
            found[name] = BenchFigure(median(values), *ends)
    return found


def _settings_of(side: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the texts and switches of the runs, such as commit, machine and dtype, but no instants."""
    found: dict[str, list[str]] = {}
    for run in side:
        for name, value in run.items():
            if isinstance(value, str | bool) and not name.endswith("_utc") and "error" not in name:
                found.setdefault(name, []).append(str(value))
    return {name: " and ".join(dict.fromkeys(values)) for name, values in found.items()}


def kept_place(folder: Path, bench: str, machine: str, commit: str) -> Path:
    """Return the file of the next run of a benchmark on a machine at a commit."""
    place = folder / _plain(machine) / _plain(commit)[:40] / bench
    return place / f"{sum(1 for _ in place.glob('*.json')) + 1}.json"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")[:80] or "unknown"
