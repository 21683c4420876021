"""Brings a database's tables to this version's schema, or to that of the release before."""

import pathlib
from collections.abc import Callable

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from server.jobs.database import Database, StoreError
from server.jobs.tables import SCHEMA, service

START_MS = 120_000
"""For reading or changing all that the database has."""

MIGRATION_LOCK = 0x77616E747075 + 1
"""PostgreSQL's lock of a migration: servers of a fleet may start together."""


def migrate(database: Database) -> None:
    """Brings the tables to this version's schema, whole or not at all.

    Raises:
        StoreError: the database belongs to a newer version, or cannot be used.
    """

    def upgrade(config: alembic.config.Config) -> None:
        connection: Connection = config.attributes["connection"]
        revision = MigrationContext.configure(connection).get_current_revision()
        script = ScriptDirectory.from_config(config)
        if revision in {None, *(each.revision for each in script.walk_revisions())}:
            alembic.command.upgrade(config, "head")
        elif _oldest_reader(connection) > SCHEMA:
            raise StoreError(
                f"{database.name} is of a newer version (schema {revision}); run the version of "
                "wan-tpu that wrote it, or a newer one"
            )

    _run(database, upgrade)


def downgrade(database: Database) -> None:
    """Brings the tables to the schema of the release before this one."""
    _run(database, lambda config: alembic.command.downgrade(config, "-1"))


def give_time(database: Database, connection: Connection) -> None:
    """Lets one transaction take as long as a start may, which nobody waits for."""
    if not database.is_sqlite:
        for limit in ("statement_timeout", "lock_timeout"):
            connection.execute(sa.text(f"SET LOCAL {limit} = {START_MS}"))


def _run(database: Database, run: Callable[[alembic.config.Config], None]) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(pathlib.Path(__file__).parent / "migrations"))
    with database.writing() as connection:
        give_time(database, connection)
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        run(config)


def _oldest_reader(connection: Connection) -> int:
    """The lowest schema number that may use a database of a newer version."""
    if not sa.inspect(connection).has_table(service.name):
        return SCHEMA + 1
    found = connection.execute(sa.select(service.c.oldest_reader)).scalar()
    return SCHEMA + 1 if found is None else found
