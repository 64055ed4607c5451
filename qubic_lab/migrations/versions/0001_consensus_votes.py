"""The history of votes, and what came of those that were checked."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "consensus_votes",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("created_utc", sa.DateTime(timezone=True), nullable=False),
        sa.Column("mode", sa.String(32), nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("level", sa.String(32), nullable=False),
        sa.Column("confidence", sa.Double, nullable=True),
        sa.Column("conflict", sa.Boolean, nullable=False),
        sa.Column("voters", sa.Integer, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("trail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_consensus_votes"),
    )
    op.create_index("ix_consensus_votes_created_utc_id", "consensus_votes", ["created_utc", "id"])
    op.create_table(
        "consensus_gradings",
        sa.Column("vote_id", sa.String(32), nullable=False),
        sa.Column("voter", sa.String(128), nullable=False),
        sa.Column("node", sa.String(128), nullable=False),
        sa.Column("answer_group", sa.Integer, nullable=True),
        sa.Column("right", sa.Boolean, nullable=False),
        sa.Column("graded_utc", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["vote_id"], ["consensus_votes.id"], name="fk_consensus_gradings_vote_id"),
        sa.PrimaryKeyConstraint("vote_id", "voter", name="pk_consensus_gradings"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("consensus_gradings")
    op.drop_table("consensus_votes")
