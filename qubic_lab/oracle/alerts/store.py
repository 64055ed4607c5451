"""Alerts in the database: stored before they are sent, each once, and sent by one process at a time, in order.

Deciding takes the database's write lock, and each alert has a unique key: two processes that decide at once store an
alert once. A sender claims the oldest alert for a while; if it dies meanwhile, another process sends the alert. An
alert may therefore arrive twice, with the same key, but is never lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import Connection, Engine, Row, func, insert, select, update

from qubic_lab.oracle.model.response import FRAME_S, CoinId, Frame, FrameName, Instant, Money, Part
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, now_us
from qubic_lab.oracle.risk.measures import LEVELS, Level
from qubic_lab.oracle.store.tables import RISK_ALERTS
from qubic_lab.oracle.store.transactions import Clock, writing

AlertKind = Literal["raised", "escalated", "all-clear", "no-prices"]
PENDING, SENT, FAILED = "pending", "sent", "failed"
MOST_ALERTS = 1_000
LONGEST_WAIT_US = DAY_US + HOUR_US
"""Longer than any claim or wait. An alert that has to wait longer was postponed by a clock that was ahead."""
UNKNOWN = "unknown"
"""The level of an alert on missing prices."""
_FRAMES: dict[int, Frame] = {length: name for name, length in FRAME_S.items()}
_A = RISK_ALERTS.c


@dataclass(frozen=True)
class EmittedAlert:
    """What the last alerts on the level of a coin's bars said: of the last episode, and the last bar that has one.

    `highest` is the number of the highest level that was emitted in the episode; `over`: its end was emitted.
    """

    episode_us: int
    at_us: int
    highest: int
    over: bool


@dataclass(frozen=True)
class PriceOutage:
    """The last alert that a coin has no prices: the last close that was known, and when the alert was made."""

    last_us: int
    made_us: int


@dataclass(frozen=True)
class NewAlert:
    """An alert to store; `content` has plain values for JSON: at least `text` and `evidence`."""

    kind: str
    level: str
    episode_us: int
    at_us: int
    content: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RiskAlert(Part):
    """A stored alert and its delivery.

    Attributes:
        kind: raised and escalated: the level rose; all-clear: it was below the least level for long enough;
            no-prices: there are no fresh prices, so the risk is not known.
        episode_us: close of the bar with which the episode began; for no-prices the last known close.
        at_us: close of the bar that the alert is about; `made_us`: when it was decided.
        state: pending, sent (without a webhook: logged) or failed.
        attempts: number of deliveries that began.
        last_error: of the last failed delivery; null: none failed, or the alert was sent in the end.
        done_us: when it was sent or failed.
    """

    id: Annotated[int, Field(description="later alerts have higher ids")]
    key: Annotated[str, Field(description="the same at each attempt to deliver it")]
    kind: AlertKind
    coin: CoinId
    frame: FrameName
    level: Annotated[Level | None, Field(description="the level then; null: it was not known")]
    episode_us: Instant
    at_us: Instant
    made_us: Instant
    text: Annotated[str, Field(description="the alert in words")]
    evidence: Annotated[tuple[str, ...], Field(description="why, in words")]
    price: Money | None
    currency: Annotated[str | None, Field(description="of the price; null: there is no price")]
    source: Annotated[str | None, Field(description="of the prices")]
    state: Literal["pending", "sent", "failed"]
    attempts: int
    last_error: str | None
    done_us: Instant | None


@dataclass(frozen=True, kw_only=True)
class RiskAlerts(Part):
    """The last alerts, the newest first."""

    as_of_us: Instant
    alerts: tuple[RiskAlert, ...]


Decision = Callable[[EmittedAlert | None, PriceOutage | None], Sequence[NewAlert]]
"""Decides from the last alerts on the level, and the last alert on missing prices, which alerts are due."""


class AlertStore:
    """The alerts in a database that `open_database` opened; threads may share it.

    `clock` gives the time at which alerts are made, `real` that of claims, the same for all processes.
    """

    def __init__(self, engine: Engine, clock: Clock = now_us, real: Clock = now_us) -> None:
        self._engine, self._clock, self._real = engine, clock, real

    def emit(self, coin: str, frame: Frame, decide: Decision) -> list[RiskAlert]:
        """Store the alerts that are due after the earlier ones, and return those that are new."""
        with writing(self._engine, self._clock) as writer:
            connection, frame_s = writer.connection, FRAME_S[frame]
            due = decide(_last_emitted(connection, coin, frame_s), _last_outage(connection, coin, frame_s))
            ids = [self._add(connection, coin, frame_s, each, writer.known_us) for each in due]
            rows = connection.execute(select(RISK_ALERTS).where(_A.id.in_([id for id in ids if id])).order_by(_A.id))
            return [_alert(row) for row in rows]

    def claim(self, lease_s: float) -> RiskAlert | None:
        """Claim the oldest pending alert for a number of seconds; None: there is none, or it has to wait."""
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
        """Record that an alert was sent, or why it never will be."""
        self._set(id, state=state, last_error=error, done_us=self._real())

    def postpone(self, id: int, error: str, wait_s: float) -> None:
        """Let an alert that could not be sent wait; later alerts wait behind it."""
        self._set(id, last_error=error, not_before_us=self._real() + int(wait_s * SECOND_US))

    def pending(self) -> int:
        """Return the number of alerts that are still to be sent."""
        with self._engine.connect() as connection:
            query = select(func.count()).select_from(RISK_ALERTS).where(_A.state == PENDING)
            return int(connection.execute(query).scalar_one())

    def last(self, limit: int = 20, coin: str | None = None, until_us: int | None = None) -> list[RiskAlert]:
        """Return the last alerts, the newest first: of one coin, or made up to an instant, if these are given."""
        query = select(RISK_ALERTS)
        if coin is not None:
            query = query.where(_A.coin == coin)
        if until_us is not None:
            query = query.where(_A.made_us <= until_us)
        with self._engine.connect() as connection:
            return [_alert(row) for row in connection.execute(query.order_by(_A.id.desc()).limit(limit))]

    def _add(self, connection: Connection, coin: str, frame_s: int, alert: NewAlert, made_us: int) -> int | None:
        """Store an alert and return its id; None if it is stored already."""
        values = {"coin": coin, "frame_s": frame_s, **vars(alert)}
        same = [_A[name] == values[name] for name in ("coin", "frame_s", "episode_us", "kind", "level")]
        if connection.execute(select(_A.id).where(*same)).first():
            return None
        new = {**values, "made_us": made_us, "state": PENDING, "attempts": 0, "not_before_us": 0}
        return int(connection.execute(insert(RISK_ALERTS).values(new).returning(_A.id)).scalar_one())

    def _set(self, id: int, **values: Any) -> None:
        query = update(RISK_ALERTS).where(_A.id == id, _A.state == PENDING)
        with self._engine.begin() as connection:
            connection.execute(query.values(**values))


def _last_emitted(connection: Connection, coin: str, frame_s: int) -> EmittedAlert | None:
    query = select(_A.kind, _A.level, _A.episode_us, _A.at_us)
    query = query.where(_A.coin == coin, _A.frame_s == frame_s, _A.kind != "no-prices").order_by(_A.id.desc())
    last = connection.execute(query.limit(1)).first()
    if last is None:
        return None
    rows = connection.execute(query.where(_A.episode_us == last.episode_us, _A.kind != "all-clear"))
    highest = max((LEVELS.index(row.level) for row in rows), default=0)
    return EmittedAlert(last.episode_us, last.at_us, highest, last.kind == "all-clear")


def _last_outage(connection: Connection, coin: str, frame_s: int) -> PriceOutage | None:
    query = select(_A.episode_us, _A.made_us).where(_A.coin == coin, _A.frame_s == frame_s, _A.kind == "no-prices")
    found = connection.execute(query.order_by(_A.id.desc()).limit(1)).first()
    return None if found is None else PriceOutage(found.episode_us, found.made_us)


def _alert(row: Row[Any]) -> RiskAlert:
    frame = _FRAMES[row.frame_s]
    return RiskAlert(
        id=row.id,
        key=":".join((row.coin, frame, str(row.episode_us), row.kind, row.level)),
        kind=row.kind,
        coin=row.coin,
        frame=frame,
        level=None if row.level == UNKNOWN else row.level,
        episode_us=row.episode_us,
        at_us=row.at_us,
        made_us=row.made_us,
        text=row.content["text"],
        evidence=tuple(row.content["evidence"]),
        price=row.content.get("price"),
        currency=row.content.get("currency"),
        source=row.content.get("source"),
        state=row.state,
        attempts=row.attempts,
        last_error=row.last_error,
        done_us=row.done_us,
    )
