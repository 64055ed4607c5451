"""Compare the runs of a week with those of earlier weeks: find each run's predecessor, and what has changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from qubic_lab.errors import InputError
from qubic_lab.runs.change import Comparison, Direction, Judgement, Samples, judge_changes
from qubic_lab.runs.records import RecordedMeasure, Records
from qubic_lab.runs.store import Manifest

SAME_INPUT = ("study", "parameters", "model_hash", "data_hashes")
"""What two runs share that can be compared; the code may have changed."""
IN_A_LINE = ("study", "parameters", "machine")
EXACT = ("token_identity", "logits_max_abs")
"""Values of a result that must repeat to the last bit on the same machine with the same model and parameters."""


@dataclass(frozen=True)
class PastRun:
    """A finished run of some week."""

    week: str
    name: str
    manifest: Manifest
    records: Records


@dataclass(frozen=True)
class MeasureChange:
    """One measure of this week's `run` beside the same measure of an `earlier_run`, medians in its unit."""

    study: str
    measure: str
    unit: str
    better: Direction
    run: str
    median: float
    samples: int
    earlier_week: str | None
    earlier_run: str | None
    earlier_median: float | None
    judgement: Judgement


@dataclass(frozen=True)
class Repetition:
    """A value that must repeat: in the earlier week and now."""

    study: str
    what: str
    run: str
    value: str
    earlier_week: str
    earlier_run: str
    earlier_value: str

    @property
    def same(self) -> bool:
        """Whether nothing has changed."""
        return self.value == self.earlier_value


def find_changes(now: Sequence[PastRun], earlier: Sequence[PastRun], against: str | None = None) -> list[MeasureChange]:
    """Judge each measure of a week by the latest earlier one of its machine, or by that of the week `against`.

    Raises:
        InputError: a sample is not a positive number.
    """
    found = [_find_earlier(run, measure, earlier, against) for run in now for measure in run.records.measures]
    reasons = [each.reason() for each in found]
    comparisons = [each.comparison() for each, reason in zip(found, reasons, strict=True) if reason is None]
    judged = iter(judge_changes(comparisons))
    return [each.change(reason or next(judged)) for each, reason in zip(found, reasons, strict=True)]


@dataclass(frozen=True)
class Trend:
    """The key figure of this week's `run` over the weeks that measured it, oldest first; this week is the last.

    Only runs of the same study, parameters and machine are in a trend. `intervals` have the ends of each figure's
    interval, or None.
    """

    run: str
    unit: str
    weeks: tuple[str, ...]
    figures: tuple[float, ...]
    intervals: tuple[tuple[float, float] | None, ...]


def find_trends(now: Sequence[PastRun], earlier: Sequence[PastRun]) -> list[Trend]:
    """Return how the key figure of each run's first finding moved over weeks."""
    trends = []
    for run in now:
        this = _key_figure(run)
        points = {
            past.week: figure
            for past in (*reversed(_latest_first(earlier)), run)
            if _same(run, past, IN_A_LINE) and (figure := _key_figure(past)) and this and figure[0] == this[0]
        }
        if this and points:
            figures = tuple(figure for _, figure, _ in points.values())
            intervals = tuple(interval for _, _, interval in points.values())
            trends.append(Trend(run.name, this[0], tuple(points), figures, intervals))
    return trends


def _key_figure(run: PastRun) -> tuple[str, float, tuple[float, float] | None] | None:
    """Return unit, figure and interval of a run's first finding, if it has a figure."""
    values = run.records.findings[0].values if run.records.findings else {}
    key, low, high = (values.get(name) for name in ("key", "low", "high"))
    if not isinstance(key, int | float):
        return None
    interval = (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else None
    return str(values.get("unit", "")), float(key), interval


def find_repetitions(now: Sequence[PastRun], earlier: Sequence[PastRun]) -> list[Repetition]:
    """Compare what should be equal to the last bit with the latest earlier run of the same input and machine."""
    found = []
    for run in now:
        same = (p for p in _latest_first(earlier) if p.name != run.name and _same(run, p, (*SAME_INPUT, "machine")))
        past = next(same, None)
        if past is not None:
            found += [
                Repetition(run.manifest.study, what, run.name, value, past.week, past.name, before)
                for result, now_recorded in run.records.results.items()
                for what, value, before in _exact_values(now_recorded, past.records.results.get(result, {}))
            ]
    return found


@dataclass(frozen=True)
class _Measured:
    """A measure of this week's run, what earlier runs on its machine have of it, oldest first, and the one before.

    The one before is of the same machine if there is one.
    """

    run: PastRun
    measure: RecordedMeasure
    earlier: tuple[RecordedMeasure, ...]
    past: PastRun | None
    before: RecordedMeasure | None

    def reason(self) -> Judgement | None:
        """Return why nothing can be compared, if so."""
        run, past = self.run, self.past
        if past is None:
            return Judgement("first measured", None, "no earlier week has it with the same parameters, model and data")
        if run.name == past.name:
            used_again = f"the run of {past.week} was used again, as nothing had changed"
            return Judgement("not measured again", None, used_again)
        if run.manifest.machine != past.manifest.machine:
            return Judgement("other machine", None, f"in {past.week} it was {past.manifest.machine}")
        return None

    def comparison(self) -> Comparison:
        """Return what is to be judged.

        Raises:
            InputError: a sample is not a positive number.
        """
        assert self.before is not None
        try:
            now, before, *earlier = (Samples(m.samples, m.probe) for m in (self.measure, self.before, *self.earlier))
        except InputError as error:
            raise InputError(f"measure {self.measure.name} of run {self.run.name}: {error}") from None
        return Comparison(now, before, tuple(earlier), self.measure.unit, self.measure.better)

    def change(self, judgement: Judgement) -> MeasureChange:
        """Return how the measure was judged."""
        return MeasureChange(
            study=self.run.manifest.study,
            measure=self.measure.name,
            unit=self.measure.unit,
            better=self.measure.better,
            run=self.run.name,
            median=median(self.measure.samples),
            samples=len(self.measure.samples),
            earlier_week=self.past.week if self.past else None,
            earlier_run=self.past.name if self.past else None,
            earlier_median=median(self.before.samples) if self.before else None,
            judgement=judgement,
        )


def _find_earlier(run: PastRun, measure: RecordedMeasure, earlier: Sequence[PastRun], against: str | None) -> _Measured:
    same = {
        past.name: (past, found)
        for past in reversed(_latest_first(earlier))
        if _same(run, past, SAME_INPUT) and (found := _measure(past, measure.name))
    }
    own = {name: each for name, each in same.items() if each[0].manifest.machine == run.manifest.machine}
    asked = [[each for each in some.values() if against in (None, each[0].week)] for some in (same, own)]
    past, before = ([(None, None)] + asked[0] + asked[1])[-1]
    return _Measured(run, measure, tuple(found for _, found in own.values()), past, before)


def _latest_first(runs: Iterable[PastRun]) -> list[PastRun]:
    return sorted(runs, key=lambda run: run.week, reverse=True)


def _same(run: PastRun, past: PastRun, names: Sequence[str]) -> bool:
    """Whether what the manifests say under some names is the same."""
    return all(getattr(run.manifest, name) == getattr(past.manifest, name) for name in names)


def _measure(run: PastRun, name: str) -> RecordedMeasure | None:
    return next((measure for measure in run.records.measures if measure.name == name), None)


def _exact_values(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the exact values that both results have, and how many of the answers are the same."""
    common = [name for name in EXACT if name in now and name in before]
    found = [(name.replace("_", " "), f"{now[name]:.12g}", f"{before[name]:.12g}") for name in common]
    if "answers" in now and "answers" in before:
        texts, old = ([answer["text"] for answer in each["answers"]] for each in (now, before))
        same = sum(new == past for new, past in zip(texts, old, strict=False))
        found.append(("answers equal to the earlier ones", f"{same} of {len(old)}", f"{len(old)} of {len(old)}"))
    return found
