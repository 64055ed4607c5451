"""The oracle's tables. Times are microseconds since 1970 in UTC.

Nothing is overwritten: a correction is a row of its own with a later `known_us` (transaction time), so that what was
known at any instant can be read.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from qubic_lab.schema import metadata

STAMPS = Table(
    "stamps",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("known_us", BigInteger, nullable=False),
)
"""The newest `known_us` of everything, and of each coin's prices and texts; the next writer's is later."""

FETCHES = Table(
    "fetches",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("source", String(64), nullable=False),
    Column("job", String(128), nullable=False),
    Column("request", Text, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", Integer),
    Column("outcome", String(32), nullable=False),
    Column("error", Text),
    Column("rows_given", Integer, nullable=False),
    Column("rows_added", Integer, nullable=False),
    Index(None, "source", "started_us"),
)
"""Each request to a source, with its retries as `attempts`; `request` never holds a key."""

MARKET_SERIES = Table(
    "market_series",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("coin", String(64), nullable=False),
    Column("source", String(64), nullable=False),
    Column("interval_s", Integer, nullable=False),
    Column("currency", String(16), nullable=False),
    UniqueConstraint("coin", "source", "interval_s", "currency", name="uq_market_series_coin"),
)
MARKET_DATA = Table(
    "market_data",
    metadata,
    Column("series_id", Integer, ForeignKey(MARKET_SERIES.c.id), primary_key=True),
    Column("closed_us", BigInteger, primary_key=True),
    Column("known_us", BigInteger, primary_key=True),
    Column("opened_us", BigInteger, nullable=False),
    Column("published_us", BigInteger),
    Column("open", Double),
    Column("high", Double),
    Column("low", Double),
    Column("close", Double, nullable=False),
    Column("volume", Double),
    Column("volume_24h", Double),
    Column("market_cap", Double),
    Column("flags", String(128), nullable=False),
    Column("fetch_id", Integer, ForeignKey(FETCHES.c.id)),
    Column("assumed_us", BigInteger),
    sqlite_with_rowid=False,
)
"""`closed_us`: when it happened; `published_us`: when it was published; `known_us`: when it was recorded here.

`assumed_us`: when a row of an archive is assumed to have been known, which only those see who ask for it. `flags` are
separated by commas.
"""

NEWS_DATA = Table(
    "news_data",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("source", String(64), nullable=False),
    Column("external_id", String(512), nullable=False),
    Column("known_us", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("published_us", BigInteger),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("cut_characters", Integer, nullable=False),
    Column("url", Text, nullable=False),
    Column("publisher", String(256), nullable=False),
    Column("author", String(256), nullable=False),
    Column("language", String(16), nullable=False),
    Column("score", Integer),
    Column("content_hash", String(64), nullable=False),
    Column("duplicate_of", Integer, ForeignKey("news_data.id")),
    Column("fetch_id", Integer, ForeignKey(FETCHES.c.id)),
    Column("assumed_us", BigInteger),
    UniqueConstraint("source", "external_id", "known_us", name="uq_news_data_source"),
    Index(None, "content_hash"),
    Index(None, "duplicate_of"),
    Index(None, "at_us"),
    Index(None, "known_us"),
)
"""Ids rise with `known_us`. `at_us`: when a text was published, or recorded here if the source does not say.

`duplicate_of`: an earlier row with the same or similar words that is no duplicate itself; both count once.
`assumed_us`: as in `MARKET_DATA`.
"""
NEWS_COINS = Table(
    "news_coins",
    metadata,
    Column("coin", String(64), primary_key=True),
    Column("at_us", BigInteger, primary_key=True),
    Column("news_id", Integer, ForeignKey(NEWS_DATA.c.id), primary_key=True),
    Index(None, "news_id"),
    sqlite_with_rowid=False,
)
"""Which texts are about which coins; `at_us` is the text's, so that a coin's texts of some hours are adjacent."""
SENTIMENT_SCORES = Table(
    "sentiment_scores",
    metadata,
    Column("news_id", Integer, ForeignKey(NEWS_DATA.c.id), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("known_us", BigInteger, primary_key=True),
    Column("score", Double, nullable=False),
    Column("confidence", Double),
    Column("details", JSON, nullable=False),
    sqlite_with_rowid=False,
)
"""`score`: from -1 to 1; `model`: with its version, so that scores of another version are rows of their own."""
PRICE_ANALYSIS = Table(
    "price_analysis",
    metadata,
    Column("series_id", Integer, ForeignKey(MARKET_SERIES.c.id), primary_key=True),
    Column("frame_s", Integer, primary_key=True),
    Column("at_us", BigInteger, primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("known_us", BigInteger, primary_key=True),
    Column("result", JSON, nullable=False),
    sqlite_with_rowid=False,
)
"""The result of an analysis of the prices known at `at_us`, by a version of the code."""

RISK_ALERTS = Table(
    "risk_alerts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("coin", String(64), nullable=False),
    Column("frame_s", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("level", String(16), nullable=False),
    Column("episode_us", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("made_us", BigInteger, nullable=False),
    Column("content", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before_us", BigInteger, nullable=False),
    Column("last_error", Text),
    Column("done_us", BigInteger),
    UniqueConstraint("coin", "frame_s", "episode_us", "kind", "level", name="uq_risk_alerts_coin"),
    Index(None, "state"),
)
"""Each alert once; it goes from pending to sent or failed, and is never removed."""

QUOTAS = Table(
    "quotas",
    metadata,
    Column("source", String(64), primary_key=True),
    Column("period", String(16), primary_key=True),
    Column("started_us", BigInteger, primary_key=True),
    Column("used", Integer, nullable=False),
)
"""Requests used of each day's or month's quota."""
VALIDATORS = Table(
    "http_validators",
    metadata,
    Column("request_hash", String(64), primary_key=True),
    Column("etag", Text),
    Column("last_modified", Text),
)
"""The validators of conditional requests, which a server answers with "not modified" if nothing has changed."""
JOBS = Table(
    "collector_jobs",
    metadata,
    Column("job", String(128), primary_key=True),
    Column("due_us", BigInteger, nullable=False),
    Column("position", JSON, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("done", Boolean, nullable=False),
)
"""The position of each job of the collector, from which it continues."""
LEASES = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("until_us", BigInteger, nullable=False),
)
"""The present holder of each exclusive task."""
