"""Where each job of the collector stands, kept in the database so that a restart goes on from there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from qubic_lab.oracle.store.tables import JOBS

COLLECTOR = "collector"
"""The lease's name, and the row in which a collector tells of itself."""


@dataclass(frozen=True)
class JobState:
    """One job.

    Attributes:
        name: such as prices or history:bitcoin.
        due_us: when it runs next.
        position: what it needs to go on, as plain values for JSON; such as until_us: all before it is in the database.
        failures: in a row.
        done: nothing is left to do, until something makes it due again.
    """

    name: str
    due_us: int = 0
    position: Mapping[str, Any] = field(default_factory=dict)
    failures: int = 0
    done: bool = False


class JobStore:
    """The jobs in a database that `open_database` opened."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> dict[str, JobState]:
        """Return all jobs by name."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(JOBS).order_by(JOBS.c.job))
            return {row.job: JobState(row.job, row.due_us, row.position, row.failures, row.done) for row in rows}

    def save(self, state: JobState) -> None:
        """Keep where a job stands."""
        values = {
            "due_us": state.due_us,
            "position": dict(state.position),
            "failures": state.failures,
            "done": state.done,
        }
        add = (insert_sqlite if self._engine.dialect.name == "sqlite" else insert_postgresql)(JOBS)
        query = add.values(job=state.name, **values).on_conflict_do_update(index_elements=["job"], set_=values)
        with self._engine.begin() as connection:
            connection.execute(query)
