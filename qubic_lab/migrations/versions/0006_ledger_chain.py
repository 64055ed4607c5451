"""The chain of the ledger: each entry holds the hash of the one before; the trials so far are its first entries."""

import hashlib
import json
import zlib
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

STAYS = "entries of the ledger are never changed or removed"


def upgrade() -> None:
    """Make the table, enter the trials, and keep rows from being changed or removed."""
    entries = op.create_table(
        "ledger_entries",
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("family", sa.String(128), nullable=False),
        sa.Column("recorded_us", sa.BigInteger, nullable=False),
        sa.Column("about", sa.BigInteger, nullable=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_ledger_entries"),
        sa.UniqueConstraint("about", name="uq_ledger_entries_about"),
        sa.UniqueConstraint("previous", name="uq_ledger_entries_previous"),
        sa.UniqueConstraint("hash", name="uq_ledger_entries_hash"),
    )
    op.create_index("ix_ledger_entries_kind_family", "ledger_entries", ["kind", "family"])
    _enter_trials(entries)
    if op.get_bind().dialect.name == "sqlite":
        same = " OR ".join(f"{column} = NEW.{column}" for column in ("number", "about", "previous", "hash"))
        taken = f"WHEN EXISTS (SELECT 1 FROM ledger_entries WHERE {same}) "
        for what, when in (("UPDATE", ""), ("DELETE", ""), ("INSERT", taken)):
            op.execute(
                f"CREATE TRIGGER ledger_entries_{what.lower()} BEFORE {what} ON ledger_entries {when}"
                f"BEGIN SELECT RAISE(ABORT, '{STAYS}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION ledger_entries_stay() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{STAYS}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER ledger_entries_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION ledger_entries_stay()"
    )


def _enter_trials(entries: sa.Table) -> None:
    connection, previous = op.get_bind(), "0" * 64
    trials = sa.Table("trials", sa.MetaData(), autoload_with=connection)
    ordered = sa.select(trials).order_by(trials.c.recorded_us, trials.c.key)
    for number, row in enumerate(connection.execute(ordered).mappings().all(), start=1):
        values = {**row, "returns": hashlib.sha256(zlib.decompress(row["returns"])).hexdigest()}
        content = _canonical({"key": row["key"], "digest": hashlib.sha256(_canonical(values).encode()).hexdigest()})
        parts = [number, "trial", row["family"], row["recorded_us"], None, content, previous]
        hashed = hashlib.sha256(_canonical(parts).encode()).hexdigest()
        connection.execute(entries.insert().values((*parts, hashed)))
        previous = hashed


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def downgrade() -> None:
    """Drop it."""
    op.drop_table("ledger_entries")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ledger_entries_stay()")
