"""Where the collector stands, in the database: its lease, as one works at a time, its jobs and when each is due."""

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import ColumnElement, Engine, or_, select

from qubic_lab.errors import FencedError
from qubic_lab.oracle.ingest.collector_config import CollectorConfig, plan_jobs, usable_sources
from qubic_lab.oracle.ingest.http_rules import Quotas, QuotaState
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, now_us
from qubic_lab.oracle.store.fetch_log import Fetch, FetchLog
from qubic_lab.oracle.store.tables import JOBS, LEASES
from qubic_lab.oracle.store.transactions import upsert

LEASE_S = 30.0
COLLECTOR = "collector"
"""The lease's name, and the job under which a collector reports its own state."""
FIRST_RETRY_S = 15.0
LONGEST_RETRY_S = 3_600.0
SLICE_US = 89 * DAY_US
"""History in one request: CoinGecko gives hours for up to 90 days, days for more."""
OVERLAP_US = HOUR_US
"""How far searches overlap the last one, as sources list some texts late."""
FIRST_TEXTS_US = DAY_US
"""How far back the first search of a source with a quota goes."""
TEXTS_SLICE_US = 30 * DAY_US
"""What one search covers, so that a long one resumes where it was stopped."""


@dataclass(frozen=True)
class LeaseHolder(Part):
    """Who has a lease, and until when it lasts if it is not renewed."""

    holder: str
    until_us: Instant

    def __str__(self) -> str:
        host, _, pid, *_ = [*self.holder.split(":"), "", "", ""]
        return f"process {pid} on {host}, until {iso(self.until_us)} unless it renews it"


def process_name(pid: int | None = None) -> str:
    """Return a unique name of a process (None: this one): host, process namespace, id and start time."""
    process = psutil.Process(pid)
    return f"{socket.gethostname()[:64]}:{_namespace()}:{process.pid}:{process.create_time():.2f}"


def has_ended(holder: str) -> bool:
    """Return whether a holder is a process of this host and namespace that has ended."""
    parts = holder.split(":")
    if len(parts) != 4 or parts[:2] != [socket.gethostname()[:64], _namespace()]:
        return False
    try:
        return process_name(int(parts[2])) != holder
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError):
        return False


def _namespace() -> str:
    """Return what distinguishes process ids of one container from those of another; empty if the system has none."""
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink()).removeprefix("pid:").strip("[]")
    return ""


class Lease:
    """A lease of one name as one holder sees it; times are this machine's: hosts' clocks must agree within seconds."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        holder: str | None = None,
        lasts_s: float = LEASE_S,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self.name = name
        self.holder = holder or process_name()
        self.lasts_s = lasts_s
        self._engine = engine
        self._clock = clock
        self._until_us = 0

    def acquire(self) -> LeaseHolder | None:
        """Take the lease if it is free, has expired or belonged to a process that has ended; else return who has it."""
        now = self._clock()
        until = now + int(self.lasts_s * SECOND_US)
        if self._set(until, or_(LEASES.c.until_us <= now, LEASES.c.holder == self.holder)):
            return None
        held = self.held()
        if held is not None and has_ended(held.holder) and self._set(until, LEASES.c.holder == held.holder):
            return None
        return held

    def renew(self) -> None:
        """Extend the lease; a FencedError if another holder has taken it."""
        if not self._set(self._clock() + int(self.lasts_s * SECOND_US), LEASES.c.holder == self.holder):
            self._until_us, held = 0, self.held()
            raise FencedError(f"lease {self.name!r} was lost to {held and held.holder}: it was not renewed")

    def lasts(self) -> bool:
        """Return whether the lease lasts, as far as is known without asking the database."""
        return self._clock() < self._until_us

    def release(self) -> None:
        """Give the lease up, if it is ours."""
        self._set(0, LEASES.c.holder == self.holder)
        self._until_us = 0

    def held(self) -> LeaseHolder | None:
        """Return who has or had the lease."""
        with self._engine.connect() as connection:
            query = select(LEASES.c.holder, LEASES.c.until_us).where(LEASES.c.name == self.name)
            row = connection.execute(query).first()
        return LeaseHolder(row.holder, row.until_us) if row else None

    def _set(self, until_us: int, condition: ColumnElement[bool]) -> bool:
        """Take or change the lease if it is new or a condition holds: one statement, so that only one process can."""
        values = {"holder": self.holder, "until_us": until_us}
        row = upsert(self._engine, LEASES).values(name=self.name, **values)
        query = row.on_conflict_do_update(index_elements=["name"], set_=values, where=condition)
        with self._engine.begin() as connection:
            changed = connection.execute(query.returning(LEASES.c.name)).first() is not None
        if changed:
            self._until_us = until_us
        return changed


@dataclass(frozen=True)
class JobState:
    """Where a job stands: its `failures` in a row, and if it is `done`, until something makes it due again.

    `position`: what it needs to resume, as plain values for JSON; such as until_us: all before it is stored.
    """

    job: str
    due_us: int = 0
    position: Mapping[str, Any] = field(default_factory=dict)
    failures: int = 0
    done: bool = False


def read_jobs(engine: Engine) -> dict[str, JobState]:
    """Return all jobs by name, in a database that `open_database` opened; a restart resumes from there."""
    with engine.connect() as connection:
        rows = connection.execute(select(*(JOBS.c[each.name] for each in fields(JobState))).order_by(JOBS.c.job))
        return {row["job"]: JobState(**row) for row in rows.mappings()}


def save_job(engine: Engine, state: JobState) -> None:
    """Store where a job stands."""
    values = vars(state) | {"position": dict(state.position)}
    query = upsert(engine, JOBS).values(values)
    with engine.begin() as connection:
        connection.execute(query.on_conflict_do_update(index_elements=["job"], set_=values))


def next_due_us(due_us: int, now_us: int, period_s: float) -> int:
    """Return when a job that was done at `now_us` is due again: in its rhythm, without catching up on missed runs."""
    period_us = int(period_s * SECOND_US)
    return due_us + period_us if due_us + period_us > now_us else now_us + period_us


def retry_due_us(now_us: int, failures: int, period_s: float, retry_after_s: float | None) -> int:
    """Return when a failed job is retried: later with each failure, up to its period, and not before it may be."""
    longest_s = min(max(period_s, FIRST_RETRY_S), LONGEST_RETRY_S)
    wait_s = min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 20), longest_s)
    return now_us + int(max(wait_s, retry_after_s or 0.0) * SECOND_US)


def _behind(position: Mapping[str, Any], now_us: int, backfill_days: int) -> list[tuple[int, str]]:
    """Return from when on the history of a coin is missing, the coin that is furthest behind first.

    It begins an hour late, as sources refuse requests that reach a second too far back.
    """
    first_us = now_us - backfill_days * DAY_US + HOUR_US
    return sorted((max(position["until_us"].get(coin, first_us), first_us), coin) for coin in position["left"])


def next_slice(position: Mapping[str, Any], now_us: int, backfill_days: int) -> tuple[str, int, int] | None:
    """Return the next slice of history: a coin, and from when until before when; None: nothing is left.

    `position`: `until_us` of each coin, before which its history is stored, and the coins that are `left` to do.
    """
    behind = _behind(position, now_us, backfill_days)
    if not behind:
        return None
    at_us, coin = behind[0]
    start_us = at_us // SECOND_US * SECOND_US  # sources take whole seconds
    return coin, start_us, min(start_us + SLICE_US, now_us)


def slices_left(position: Mapping[str, Any], now_us: int, backfill_days: int) -> int:
    """Return how many requests the history still needs."""
    return sum(max(1, -(-(now_us - at_us) // SLICE_US)) for at_us, _ in _behind(position, now_us, backfill_days))


def search_range(until_us: int | None, shown_us: int, first_us: int) -> tuple[int, int]:
    """Return the range of published times to search, at most a slice: from the last search, with an overlap.

    The first search goes `first_us` back; `shown_us`: until when the source shows texts by now.
    """
    start_us = shown_us - first_us if until_us is None else until_us - OVERLAP_US
    return start_us, min(start_us + TEXTS_SLICE_US, shown_us)


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
    period: str
    used: int
    limit: int | None
    left: int
    renewed_us: Instant
    runs_out_us: Instant | None


@dataclass(frozen=True)
class CollectorStatus(Part):
    """The collector at one instant: jobs that are planned or ran, circuits as reported last, the newest fetches first.

    `left_out` says why sources are not asked.
    """

    now_us: Instant
    collector: LeaseHolder | None
    jobs: tuple[JobStatus, ...]
    quotas: tuple[QuotaStatus, ...]
    circuits: dict[str, str]
    fetches: tuple[Fetch, ...]
    left_out: tuple[str, ...]


def runs_out_us(use: QuotaState, now_us: int) -> int | None:
    """Return when a quota is used up at its average rate of use so far; None: not before it is renewed."""
    if use.limit is None or not use.used or now_us <= use.started_us:
        return None
    if use.left == 0:
        return now_us
    out_us = use.started_us + (now_us - use.started_us) * use.limit // use.used
    return out_us if out_us < use.ends_us else None


def read_status(engine: Engine, config: CollectorConfig, now_us: int, real_us: int) -> CollectorStatus:
    """Return the state of the collector; `now_us`: the present of its schedule, `real_us`: of this machine's leases."""
    clients, left_out = usable_sources(config)
    held = Lease(engine, COLLECTOR).held()
    running = held is not None and held.until_us > real_us and not has_ended(held.holder)
    states = read_jobs(engine)
    reported = states.pop(COLLECTOR, JobState(COLLECTOR)).position
    planned = [job.name for job in plan_jobs(config, clients, packaged=True)] if clients else []
    jobs = [states.pop(name, JobState(name, now_us)) for name in planned] + list(states.values())
    limits = {name: source.quotas() for name, source in clients.items()}
    uses = (use for use in Quotas(engine, lambda: now_us).report(limits) if use.limit is not None)
    return CollectorStatus(
        now_us,
        held if running else None,
        tuple(
            JobStatus(each.job, None if each.done else each.due_us, each.failures, each.done, each.position)
            for each in jobs
        ),
        tuple(
            QuotaStatus(use.source, use.period, use.used, use.limit, use.left, use.ends_us, runs_out_us(use, now_us))
            for use in uses
        ),
        dict(reported.get("circuits", {})) if running else {},
        tuple(FetchLog(engine).recent(limit=10)),
        left_out,
    )
