"""The connection to the database: its URL, its time limits, and what its errors mean.

Whatever a database does, a call ends: SQLite waits for a lock so long and no longer, PostgreSQL is
told to give up by itself, and where nothing comes back at all `Database.abandon` cuts the lines.
"""

import os
import pathlib
import shutil
import socket
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from wan_tpu.errors import WanTpuError

SHARE_OF_LIMIT = 0.8
"""The database is to give up before we cut its line: its own words say more than a cut line."""

CONNECT_SECONDS = 3
KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""libpq's words; the last in milliseconds: how long what was sent may stay unanswered by TCP."""

SQLITE_FULL_WHEN_BELOW_BYTES = 1 << 18
"""With less than this left, SQLite's "I/O error" and "cannot open" are the full disk's."""

DISK_FULL = "53100"
REFUSED_CLASSES = ("22", "23")
"""SQLSTATE of PostgreSQL: its disk is full; the data, or a constraint, are to blame."""


class StoreError(WanTpuError):
    """The database cannot be used as it is; says what to do."""


class StoreUnavailable(StoreError):
    """The database does not take this now: it is down, locked, frozen. Later it may."""


class StoreFull(StoreUnavailable):
    """The disk of the database is full."""


class StoreRefused(StoreError):
    """The database takes this row neither now nor later."""


class OwnershipLost(StoreError):
    """The database belongs to another server now, or is another one: this server must end."""


class Database:
    """An engine whose commits survive a loss of power and whose calls end."""

    def __init__(self, url: str, *, timeout_seconds: float):
        """Connects to nothing yet.

        Args:
            url: as SQLAlchemy writes it; `postgres://` will do.
            timeout_seconds: how long a call may take.

        Raises:
            StoreError: the URL names nothing that can be used.
        """
        self.url = parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.timeout_seconds = timeout_seconds
        self._lines: weakref.WeakSet[Any] = weakref.WeakSet()
        try:
            self.engine = self._make_sqlite() if self.is_sqlite else self._make_postgres()
        except ModuleNotFoundError as error:
            raise StoreError(
                f"{self.name} needs the package {error.name}: pip install 'wan_tpu[postgres]'"
            ) from None
        self._writes = self.engine.execution_options(wan_tpu_writes=True)

    @property
    def name(self) -> str:
        """What to call it in messages; without a password."""
        if self.is_sqlite:
            return f"the SQLite database {self.url.database}"
        return f"the database {self.url.database!r} at {self.url.host or 'the local socket'}"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with.

        Raises:
            StoreUnavailable: it cannot be reached.
        """
        with self.explained(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, on the disk once this returns.

        Raises:
            StoreUnavailable: it was not, or it is not known whether it was.
            StoreRefused: it never will be.
        """
        with self.explained(), self._writes.begin() as connection:
            yield connection

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raises what went wrong as one of the errors above."""
        try:
            yield
        except SQLAlchemyError as error:
            raise self._meaning(error)(f"{self.name}: {_first_line(error)}") from error

    def abandon(self) -> None:
        """Cuts all lines, so that a call that waits for an answer ends; from any thread."""
        for connection in list(self._lines):
            cut(connection)

    def spare(self, connection: Connection) -> None:
        """Leaves a connection out of what `abandon` cuts."""
        self._lines.discard(connection.connection.dbapi_connection)

    @contextmanager
    def watching(self, connection: Connection) -> Iterator[None]:
        """Lets `abandon` cut a spared connection as long as the block uses it."""
        line = connection.connection.dbapi_connection
        self._lines.add(line)
        yield
        self._lines.discard(line)

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    def _make_sqlite(self) -> Engine:
        engine = sa.create_engine(self.url)
        wait_ms = int(self.timeout_seconds * SHARE_OF_LIMIT * 1000)

        @event.listens_for(engine, "connect")
        def set_pragmas(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # BEGIN is ours, below: also before CREATE TABLE
            connection.execute(f"PRAGMA busy_timeout={wait_ms}")
            connection.execute("PRAGMA journal_mode=WAL")
            # NORMAL, WAL's usual companion, may lose the last commits with the power; an accepted
            # job must not be among them. A commit is a handful a second here.
            connection.execute("PRAGMA synchronous=FULL")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # A write takes its lock at once: one that begins as a reader and finds another
            # writer before it cannot wait for it, SQLite refuses it there and then.
            writes = connection.get_execution_options().get("wan_tpu_writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    def _make_postgres(self) -> Engine:
        engine = sa.create_engine(
            self.url,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_SECONDS, **KEEPALIVE},
        )
        limit_ms = int(self.timeout_seconds * SHARE_OF_LIMIT * 1000)

        @event.listens_for(engine, "connect")
        def set_limits(connection: Any, _record: Any) -> None:
            self._lines.add(connection)
            with connection.cursor() as cursor:
                cursor.execute(f"SET statement_timeout = {limit_ms}")
                cursor.execute(f"SET lock_timeout = {limit_ms}")
                cursor.execute(f"SET idle_in_transaction_session_timeout = {4 * limit_ms}")
            connection.commit()

        return engine

    def _meaning(self, error: SQLAlchemyError) -> type[StoreError]:
        original = error.orig if isinstance(error, DBAPIError) else None
        if isinstance(original, sqlite3.Error):
            return self._sqlite_meaning(original)
        state = getattr(original, "sqlstate", None)
        if state == DISK_FULL:
            return StoreFull
        if state is not None and state[:2] in REFUSED_CLASSES:
            return StoreRefused
        return StoreUnavailable

    def _sqlite_meaning(self, error: sqlite3.Error) -> type[StoreError]:
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError)):
            return StoreRefused
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StoreFull
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and self._has_no_room():
            return StoreFull
        return StoreUnavailable

    def _has_no_room(self) -> bool:
        folder = pathlib.Path(self.url.database or ".").absolute().parent
        with suppress(OSError):
            return shutil.disk_usage(folder).free < SQLITE_FULL_WHEN_BELOW_BYTES
        return False


def parse_url(text: str) -> URL:
    """Reads a database's URL.

    Raises:
        StoreError: it names no SQLite file and no PostgreSQL.
    """
    expected = (
        "expected sqlite:////absolute/path.sqlite or postgresql://USER:PASSWORD@HOST/DATABASE"
    )
    try:
        url = sa.make_url(text)
        scheme = url.drivername
        if scheme in ("postgres", "postgresql", "postgres+psycopg"):
            url = url.set(drivername="postgresql+psycopg")
        if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
            raise StoreError(f"WAN_TPU_DATABASE_URL begins with {scheme!r}; {expected}")
    except (ArgumentError, NoSuchModuleError, ValueError):
        # The words of the error may hold the password.
        raise StoreError(f"WAN_TPU_DATABASE_URL is not a database's URL; {expected}") from None
    is_memory = url.database in (None, "", ":memory:") or "mode=memory" in str(url)
    if url.get_backend_name() == "sqlite" and (is_memory or "memory" in url.query.get("mode", "")):
        raise StoreError(f"WAN_TPU_DATABASE_URL names no file, and jobs must survive; {expected}")
    return url


def cut(connection: Any) -> None:
    """Ends a PostgreSQL connection's socket, so that whoever waits for it learns that it is over.

    Closing it would not wake the one who waits; the number is copied, because its owner may close
    it, and somebody else get it, in the same moment.
    """
    with suppress(OSError, ValueError, SQLAlchemyError):
        if connection.closed:
            return
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


def _first_line(error: SQLAlchemyError) -> str:
    """The driver's words without SQLAlchemy's page around them."""
    words = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    return "; ".join(line.strip() for line in words.splitlines()[:2]) or type(error).__name__
