"""The history of votes in SQL: each vote's summary and trail, and the gradings of votes with a known right answer.

The nodes' track records and the correlation of their errors come from the gradings.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import Field

from qubic_lab.consensus.dependence import PastVote
from qubic_lab.consensus.weights import NO_RECORD, TrackRecord
from qubic_lab.database import storable
from qubic_lab.errors import InputError, NotFoundError, check_range
from qubic_lab.schema import metadata

MOST_PAGE = 200
CURSOR = "^([0-9]{1,17})_([0-9a-f]{1,32})$"
"""The form of a page's cursor: microseconds since 1970 and the id of its last vote."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

VOTES = sa.Table(
    "consensus_votes",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_utc", sa.DateTime(timezone=True), nullable=False),
    sa.Column("mode", sa.String(32), nullable=False),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("level", sa.String(32), nullable=False),
    sa.Column("confidence", sa.Double),
    sa.Column("conflict", sa.Boolean, nullable=False),
    sa.Column("voters", sa.Integer, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("trail", sa.JSON, nullable=False),
    sa.Index(None, "created_utc", "id"),
)
GRADINGS = sa.Table(
    "consensus_gradings",
    metadata,
    sa.Column("vote_id", sa.String(32), sa.ForeignKey(VOTES.c.id), primary_key=True),
    sa.Column("voter", sa.String(128), primary_key=True),
    sa.Column("node", sa.String(128), nullable=False),
    sa.Column("answer_group", sa.Integer),
    sa.Column("right", sa.Boolean, nullable=False),
    sa.Column("graded_utc", sa.DateTime(timezone=True), nullable=False),
)


@dataclass(frozen=True)
class Grading:
    """Whether a voter's answer was right; `answer_group` is None if its answer did not count."""

    voter: str
    node: str
    answer_group: int | None
    right: bool


@dataclass(frozen=True)
class VoteSummary:
    """A vote as lists show it."""

    id: Annotated[str, Field(description="id of the vote")]
    created_utc: Annotated[datetime, Field(description="when it ended")]
    mode: Annotated[str, Field(description="consensus")]
    question: Annotated[str, Field(description="what was asked")]
    level: Annotated[str, Field(description="how far to trust the answer, in words")]
    confidence: Annotated[float | None, Field(description="probability that the answer is right; null: uncalibrated")]
    conflict: Annotated[bool, Field(description="no answer had more than half of the ballots")]
    voters: Annotated[int, Field(description="number of ballots")]
    tokens: Annotated[int, Field(description="new tokens of all voters")]
    seconds: Annotated[float, Field(description="time of the vote")]


@dataclass(frozen=True)
class ListedVote(VoteSummary):
    """A vote of a page, and whether its answer was right."""

    right: Annotated[bool | None, Field(description="whether the answer was right; null: nobody has graded it")] = None


@dataclass(frozen=True)
class VotePage:
    """A page of votes.

    Attributes:
        votes: the newest first.
        next_cursor: give it as cursor for the next page; None: this is the last.
    """

    votes: tuple[ListedVote, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class ModeMetrics:
    """Counts and means of all votes of one mode."""

    mode: Annotated[str, Field(description="consensus, or single: one node answered")]
    votes: Annotated[int, Field(description="how many there were")]
    conflicts: Annotated[int, Field(description="votes in which no answer had more than half of the ballots")]
    mean_confidence: Annotated[float | None, Field(description="of those with a confidence; null: there is none")]
    mean_seconds: Annotated[float, Field(description="mean time")]
    mean_tokens: Annotated[float, Field(description="mean number of new tokens")]
    levels: Annotated[Mapping[str, int], Field(description="number of votes by level")]


class VoteHistory:
    """The history of votes in a database opened by `open_database`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, summary: VoteSummary, trail: Mapping[str, Any]) -> None:
        """Store a vote: its summary and its whole trail, as plain values for JSON."""
        row = storable(asdict(summary) | {"trail": dict(trail)})
        with self._engine.begin() as connection:
            connection.execute(sa.insert(VOTES).values(**row))

    def trail(self, id: str) -> dict[str, Any]:
        """Return the whole trail of a vote; a NotFoundError if there is no such vote."""
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(VOTES.c.trail).where(VOTES.c.id == id)).scalar()
        if found is None:
            raise NotFoundError(f"no vote {id!r} is known: /api/consensus/history lists them")
        return dict(found)

    def grade(self, id: str, gradings: Sequence[Grading], graded_utc: datetime) -> None:
        """Store who was right in a known vote; it replaces an earlier grading."""
        rows = [{"vote_id": id, "graded_utc": graded_utc, **asdict(each)} for each in gradings]
        with self._engine.begin() as connection:
            connection.execute(sa.delete(GRADINGS).where(GRADINGS.c.vote_id == id))
            if rows:
                connection.execute(sa.insert(GRADINGS), rows)

    def records(self) -> dict[str, TrackRecord]:
        """Return each node's track record of graded answers, in which older answers count less."""
        query = sa.select(GRADINGS.c.node, GRADINGS.c.right).order_by(
            GRADINGS.c.graded_utc, GRADINGS.c.vote_id, GRADINGS.c.voter
        )
        records: dict[str, TrackRecord] = {}
        with self._engine.connect() as connection:
            for node, right in connection.execute(query):
                records[node] = records.get(node, NO_RECORD).after(right)
        return records

    def past_votes(self) -> list[PastVote]:
        """Return each node's first answer to every graded question."""
        query = sa.select(GRADINGS).order_by(GRADINGS.c.vote_id, GRADINGS.c.voter)
        found: dict[tuple[str, str], PastVote] = {}
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                group = row.answer_group if row.answer_group is not None else f"none of {row.voter}"
                found.setdefault((row.vote_id, row.node), PastVote(row.vote_id, row.node, group, row.right))
        return list(found.values())

    def page(self, limit: int = 50, cursor: str | None = None, *, conflicts: bool = False) -> VotePage:
        """Return the newest votes, or those after a page's cursor; with `conflicts` only votes in conflict.

        Raises:
            InputError: the limit is out of range, or the cursor is not one of a page.
        """
        check_range("limit", limit, 1, MOST_PAGE)
        columns = [VOTES.c[name] for name in VoteSummary.__dataclass_fields__]
        winner = VOTES.c.trail[("decision", "winner")].as_integer()
        of_winner = sa.and_(GRADINGS.c.vote_id == VOTES.c.id, GRADINGS.c.answer_group == winner)
        right = sa.select(sa.func.max(GRADINGS.c.right.cast(sa.Integer))).where(of_winner).scalar_subquery()
        query = (
            sa.select(*columns, right.label("right"))
            .order_by(VOTES.c.created_utc.desc(), VOTES.c.id.desc())
            .limit(limit + 1)
        )
        if conflicts:
            query = query.where(VOTES.c.conflict)
        if cursor is not None:
            created, id = _read_cursor(cursor)
            query = query.where(
                sa.or_(VOTES.c.created_utc < created, sa.and_(VOTES.c.created_utc == created, VOTES.c.id < id))
            )
        with self._engine.connect() as connection:
            rows = [ListedVote(**_as_listed(row._asdict())) for row in connection.execute(query)]
        more = len(rows) > limit
        last = rows[limit - 1] if more else None
        cursor = f"{(last.created_utc - _EPOCH) // timedelta(microseconds=1)}_{last.id}" if last else None
        return VotePage(tuple(rows[:limit]), cursor)

    def metrics(self) -> list[ModeMetrics]:
        """Return counts and means of the votes of each mode, sorted by mode."""
        sums = (
            sa.select(
                VOTES.c.mode,
                sa.func.count().label("votes"),
                sa.func.sum(VOTES.c.conflict.cast(sa.Integer)).label("conflicts"),
                sa.func.avg(VOTES.c.confidence).label("mean_confidence"),
                sa.func.avg(VOTES.c.seconds).label("mean_seconds"),
                sa.func.avg(VOTES.c.tokens.cast(sa.Double)).label("mean_tokens"),
            )
            .group_by(VOTES.c.mode)
            .order_by(VOTES.c.mode)
        )
        levels = sa.select(VOTES.c.mode, VOTES.c.level, sa.func.count()).group_by(VOTES.c.mode, VOTES.c.level)
        with self._engine.connect() as connection:
            by_mode: dict[str, dict[str, int]] = {}
            for mode, level, count in connection.execute(levels):
                by_mode.setdefault(mode, {})[level] = count
            return [ModeMetrics(**row._asdict(), levels=by_mode[row.mode]) for row in connection.execute(sums)]


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    found = re.fullmatch(CURSOR, cursor)
    if found is None:
        raise InputError(f"cursor {cursor!r} is not one of a page: leave it out for the first page")
    return _EPOCH + timedelta(microseconds=int(found[1])), found[2]


def _as_listed(row: dict[str, Any]) -> dict[str, Any]:
    """Restore the time zone UTC, which SQLite drops, and the outcome, which was a number."""
    created, right = row["created_utc"], row["right"]
    created = created.replace(tzinfo=UTC) if created.tzinfo is None else created.astimezone(UTC)
    return row | {"created_utc": created, "right": None if right is None else bool(right)}
