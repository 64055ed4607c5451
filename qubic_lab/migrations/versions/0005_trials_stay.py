"""Trials stay in SQLite also where one is to be replaced: that fires no trigger of removal there."""

from alembic import op

revision = "0005"
down_revision = "0004"

KEYS = {"trials": ("family", "key"), "trial_instants": ("hash",)}


def upgrade() -> None:
    """Pass over rows whose key is there, whatever their INSERT says of conflicts; PostgreSQL has no such statement."""
    if op.get_bind().dialect.name != "sqlite":
        return
    for table, key in KEYS.items():
        same = " AND ".join(f"{column} = NEW.{column}" for column in key)
        op.execute(
            f"CREATE TRIGGER {table}_insert BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) BEGIN SELECT RAISE(IGNORE); END"
        )


def downgrade() -> None:
    """Drop what was made."""
    if op.get_bind().dialect.name == "sqlite":
        for table in KEYS:
            op.execute(f"DROP TRIGGER {table}_insert")
