"""When rows of an archive are assumed to have been known; NULL: they count from when they were recorded here."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column to prices and texts."""
    for table in ("market_data", "news_data"):
        op.add_column(table, sa.Column("assumed_us", sa.BigInteger, nullable=True))


def downgrade() -> None:
    """Drop it."""
    for table in ("market_data", "news_data"):
        op.drop_column(table, "assumed_us")
