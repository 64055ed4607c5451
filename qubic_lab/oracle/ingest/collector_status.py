"""Where the collector stands, read from the database alone: its jobs, its lease, quotas and the last fetches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from qubic_lab.oracle.ingest.collector_config import CollectorConfig, usable_sources
from qubic_lab.oracle.ingest.collector_state import COLLECTOR, JobState, JobStore, Lease, LeaseHolder, has_ended
from qubic_lab.oracle.ingest.quotas import Quotas, QuotaUse
from qubic_lab.oracle.ingest.schedule import plan_jobs
from qubic_lab.oracle.model.timestamps import iso
from qubic_lab.oracle.store.fetch_log import FetchLog, StoredFetch

LAST_FETCHES = 10


@dataclass(frozen=True)
class CollectorStatus:
    """The collector at one instant.

    Attributes:
        now_us: the instant.
        held: who collects; None: nobody.
        jobs: those that ran, and those that the settings plan.
        quotas: what was used of each.
        circuits: of each source, as the collector told last: closed, open or half-open; empty: none is at work.
        fetches: the last ones, the newest first.
        left_out: why sources are not asked.
    """

    now_us: int
    held: LeaseHolder | None
    jobs: tuple[JobState, ...]
    quotas: tuple[QuotaUse, ...]
    circuits: dict[str, str]
    fetches: tuple[StoredFetch, ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, times as ISO 8601."""
        return {
            "now": iso(self.now_us),
            "collector": self.held and {"holder": self.held.holder, "until": iso(self.held.until_us)},
            "jobs": [
                {
                    "job": job.name,
                    "due": None if job.done else iso(job.due_us),
                    "failures": job.failures,
                    "done": job.done,
                    "position": dict(job.position),
                }
                for job in self.jobs
            ],
            "quotas": [
                {
                    "source": use.source,
                    "period": use.period,
                    "used": use.used,
                    "limit": use.limit,
                    "left": use.left,
                    "renewed": iso(use.ends_us),
                    "runs_out": None if (out := runs_out_us(use, self.now_us)) is None else iso(out),
                }
                for use in self.quotas
            ],
            "circuits": self.circuits,
            "fetches": [
                {
                    "source": fetch.source,
                    "job": fetch.job,
                    "started": iso(fetch.started_us),
                    "seconds": fetch.seconds,
                    "attempts": fetch.attempts,
                    "status": fetch.status,
                    "outcome": fetch.outcome,
                    "rows_added": fetch.rows_added,
                    "error": fetch.error,
                    "request": fetch.request,
                }
                for fetch in self.fetches
            ],
            "left_out": list(self.left_out),
        }


def runs_out_us(use: QuotaUse, now_us: int) -> int | None:
    """Return when a quota is used up if requests go on as in its period so far; None: not before it is renewed."""
    if use.limit is None or not use.used or now_us <= use.started_us:
        return None
    if use.left == 0:
        return now_us
    out_us = use.started_us + (now_us - use.started_us) * use.limit // use.used
    return out_us if out_us < use.ends_us else None


def read_status(engine: Engine, config: CollectorConfig, now_us: int, real_us: int) -> CollectorStatus:
    """Return where the collector stands.

    Args:
        engine: of its database.
        config: its settings.
        now_us: the present of its schedule.
        real_us: the present of this machine, which the lease goes by.
    """
    found = usable_sources(config)
    held = Lease(engine, COLLECTOR).held()
    at_work = held is not None and held.until_us > real_us and not has_ended(held.holder)
    states = JobStore(engine).read()
    told = states.pop(COLLECTOR, JobState(COLLECTOR)).position
    planned = [job.name for job in plan_jobs(config, found.clients, packaged=True)] if found.clients else []
    jobs = [states.pop(name, JobState(name, now_us)) for name in planned] + list(states.values())
    limits = {name: source.quotas() for name, source in found.clients.items() if source.quotas()}
    return CollectorStatus(
        now_us,
        held if at_work else None,
        tuple(jobs),
        tuple(use for use in Quotas(engine, lambda: now_us).report(limits) if use.limit is not None),
        dict(told.get("circuits", {})) if at_work else {},
        tuple(FetchLog(engine).recent(limit=LAST_FETCHES)),
        found.left_out,
    )


def tables(status: CollectorStatus) -> list[tuple[tuple[str, ...], list[Sequence[str]]]]:
    """Return headers and rows for those who read them; tables without rows are left out."""
    jobs: list[Sequence[str]] = [
        (
            job.name,
            "done" if job.done else "now" if job.due_us <= status.now_us else iso(job.due_us),
            str(job.failures),
        )
        for job in status.jobs
    ]
    quotas: list[Sequence[str]] = [
        (
            use.source,
            use.period,
            f"{use.used} of {use.limit}",
            iso(use.ends_us),
            "not before" if (out := runs_out_us(use, status.now_us)) is None else iso(out),
        )
        for use in status.quotas
    ]
    circuits: list[Sequence[str]] = [(name, state) for name, state in status.circuits.items()]
    fetches: list[Sequence[str]] = [
        (
            iso(fetch.started_us),
            fetch.job,
            fetch.source,
            fetch.outcome,
            "-" if fetch.status is None else str(fetch.status),
            str(fetch.attempts),
            str(fetch.rows_added),
            fetch.error or "",
        )
        for fetch in status.fetches
    ]
    all_tables = [
        (("job", "due", "failures in a row"), jobs),
        (("source", "period", "requests used", "renewed", "used up"), quotas),
        (("source", "circuit"), circuits),
        (("last fetches", "job", "source", "outcome", "status", "attempts", "new rows", "error"), fetches),
    ]
    return [(header, rows) for header, rows in all_tables if rows]
