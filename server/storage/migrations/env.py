"""Alembic's entry point: runs the migrations on the connection that `migrate.upgrade` hands over."""

from alembic import context
from sqlalchemy import text

from server.storage.schema import metadata

UPGRADING = 0x636D6103
"""The advisory lock (until the transaction ends) of who upgrades a PostgreSQL."""

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    if connection.dialect.name == "postgresql":
        # Who waits here finds everything done: the revision is read after this.
        connection.execute(text("select pg_advisory_xact_lock(:number)"), {"number": UPGRADING})
    context.run_migrations()
