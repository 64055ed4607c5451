"""Collects a week from its runs and lets the studies judge them, or reads it as it was kept beside its page."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TypeVar

from qubic_lab.checked_yaml import codec
from qubic_lab.errors import InputError, NotFoundError
from qubic_lab.oracle.inference.track_record import ClaimRecord, track_record
from qubic_lab.oracle.model.timestamps import to_us
from qubic_lab.oracle.store.chain import START, has_head, ledger_database
from qubic_lab.runs.history import PastRun, find_changes, find_repetitions, find_trends
from qubic_lab.runs.records import Records, read_records
from qubic_lab.runs.store import Manifest, check_files, in_project, read_manifest, reports_folder, utc_now
from qubic_lab.runs.week_index import (
    WeekEntry,
    choose_week,
    days_of,
    last_full_runs,
    latest_of_each_study,
    read_index,
    week_of,
    weeks_with_runs,
)
from qubic_lab.runs.week_report import KEPT, SAMPLE, LedgerOfWeek, ReportedRun, WeekReport, read_week
from qubic_lab.studies import (
    accuracy_comparison,
    cloud,
    cluster,
    cluster_faults,
    concurrency,
    consensus_evaluation,
    engine_speed,
    oracle_results,
    split_strategies,
)
from qubic_lab.studies.acceptance import AcceptanceRow, Criterion, FullVerdict, WeekResults
from qubic_lab.studies.cloud import BedRecords, KeptScan, KeptTrial

T = TypeVar("T")

log = logging.getLogger(__name__)

STUDIES = (
    cluster,
    cluster_faults,
    split_strategies,
    accuracy_comparison,
    concurrency,
    engine_speed,
    consensus_evaluation,
    oracle_results,
)
"""Those that judge acceptance rows."""
BEDS = Path("data/testbed")
"""In the project: the last scan and the last trials of test beds, as `qubic-lab testbed … --json` prints them."""
NOT_MEASURABLE = (
    ("9.5", "Benchmark of the GPU", "DeepSeek in fp16, 100 new tokens", "no study runs it; qubic-lab bench gpu does"),
    (
        "9.6",
        "Network between all pairs of nodes",
        "RTT < 5 ms, bandwidth > 1 Gbps",
        "no study runs it; qubic-lab net check does, and there are no machines in the cloud to measure",
    ),
    (
        "10.1",
        "gRPC with mutual TLS",
        "a client without a certificate is refused",
        "a test of the service, and no study, shows it",
    ),
    (
        "10.2",
        "Registry of nodes",
        "heartbeat every 5 s, removed after 30 s of silence",
        "tests of the registry, and no study, show it",
    ),
    (
        "10.3",
        "Health score",
        "CPU 30 %, memory 30 %, response time 25 %, error rate 15 %; failures gate",
        "tests of score and gates, and no study, show it",
    ),
    (
        "13.4",
        "Price analysis",
        "indicators equal a reference library's",
        "they are TA-Lib's; tests compare them with values worked out by hand, and no study does",
    ),
    (
        "13.5",
        "Oracle's answers",
        "< 2 s sentiment, < 1 s price, < 3 s overview at p95",
        "no study runs it; qubic-lab bench oracle does",
    ),
)
"""Row id, what, target, and why no study measures it."""


def open_week(week: str | None = None, against: str | None = None) -> WeekReport:
    """Return a week (by default the latest) from its runs, or else as it is kept beside its page.

    Without either, it is the sample week that comes with the project; `sample` names that one.
    Measures are compared with the week `against`, by default with the latest earlier one that has them.

    Raises:
        InputError: the week is malformed, or neither runs nor a page of it are here.
    """
    # The sample comes first, so that any week of one's own goes before it.
    kept = sorted((file.parent.name for file in reports_folder().glob(f"*/{KEPT}")), key=lambda w: (w != SAMPLE, w))
    known = weeks_with_runs()
    chosen = week or (kept[-1] if kept and not known else None)
    if chosen in kept and chosen not in known:
        if against:
            raise InputError(f"week {chosen} has its page alone, and no runs to compare with {against}")
        return read_week(reports_folder() / chosen / KEPT)
    return collect_week(choose_week(chosen), against)


def collect_week(week: str, against: str | None = None, at: datetime | None = None) -> WeekReport:
    """Collect a week from its runs, those of earlier weeks and the ledger, as of `at` or now; see `open_week`.

    Raises:
        InputError: the week to compare with is not an earlier one with runs.
        InputError: a sample is not a positive number.
        QubicLabError: the database of the ledger cannot be read.
    """
    index, at = read_index(week), at or utc_now()
    entries = latest_of_each_study(index.runs)
    runs = tuple(read_run(entry) for of_study in entries.values() for entry in of_study)
    now = [PastRun(week, run.name, run.manifest, run.records) for run in runs if run.manifest and run.error is None]
    weeks = [past for past in weeks_with_runs() if past < week]
    known = ", ".join(weeks) or "none"
    if against and against not in weeks:
        raise InputError(f"week {against} cannot be compared with {week}; earlier weeks with runs: {known}")
    earlier = [run for past in weeks for run in _read_past(past)]
    return WeekReport(
        week=week,
        written_utc=at.isoformat(),
        runs=runs,
        rows=tuple(beside_full_runs(judge({run.name: run.records for run in now}), last_full_runs(week))),
        changes=tuple(find_changes(now, earlier, against)),
        repetitions=tuple(find_repetitions(now, earlier)),
        status=index.status,
        unfinished=tuple(
            f"{study}: {len(done)} of {done[0].of} runs are done; qubic-lab run goes on with the others."
            for study, done in entries.items()
            if len(done) < done[0].of
        ),
        ledger=_read_ledger(week, at),
        trends=tuple(find_trends(now, earlier)),
        against=against,
    )


def _read_ledger(week: str, at: datetime) -> LedgerOfWeek | None:
    """Read the ledger as it stood at a week's end, or at a moment before it; None: there was none yet."""
    end = datetime.combine(days_of(week)[1] + timedelta(days=1), time(), UTC)
    at_us, heads, kept = min(to_us(at), to_us(end) - 1), _earlier_heads(week), set[str]()
    try:
        with ledger_database(make=False) as engine, engine.connect() as connection:
            record = track_record(engine, at_us)
            kept = {name for name, head in heads.items() if has_head(connection, head)}
    except NotFoundError:
        record = ClaimRecord(at_us, 0, START, 0, ())
    lost = tuple(name for name in heads if name not in kept)
    return LedgerOfWeek(record, tuple(sorted(kept)), lost) if record.entries or lost else None


def _earlier_heads(week: str) -> dict[str, str]:
    """Return the heads of the ledger that the pages of earlier weeks show, by week."""
    found = {}
    for file in sorted(reports_folder().glob(f"*/{KEPT}")):
        if file.parent.name < week and file.parent.name != SAMPLE:
            with suppress(ValueError, KeyError, TypeError):  # a page without a ledger, or a damaged one
                found[file.parent.name] = str(json.loads(file.read_bytes())["ledger"]["record"]["head"])
    return found


def read_run(entry: WeekEntry) -> ReportedRun:
    """Read a run of a week; a failed, lost or damaged one has an error in place of its records."""
    name = f"{entry.study}/{entry.key}"
    try:
        manifest = read_manifest(entry.folder)
        records = Records() if manifest.error is not None else _read_whole(entry.folder, manifest)
    except InputError as error:
        return ReportedRun(name, entry.study, None, Records(), str(error), None)
    made_in = week_of(datetime.fromisoformat(manifest.started_utc))
    return ReportedRun(
        name, entry.study, manifest, records, manifest.error, made_in, full=entry.full, left_out=entry.left_out
    )


def _read_past(week: str) -> Iterator[PastRun]:
    """Read a week's finished runs, with which a later week is compared; those that are gone or damaged are left out."""
    for of_study in latest_of_each_study(read_index(week).runs).values():
        for entry in of_study:
            with suppress(InputError):
                manifest = read_manifest(entry.folder)
                if manifest.error is None:
                    records = _read_whole(entry.folder, manifest, past=True)
                    yield PastRun(week, f"{entry.study}/{entry.key}", manifest, records)


def _read_whole(folder: Path, manifest: Manifest, past: bool = False) -> Records:
    """Read what a run recorded, of a past one only what a later week is compared with.

    Raises:
        InputError: a file is damaged.
    """
    check_files(folder, manifest)
    try:
        return read_records(folder, shown=not past)
    except (OSError, ValueError, TypeError, KeyError, SyntaxError) as error:  # a run without hashes; SyntaxError: XML
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} is damaged ({reason}): delete it and run the study again") from None


def judge(runs: Mapping[str, Records]) -> list[AcceptanceRow]:
    """Return the acceptance rows of a week for what its finished runs recorded, given by the runs' names."""
    week = WeekResults(
        {run: records.results for run, records in runs.items()},
        {run: {picture.name: picture.caption for picture in records.pictures} for run, records in runs.items()},
    )
    judged = [row for study in STUDIES for row in study.acceptance(week)]
    planned = cloud.judge_plan(read_beds(in_project(BEDS)))
    unbuilt = [
        replace(Criterion(id, what, target).row("", "not measured here", reason), measurable=False)
        for id, what, target, reason in NOT_MEASURABLE
    ]
    return sorted(judged, key=lambda row: [int(part) for part in row.id.split(".")]) + planned + unbuilt


def read_beds(folder: Path) -> BedRecords:
    """Read what a folder holds of test beds; a file that another version wrote is logged and left out."""
    scans = _read_all(folder.glob("scan*.json"), KeptScan)
    trials = _read_all(folder.glob("trial*.json"), KeptTrial)
    return BedRecords(max(scans, key=lambda each: each.day, default=None), trials)


def _read_all(files: Iterable[Path], kind: type[T]) -> list[T]:
    found = []
    for file in sorted(files):
        try:
            found.append(codec(kind).validate_json(file.read_bytes()))
        except ValueError:
            log.warning("%s is left out: another version wrote it", file)
    return found


def beside_full_runs(rows: Iterable[AcceptanceRow], entries: Iterable[WeekEntry]) -> Iterator[AcceptanceRow]:
    """Add to each row that other runs decide what the last full runs of the studies said of it."""
    full = {run.name: run for run in map(read_run, entries) if run.error is None}
    said = {row.id: row for row in judge({name: run.records for name, run in full.items()})}
    for row in rows:
        earlier = said[row.id]
        if earlier.run is None or earlier.run == row.run:
            yield row
            continue
        manifest, week = full[earlier.run].manifest, full[earlier.run].made_in
        assert manifest is not None and week is not None
        day = manifest.finished_utc[:10]
        yield replace(row, last_full=FullVerdict(day, week, earlier.run, earlier.measured, earlier.verdict))
