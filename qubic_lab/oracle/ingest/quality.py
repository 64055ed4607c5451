"""How good the data in the database is: complete, timely, repeated, corrected or odd; a report for each source."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, exists, select

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.model.source_names import is_sample
from qubic_lab.oracle.model.timestamps import SECOND_US, iso, now_us
from qubic_lab.oracle.store.fetch_log import FetchCounts, FetchLog
from qubic_lab.oracle.store.tables import FETCHES, MARKET_DATA, MARKET_SERIES, NEWS_COINS, NEWS_DATA
from qubic_lab.oracle.store.transactions import fetch_tuples

NOTHING = "nothing collected"


@dataclass(frozen=True)
class Lateness:
    """How long after it happened or was published something was known here, in seconds: half of it, 9 of 10, all.

    `after`: "published" where the source says when that was for all of them, else "happened".
    """

    median_s: float
    p90_s: float
    most_s: float
    after: str


@dataclass(frozen=True)
class Completeness:
    """How much of what was to be expected is there.

    Attributes:
        step_s: from one to the next: a bar's length, or what is usual.
        present, expected: how many there are, and how many there would be without gaps between first and last.
        share: one by the other, in 0..1.
        gaps: how many stretches are missing.
        longest_gap_s, longest_gap_from_us: the longest of them; 0 and None where there is none.
    """

    step_s: float
    present: int
    expected: int
    share: float
    gaps: int
    longest_gap_s: float
    longest_gap_from_us: int | None


@dataclass(frozen=True)
class PriceQuality:
    """The prices of one series.

    `rows` count each version, `prices` each time once; `corrections` are later versions; `flags` those of the newest.
    """

    coin: str
    source: str
    interval_s: int
    currency: str
    rows: int
    prices: int
    corrections: int
    first_us: int
    last_us: int
    age_s: float
    completeness: Completeness
    lateness: Lateness
    flags: Mapping[str, int]
    outlier_share: float


@dataclass(frozen=True)
class TextQuality:
    """The texts of one source.

    `rows` count each version, `texts` each id once. `duplicates` repeat an earlier text in the same or nearly the same
    words; `without_coin` are about none that is known; `without_time`: the source does not say when they appeared.
    `sample`: they were invented, and must not be joined with prices.
    """

    source: str
    rows: int
    texts: int
    corrections: int
    duplicates: int
    duplicate_share: float
    without_coin: int
    without_time: int
    first_us: int
    last_us: int
    age_s: float
    longest_gap_s: float
    lateness: Lateness
    sample: bool


@dataclass(frozen=True)
class QualityReport:
    """All series and sources, by name; `notes` say what a reader must know."""

    made_us: int
    prices: tuple[PriceQuality, ...]
    texts: tuple[TextQuality, ...]
    fetches: tuple[FetchCounts, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON: `…_us` fields become times in ISO 8601 without that ending."""
        found: dict[str, Any] = _plain(self)
        return found


def quality_report(
    engine: Engine, source: str | None = None, since_us: int = 0, at_us: int | None = None
) -> QualityReport:
    """Return how good the data of one source, or of all, is.

    Args:
        engine: a database that `open_database` opened.
        source: only this one's.
        since_us: only what happened, was published or was asked for at this time or later.
        at_us: the time by which data is old; None: now.

    Raises:
        InputError: nothing is there from `source`; with the closest one that there is.
    """
    at_us = now_us() if at_us is None else at_us
    with engine.connect() as connection:
        known = _sources(connection)
        if source is not None and known and source not in known:
            raise InputError(f"nothing is there from source {source!r}: {did_you_mean(source, known)}")
        prices = tuple(_price_qualities(connection, source, since_us, at_us))
        texts = tuple(_text_qualities(connection, source, since_us, at_us))
    counts = tuple(each for each in FetchLog(engine).counts(since_us) if source in (None, each.source))
    notes = () if prices or texts or counts else (NOTHING,)
    return QualityReport(at_us, prices, texts, counts, notes)


def completeness(starts_us: NDArray[np.int64], ends_us: NDArray[np.int64], interval_us: int) -> Completeness:
    """Return how complete bars, or quotes with `interval_us` 0, are.

    Args:
        starts_us: of each bar, by time, [prices]; a quote's instant.
        ends_us: likewise.
        interval_us: a bar's length; of quotes the usual step is the median one.
    """
    present = len(ends_us)
    steps = np.diff(ends_us)
    step_us = float(interval_us) if interval_us else float(np.median(steps)) if len(steps) else 0.0
    if not len(steps) or not step_us:
        return Completeness(step_us / SECOND_US, present, present, 1.0, 0, 0.0, None)
    missing = np.maximum(0, np.rint(steps / step_us).astype(np.int64) - 1)
    expected = present + int(missing.sum())
    longest = int(np.argmax(np.where(missing > 0, steps, 0)))
    gap_us = int(starts_us[longest + 1] - ends_us[longest])
    some = bool(missing.any())
    return Completeness(
        step_s=step_us / SECOND_US,
        present=present,
        expected=expected,
        share=present / expected,
        gaps=int((missing > 0).sum()),
        longest_gap_s=gap_us / SECOND_US if some else 0.0,
        longest_gap_from_us=int(ends_us[longest]) if some else None,
    )


def lateness(known_us: NDArray[np.int64], happened_us: NDArray[np.int64], after: str) -> Lateness:
    """Return how late things were known, [things] each; 0 where a source's clock is ahead of ours."""
    late_s = np.maximum(0.0, (known_us - happened_us) / SECOND_US)
    median, p90 = np.quantile(late_s, [0.5, 0.9]).tolist()
    return Lateness(median, p90, float(late_s.max()), after)


def _sources(connection: Connection) -> list[str]:
    columns = (MARKET_SERIES.c.source, NEWS_DATA.c.source, FETCHES.c.source)
    return sorted({row[0] for column in columns for row in connection.execute(select(column).distinct())})


def _price_qualities(connection: Connection, source: str | None, since_us: int, at_us: int) -> Iterator[PriceQuality]:
    series = select(MARKET_SERIES).order_by(*(MARKET_SERIES.c[name] for name in ("coin", "source", "interval_s")))
    for each in connection.execute(series).all():
        if source not in (None, each.source):
            continue
        columns = (MARKET_DATA.c[name] for name in ("closed_us", "known_us", "opened_us", "published_us", "flags"))
        query = select(*columns).where(MARKET_DATA.c.series_id == each.id, MARKET_DATA.c.closed_us >= since_us)
        query = query.order_by(MARKET_DATA.c.closed_us, MARKET_DATA.c.known_us)
        versions = _read_versions(fetch_tuples(connection, query))
        if len(versions.closed_us):
            yield _price_quality((each.coin, each.source, each.interval_s, each.currency), versions, at_us)


@dataclass(frozen=True)
class _Versions:
    """All rows of a series by close and when they were known; `published_us` is 0 where the source does not say.

    `flags` are those of the rows, by number, that have any.
    """

    closed_us: NDArray[np.int64]
    known_us: NDArray[np.int64]
    opened_us: NDArray[np.int64]
    published_us: NDArray[np.int64]
    flags: Mapping[int, str]


def _read_versions(lists: Iterator[list[tuple[Any, ...]]]) -> _Versions:
    parts: list[NDArray[np.int64]] = [np.empty((0, 4), np.int64)]
    flags: dict[int, str] = {}
    done = 0
    for rows in lists:
        parts.append(np.array([(closed, known, opened, at or 0) for closed, known, opened, at, _ in rows], np.int64))
        flags |= {number: row[4] for number, row in enumerate(rows, done) if row[4]}
        done += len(rows)
    closed, known, opened, published = np.concatenate(parts).T
    return _Versions(closed, known, opened, published, flags)


def _price_quality(series: tuple[str, str, int, str], rows: _Versions, at_us: int) -> PriceQuality:
    closed, opened = rows.closed_us, rows.opened_us
    changes = np.flatnonzero(np.diff(closed)) + 1
    first, newest = np.append(0, changes), np.append(changes - 1, len(closed) - 1)
    of_newest = set(newest.tolist())
    flags = Counter(flag for number, text in rows.flags.items() if number in of_newest for flag in text.split(","))
    published = rows.published_us[first]
    told = bool(published.all())
    coin, source, interval_s, currency = series
    return PriceQuality(
        coin=coin,
        source=source,
        interval_s=interval_s,
        currency=currency,
        rows=len(closed),
        prices=len(newest),
        corrections=len(closed) - len(newest),
        first_us=int(opened[0]),
        last_us=int(closed[-1]),
        age_s=(at_us - int(closed[-1])) / SECOND_US,
        completeness=completeness(opened[newest], closed[newest], interval_s * SECOND_US),
        lateness=lateness(
            rows.known_us[first], published if told else closed[first], "published" if told else "happened"
        ),
        flags=dict(sorted(flags.items())),
        outlier_share=flags["outlier"] / len(newest),
    )


def _text_qualities(connection: Connection, source: str | None, since_us: int, at_us: int) -> Iterator[TextQuality]:
    about = exists().where(NEWS_COINS.c.news_id == NEWS_DATA.c.id)
    names = ("source", "external_id", "known_us", "at_us", "published_us", "duplicate_of")
    query = select(*(NEWS_DATA.c[name] for name in names), about).where(NEWS_DATA.c.at_us >= since_us)
    if source is not None:
        query = query.where(NEWS_DATA.c.source == source)
    found: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
    for rows in fetch_tuples(connection, query.order_by(NEWS_DATA.c.source, NEWS_DATA.c.known_us, NEWS_DATA.c.id)):
        for row in rows:
            found.setdefault(row[0], {}).setdefault(row[1], []).append(row[2:])
    for name, versions in found.items():
        yield _text_quality(name, list(versions.values()), at_us)


def _text_quality(source: str, versions: Sequence[Sequence[tuple[Any, ...]]], at_us: int) -> TextQuality:
    """Judge a source by the versions of its texts: known, at, published, duplicate of, and whether about any coin."""
    first, newest = [each[0] for each in versions], [each[-1] for each in versions]
    appeared = np.sort(np.array([row[1] for row in newest], np.int64))
    duplicates = sum(row[3] is not None for row in newest)
    told = [row for row in first if row[2] is not None]
    timed = told or first
    known, published = (np.array([row[number] for row in timed], np.int64) for number in (0, 1))
    rows = sum(map(len, versions))
    return TextQuality(
        source=source,
        rows=rows,
        texts=len(newest),
        corrections=rows - len(newest),
        duplicates=duplicates,
        duplicate_share=duplicates / len(newest),
        without_coin=sum(not row[4] for row in newest),
        without_time=len(first) - len(told),
        first_us=int(appeared[0]),
        last_us=int(appeared[-1]),
        age_s=(at_us - int(appeared[-1])) / SECOND_US,
        longest_gap_s=float(np.diff(appeared).max(initial=0)) / SECOND_US,
        lateness=lateness(known, published, "published" if told else "happened"),
        sample=is_sample(source),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return dict(value)
    if not hasattr(value, "__dataclass_fields__"):
        return value
    found: dict[str, Any] = {}
    for each in fields(value):
        content = getattr(value, each.name)
        if each.name.endswith("_us"):
            found[each.name.removesuffix("_us")] = None if content is None else iso(content)
        else:
            found[each.name] = _plain(content)
    return found
