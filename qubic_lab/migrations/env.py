"""What Alembic runs: the migrations, on the connection that `qubic_lab.database` gives."""

from alembic import context

from qubic_lab.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
