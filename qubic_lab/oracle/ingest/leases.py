"""Leases in the database: what only one process at a time may do, whichever host it is on."""

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Engine, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from qubic_lab.errors import FencedError, InputError
from qubic_lab.oracle.model.timestamps import SECOND_US, iso, now_us
from qubic_lab.oracle.store.tables import LEASES

LEASE_S = 30.0


@dataclass(frozen=True)
class Held:
    """Who has a lease, and until when it lasts if it is not renewed."""

    holder: str
    until_us: int


def process_name(pid: int | None = None) -> str:
    """Return a name of a process (None: this one) that no other has: host, process namespace, id, when it started.

    Raises:
        psutil.NoSuchProcess: there is none of this id.
    """
    process = psutil.Process(pid)
    return f"{socket.gethostname()[:64]}:{_namespace()}:{process.pid}:{process.create_time():.2f}"


def has_ended(holder: str) -> bool:
    """Return whether a holder is known to have ended: one of this host and namespace whose process is not there."""
    parts = holder.split(":")
    if len(parts) != 4 or parts[:2] != [socket.gethostname()[:64], _namespace()]:
        return False
    try:
        return process_name(int(parts[2])) != holder
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError):
        return False


class Lease:
    """One name's lease as one holder sees it; times are this machine's, so hosts' clocks must agree within seconds."""

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

    def acquire(self) -> Held | None:
        """Take the lease where it is free, has run out or belonged to a process that has ended.

        Returns:
            None: it is ours; else who has it.
        """
        now = self._clock()
        until = now + int(self.lasts_s * SECOND_US)
        free = or_(LEASES.c.until_us <= now, LEASES.c.holder == self.holder)
        if self._set(until, free):
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
        """Make the lease last anew.

        Raises:
            FencedError: somebody else has taken it meanwhile.
        """
        if not self._set(self._clock() + int(self.lasts_s * SECOND_US), LEASES.c.holder == self.holder):
            self._until_us = 0
            held = self.held()
            raise FencedError(
                f"lease {self.name!r} was lost to {held.holder if held else 'nobody'}: it was not renewed"
            )

    def lasts(self) -> bool:
        """Return whether the lease lasts, as far as is known here without asking the database."""
        return self._clock() < self._until_us

    def release(self) -> None:
        """Give the lease up, if it is ours."""
        self._set(0, LEASES.c.holder == self.holder)
        self._until_us = 0

    def held(self) -> Held | None:
        """Return who has or had the lease."""
        with self._engine.connect() as connection:
            query = select(LEASES.c.holder, LEASES.c.until_us).where(LEASES.c.name == self.name)
            row = connection.execute(query).first()
        return Held(row.holder, row.until_us) if row else None

    def _set(self, until_us: int, condition: object) -> bool:
        """Take or change the lease where a condition still holds: one statement, so that only one process can."""
        query = update(LEASES).where(LEASES.c.name == self.name, condition)  # type: ignore[arg-type]
        with self._engine.begin() as connection:
            changed = connection.execute(query.values(holder=self.holder, until_us=until_us)).rowcount == 1
        if changed:
            self._until_us = until_us
        return changed


def describe(held: Held) -> str:
    """Return who has the lease, for people."""
    host, _, pid, *_ = [*held.holder.split(":"), "", "", ""]
    return f"process {pid} on {host}, until {iso(held.until_us)} unless it renews it"


def _namespace() -> str:
    """Return what tells process ids of one container from those of another; empty where the system does not say."""
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink()).removeprefix("pid:").strip("[]")
    return ""
