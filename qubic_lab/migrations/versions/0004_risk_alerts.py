"""Alerts of risk: each is kept before it is sent, and stays."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "risk_alerts",
        sa.Column("id", sa.Integer, nullable=False),
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
        sa.Column("last_error", sa.Text, nullable=True),
        sa.Column("done_us", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_risk_alerts"),
        sa.UniqueConstraint("coin", "frame_s", "episode_us", "kind", "level", name="uq_risk_alerts_coin"),
    )
    op.create_index("ix_risk_alerts_state", "risk_alerts", ["state"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("risk_alerts")
