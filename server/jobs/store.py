"""Jobs in a database: what survives. Blocking; one thread calls it, one server owns it.

What is served comes from memory (`board`); this is written before an answer is given, and read
once, at start.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs.ballast import Ballast
from server.jobs.database import Database, StoreFull
from server.jobs.job import Job
from server.jobs.ownership import (
    Lock,
    PostgresLock,
    SqliteLock,
    check_epoch,
    take_epoch,
)
from server.jobs.rows import from_row, to_row
from server.jobs.schema import downgrade, give_time, migrate
from server.jobs.tables import jobs, service

logger = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 500
"""Databases bound the parameters of a statement; SQLite's bound has been 999."""


class Store:
    """The jobs' table, brought to this version's schema and owned by this server.

    Attributes:
        database_id: of this database, for good.
        folder_id: of the data folder whose files it knows; None where it never had one.
        losses: how often the lock was lost and taken again: the database was started anew, or
            another, perhaps an older copy, took its place.
    """

    def __init__(self, url: str, *, timeout_seconds: float):
        """Opens, locks, migrates, and takes ownership.

        Args:
            url: SQLAlchemy's; `postgres://` will do.
            timeout_seconds: how long a call may take.

        Raises:
            StoreError: another server has it, it belongs to a newer version, or it cannot be used.
        """
        self.losses = 0
        with contextlib.ExitStack() as opened:
            self._database = Database(url, timeout_seconds=timeout_seconds)
            opened.callback(self._database.close)
            # Closed last: a lock that ends before the connections lets somebody else in too soon.
            self._lock = _lock(self._database)
            opened.callback(self._lock.close)
            opened.callback(self._database.close)
            # SQLite alone writes to a disk that is ours to empty.
            self._ballast = None
            if isinstance(self._lock, SqliteLock):
                self._ballast = Ballast(f"{self._lock.path}-ballast")
            self._ballast_keep()
            self._at_any_price(lambda: migrate(self._database))
            self._epoch, self.database_id, self.folder_id = self._at_any_price(self._take)
            self._opened = opened.pop_all()

    @property
    def name(self) -> str:
        """What to call the database in messages."""
        return self._database.name

    def load(self) -> list[Job]:
        """Every job, oldest first; rows whose ids are no job's stay where they are."""
        with self._database.reading() as connection:
            give_time(self._database, connection)
            rows = connection.execute(sa.select(jobs).order_by(jobs.c.id)).mappings().all()
        found = [from_row(dict(row)) for row in rows]
        known = [job for job in found if job is not None]
        if len(known) < len(found):
            strange = len(found) - len(known)
            logger.warning(
                "%d rows of the table jobs are no jobs, by their ids; they stay", strange
            )
        return known

    def find(self, job_id: str) -> Job | None:
        """A job's row, once no write of this server is under way any more.

        After a write whose outcome is not known this says what it was.
        """
        with self._writing(alone=True) as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
        return None if row is None else from_row(dict(row))

    def find_idempotent(self, owner: str, key: str) -> Job | None:
        """The job that has this idempotency key."""
        wanted = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
        with self._database.reading() as connection:
            row = connection.execute(wanted).mappings().first()
        return None if row is None else from_row(dict(row))

    def insert(self, *accepted: Job) -> None:
        """Accepts jobs, all or none: once this returns, they survive."""
        with self._writing() as connection:
            for job in accepted:
                connection.execute(sa.insert(jobs).values(to_row(job)))

    def update(self, job: Job) -> bool:
        """Writes a job's new state; False if its row is not there any more."""

        def write() -> bool:
            with self._writing() as connection:
                row = sa.update(jobs).where(jobs.c.id == job.id).values(to_row(job))
                return connection.execute(row).rowcount == 1

        return self._at_any_price(write)

    def delete(self, job_ids: list[str]) -> None:
        """Forgets jobs."""

        def write() -> None:
            with self._writing() as connection:
                for start in range(0, len(job_ids), AT_ONCE):
                    some = job_ids[start : start + AT_ONCE]
                    connection.execute(sa.delete(jobs).where(jobs.c.id.in_(some)))

        self._at_any_price(write)

    def states(self) -> dict[str, str]:
        """The state of every job by its id."""
        with self._database.reading() as connection:
            return {
                row.id: row.state for row in connection.execute(sa.select(jobs.c.id, jobs.c.state))
            }

    def rewrite(self, changed: list[Job]) -> None:
        """Writes jobs as they are, whether they have rows or not."""
        with self._writing() as connection:
            for job in changed:
                connection.execute(sa.delete(jobs).where(jobs.c.id == job.id))
                connection.execute(sa.insert(jobs).values(to_row(job)))

    def bind(self, folder_id: str) -> None:
        """Notes the data folder that has the files of these jobs."""
        with self._writing() as connection:
            row = sa.update(service).where(service.c.id == 1).values(folder_id=folder_id)
            connection.execute(row)
        self.folder_id = folder_id

    def check(self) -> None:
        """Finds out whether the database can be written and is still this server's; see `losses`.

        Raises:
            OwnershipLost: it is not this server's any more.
            StoreUnavailable: it cannot be written now.
        """
        try:
            # Counted, not returned: the answer of a call that then fails would be forgotten.
            self.losses += self._lock.check()
        finally:  # whoever could not have the lock may have lost it for good: the epoch tells
            with self._writing():
                pass
        self._ballast_keep()

    def downgrade(self) -> None:
        """Brings the tables to the schema of the release before this one, and gives them up."""
        downgrade(self._database)

    def abandon(self) -> None:
        """Has a call that waits for the database's answer end; from any thread."""
        self._database.abandon()

    def close(self) -> None:
        """Lets others have it."""
        self._opened.close()

    @contextlib.contextmanager
    def _writing(self, *, alone: bool = False) -> Iterator[Connection]:
        """A transaction of the owner."""
        if isinstance(self._lock, SqliteLock):
            self._lock.check()
        with self._database.writing() as connection:
            check_epoch(connection, self._epoch, self.database_id, alone=alone)
            yield connection

    def _take(self) -> tuple[int, str, str | None]:
        with self._database.writing() as connection:
            return take_epoch(connection)

    def _at_any_price(self, write: Callable[[], T]) -> T:
        """Does a write that a full disk must not stop: it is one that makes room, or ends a job."""
        try:
            return write()
        except StoreFull:
            if self._ballast is None or not self._ballast.release():
                raise
            return write()

    def _ballast_keep(self) -> None:
        if self._ballast is not None:
            self._ballast.keep()


def _lock(database: Database) -> Lock:
    return SqliteLock(database) if database.is_sqlite else PostgresLock(database)
