"""The quality of the data in the database: completeness, delay, duplicates, corrections and flags of each source."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, exists, select

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.model.records import is_sample
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.timestamps import SECOND_US, now_us
from qubic_lab.oracle.store.fetch_log import FetchCounts, FetchLog
from qubic_lab.oracle.store.tables import FETCHES, MARKET_DATA, MARKET_SERIES, NEWS_COINS, NEWS_DATA
from qubic_lab.oracle.store.transactions import fetch_tuples

NOTHING = "nothing collected"


@dataclass(frozen=True)
class Lateness(Part):
    """How many seconds after an event it was recorded here: the median, the 90th percentile and the maximum.

    `after`: "published" if the source gives that time for all of them, else "happened".
    """

    median_s: float
    p90_s: float
    most_s: float
    after: str


@dataclass(frozen=True)
class Completeness(Part):
    """How many of the items are there that are expected between the first and the last, a step from each other.

    The step is a bar's length, or the median one; `gaps` are ranges of missing items.
    """

    step_s: float
    present: int
    expected: int
    share: float
    gaps: int
    longest_gap_s: float
    longest_gap_from_us: Instant | None


@dataclass(frozen=True)
class PriceQuality(Part):
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
    first_us: Instant
    last_us: Instant
    age_s: float
    completeness: Completeness
    lateness: Lateness
    flags: Mapping[str, int]
    outlier_share: float


@dataclass(frozen=True)
class TextQuality(Part):
    """The texts of one source.

    `rows` count each version, `texts` each id once. `duplicates` repeat an earlier text, exactly or nearly.
    `without_coin`: about no known coin; `without_time`: without a publication time. `sample`: they are invented, and
    must not be joined with prices.
    """

    source: str
    rows: int
    texts: int
    corrections: int
    duplicates: int
    duplicate_share: float
    without_coin: int
    without_time: int
    first_us: Instant
    last_us: Instant
    age_s: float
    longest_gap_s: float
    lateness: Lateness
    sample: bool


@dataclass(frozen=True)
class QualityReport(Part):
    """All series and sources, by name."""

    made_us: Instant
    prices: tuple[PriceQuality, ...]
    texts: tuple[TextQuality, ...]
    fetches: tuple[FetchCounts, ...]
    notes: tuple[str, ...]


def quality_report(engine: Engine, source: str | None = None, at_us: int | None = None) -> QualityReport:
    """Return the quality of the data of all sources, or of one that is known; ages are those at `at_us`, or now."""
    at_us = now_us() if at_us is None else at_us
    with engine.connect() as connection:
        columns = (MARKET_SERIES.c.source, NEWS_DATA.c.source, FETCHES.c.source)
        known = {row[0] for column in columns for row in connection.execute(select(column).distinct())}
        if source is not None and known and source not in known:
            raise InputError(f"nothing is there from source {source!r}: {did_you_mean(source, known)}")
        prices = tuple(_price_qualities(connection, source, at_us))
        texts = tuple(_text_qualities(connection, source, at_us))
    counts = tuple(each for each in FetchLog(engine).counts(0) if source in (None, each.source))
    notes = () if prices or texts or counts else (NOTHING,)
    return QualityReport(at_us, prices, texts, counts, notes)


def completeness(starts_us: NDArray[np.int64], ends_us: NDArray[np.int64], interval_us: int) -> Completeness:
    """Return how complete bars are by their opens and closes in order of time, [prices] each.

    With `interval_us` 0 they are quotes, which are expected at their median step.
    """
    present, steps = len(ends_us), np.diff(ends_us)
    step_us = float(interval_us or (np.median(steps) if len(steps) else 0))
    if not len(steps) or not step_us:
        return Completeness(step_us / SECOND_US, present, present, 1.0, 0, 0.0, None)
    missing = np.maximum(0, np.rint(steps / step_us).astype(np.int64) - 1)
    expected = present + int(missing.sum())
    longest = int(np.argmax(np.where(missing > 0, steps, 0))) if missing.any() else None
    return Completeness(
        step_s=step_us / SECOND_US,
        present=present,
        expected=expected,
        share=present / expected,
        gaps=int((missing > 0).sum()),
        longest_gap_s=0.0 if longest is None else int(starts_us[longest + 1] - ends_us[longest]) / SECOND_US,
        longest_gap_from_us=None if longest is None else int(ends_us[longest]),
    )


def _frame(connection: Connection, query: Any, names: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame([row for rows in fetch_tuples(connection, query) for row in rows], columns=list(names))


def _lateness(first: pd.DataFrame, happened: str) -> Lateness:
    """Return how late first versions were recorded: after publication if all have that time, else after `happened`.

    It is 0 if the source's clock is ahead of ours.
    """
    after = "published" if first["published_us"].notna().all() else "happened"
    since = first["published_us" if after == "published" else happened].to_numpy(np.int64)
    late_s = np.maximum(0.0, (first["known_us"].to_numpy() - since) / SECOND_US)
    median, p90 = np.quantile(late_s, [0.5, 0.9]).tolist()
    return Lateness(median, p90, float(late_s.max()), after)


def _price_qualities(connection: Connection, source: str | None, at_us: int) -> Iterator[PriceQuality]:
    names = ("closed_us", "known_us", "opened_us", "published_us", "flags")
    all_series = select(MARKET_SERIES).order_by(*(MARKET_SERIES.c[name] for name in ("coin", "source", "interval_s")))
    for series in connection.execute(all_series).all():
        query = select(*(MARKET_DATA.c[name] for name in names)).where(MARKET_DATA.c.series_id == series.id)
        query = query.order_by(MARKET_DATA.c.closed_us, MARKET_DATA.c.known_us)
        versions = _frame(connection, query, names) if source in (None, series.source) else pd.DataFrame()
        if versions.empty:
            continue
        first, newest = (versions.drop_duplicates("closed_us", keep=each) for each in ("first", "last"))
        opened, closed = newest["opened_us"].to_numpy(), newest["closed_us"].to_numpy()
        flags = Counter(flag for text in newest["flags"] if text for flag in text.split(","))
        yield PriceQuality(
            coin=series.coin,
            source=series.source,
            interval_s=series.interval_s,
            currency=series.currency,
            rows=len(versions),
            prices=len(newest),
            corrections=len(versions) - len(newest),
            first_us=int(opened[0]),
            last_us=int(closed[-1]),
            age_s=(at_us - int(closed[-1])) / SECOND_US,
            completeness=completeness(opened, closed, series.interval_s * SECOND_US),
            lateness=_lateness(first, "closed_us"),
            flags=dict(sorted(flags.items())),
            outlier_share=flags["outlier"] / len(newest),
        )


def _text_qualities(connection: Connection, source: str | None, at_us: int) -> Iterator[TextQuality]:
    about = exists().where(NEWS_COINS.c.news_id == NEWS_DATA.c.id)
    names = ("source", "external_id", "known_us", "at_us", "published_us", "duplicate_of")
    query = select(*(NEWS_DATA.c[name] for name in names), about)
    if source is not None:
        query = query.where(NEWS_DATA.c.source == source)
    query = query.order_by(NEWS_DATA.c.source, NEWS_DATA.c.known_us, NEWS_DATA.c.id)
    for name, versions in _frame(connection, query, (*names, "about")).groupby("source"):
        first, newest = (versions.drop_duplicates("external_id", keep=each) for each in ("first", "last"))
        appeared = np.sort(newest["at_us"].to_numpy())
        timed = first[first["published_us"].notna()]
        duplicates = int(newest["duplicate_of"].notna().sum())
        yield TextQuality(
            source=str(name),
            rows=len(versions),
            texts=len(newest),
            corrections=len(versions) - len(newest),
            duplicates=duplicates,
            duplicate_share=duplicates / len(newest),
            without_coin=int((~newest["about"].astype(bool)).sum()),
            without_time=len(first) - len(timed),
            first_us=int(appeared[0]),
            last_us=int(appeared[-1]),
            age_s=(at_us - int(appeared[-1])) / SECOND_US,
            longest_gap_s=float(np.diff(appeared).max(initial=0)) / SECOND_US,
            lateness=_lateness(timed if len(timed) else first, "at_us"),
            sample=is_sample(str(name)),
        )
