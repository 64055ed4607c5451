"""One run of a study: planned with its key, found again if nothing has changed, or made."""

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from qubic_lab.core import attributes
from qubic_lab.errors import InputError
from qubic_lab.model.folders import file_hash
from qubic_lab.provenance import machine, source_commit, usable_cores, versions
from qubic_lab.runs import fingerprint
from qubic_lab.runs.experiment import ExperimentStudy, ExperimentWeek
from qubic_lab.runs.fingerprint import CANDIDATE, seen_from
from qubic_lab.runs.notebook import NotebookError, run_notebook
from qubic_lab.runs.shared_store import SharedStore
from qubic_lab.runs.store import (
    Manifest,
    check_files,
    hash_files,
    keep,
    read_manifest,
    read_results,
    run_folder,
    unfinished_folder,
    utc_now,
    write_manifest,
)
from qubic_lab.settings import settings

log = logging.getLogger(__name__)

CIRCUMSTANCES = ("device", "dtype", "threads", "seed")
"""Fields of results that say how they were computed."""
LEDGER = "database"
"""A parameter that names the ledger of a study that uses one."""
OUTPUT = "calibrations"
"""A parameter that names a folder that a run writes, which is no input."""

OnCell = Callable[[int, int], None]
"""Called as a cell begins, with its number and the number of cells."""


@dataclass(frozen=True)
class PlannedRun:
    """One notebook with its parameters, and the hashes that make up its key; `number` is its place in a batch."""

    study: ExperimentStudy
    parameters: Mapping[str, Any]
    key: str
    model_hash: str | None
    data_hashes: Mapping[str, str]
    package_hash: str
    number: int = 1


@dataclass(frozen=True)
class RunOutcome:
    """How a planned run ended and where it lies; `error` is None unless it failed."""

    run: PlannedRun
    folder: Path
    reused: bool
    seconds: float = 0.0
    error: str | None = None


def plan_runs(week: ExperimentWeek, *, full: bool, iso_week: str) -> list[PlannedRun]:
    """Return the runs of a week with their keys: every combination of every study."""
    package_hash = fingerprint.hash_package()
    planned = [
        plan_run(study.in_form(full), study.source.complete(parameters), package_hash, iso_week)
        for study in week.studies
        for parameters in (study.full if full else study.quick).combinations()
    ]
    return [replace(run, number=number) for number, run in enumerate(planned, start=1)]


def plan_run(study: ExperimentStudy, parameters: Mapping[str, Any], package_hash: str, iso_week: str) -> PlannedRun:
    """Return a study's run with all its parameters.

    Raises:
        InputError: a model or a data file cannot be read.
    """
    model = parameters.get("model")
    model_hash = fingerprint.hash_model(seen_from(study.root, model)) if model is not None else None
    data_hashes = {name: file_hash(study.root / name) for name in study.data}
    data_hashes |= fingerprint.hash_named(named_inputs(study, parameters), study.root)
    if head := settings().sentiment_head:
        data_hashes[fingerprint.HEAD] = file_hash(head)
    if candidate := parameters.get(CANDIDATE):
        data_hashes[CANDIDATE] = fingerprint.hash_weights(seen_from(study.root, candidate))
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


def named_inputs(study: ExperimentStudy, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that may name files, folders or databases which a run reads."""
    other = {CANDIDATE, OUTPUT, *([LEDGER] if study.uses_ledger else ())}
    return {name: value for name, value in parameters.items() if name not in other}


def _now(run: PlannedRun) -> PlannedRun:
    """Return a run with the key that it has by now: trials may have come into the ledger."""
    if not run.study.uses_ledger:
        return run
    return replace(run, key=fingerprint.with_ledger(run.key, str(run.parameters.get(LEDGER, ""))))


def reuse(run: PlannedRun, store: SharedStore | None = None) -> RunOutcome | None:
    """Return the outcome of the same run if it lies here or in the store whole; delete one that is damaged."""
    run = _now(run)
    folder = run_folder(run.study.name, run.key)
    if folder.is_dir():
        try:
            check_files(folder, read_manifest(folder))
            return RunOutcome(run, folder, reused=True)
        except InputError as error:
            log.warning("run %s/%s is made again: %s", run.study.name, run.key, error)
            shutil.rmtree(folder)
    if store is None:
        return None
    with unfinished_folder(run.study.name, run.key) as fetched:
        if not store.fetch(run.study.name, run.key, fetched):
            return None
        return RunOutcome(run, keep(fetched, run.study.name, run.key, failed=False), reused=True)


def execute(
    run: PlannedRun,
    on_cell: OnCell,
    store: SharedStore | None = None,
    stop: threading.Event | None = None,
    replaces: bool = False,
) -> RunOutcome:
    """Make a run and keep it, in the store too unless it failed; it `replaces` the same run if that is asked for."""
    with unfinished_folder(run.study.name, run.key) as folder:
        manifest = make(run, folder, on_cell, stop)
        final = keep(folder, run.study.name, manifest.key, failed=manifest.error is not None, replaces=replaces)
    if store is not None and manifest.error is None:
        store.push(final, run.study.name, manifest.key)
    run = replace(run, key=manifest.key)
    return RunOutcome(run, final, reused=False, seconds=manifest.seconds, error=manifest.error)


def make(run: PlannedRun, folder: Path, on_cell: OnCell, stop: threading.Event | None = None) -> Manifest:
    """Execute a run's notebook into a folder, which then has its manifest; a failure is told there."""
    study, started, error = run.study, utc_now(), None
    try:
        run_notebook(
            study.source,
            run.parameters,
            root=study.root,
            folder=folder,
            limits=study.limits,
            on_cell=on_cell,
            stop=stop,
        )
    except NotebookError as failure:
        error = str(failure)
    return describe(_now(run), folder, started, error)


def describe(run: PlannedRun, folder: Path, started: datetime, error: str | None) -> Manifest:
    """Write the manifest of a run that has ended in a folder, and return it."""
    finished, source, results = utc_now(), source_commit(), read_results(folder).values()
    manifest = Manifest(
        **attributes(run, "key", "parameters", "model_hash", "data_hashes", "package_hash"),
        study=run.study.name,
        title=run.study.title,
        notebook=run.study.source.path.name,
        started_utc=started.isoformat(),
        finished_utc=finished.isoformat(),
        seconds=round((finished - started).total_seconds(), 1),
        commit=source.hash,
        dirty=source.dirty,
        versions=versions(),
        machine=str(machine()),
        model=run.parameters.get("model"),
        circumstances={name: each[name] for each in results for name in CIRCUMSTANCES if name in each},
        error=error,
        files=hash_files(folder),
        notebook_hash=fingerprint.hash_code(run.study.source.code_cells),
    )
    write_manifest(folder, manifest)
    return manifest
