"""Mends what a wrong clock left in the database: entries that seem to be of the future.

All of them are moved back by the same time, so that the newest is of now. Each then seems to have become known when it
did, or later, so no answer looks ahead. The collector goes on from now; texts of the time before may be missing.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Engine, delete, select, update

from qubic_lab.oracle.store.tables import (
    FETCHES,
    JOBS,
    LEASES,
    MARKET_DATA,
    NEWS_COINS,
    NEWS_DATA,
    PRICE_ANALYSIS,
    QUOTAS,
    RISK_ALERTS,
    SENTIMENT_SCORES,
    STAMPS,
)
from qubic_lab.oracle.store.transactions import MOST_AHEAD_US, read_stamp, writing_alone

MOVED: tuple["Column[int]", ...] = (
    MARKET_DATA.c.known_us,
    NEWS_DATA.c.known_us,
    NEWS_DATA.c.at_us,
    NEWS_COINS.c.at_us,
    SENTIMENT_SCORES.c.known_us,
    PRICE_ANALYSIS.c.known_us,
    RISK_ALERTS.c.made_us,
    RISK_ALERTS.c.not_before_us,
    RISK_ALERTS.c.done_us,
    FETCHES.c.started_us,
    STAMPS.c.known_us,
)
REMOVED: tuple["Column[int]", ...] = (QUOTAS.c.started_us, LEASES.c.until_us)


def repair_clock(engine: Engine, now_us: int) -> Mapping[str, int]:
    """Move entries back that are more than an hour after `now_us`, and let jobs that wait for such times begin now.

    Returns the number of changed rows by table; none if the newest entry is not that late.
    """
    shift_us = read_stamp(engine) - now_us
    if shift_us <= MOST_AHEAD_US:
        return {}
    changed: dict[str, int] = {}
    with writing_alone(engine) as connection:
        for column in MOVED:
            late = column > now_us + MOST_AHEAD_US
            moved = connection.execute(update(column.table).where(late).values({column.name: column - shift_us}))
            changed[column.table.name] = max(changed.get(column.table.name, 0), moved.rowcount)
        for column in REMOVED:
            changed[column.table.name] = connection.execute(
                delete(column.table).where(column > now_us + MOST_AHEAD_US)
            ).rowcount
        for job, due_us, position in connection.execute(select(JOBS.c.job, JOBS.c.due_us, JOBS.c.position)).all():
            mended = {"due_us": min(due_us, now_us), "position": _not_after(position, now_us)}
            if mended != {"due_us": due_us, "position": position}:
                connection.execute(update(JOBS).where(JOBS.c.job == job).values(mended))
                changed[JOBS.name] = changed.get(JOBS.name, 0) + 1
    return {name: rows for name, rows in changed.items() if rows}


def _not_after(position: Any, now_us: int) -> Any:
    """Return the position of a job with now in place of each later instant."""
    if isinstance(position, dict):
        return {name: _not_after(value, now_us) for name, value in position.items()}
    return min(position, now_us) if isinstance(position, int) and not isinstance(position, bool) else position
