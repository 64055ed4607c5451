"""The ledger of trials: what was tried on past prices, with its returns; rows stay as they were written."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = ("trials", "trial_instants")


def upgrade() -> None:
    """Make the tables, and keep rows from being changed or removed."""
    op.create_table(
        "trial_instants",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("bars", sa.Integer, nullable=False),
        sa.Column("closed_us", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_trial_instants"),
    )
    op.create_table(
        "trials",
        sa.Column("family", sa.String(128), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("strategy", sa.String(128), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("data_hash", sa.String(64), nullable=False),
        sa.Column("instants_hash", sa.String(64), nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("recorded_us", sa.BigInteger, nullable=False),
        sa.Column("returns", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["instants_hash"], ["trial_instants.hash"], name="fk_trials_instants_hash"),
        sa.PrimaryKeyConstraint("family", "key", name="pk_trials"),
    )
    op.create_index("ix_trials_recorded_us", "trials", ["recorded_us"])
    if op.get_bind().dialect.name == "sqlite":
        for table in TABLES:
            for what in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_{what.lower()} BEFORE {what} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'trials are never changed or removed'); END"
                )
        return
    op.execute(
        "CREATE FUNCTION trials_stay() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'trials are never changed or removed'; END $$"
    )
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION trials_stay()"
        )


def downgrade() -> None:
    """Drop them."""
    for table in TABLES:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION trials_stay()")
