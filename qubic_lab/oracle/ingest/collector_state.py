"""What collectors keep in the database: a lease, so that one works at a time, and where each job stands."""

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from qubic_lab.errors import FencedError, InputError
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.timestamps import SECOND_US, iso, now_us
from qubic_lab.oracle.store.tables import JOBS, LEASES
from qubic_lab.oracle.store.transactions import upsert

LEASE_S = 30.0
COLLECTOR = "collector"
"""The lease's name, and the job under which a collector reports its own state."""


@dataclass(frozen=True)
class LeaseHolder(Part):
    """Who has a lease, and until when it lasts if it is not renewed."""

    holder: str
    until_us: Instant

    def __str__(self) -> str:
        host, _, pid, *_ = [*self.holder.split(":"), "", "", ""]
        return f"process {pid} on {host}, until {iso(self.until_us)} unless it renews it"


def process_name(pid: int | None = None) -> str:
    """Return a unique name of a process (None: this one): host, process namespace, id and start time.

    Raises:
        psutil.NoSuchProcess: there is no process with this id.
    """
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
        if lasts_s <= 0:
            raise InputError(f"lease of {lasts_s} s: it must last longer than 0 s")
        self.name = name
        self.holder = holder or process_name()
        self.lasts_s = lasts_s
        self._engine = engine
        self._clock = clock
        self._until_us = 0

    def acquire(self) -> LeaseHolder | None:
        """Take the lease if it is free, has expired or belonged to a process that has ended.

        Returns:
            None: it is ours; else who has it.
        """
        now = self._clock()
        until = now + int(self.lasts_s * SECOND_US)
        if self._set(until, or_(LEASES.c.until_us <= now, LEASES.c.holder == self.holder)):
            return None
        held = self.held()
        if held is None:
            with suppress(IntegrityError), self._engine.begin() as connection:
                connection.execute(insert(LEASES).values(name=self.name, holder=self.holder, until_us=until))
                self._until_us = until
                return None
            held = self.held()
        if held is not None and has_ended(held.holder) and self._set(until, LEASES.c.holder == held.holder):
            return None
        return held

    def renew(self) -> None:
        """Extend the lease.

        Raises:
            FencedError: another holder has taken it.
        """
        if not self._set(self._clock() + int(self.lasts_s * SECOND_US), LEASES.c.holder == self.holder):
            self._until_us = 0
            held = self.held()
            raise FencedError(
                f"lease {self.name!r} was lost to {held.holder if held else 'nobody'}: it was not renewed"
            )

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

    def _set(self, until_us: int, condition: object) -> bool:
        """Take or change the lease if a condition holds: one statement, so that only one process can."""
        query = update(LEASES).where(LEASES.c.name == self.name, condition)  # type: ignore[arg-type]
        with self._engine.begin() as connection:
            changed = connection.execute(query.values(holder=self.holder, until_us=until_us)).rowcount == 1
        if changed:
            self._until_us = until_us
        return changed


@dataclass(frozen=True)
class JobState:
    """Where a job stands.

    Attributes:
        name: such as prices or history:bitcoin.
        due_us: when it runs next.
        position: what it needs to resume, as plain values for JSON; such as until_us: all before it is stored.
        failures: in a row.
        done: nothing is left to do, until something makes it due again.
    """

    name: str
    due_us: int = 0
    position: Mapping[str, Any] = field(default_factory=dict)
    failures: int = 0
    done: bool = False


class JobStore:
    """The jobs in a database that `open_database` opened; a restart resumes from there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> dict[str, JobState]:
        """Return all jobs by name."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(JOBS).order_by(JOBS.c.job))
            return {row.job: JobState(row.job, row.due_us, row.position, row.failures, row.done) for row in rows}

    def save(self, state: JobState) -> None:
        """Store where a job stands."""
        values = {
            "due_us": state.due_us,
            "position": dict(state.position),
            "failures": state.failures,
            "done": state.done,
        }
        query = upsert(self._engine, JOBS).values(job=state.name, **values)
        with self._engine.begin() as connection:
            connection.execute(query.on_conflict_do_update(index_elements=["job"], set_=values))
