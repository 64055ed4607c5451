"""Reads texts and their sentiment scores, as they are known now or as they were known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from sqlalchemy import Connection, Engine, Select, and_, bindparam, case, exists, func, or_, select

from qubic_lab.errors import check_range
from qubic_lab.oracle.model.bars import Floats, Integers
from qubic_lab.oracle.model.records import SAMPLE, Text, TextKind
from qubic_lab.oracle.model.response import Instant
from qubic_lab.oracle.store.tables import NEWS_COINS, NEWS_DATA, SENTIMENT_SCORES
from qubic_lab.oracle.store.transactions import (
    NEWEST,
    check_range_us,
    chunks,
    fetch_tuples,
    known_at,
    read_cursor,
    read_stamp,
    was_known,
)

MOST_PAGE = 1_000
TITLE_CHARACTERS = 120
"""The part of a post without a title that is shown as its title."""

MARKET = "market"
"""In place of a coin: the texts about any of them, each once."""
_LATER, _FIRST, _FIRST_ABOUT = NEWS_DATA.alias("later"), NEWS_DATA.alias("first"), NEWS_COINS.alias("first_about")
_ABOUT_COIN = NEWS_COINS.join(NEWS_DATA, NEWS_DATA.c.id == NEWS_COINS.c.news_id)
_IS_LATER = and_(
    _LATER.c.source == NEWS_DATA.c.source,
    _LATER.c.external_id == NEWS_DATA.c.external_id,
    _LATER.c.known_us > NEWS_DATA.c.known_us,
    was_known(_LATER.c),
)
_IS_FIRST = and_(
    or_(_FIRST.c.id == NEWS_DATA.c.duplicate_of, _FIRST.c.duplicate_of == NEWS_DATA.c.duplicate_of),
    _FIRST.c.id < NEWS_DATA.c.id,
    was_known(_FIRST.c),  # of archives, what was imported first may have appeared later
    _FIRST_ABOUT.c.news_id == _FIRST.c.id,
)
_SAME_COIN = and_(_FIRST_ABOUT.c.coin == NEWS_COINS.c.coin, _FIRST_ABOUT.c.at_us == _FIRST.c.at_us)
_COUNTS = or_(NEWS_DATA.c.duplicate_of.is_(None), ~exists().where(_IS_FIRST, _SAME_COIN))
"""Repeats no text about the same coin: if the original is about others, the first of its repetitions counts."""
_COUNTS_ONCE = or_(NEWS_DATA.c.duplicate_of.is_(None), ~exists().where(_IS_FIRST))
"""Repeats no text about any coin."""
_OTHER = NEWS_COINS.alias("other")
_FIRST_COIN = select(func.min(_OTHER.c.coin)).where(_OTHER.c.news_id == NEWS_COINS.c.news_id).scalar_subquery()


@dataclass(frozen=True, kw_only=True)
class StoredText(Text):
    """A version of a text as it is stored; later versions have higher ids.

    Attributes:
        at_us: when it was published, or recorded here if the source does not say.
        known_us: when it was recorded here (transaction time).
        duplicate_of: the id of the text that it repeats, if any.
        assumed_us: when it is assumed to have been known, if it is of an archive.
    """

    id: Annotated[int, Field(description="later versions have higher ids")]
    at_us: Annotated[int, Field(exclude=True)]
    known_us: Instant
    duplicate_of: int | None
    assumed_us: Annotated[int | None, Field(exclude=True)] = None


@dataclass(frozen=True)
class TextPage:
    """A page of texts, the newest first, and the cursor of the next page, if any."""

    texts: tuple[StoredText, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class TextCounts:
    """The number of texts of one kind from a source; `duplicates` repeat others and are not among `texts`.

    `assumed` of all are only assumed to have been known, `delay_us` after their publication at most.
    """

    source: str
    kind: TextKind
    texts: int
    duplicates: int
    newest_at_us: int
    assumed: int = 0
    delay_us: int | None = None


@dataclass(frozen=True)
class ScoreColumns:
    """One model's scores of a coin's texts in order of time, [texts].

    Times are microseconds since 1970: `at_us` is when the text was published, `known_us` when the score was recorded.
    A missing confidence is NaN.
    """

    news_id: Integers
    at_us: Integers
    known_us: Integers
    score: Floats
    confidence: Floats

    def __len__(self) -> int:
        return len(self.news_id)


class TextReader:
    """Reads the texts and scores of a database as they are known now, or as they were known; threads may share it.

    Of texts that repeat each other only the first counts. Invented samples are texts like others unless they are left
    out with `invented=False`.

    Attributes:
        known_us: transaction time: rows that were recorded later are not seen.
        assumed: whether texts of archives, with their scores, are seen from the time at which they are assumed to have
            been known: the same model gives the same score, whenever it is made.

    Raises:
        InputError: of methods with a range: it is empty.
    """

    def __init__(self, engine: Engine, known_us: int = NEWEST, assumed: bool = False) -> None:
        self._engine, self.known_us, self.assumed = engine, known_us, assumed

    def read(
        self, coin: str, start_us: int, end_us: int, *, duplicates: bool = False, invented: bool = True
    ) -> list[StoredText]:
        """Return a coin's texts with start_us <= at_us < end_us in order, each in its newest version."""
        query = _visible(_STORED, duplicates, invented, coin == MARKET)
        query = query.order_by(NEWS_COINS.c.at_us, NEWS_COINS.c.news_id)
        with self._engine.connect() as connection:
            return _texts(connection, query, self._values(coin, start_us, end_us))

    def page(
        self,
        coin: str,
        start_us: int,
        end_us: int,
        *,
        limit: int = 100,
        cursor: str | None = None,
        duplicates: bool = False,
        invented: bool = True,
    ) -> TextPage:
        """Return the last of a coin's texts in a range, or those before a page's cursor.

        Read as they were known at an instant, all pages together never change.

        Raises:
            InputError: a limit that is out of range, or a cursor that no page gave.
        """
        check_range("limit", limit, 1, MOST_PAGE)
        values = self._values(coin, start_us, end_us)
        query = _visible(_STORED, duplicates, invented, coin == MARKET)
        if cursor is not None:
            at_us, id = read_cursor(cursor, 2)
            query = query.where(NEWS_COINS.c.at_us <= at_us, or_(NEWS_COINS.c.at_us < at_us, NEWS_COINS.c.news_id < id))
        query = query.order_by(NEWS_COINS.c.at_us.desc(), NEWS_COINS.c.news_id.desc()).limit(limit + 1)
        with self._engine.connect() as connection:
            found = _texts(connection, query, values)
        texts = tuple(found[:limit])
        return TextPage(texts, f"{texts[-1].at_us}_{texts[-1].id}" if len(found) > limit else None)

    def counts(self, coin: str, start_us: int, end_us: int) -> list[TextCounts]:
        """Return how many texts of a range `read` gives, and how many repetitions of them, by source and kind."""
        values = self._values(coin, start_us, end_us)
        with self._engine.connect() as connection:
            return [TextCounts(*row) for row in connection.execute(_counting(coin == MARKET), values)]

    def headlines(self, coin: str, start_us: int, end_us: int) -> list[str]:
        """Return the headlines of the texts of a range that `read` gives, without invented samples."""
        query = _visible(select(NEWS_DATA.c.title), invented=False, market=coin == MARKET)
        with self._engine.connect() as connection:
            return list(connection.execute(query, self._values(coin, start_us, end_us)).scalars())

    def scores(self, coin: str, start_us: int, end_us: int, model: str, *, invented: bool = True) -> ScoreColumns:
        """Return the newest scores by `model` of the texts that `read` gives."""
        found = self.scores_by_model(coin, start_us, end_us, model, invented=invented)
        return found.get(model, _score_columns([]))

    def scores_by_model(
        self, coin: str, start_us: int, end_us: int, model: str | None = None, *, invented: bool = True
    ) -> dict[str, ScoreColumns]:
        """Return what `scores` gives for each model that has any, or for one alone, by the model's name."""
        values = self._values(coin, start_us, end_us) | {"model": model}
        found: dict[str, list[tuple[Any, ...]]] = {}
        with self._engine.connect() as connection:
            for rows in fetch_tuples(connection, _scoring(model is not None, invented, coin == MARKET), values):
                for row in rows:
                    found.setdefault(row[-1], []).append(row[:-1])
        return {key: _score_columns(found[key]) for key in sorted(found)}

    def score_details(self, ids: Sequence[int], model: str) -> dict[int, Mapping[str, Any]]:
        """Return what a model's newest scores of these texts say beside their number, by the texts' ids."""
        found: dict[int, Mapping[str, Any]] = {}
        scores = SENTIMENT_SCORES.c
        seen = select(scores.news_id, scores.details).join(NEWS_DATA).where(scores.model == model, _SCORE_SEEN)
        with self._engine.connect() as connection:
            for some in chunks(ids):
                query = seen.where(scores.news_id.in_(some)).order_by(scores.known_us)
                rows = connection.execute(query, known_at(self.known_us, self.assumed))
                found.update((row.news_id, row.details) for row in rows)
        return found

    def sources(self, ids: Sequence[int]) -> dict[int, str]:
        """Return the sources of texts, by the texts' ids."""
        found: dict[int, str] = {}
        with self._engine.connect() as connection:
            for some in chunks(ids):
                query = select(NEWS_DATA.c.id, NEWS_DATA.c.source).where(NEWS_DATA.c.id.in_(some))
                found.update((row.id, row.source) for row in connection.execute(query))
        return found

    def titles(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the title, source, publisher and url of texts, by their ids; a post's first words are its title."""
        body = func.substr(NEWS_DATA.c.body, 1, TITLE_CHARACTERS).label("body")
        names = ("id", "title", "source", "publisher", "url")
        query = select(*(NEWS_DATA.c[name] for name in names), body).where(NEWS_DATA.c.id.in_(ids))
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings()
            return {
                row["id"]: {name: row[name] for name in names[2:]} | {"title": row["title"] or row["body"]}
                for row in rows
            }

    def stamp(self, coin: str) -> int:
        """Return when a coin's texts or their scores last changed, in microseconds since 1970; 0 if there are none."""
        return read_stamp(self._engine, text_subject(coin))

    def _values(self, coin: str, start_us: int, end_us: int) -> dict[str, Any]:
        check_range_us(start_us, end_us)
        return {"about": coin, "start_us": start_us, "end_us": end_us, **known_at(self.known_us, self.assumed)}


def text_subject(coin: str) -> str:
    """Return the name under which the stamp of a coin's texts and scores is kept."""
    return f"texts {coin}"


def _visible(query: Select[Any], duplicates: bool = False, invented: bool = True, market: bool = False) -> Select[Any]:
    """Return a query that is limited to the texts about a coin, or any, in a range, in the newest version seen."""
    at_us = (NEWS_DATA if market else NEWS_COINS).c.at_us  # an index of each begins with what is asked for
    query = query.select_from(_ABOUT_COIN).where(
        NEWS_COINS.c.coin == (_FIRST_COIN if market else bindparam("about")),
        at_us >= bindparam("start_us"),
        at_us < bindparam("end_us"),
        was_known(NEWS_DATA.c),
        ~exists().where(_IS_LATER),
    )
    if not duplicates:
        query = query.where(_COUNTS_ONCE if market else _COUNTS)
    return query if invented else query.where(NEWS_DATA.c.source != SAMPLE)


_SCORE_SEEN = or_(
    SENTIMENT_SCORES.c.known_us <= bindparam("known_us"), NEWS_DATA.c.assumed_us <= bindparam("assumed_us")
)
# Queries of responses are built once: building them takes longer than running them.
_STORED = select(*(NEWS_DATA.c[each.name] for each in fields(StoredText) if each.name != "coins"))
_KINDS = (NEWS_DATA.c.source, NEWS_DATA.c.kind)
_IS_ASSUMED = NEWS_DATA.c.known_us > bindparam("known_us")
_ASSUMED = (
    func.sum(case((_IS_ASSUMED, 1), else_=0)),
    func.max(case((_IS_ASSUMED, NEWS_DATA.c.assumed_us - NEWS_DATA.c.at_us))),
)


@lru_cache
def _counting(market: bool) -> Select[Any]:
    distinct = func.sum(case((_COUNTS_ONCE if market else _COUNTS, 1), else_=0))
    numbers = (distinct, func.count() - distinct, func.max(NEWS_DATA.c.at_us), *_ASSUMED)
    query = _visible(select(*_KINDS, *numbers), duplicates=True, market=market)
    return query.group_by(*_KINDS).order_by(*_KINDS)


@lru_cache
def _scoring(of_model: bool, invented: bool, market: bool) -> Select[Any]:
    scores = SENTIMENT_SCORES.c
    known = case((scores.known_us <= bindparam("known_us"), scores.known_us), else_=NEWS_DATA.c.assumed_us)
    columns = (NEWS_COINS.c.news_id, NEWS_COINS.c.at_us, known, scores.score, scores.confidence, scores.model)
    query = _visible(select(*columns), invented=invented, market=market)
    query = query.join(SENTIMENT_SCORES, scores.news_id == NEWS_COINS.c.news_id).where(_SCORE_SEEN)
    if of_model:
        query = query.where(SENTIMENT_SCORES.c.model == bindparam("model"))
    return query.order_by(NEWS_COINS.c.at_us, NEWS_COINS.c.news_id, SENTIMENT_SCORES.c.known_us)


def _texts(connection: Connection, query: Select[Any], values: Mapping[str, Any]) -> list[StoredText]:
    rows = list(connection.execute(query, values).mappings())
    coins: dict[int, list[str]] = {}
    for some in chunks([row["id"] for row in rows]):
        about = select(NEWS_COINS.c.news_id, NEWS_COINS.c.coin).where(NEWS_COINS.c.news_id.in_(some))
        for id, coin in connection.execute(about.order_by(NEWS_COINS.c.coin)):
            coins.setdefault(id, []).append(coin)
    return [StoredText(**row, coins=tuple(coins[row["id"]])) for row in rows]


def _score_columns(rows: list[tuple[Any, ...]]) -> ScoreColumns:
    """Return the last row of each text; rows are in order of text and `known_us`."""
    values: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) or [()] * 5
    news_id = np.array(values[0], dtype=np.int64)
    last = np.append(news_id[1:] != news_id[:-1], True)[: len(news_id)]
    return ScoreColumns(
        news_id[last],
        *(np.array(column, dtype=np.int64)[last] for column in values[1:3]),
        *(np.array(column, dtype=np.float64)[last] for column in values[3:]),
    )
