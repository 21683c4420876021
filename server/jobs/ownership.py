"""One server owns a database: what keeps a second one out, and tells the first when it has lost it.

A lock keeps others out while its holder lives. Locks are lost without a word, with a connection
that breaks or a file that is replaced; the epoch in the database, which every write checks in its
own transaction, then stops whoever is not the owner any more.
"""

import fcntl
import os
import pathlib
import socket
import time
from contextlib import suppress
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from server.jobs.database import Database, OwnershipLost, StoreError, StoreUnavailable
from server.jobs.tables import service

ADVISORY_LOCK = 0x77616E747075
"""PostgreSQL's lock of the service: "wantpu"."""

TAKE_SECONDS = 3.0
"""How long a start waits for the lock: the server before it may just be ending."""


class Lock(Protocol):
    """Keeps other servers out of a database."""

    def check(self) -> bool:
        """Takes it again if it was lost; returns whether that was so.

        Raises:
            OwnershipLost: somebody else may have it, for good.
            StoreUnavailable: it cannot be taken now.
        """
        ...

    def close(self) -> None:
        """Lets others have it."""
        ...


class SqliteLock:
    """A lock on the database's own file, found by whatever name: on the inode, not on a path."""

    def __init__(self, database: Database):
        """Locks the file, makes it if need be, and lets nobody else read it.

        Raises:
            StoreError: another server has it, or it cannot be made.
        """
        self.path = _file_of(database)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot use {database.name}: {error.strerror}") from None
        try:
            # Not SQLite's kind of lock (fcntl's), which it takes and drops all the time.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise StoreError(
                f"another server uses {database.name}; "
                "give this one its own in WAN_TPU_DATABASE_URL"
            ) from None
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):  # not there yet, or somebody else's: prompts are in it
                os.chmod(f"{self.path}{suffix}", 0o600)

    def check(self) -> bool:
        """See `Lock`."""
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise OwnershipLost(f"the database's file {self.path} was removed or replaced")
        return False

    def close(self) -> None:
        """See `Lock`."""
        os.close(self._descriptor)


class PostgresLock:
    """An advisory lock, which PostgreSQL keeps for as long as one connection lasts."""

    def __init__(self, database: Database, *, shared: bool = False):
        """Takes the lock.

        Args:
            database: PostgreSQL's.
            shared: whether others that say so may have it, too: a fleet's servers. Otherwise no
                other server may.

        Raises:
            StoreError: another server has it.
            StoreUnavailable: the database cannot be reached.
        """
        self._database = database
        self._try = "pg_try_advisory_lock_shared" if shared else "pg_try_advisory_lock"
        self._connection: Connection | None = None
        self._backend: int | None = None
        deadline = time.monotonic() + TAKE_SECONDS
        while not self._take():
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another server uses {database.name}; "
                    "give this one its own in WAN_TPU_DATABASE_URL"
                )
            time.sleep(0.1)

    def check(self) -> bool:
        """See `Lock`."""
        if self._connection is not None:
            try:
                with self._database.watching(self._connection):
                    self._connection.execute(sa.text("SELECT 1"))
            except SQLAlchemyError:
                self.close()
            else:
                return False
        if not self._take():
            raise StoreUnavailable(f"{self._database.name} is locked by another connection")
        return True

    @property
    def line(self) -> Any:
        """The driver's connection that has it, for `server.jobs.database.cut`; None without one."""
        return None if self._connection is None else self._connection.connection.dbapi_connection

    def close(self) -> None:
        """See `Lock`."""
        if self._connection is not None:
            # Not back into the pool, where the lock would live on.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _take(self) -> bool:
        with self._database.explained():
            connection = self._database.engine.connect()
            try:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                take = getattr(sa.func, self._try)(ADVISORY_LOCK)
                locked = sa.select(take, sa.func.pg_backend_pid())
                has_it, backend = connection.execute(locked).one()
                if has_it:
                    self._connection, self._backend = connection, backend
                    self._database.spare(connection)
                    return True
                if self._backend is not None:
                    self._end_our_last(connection)
            except SQLAlchemyError:
                connection.invalidate()
                connection.close()
                raise
        connection.close()
        return False

    def _end_our_last(self, connection: Connection) -> None:
        """Ends the backend of the line that we lost, which may not have noticed, for hours."""
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
                "AND granted AND pid = :pid AND database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database())"
            ),
            {"pid": self._backend},
        )


def take_epoch(connection: Connection) -> tuple[int, str, str | None]:
    """Makes the database this server's: (epoch, database's id, id of the folder it knows)."""
    holder = f"{socket.gethostname()}:{os.getpid()}"
    taken = (
        sa.update(service)
        .where(service.c.id == 1)
        .values(epoch=service.c.epoch + 1, holder=holder)
        .returning(service.c.epoch, service.c.database_id, service.c.folder_id)
    )
    row = connection.execute(taken).one_or_none()
    if row is None:
        raise StoreError("the table service has lost its row; restore the database from a backup")
    return row.epoch, row.database_id, row.folder_id


def check_epoch(connection: Connection, epoch: int, database_id: str, *, alone: bool) -> None:
    """Raises unless the database is still this server's; holds for the rest of the transaction.

    Args:
        connection: in a transaction.
        epoch: this server's.
        database_id: of the database that it took.
        alone: whether to wait until no other transaction of this server is under way.

    Raises:
        OwnershipLost: it is not.
    """
    wanted = sa.select(service.c.epoch, service.c.database_id).where(service.c.id == 1)
    # A row lock: another server that takes the database waits for it, and so comes after us.
    row = connection.execute(wanted.with_for_update(read=not alone)).one_or_none()
    if row is None or (row.epoch, row.database_id) != (epoch, database_id):
        raise OwnershipLost(
            "the database belongs to another server now, or is an older copy of itself; "
            "this server ends without writing to it"
        )


def _file_of(database: Database) -> pathlib.Path:
    """The file that SQLite opens for the URL: relative, linked, or a `file:` URI."""
    probe = sa.create_engine(database.url, poolclass=NullPool)
    with database.explained(), probe.connect() as connection:
        rows = connection.exec_driver_sql("PRAGMA database_list").all()
    path = next((row[2] for row in rows if row[1] == "main"), "")
    if not path:
        raise StoreError(f"{database.name} is in memory; jobs must survive, name a file")
    return pathlib.Path(path)
