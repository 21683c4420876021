"""Alembic's entry: migrates over the connection that `server.jobs.store` hands in."""

from alembic import context

from server.jobs.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # a migration happens whole or not at all, on SQLite too
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
