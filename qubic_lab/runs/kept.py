"""Runs of all weeks as they are kept: found by name, compared, read as a data frame, deleted when they are old."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qubic_lab.errors import InputError, NotFoundError, did_you_mean
from qubic_lab.runs.notebook import FINDINGS
from qubic_lab.runs.one_run import PlannedRun
from qubic_lab.runs.records import read_measures
from qubic_lab.runs.store import MANIFEST, UNFINISHED, Manifest, read_manifest, read_results, run_folder, runs_folder
from qubic_lab.runs.week_index import days_of, last_full_runs, read_index, week_of, weeks_with_runs

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

ABOUT = ("study", "key", "started_utc", "seconds", "error", "commit", "dirty", "machine", "model", "model_hash")
"""What each run's facts begin with."""


@dataclass(frozen=True)
class KeptRun:
    """A run's folder with its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The name by which commands and pages call it."""
        return f"{self.manifest.study}/{self.manifest.key}"

    @property
    def week(self) -> str:
        """The ISO week in which it began."""
        return week_of(datetime.fromisoformat(self.manifest.started_utc))


def kept_runs(study: str | None = None, since: str | None = None) -> list[KeptRun]:
    """Return finished and failed runs, oldest first; one without a readable manifest is logged and left out.

    Args:
        study: only runs of this study.
        since: only runs that began in this ISO week or on this day (UTC), or later.

    Raises:
        InputError: there is no run of the study, or `since` is neither a week nor a day.
    """
    first = "" if since is None else _first_day(since).isoformat()
    runs = []
    for file in runs_folder().glob(f"*/*/{MANIFEST}"):
        if not file.parent.name.startswith(UNFINISHED):
            try:
                runs.append(KeptRun(file.parent, read_manifest(file.parent)))
            except InputError as error:
                log.warning("%s", error)
    if study is not None and study not in (studies := {run.manifest.study for run in runs}):
        raise InputError(f"no run of study {study!r} is kept: {did_you_mean(study, studies)}")
    chosen = [run for run in runs if study in (None, run.manifest.study) and run.manifest.started_utc >= first]
    return sorted(chosen, key=lambda run: run.manifest.started_utc)


def _first_day(since: str) -> date:
    for read in (lambda text: days_of(text)[0], date.fromisoformat):
        try:
            return read(since)
        except ValueError:
            continue
    raise InputError(f"since is {since!r}: give a week or a day, such as 2026-W48 or 2026-11-23")


def find_run(name: str) -> KeptRun:
    """Return the run of a name `study/key`, or of the beginning of a key; the latest one of that key.

    Raises:
        NotFoundError: there is none.
        InputError: there are several.
    """
    found = {run.name: run for run in kept_runs() if run.name == name or run.manifest.key.startswith(name)}
    if not found:
        raise NotFoundError(f"there is no run {name!r}: 'qubic-lab runs list' shows all")
    if len(found) > 1:
        raise InputError(f"{name!r} may be {', '.join(found)}: give more of the key")
    return next(iter(found.values()))


def facts(run: KeptRun) -> dict[str, Any]:
    """Return what is known of a run, by dotted names: how it was made, its results' single values, medians of measures.

    Raises:
        InputError: a file of it is damaged.
    """
    manifest = run.manifest
    found = {"week": run.week, **{name: getattr(manifest, name) for name in ABOUT}}
    for group in ("parameters", "versions", "data_hashes"):
        found |= {f"{group}.{name}": value for name, value in getattr(manifest, group).items()}
    try:
        results = {name: value for name, value in read_results(run.folder).items() if name != FINDINGS}
        measures = {measure.name: measure.samples for measure in read_measures(run.folder)}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run.folder} is damaged ({error}): delete it and run the study again") from None
    found |= dict(_scalars("results", results))
    return found | {f"measures.{name}": median(samples) for name, samples in measures.items() if samples}


def _scalars(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _scalars(f"{name}.{key}", each)
    elif not isinstance(value, list):
        yield name, value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the facts that two runs do not share, each with its two values, None where there is none."""
    names = {**one, **other}
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def load_runs(study: str | None = None, since: str | None = None) -> "DataFrame":
    """Return a row of facts for each run, oldest first, as `kept_runs` chooses them."""
    from pandas import DataFrame

    return DataFrame([facts(run) for run in kept_runs(study, since)])


def old_runs(weeks: int, now: datetime) -> list[KeptRun]:
    """Return the runs that were neither made nor used in the last weeks, without the last full ones of each study."""
    first, index_of = week_of(now - timedelta(weeks=weeks - 1)), dict[Path, str]()
    for week in weeks_with_runs():
        index_of |= {entry.folder: week for entry in read_index(week).runs}
    full = {entry.folder for entry in last_full_runs(week_of(now))}
    runs = [run for run in kept_runs() if run.folder not in full]
    return [run for run in runs if max(run.week, index_of.get(run.folder, "")) < first]


def expected_seconds(runs: Sequence[PlannedRun]) -> dict[int, float | None]:
    """Return how long runs are likely to take, by their numbers: 0 if they are kept, None if that is not known.

    An earlier run of the study says it in which at most one parameter had another value, the latest of the likest.
    """
    earlier = [run.manifest for run in kept_runs() if run.manifest.error is None]
    return {run.number: _expected(run, earlier) for run in runs}


def _expected(run: PlannedRun, earlier: Sequence[Manifest]) -> float | None:
    if run_folder(run.study.name, run.key).is_dir():
        return 0.0
    likeness = [
        (
            sum(value != manifest.parameters.get(name) for name, value in run.parameters.items()),
            -number,
            manifest.seconds,
        )
        for number, manifest in enumerate(earlier)
        if manifest.study == run.study.name
    ]
    other, _, seconds = min(likeness, default=(2, 0, 0.0))
    return seconds if other < 2 else None
