"""Alembic's entry: migrate on the connection, and within the transaction, that the store gives."""

from alembic import context

from lorica.server.store import account_tables as accounts  # noqa: F401  (fills Base)
from lorica.server.store.tables import Base

given = context.config.attributes
context.configure(
    connection=given["connection"],
    target_metadata=Base.metadata,
    version_table=given["version_table"],
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
