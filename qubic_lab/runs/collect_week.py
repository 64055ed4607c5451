"""Collects a week from its runs, or reads it as it was kept beside its page."""

from collections.abc import Iterator
from datetime import datetime

from qubic_lab.errors import InputError
from qubic_lab.runs.acceptance import judge
from qubic_lab.runs.history import PastRun, find_changes, find_repetitions
from qubic_lab.runs.manifest import read_manifest, read_results, utc_now
from qubic_lab.runs.records import Records, read_measures, read_records
from qubic_lab.runs.store import reports_folder
from qubic_lab.runs.week_index import (
    WeekEntry,
    choose_week,
    latest_of_each_study,
    read_entries,
    read_status,
    week_of,
    weeks_with_runs,
)
from qubic_lab.runs.week_report import KEPT, SAMPLE, ReportedRun, WeekReport, read_week


def open_week(week: str | None = None) -> WeekReport:
    """Return a week (by default the latest) from its runs, or else as it is kept beside its page.

    Without either, it is the sample week that comes with the project; `sample` names that one.

    Raises:
        InputError: the week is malformed, or neither runs nor a page of it are here.
    """
    # The sample comes first, so that any week of one's own goes before it.
    kept = sorted((file.parent.name for file in reports_folder().glob(f"*/{KEPT}")), key=lambda w: (w != SAMPLE, w))
    known = weeks_with_runs()
    chosen = week or (kept[-1] if kept and not known else None)
    if chosen in kept and chosen not in known:
        return read_week(reports_folder() / chosen / KEPT)
    return collect_week(choose_week(chosen))


def collect_week(week: str) -> WeekReport:
    """Collect a week from its runs and from those of earlier weeks.

    Raises:
        InputError: a measure cannot be compared because it holds a sample that is not a positive number.
    """
    entries = latest_of_each_study(read_entries(week))
    runs = tuple(read_run(entry) for of_study in entries.values() for entry in of_study)
    now = [PastRun(week, run.name, run.manifest, run.records) for run in runs if run.manifest and run.error is None]
    earlier = [run for past in weeks_with_runs() if past < week for run in _read_past(past)]
    return WeekReport(
        week=week,
        written_utc=utc_now().isoformat(),
        runs=runs,
        rows=tuple(judge({run.name: run.records for run in now})),
        changes=tuple(find_changes(now, earlier)),
        repetitions=tuple(find_repetitions(now, earlier)),
        status=read_status(week),
        unfinished=tuple(
            f"{study}: {len(done)} of {done[0].of} runs are done; qubic-lab run goes on with the others."
            for study, done in entries.items()
            if len(done) < done[0].of
        ),
    )


def read_run(entry: WeekEntry) -> ReportedRun:
    """Read from a run's folder what a report shows of it."""
    name = f"{entry.study}/{entry.key}"
    try:
        manifest = read_manifest(entry.folder)
    except InputError as error:
        return ReportedRun(name, entry.study, None, Records(), str(error), None)
    records = Records() if manifest.error is not None else read_records(entry.folder)
    return ReportedRun(
        name, entry.study, manifest, records, manifest.error, week_of(datetime.fromisoformat(manifest.started_utc))
    )


def _read_past(week: str) -> Iterator[PastRun]:
    """Read the parts of a week's finished runs that a later week is compared with."""
    for of_study in latest_of_each_study(read_entries(week)).values():
        for entry in of_study:
            try:
                manifest = read_manifest(entry.folder)
            except InputError:  # it has been deleted since
                continue
            if manifest.error is None:
                records = Records(measures=read_measures(entry.folder), results=read_results(entry.folder))
                yield PastRun(week, f"{entry.study}/{entry.key}", manifest, records)
