"""Compare the runs of a week with those of earlier weeks: find each run's predecessor, and what has changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from qubic_lab.errors import InputError
from qubic_lab.runs.change import Direction, Judgement, judge_change
from qubic_lab.runs.records import RecordedMeasure, Records
from qubic_lab.runs.store import Manifest

SAME_INPUT = ("study", "parameters", "model_hash", "data_hashes")
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


def find_changes(now: Sequence[PastRun], earlier: Sequence[PastRun]) -> list[MeasureChange]:
    """Judge each measure of a week against the latest earlier one of its machine; a bad sample is an InputError."""
    pairs = [(run, measure, _predecessor(run, measure, earlier)) for run in now for measure in run.records.measures]
    compared = sum(past is not None and _is_comparable(run, past) for run, _, past in pairs)
    return [_change(run, measure, past, compared) for run, measure, past in pairs]


def find_repetitions(now: Sequence[PastRun], earlier: Sequence[PastRun]) -> list[Repetition]:
    """Compare what should be equal to the last bit with the latest earlier run of the same input and machine."""
    found = []
    for run in now:
        past = next((p for p in _latest_first(earlier) if _same_input(run, p) and _is_comparable(run, p)), None)
        if past is not None:
            found += [
                Repetition(run.manifest.study, what, run.name, value, past.week, past.name, before)
                for result, now_recorded in run.records.results.items()
                for what, value, before in _exact_values(now_recorded, past.records.results.get(result, {}))
            ]
    return found


def _latest_first(runs: Iterable[PastRun]) -> list[PastRun]:
    return sorted(runs, key=lambda run: run.week, reverse=True)


def _same_input(run: PastRun, past: PastRun) -> bool:
    """Whether study, parameters, model and data are the same; the code may have changed."""
    one, other = run.manifest, past.manifest
    return all(getattr(one, name) == getattr(other, name) for name in SAME_INPUT)


def _is_comparable(run: PastRun, past: PastRun) -> bool:
    return run.name != past.name and run.manifest.machine == past.manifest.machine


def _predecessor(run: PastRun, measure: RecordedMeasure, earlier: Sequence[PastRun]) -> PastRun | None:
    """Return the latest earlier run with this measure; one of the same machine goes before a later one of another."""
    same = [past for past in _latest_first(earlier) if _same_input(run, past) and _measure(past, measure.name)]
    own = [past for past in same if past.manifest.machine == run.manifest.machine]
    return next(iter(own or same), None)


def _measure(run: PastRun, name: str) -> RecordedMeasure | None:
    return next((measure for measure in run.records.measures if measure.name == name), None)


def _change(run: PastRun, measure: RecordedMeasure, past: PastRun | None, compared: int) -> MeasureChange:
    before = _measure(past, measure.name) if past is not None else None
    try:
        judgement = _judge(run, measure, past, before, compared)
        return MeasureChange(
            study=run.manifest.study,
            measure=measure.name,
            unit=measure.unit,
            better=measure.better,
            run=run.name,
            median=median(measure.samples),
            samples=len(measure.samples),
            earlier_week=past.week if past else None,
            earlier_run=past.name if past else None,
            earlier_median=median(before.samples) if before else None,
            judgement=judgement,
        )
    except (InputError, ValueError) as error:
        raise InputError(f"measure {measure.name} of run {run.name}: {error}") from None


def _judge(
    run: PastRun, measure: RecordedMeasure, past: PastRun | None, before: RecordedMeasure | None, compared: int
) -> Judgement:
    if past is None or before is None:
        return Judgement("first measured", None, "no earlier week has it with the same parameters, model and data")
    if run.name == past.name:
        return Judgement("not measured again", None, f"the run of {past.week} was used again, as nothing had changed")
    if run.manifest.machine != past.manifest.machine:
        return Judgement("other machine", None, f"in {past.week} it was {past.manifest.machine}")
    return judge_change(measure.samples, before.samples, measure.better, compared)


def _exact_values(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the exact values that both results have, and how many of the answers are the same."""
    common = [name for name in EXACT if name in now and name in before]
    found = [(name.replace("_", " "), f"{now[name]:.12g}", f"{before[name]:.12g}") for name in common]
    if "answers" in now and "answers" in before:
        texts, old = ([answer["text"] for answer in each["answers"]] for each in (now, before))
        same = sum(new == past for new, past in zip(texts, old, strict=False))
        found.append(("answers equal to the earlier ones", f"{same} of {len(old)}", f"{len(old)} of {len(old)}"))
    return found
