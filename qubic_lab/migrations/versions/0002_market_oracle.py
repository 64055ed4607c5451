"""The market oracle: prices and texts with what was known when, and where its collector stands."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "collector_jobs",
        sa.Column("job", sa.String(128), nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
        sa.Column("position", sa.JSON, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("done", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("job", name="pk_collector_jobs"),
    )
    op.create_table(
        "fetches",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("job", sa.String(128), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer, nullable=True),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("error", sa.Text, nullable=True),
        sa.Column("rows_given", sa.Integer, nullable=False),
        sa.Column("rows_added", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fetches"),
    )
    op.create_index("ix_fetches_source_started_us", "fetches", ["source", "started_us"])
    op.create_table(
        "http_validators",
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("etag", sa.Text, nullable=True),
        sa.Column("last_modified", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("request_hash", name="pk_http_validators"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "market_series",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("coin", sa.String(64), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("interval_s", sa.Integer, nullable=False),
        sa.Column("currency", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_market_series"),
        sa.UniqueConstraint("coin", "source", "interval_s", "currency", name="uq_market_series_coin"),
    )
    op.create_table(
        "quotas",
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("used", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("source", "period", "started_us", name="pk_quotas"),
    )
    op.create_table(
        "stamps",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("known_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_stamps"),
    )
    op.create_table(
        "market_data",
        sa.Column("series_id", sa.Integer, nullable=False),
        sa.Column("closed_us", sa.BigInteger, nullable=False),
        sa.Column("known_us", sa.BigInteger, nullable=False),
        sa.Column("opened_us", sa.BigInteger, nullable=False),
        sa.Column("published_us", sa.BigInteger, nullable=True),
        sa.Column("open", sa.Double, nullable=True),
        sa.Column("high", sa.Double, nullable=True),
        sa.Column("low", sa.Double, nullable=True),
        sa.Column("close", sa.Double, nullable=False),
        sa.Column("volume", sa.Double, nullable=True),
        sa.Column("volume_24h", sa.Double, nullable=True),
        sa.Column("market_cap", sa.Double, nullable=True),
        sa.Column("flags", sa.String(128), nullable=False),
        sa.Column("fetch_id", sa.Integer, nullable=True),
        sa.ForeignKeyConstraint(["fetch_id"], ["fetches.id"], name="fk_market_data_fetch_id"),
        sa.ForeignKeyConstraint(["series_id"], ["market_series.id"], name="fk_market_data_series_id"),
        sa.PrimaryKeyConstraint("series_id", "closed_us", "known_us", name="pk_market_data"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "news_data",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("external_id", sa.String(512), nullable=False),
        sa.Column("known_us", sa.BigInteger, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("published_us", sa.BigInteger, nullable=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("cut_characters", sa.Integer, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("publisher", sa.String(256), nullable=False),
        sa.Column("author", sa.String(256), nullable=False),
        sa.Column("language", sa.String(16), nullable=False),
        sa.Column("score", sa.Integer, nullable=True),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("duplicate_of", sa.Integer, nullable=True),
        sa.Column("fetch_id", sa.Integer, nullable=True),
        sa.ForeignKeyConstraint(["duplicate_of"], ["news_data.id"], name="fk_news_data_duplicate_of"),
        sa.ForeignKeyConstraint(["fetch_id"], ["fetches.id"], name="fk_news_data_fetch_id"),
        sa.PrimaryKeyConstraint("id", name="pk_news_data"),
        sa.UniqueConstraint("source", "external_id", "known_us", name="uq_news_data_source"),
    )
    op.create_index("ix_news_data_content_hash", "news_data", ["content_hash"])
    op.create_index("ix_news_data_known_us", "news_data", ["known_us"])
    op.create_index("ix_news_data_at_us", "news_data", ["at_us"])
    op.create_index("ix_news_data_duplicate_of", "news_data", ["duplicate_of"])
    op.create_table(
        "price_analysis",
        sa.Column("series_id", sa.Integer, nullable=False),
        sa.Column("frame_s", sa.Integer, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("known_us", sa.BigInteger, nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["market_series.id"], name="fk_price_analysis_series_id"),
        sa.PrimaryKeyConstraint("series_id", "frame_s", "at_us", "version", "known_us", name="pk_price_analysis"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "news_coins",
        sa.Column("coin", sa.String(64), nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("news_id", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["news_id"], ["news_data.id"], name="fk_news_coins_news_id"),
        sa.PrimaryKeyConstraint("coin", "at_us", "news_id", name="pk_news_coins"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_news_coins_news_id", "news_coins", ["news_id"])
    op.create_table(
        "sentiment_scores",
        sa.Column("news_id", sa.Integer, nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("known_us", sa.BigInteger, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("confidence", sa.Double, nullable=True),
        sa.Column("details", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["news_id"], ["news_data.id"], name="fk_sentiment_scores_news_id"),
        sa.PrimaryKeyConstraint("news_id", "model", "known_us", name="pk_sentiment_scores"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("sentiment_scores")
    op.drop_table("news_coins")
    op.drop_table("price_analysis")
    op.drop_table("news_data")
    op.drop_table("market_data")
    op.drop_table("stamps")
    op.drop_table("quotas")
    op.drop_table("market_series")
    op.drop_table("leases")
    op.drop_table("http_validators")
    op.drop_table("fetches")
    op.drop_table("collector_jobs")
