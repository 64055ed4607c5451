"""Alerts in the database: kept before they are sent, each once, and sent by one process at a time, in order.

Whoever decides is alone in writing, and an alert has a key that no other one has: two processes that decide at once
keep it once. Whoever sends claims the oldest one for a while; a process that dies after that has it sent by another,
so an alert may arrive twice, with the same key, but is never lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, select, update

from qubic_lab.errors import check_range
from qubic_lab.oracle.alerts.decide import Told
from qubic_lab.oracle.model.response import FRAME_S, Frame
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, now_us
from qubic_lab.oracle.risk.responses import RiskAlert
from qubic_lab.oracle.risk.rules import LEVELS
from qubic_lab.oracle.serving.responses import iso_or_none
from qubic_lab.oracle.store.tables import RISK_ALERTS
from qubic_lab.oracle.store.transactions import Clock, writing

PENDING, SENT, FAILED = "pending", "sent", "failed"
MOST_ALERTS = 1_000
LONGEST_WAIT_US = DAY_US + HOUR_US
"""Longer than any claim or wait: an alert that has to wait for more was put off by a clock that was ahead since."""
UNKNOWN = "unknown"
"""The level of an alert that there are no prices."""
_FRAMES: dict[int, Frame] = {length: name for name, length in FRAME_S.items()}
_SAME = ("coin", "frame_s", "episode_us", "kind", "level")
_A = RISK_ALERTS.c


@dataclass(frozen=True)
class Gone:
    """The last alert that a coin has no prices: the last close that was known, and when it was made."""

    last_us: int
    made_us: int


@dataclass(frozen=True)
class NewAlert:
    """An alert to be kept; `content` is what is told, as plain values for JSON: at least `text` and `evidence`."""

    kind: str
    level: str
    episode_us: int
    at_us: int
    content: dict[str, Any]


Decision = Callable[[Told | None, Gone | None], Sequence[NewAlert]]
"""From what was told last of the level, and the last alert of no prices, to what is to be told."""


class AlertStore:
    """The alerts in a database that `open_database` opened; threads may share it.

    Args:
        engine: of the database.
        clock: gives the time in microseconds, for when alerts are made.
        real: likewise, for claims: the same for all processes.
    """

    def __init__(self, engine: Engine, clock: Clock = now_us, real: Clock = now_us) -> None:
        self._engine, self._clock, self._real = engine, clock, real

    def tell(self, coin: str, frame: Frame, decide: Decision) -> list[RiskAlert]:
        """Keep what is decided from what was told before; return what is new."""
        with writing(self._engine, self._clock) as writer:
            connection, frame_s = writer.connection, FRAME_S[frame]
            due = decide(_told(connection, coin, frame_s), _no_prices(connection, coin, frame_s))
            ids = [self._add(connection, coin, frame_s, each, writer.known_us) for each in due]
            rows = connection.execute(select(RISK_ALERTS).where(_A.id.in_([id for id in ids if id])).order_by(_A.id))
            return [_alert(row) for row in rows]

    def claim(self, lease_s: float) -> RiskAlert | None:
        """Return the oldest pending alert, to be sent by us within so long; None: there is none, or it has to wait."""
        now = self._real()
        query = select(RISK_ALERTS).where(_A.state == PENDING).order_by(_A.id).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None or 0 < row.not_before_us - now <= LONGEST_WAIT_US:
            return None
        until = now + int(lease_s * SECOND_US)
        ours = (_A.id == row.id, _A.state == PENDING, _A.not_before_us == row.not_before_us)
        claim = update(RISK_ALERTS).where(*ours).values(not_before_us=until, attempts=_A.attempts + 1)
        with self._engine.begin() as connection:
            if connection.execute(claim).rowcount != 1:
                return None
            return _alert(connection.execute(select(RISK_ALERTS).where(_A.id == row.id)).one())

    def settle(self, id: int, state: str, error: str | None = None) -> None:
        """Note that an alert was sent, or will never be, and why."""
        self._set(id, state=state, last_error=error, done_us=self._real())

    def postpone(self, id: int, error: str, wait_s: float) -> None:
        """Let an alert that could not be sent wait, and those after it behind it."""
        self._set(id, last_error=error, not_before_us=self._real() + int(wait_s * SECOND_US))

    def pending(self) -> int:
        """Return how many alerts are still to be sent."""
        with self._engine.connect() as connection:
            query = select(func.count()).select_from(RISK_ALERTS).where(_A.state == PENDING)
            return int(connection.execute(query).scalar_one())

    def last(self, limit: int = 20, coin: str | None = None, until_us: int | None = None) -> list[RiskAlert]:
        """Return the last alerts, of one coin or made up to an instant where these are given, the newest first.

        Raises:
            InputError: a limit that is out of range.
        """
        check_range("number of alerts", limit, 1, MOST_ALERTS)
        query = select(RISK_ALERTS)
        if coin is not None:
            query = query.where(_A.coin == coin)
        if until_us is not None:
            query = query.where(_A.made_us <= until_us)
        with self._engine.connect() as connection:
            return [_alert(row) for row in connection.execute(query.order_by(_A.id.desc()).limit(limit))]

    def _add(self, connection: Connection, coin: str, frame_s: int, alert: NewAlert, made_us: int) -> int | None:
        """Keep an alert, and return its id; None where it is kept already."""
        values = {"coin": coin, "frame_s": frame_s, **vars(alert)}
        same = [_A[name] == values[name] for name in _SAME]
        if connection.execute(select(_A.id).where(*same)).first():
            return None
        new = {**values, "made_us": made_us, "state": PENDING, "attempts": 0, "not_before_us": 0}
        return int(connection.execute(insert(RISK_ALERTS).values(new).returning(_A.id)).scalar_one())

    def _set(self, id: int, **values: Any) -> None:
        query = update(RISK_ALERTS).where(_A.id == id, _A.state == PENDING)
        with self._engine.begin() as connection:
            connection.execute(query.values(**values))


def _told(connection: Connection, coin: str, frame_s: int) -> Told | None:
    """Return what was told last of the level of a coin's bars."""
    query = select(_A.kind, _A.level, _A.episode_us, _A.at_us)
    query = query.where(_A.coin == coin, _A.frame_s == frame_s, _A.kind != "no-prices").order_by(_A.id.desc())
    last = connection.execute(query.limit(1)).first()
    if last is None:
        return None
    rows = connection.execute(query.where(_A.episode_us == last.episode_us, _A.kind != "all-clear"))
    highest = max((LEVELS.index(row.level) for row in rows), default=0)
    return Told(last.episode_us, last.at_us, highest, last.kind == "all-clear")


def _no_prices(connection: Connection, coin: str, frame_s: int) -> Gone | None:
    """Return the last alert that there are no prices."""
    query = select(_A.episode_us, _A.made_us).where(_A.coin == coin, _A.frame_s == frame_s, _A.kind == "no-prices")
    found = connection.execute(query.order_by(_A.id.desc()).limit(1)).first()
    return None if found is None else Gone(found.episode_us, found.made_us)


def _alert(row: Row[Any]) -> RiskAlert:
    frame = _FRAMES[row.frame_s]
    level = None if row.level == UNKNOWN else row.level
    return RiskAlert(
        id=row.id,
        key=":".join((row.coin, frame, str(row.episode_us), row.kind, row.level)),
        kind=row.kind,
        coin=row.coin,
        frame=frame,
        level=level,
        episode=iso(row.episode_us),
        at=iso(row.at_us),
        made=iso(row.made_us),
        text=row.content["text"],
        evidence=row.content["evidence"],
        price=row.content.get("price"),
        currency=row.content.get("currency"),
        source=row.content.get("source"),
        state=row.state,
        attempts=row.attempts,
        last_error=row.last_error,
        done=iso_or_none(row.done_us),
    )
