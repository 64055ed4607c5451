"""The oracle's tables. Times are microseconds since 1970 in UTC.

Nothing is overwritten: a correction is a row of its own with a later `known_us` (transaction time), so that what was
known at any instant can be read.
"""

import sqlalchemy as sa

from qubic_lab.schema import metadata

STAMPS = sa.Table(
    "stamps",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("known_us", sa.BigInteger, nullable=False),
)
"""The newest `known_us` of everything, and of each coin's prices and texts; the next writer's is later."""

FETCHES = sa.Table(
    "fetches",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("job", sa.String(128), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("started_us", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("outcome", sa.String(32), nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("rows_given", sa.Integer, nullable=False),
    sa.Column("rows_added", sa.Integer, nullable=False),
    sa.Index(None, "source", "started_us"),
)
"""Each request to a source, with its retries as `attempts`; `request` never holds a key."""

MARKET_SERIES = sa.Table(
    "market_series",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("coin", sa.String(64), nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("interval_s", sa.Integer, nullable=False),
    sa.Column("currency", sa.String(16), nullable=False),
    sa.UniqueConstraint("coin", "source", "interval_s", "currency", name="uq_market_series_coin"),
)
MARKET_DATA = sa.Table(
    "market_data",
    metadata,
    sa.Column("series_id", sa.Integer, sa.ForeignKey(MARKET_SERIES.c.id), primary_key=True),
    sa.Column("closed_us", sa.BigInteger, primary_key=True),
    sa.Column("known_us", sa.BigInteger, primary_key=True),
    sa.Column("opened_us", sa.BigInteger, nullable=False),
    sa.Column("published_us", sa.BigInteger),
    sa.Column("open", sa.Double),
    sa.Column("high", sa.Double),
    sa.Column("low", sa.Double),
    sa.Column("close", sa.Double, nullable=False),
    sa.Column("volume", sa.Double),
    sa.Column("volume_24h", sa.Double),
    sa.Column("market_cap", sa.Double),
    sa.Column("flags", sa.String(128), nullable=False),
    sa.Column("fetch_id", sa.Integer, sa.ForeignKey(FETCHES.c.id)),
    sa.Column("assumed_us", sa.BigInteger),
    sqlite_with_rowid=False,
)
"""`closed_us`: when it happened; `published_us`: when it was published; `known_us`: when it was recorded here.

`assumed_us`: when a row of an archive is assumed to have been known, which only those see who ask for it. `flags` are
separated by commas.
"""

NEWS_DATA = sa.Table(
    "news_data",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("external_id", sa.String(512), nullable=False),
    sa.Column("known_us", sa.BigInteger, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("published_us", sa.BigInteger),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("cut_characters", sa.Integer, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("publisher", sa.String(256), nullable=False),
    sa.Column("author", sa.String(256), nullable=False),
    sa.Column("language", sa.String(16), nullable=False),
    sa.Column("score", sa.Integer),
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Column("duplicate_of", sa.Integer, sa.ForeignKey("news_data.id")),
    sa.Column("fetch_id", sa.Integer, sa.ForeignKey(FETCHES.c.id)),
    sa.Column("assumed_us", sa.BigInteger),
    sa.UniqueConstraint("source", "external_id", "known_us", name="uq_news_data_source"),
    sa.Index(None, "content_hash"),
    sa.Index(None, "duplicate_of"),
    sa.Index(None, "at_us"),
    sa.Index(None, "known_us"),
)
"""Ids rise with `known_us`. `at_us`: when a text was published, or recorded here if the source does not say.

`duplicate_of`: an earlier row with the same or similar words that is no duplicate itself; both count once.
`assumed_us`: as in `MARKET_DATA`.
"""
NEWS_COINS = sa.Table(
    "news_coins",
    metadata,
    sa.Column("coin", sa.String(64), primary_key=True),
    sa.Column("at_us", sa.BigInteger, primary_key=True),
    sa.Column("news_id", sa.Integer, sa.ForeignKey(NEWS_DATA.c.id), primary_key=True),
    sa.Index(None, "news_id"),
    sqlite_with_rowid=False,
)
"""Which texts are about which coins; `at_us` is the text's, so that a coin's texts of some hours are adjacent."""
SENTIMENT_SCORES = sa.Table(
    "sentiment_scores",
    metadata,
    sa.Column("news_id", sa.Integer, sa.ForeignKey(NEWS_DATA.c.id), primary_key=True),
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("known_us", sa.BigInteger, primary_key=True),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("confidence", sa.Double),
    sa.Column("details", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)
"""`score`: from -1 to 1; `model`: with its version, so that scores of another version are rows of their own."""
PRICE_ANALYSIS = sa.Table(
    "price_analysis",
    metadata,
    sa.Column("series_id", sa.Integer, sa.ForeignKey(MARKET_SERIES.c.id), primary_key=True),
    sa.Column("frame_s", sa.Integer, primary_key=True),
    sa.Column("at_us", sa.BigInteger, primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("known_us", sa.BigInteger, primary_key=True),
    sa.Column("result", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)
"""The result of an analysis of the prices known at `at_us`, by a version of the code."""

RISK_ALERTS = sa.Table(
    "risk_alerts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("coin", sa.String(64), nullable=False),
    sa.Column("frame_s", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("level", sa.String(16), nullable=False),
    sa.Column("episode_us", sa.BigInteger, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("made_us", sa.BigInteger, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("not_before_us", sa.BigInteger, nullable=False),
    sa.Column("last_error", sa.Text),
    sa.Column("done_us", sa.BigInteger),
    sa.UniqueConstraint("coin", "frame_s", "episode_us", "kind", "level", name="uq_risk_alerts_coin"),
    sa.Index(None, "state"),
)
"""Each alert once; it goes from pending to sent or failed, and is never removed."""

QUOTAS = sa.Table(
    "quotas",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("period", sa.String(16), primary_key=True),
    sa.Column("started_us", sa.BigInteger, primary_key=True),
    sa.Column("used", sa.Integer, nullable=False),
)
"""Requests used of each day's or month's quota."""
VALIDATORS = sa.Table(
    "http_validators",
    metadata,
    sa.Column("request_hash", sa.String(64), primary_key=True),
    sa.Column("etag", sa.Text),
    sa.Column("last_modified", sa.Text),
)
"""The validators of conditional requests, which a server answers with "not modified" if nothing has changed."""
JOBS = sa.Table(
    "collector_jobs",
    metadata,
    sa.Column("job", sa.String(128), primary_key=True),
    sa.Column("due_us", sa.BigInteger, nullable=False),
    sa.Column("position", sa.JSON, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False),
)
"""The position of each job of the collector, from which it continues."""
LEASES = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("holder", sa.String(128), nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
)
"""The present holder of each exclusive task."""
