"""Run the studies of an experiment file; runs whose input has not changed are reused.

Runs are made one after another, or several at once in processes here or on a Dask cluster. Those of studies that
measure time or use the ledger are always made here, alone and in order, after the others.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.runs import fingerprint
from qubic_lab.runs.experiment import ExperimentWeek, load
from qubic_lab.runs.one_run import PlannedRun, RunOutcome, execute, plan_run, plan_runs, reuse
from qubic_lab.runs.shared_store import SharedStore
from qubic_lab.runs.store import PROJECT_MARK, Manifest, in_project, somebody_runs, turn_to_run, utc_now
from qubic_lab.runs.week_index import WeekEntry, add_entry, keep_status, week_of


class Watcher(Protocol):
    """An observer of a batch; `begin` and `cell` may be called in several threads at once."""

    def start(self, runs: Sequence[PlannedRun], jobs: int) -> None:
        """The batch begins; up to `jobs` of its runs are made at once, apart from those that run alone."""

    def wait(self) -> None:
        """Another process runs a notebook; this one waits for its turn."""

    def begin(self, run: PlannedRun) -> None:
        """A run begins."""

    def cell(self, run: PlannedRun, number: int, of: int) -> None:
        """A cell of a run begins."""

    def end(self, outcome: RunOutcome) -> None:
        """A run has ended."""


def run_batch(
    week: ExperimentWeek,
    *,
    full: bool,
    watcher: Watcher,
    jobs: int = 1,
    store: SharedStore | None = None,
    dask: str | None = None,
) -> list[RunOutcome]:
    """Run every study in its quick or full form; a run that fails is kept, and the others go on.

    Args:
        week: what to run.
        full: whether to run the full form.
        watcher: told of the progress.
        jobs: the most runs to make at once.
        store: where finished runs are shared with other machines.
        dask: the address of a Dask scheduler, whose workers make the runs; it needs a store.

    Raises:
        InputError: a model or a data file cannot be read, or the scheduler not be reached; nothing has run then.
    """
    check_at_least("jobs", jobs, 1)
    if dask is not None and store is None:
        raise InputError(f"Dask cluster {dask} needs a store that its machines reach: give a folder, s3://… or gs://…")
    batch = utc_now()
    planned = plan_runs(week, full=full, iso_week=week_of(batch))
    runs_of_study = Counter(run.study.name for run in planned)
    if week.status is not None:
        keep_status(week_of(batch), week.status)
    outcomes = {}
    with closing(_run(planned, watcher, jobs, store, dask)) as ended:
        for outcome in ended:
            run = outcome.run
            entry = WeekEntry(
                run.study.name,
                run.key,
                batch=batch.isoformat(),
                of=runs_of_study[run.study.name],
                reused=outcome.reused,
                failed=outcome.error is not None,
                full=full,
                number=run.number,
                left_out={} if full else run.study.left_out(run.parameters),
            )
            add_entry(week_of(batch), entry)
            watcher.end(outcome)
            outcomes[run.number] = outcome
    return [outcomes[number] for number in sorted(outcomes)]


def _run(
    planned: Sequence[PlannedRun], watcher: Watcher, jobs: int, store: SharedStore | None, dask: str | None
) -> Generator[RunOutcome, None, None]:
    several = jobs > 1 or dask is not None
    together = [run for run in planned if several and not run.study.runs_alone]
    make = partial(_reuse_or_make, watcher=watcher, store=store)
    if dask is not None:
        from qubic_lab.runs.on_dask import DaskCluster

        assert store is not None
        with DaskCluster(dask, store) as cluster, _turn(watcher):
            watcher.start(planned, cluster.places)
            yield from cluster.run(together, watcher.begin, watcher.cell)
    else:
        watcher.start(planned, jobs)
        if together:
            with _turn(watcher):
                yield from _in_pool(together, jobs, make)
    for run in planned:
        if not several or run.study.runs_alone:
            with _turn(watcher):
                outcome = make(run)
            yield outcome


@contextmanager
def _turn(watcher: Watcher) -> Iterator[None]:
    if somebody_runs():
        watcher.wait()
    with turn_to_run():
        yield


def _reuse_or_make(
    run: PlannedRun, watcher: Watcher, store: SharedStore | None, stop: threading.Event | None = None
) -> RunOutcome:
    watcher.begin(run)
    return reuse(run, store) or execute(run, partial(watcher.cell, run), store, stop)


def _in_pool(runs: Sequence[PlannedRun], jobs: int, make: "partial[RunOutcome]") -> Iterator[RunOutcome]:
    """Make up to `jobs` runs at once, each in a process of its own; runs that are the same are made once."""
    equal, stop = defaultdict(list), threading.Event()
    for run in runs:
        equal[run.study.name, run.key].append(run)
    pool = ThreadPoolExecutor(jobs, "run")
    try:
        for future in as_completed([pool.submit(make, each[0], stop=stop) for each in equal.values()]):
            outcome = future.result()
            yield outcome
            for same in equal[outcome.run.study.name, outcome.run.key][1:]:
                yield replace(outcome, run=same, reused=outcome.error is None)
    finally:  # after an error too, or Ctrl-C
        stop.set()
        pool.shutdown(cancel_futures=True)


def run_again(manifest: Manifest, watcher: Watcher) -> RunOutcome:
    """Make a kept run again, by its study's file as it is now; it takes that run's place if its key is the same.

    Otherwise it is kept beside it, under no week: a page shows the runs of batches.

    Raises:
        InputError: the study is gone, or takes one of the parameters no longer.
    """
    (study,) = load(in_project(Path(PROJECT_MARK, f"{manifest.study}.yaml"))).studies
    for name, value in manifest.parameters.items():
        study.source.check(name, value)
    parameters = study.source.complete(manifest.parameters)
    run = plan_run(study, parameters, fingerprint.hash_package(), week_of(utc_now()))
    watcher.start([run], 1)
    with _turn(watcher):
        watcher.begin(run)
        outcome = execute(run, partial(watcher.cell, run), replaces=True)
    watcher.end(outcome)
    return outcome
