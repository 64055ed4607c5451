"""The state of the collector, read from the database alone: its jobs, lease, quotas and last fetches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from qubic_lab.oracle.ingest.collector_config import CollectorConfig, usable_sources
from qubic_lab.oracle.ingest.collector_state import COLLECTOR, JobState, JobStore, Lease, LeaseHolder, has_ended
from qubic_lab.oracle.ingest.quotas import Period, Quotas, QuotaUse
from qubic_lab.oracle.ingest.schedule import plan_jobs
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.store.fetch_log import FetchLog, Outcome

LAST_FETCHES = 10


@dataclass(frozen=True)
class JobStatus(Part):
    """A job; `due_us` is None once it is done, `position` is where it resumes."""

    job: str
    due_us: Instant | None
    failures: int
    done: bool
    position: Mapping[str, Any]


@dataclass(frozen=True)
class QuotaStatus(Part):
    """A quota in its present period: `runs_out_us` is None if it lasts until it is renewed."""

    source: str
    period: Period
    used: int
    limit: int | None
    left: int | None
    renewed_us: Instant
    runs_out_us: Instant | None


@dataclass(frozen=True)
class FetchStatus(Part):
    """One of the last fetches."""

    source: str
    job: str
    started_us: Instant
    seconds: float
    attempts: int
    status: int | None
    outcome: Outcome
    rows_added: int
    error: str | None
    request: str


@dataclass(frozen=True)
class CollectorStatus(Part):
    """The collector at one instant.

    Attributes:
        collector: who collects; None: nobody.
        jobs: those that the settings plan, and others that ran.
        circuits: of each source, as the collector reported last: closed, open or half-open; empty: none is running.
        fetches: the last ones, the newest first.
        left_out: why sources are not asked.
    """

    now_us: Instant
    collector: LeaseHolder | None
    jobs: tuple[JobStatus, ...]
    quotas: tuple[QuotaStatus, ...]
    circuits: dict[str, str]
    fetches: tuple[FetchStatus, ...]
    left_out: tuple[str, ...]


def runs_out_us(use: QuotaUse, now_us: int) -> int | None:
    """Return when a quota is used up at its average rate of use so far; None: not before it is renewed."""
    if use.limit is None or not use.used or now_us <= use.started_us:
        return None
    if use.left == 0:
        return now_us
    out_us = use.started_us + (now_us - use.started_us) * use.limit // use.used
    return out_us if out_us < use.ends_us else None


def read_status(engine: Engine, config: CollectorConfig, now_us: int, real_us: int) -> CollectorStatus:
    """Return the state of the collector.

    Args:
        engine: of its database.
        config: its settings.
        now_us: the present of its schedule.
        real_us: the present of this machine, for the lease.
    """
    sources = usable_sources(config)
    held = Lease(engine, COLLECTOR).held()
    running = held is not None and held.until_us > real_us and not has_ended(held.holder)
    states = JobStore(engine).read()
    reported = states.pop(COLLECTOR, JobState(COLLECTOR)).position
    planned = [job.name for job in plan_jobs(config, sources.clients, packaged=True)] if sources.clients else []
    jobs = [states.pop(name, JobState(name, now_us)) for name in planned] + list(states.values())
    limits = {name: source.quotas() for name, source in sources.clients.items() if source.quotas()}
    uses = (use for use in Quotas(engine, lambda: now_us).report(limits) if use.limit is not None)
    return CollectorStatus(
        now_us,
        held if running else None,
        tuple(
            JobStatus(job.name, None if job.done else job.due_us, job.failures, job.done, job.position) for job in jobs
        ),
        tuple(
            QuotaStatus(use.source, use.period, use.used, use.limit, use.left, use.ends_us, runs_out_us(use, now_us))
            for use in uses
        ),
        dict(reported.get("circuits", {})) if running else {},
        tuple(
            FetchStatus(**{name: getattr(fetch, name) for name in FetchStatus.__dataclass_fields__})
            for fetch in FetchLog(engine).recent(limit=LAST_FETCHES)
        ),
        sources.left_out,
    )
