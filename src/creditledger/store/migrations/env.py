"""Run by Alembic: applies the revisions on the connection that `migrate` was given."""

from alembic import context

from creditledger.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
