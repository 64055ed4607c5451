"""Run the studies of an experiment file one after another; runs whose input has not changed are reused."""

import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from qubic_lab.errors import InputError
from qubic_lab.model.folders import file_hash
from qubic_lab.provenance import machine, source_commit, usable_cores, versions
from qubic_lab.runs import fingerprint
from qubic_lab.runs.experiment import ExperimentStudy, ExperimentWeek
from qubic_lab.runs.fingerprint import CANDIDATE
from qubic_lab.runs.notebook import NotebookError, run_notebook
from qubic_lab.runs.store import (
    Manifest,
    check_files,
    hash_files,
    keep,
    read_manifest,
    read_results,
    run_folder,
    somebody_runs,
    turn_to_run,
    unfinished_folder,
    utc_now,
    write_manifest,
)
from qubic_lab.runs.week_index import WeekEntry, add_entry, keep_status, week_of
from qubic_lab.settings import settings

log = logging.getLogger(__name__)

CIRCUMSTANCES = ("device", "dtype", "threads", "seed")
"""Fields of results that say how they were computed."""
LEDGER = "database"
"""A parameter that names the ledger of a study that uses one."""
OUTPUT = "calibrations"
"""A parameter that names a folder that a run writes, which is no input."""


@dataclass(frozen=True)
class PlannedRun:
    """One notebook with one set of parameters, and the hashes that make up its key."""

    study: ExperimentStudy
    parameters: Mapping[str, Any]
    key: str
    model_hash: str | None
    data_hashes: Mapping[str, str]
    package_hash: str


@dataclass(frozen=True)
class RunOutcome:
    """How a planned run ended and where it lies; `error` is None unless it failed."""

    run: PlannedRun
    folder: Path
    reused: bool
    seconds: float = 0.0
    error: str | None = None


class Watcher(Protocol):
    """An observer of a batch."""

    def wait(self) -> None:
        """Another process runs a notebook; this one waits for its turn."""

    def begin(self, run: PlannedRun, number: int, of: int) -> None:
        """Run `number` of `of` begins."""

    def cell(self, number: int, of: int) -> None:
        """A cell of the present run begins."""

    def end(self, outcome: RunOutcome) -> None:
        """The present run has ended."""


def run_batch(week: ExperimentWeek, *, full: bool, watcher: Watcher) -> list[RunOutcome]:
    """Run every study in its quick or full form; a run that fails is kept, and the others go on.

    Raises:
        InputError: a model or a data file cannot be read; nothing has run then.
    """
    batch = utc_now()
    planned = plan_runs(week, full=full, iso_week=week_of(batch))
    runs_of_study = Counter(run.study.name for run in planned)
    if week.status is not None:
        keep_status(week_of(batch), week.status)
    outcomes = []
    for number, run in enumerate(planned, start=1):
        if somebody_runs():
            watcher.wait()
        with turn_to_run():
            watcher.begin(run, number, len(planned))
            outcome = _reuse(_now(run)) or _execute(run, watcher)
        entry = WeekEntry(
            run.study.name,
            outcome.run.key,
            batch=batch.isoformat(),
            of=runs_of_study[run.study.name],
            reused=outcome.reused,
            failed=outcome.error is not None,
            full=full,
        )
        add_entry(week_of(batch), entry)
        watcher.end(outcome)
        outcomes.append(outcome)
    return outcomes


def plan_runs(week: ExperimentWeek, *, full: bool, iso_week: str) -> list[PlannedRun]:
    """Return the runs of a week with their keys: every combination of every study."""
    package_hash = fingerprint.hash_package()
    return [
        _plan(study, study.source.complete(parameters), package_hash, iso_week)
        for study in week.studies
        for parameters in (study.full if full else study.quick).combinations()
    ]


def _plan(study: ExperimentStudy, parameters: dict[str, Any], package_hash: str, iso_week: str) -> PlannedRun:
    model = parameters.get("model")
    model_hash = fingerprint.hash_model(model) if model is not None else None
    other = {CANDIDATE, OUTPUT, *([LEDGER] if study.uses_ledger else ())}
    named = {name: value for name, value in parameters.items() if name not in other}
    data_hashes = {name: file_hash(study.root / name) for name in study.data}
    data_hashes |= fingerprint.hash_named(named, study.root)
    if head := settings().sentiment_head:
        data_hashes[fingerprint.HEAD] = file_hash(head)
    if candidate := parameters.get(CANDIDATE):
        data_hashes[CANDIDATE] = fingerprint.hash_weights(candidate)
    key = fingerprint.cache_key(
        study.source.code_cells,
        parameters,
        package_hash,
        versions(),
        model_hash,
        data_hashes,
        {"machine": str(machine()), "cores": usable_cores(), "week": iso_week} if study.measures_time else None,
    )
    return PlannedRun(study, parameters, key, model_hash, data_hashes, package_hash)


def _now(run: PlannedRun) -> PlannedRun:
    """Return a run with the key that it has by now: trials may have come into the ledger."""
    if not run.study.uses_ledger:
        return run
    return replace(run, key=fingerprint.with_ledger(run.key, str(run.parameters.get(LEDGER, ""))))


def _reuse(run: PlannedRun) -> RunOutcome | None:
    """Return the outcome of the same run if it lies here whole; delete one that is damaged."""
    folder = run_folder(run.study.name, run.key)
    if not folder.is_dir():
        return None
    try:
        check_files(folder, read_manifest(folder))
    except InputError as error:
        log.warning("run %s/%s is made again: %s", run.study.name, run.key, error)
        shutil.rmtree(folder)
        return None
    return RunOutcome(run, folder, reused=True)


def _execute(run: PlannedRun, watcher: Watcher) -> RunOutcome:
    study, started, error = run.study, utc_now(), None
    with unfinished_folder(study.name, run.key) as folder:
        try:
            run_notebook(study.source, run.parameters, root=study.root, folder=folder, on_cell=watcher.cell)
        except NotebookError as failure:
            error = str(failure)
        run = _now(run)
        manifest = _describe(run, folder, started, error)
        write_manifest(folder, manifest)
        final = keep(folder, study.name, run.key, failed=error is not None)
    return RunOutcome(run, final, reused=False, seconds=manifest.seconds, error=error)


def _describe(run: PlannedRun, folder: Path, started: datetime, error: str | None) -> Manifest:
    finished, source, results = utc_now(), source_commit(), read_results(folder).values()
    return Manifest(
        key=run.key,
        study=run.study.name,
        title=run.study.title,
        notebook=run.study.source.path.name,
        parameters=run.parameters,
        started_utc=started.isoformat(),
        finished_utc=finished.isoformat(),
        seconds=round((finished - started).total_seconds(), 1),
        commit=source.hash,
        dirty=source.dirty,
        versions=versions(),
        machine=str(machine()),
        model=run.parameters.get("model"),
        model_hash=run.model_hash,
        data_hashes=run.data_hashes,
        circumstances={name: each[name] for each in results for name in CIRCUMSTANCES if name in each},
        error=error,
        files=hash_files(folder),
        package_hash=run.package_hash,
        notebook_hash=fingerprint.hash_code(run.study.source.code_cells),
    )
