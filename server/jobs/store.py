"""Jobs in a database: what survives. Blocking; one thread calls it, one server owns it.

What is served comes from memory (`board`); this is written before an answer is given, and read
once, at start.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url

from server.engine.failure import Failure
from server.jobs.job import Job, State
from wan_tpu.errors import WanTpuError
from wan_tpu.request import VideoRequest

ADVISORY_LOCK = 0x77616E747075
"""PostgreSQL's lock of the service: "wantpu"."""

DELETED_AT_ONCE = 500
"""Databases bound the parameters of a statement; SQLite's bound has been 999."""

metadata = sa.MetaData()
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(38), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double),
    sa.Column("expires_at", sa.Double),
    sa.Column("error_code", sa.String(32)),
    sa.Column("error_message", sa.Text),
    sa.Column("metadata", sa.Text),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("request_digest", sa.String(64)),
    sa.UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_idempotency_key"),
)


class StoreError(WanTpuError):
    """The database cannot be used as it is; says what to do."""


class Store:
    """The jobs' table, brought to this version's schema and locked for this server."""

    def __init__(self, url: str, data_dir: pathlib.Path):
        """Opens, locks and migrates.

        Raises:
            StoreError: another server has it, or it belongs to a newer version.
        """
        data_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, _lock_folder(data_dir))
            self._engine = _make_engine(url)
            opened.callback(self._engine.dispose)
            if self._engine.dialect.name == "postgresql":
                self._lock_database(opened.enter_context(self._engine.connect()))
            self._migrate()
            self._opened = opened.pop_all()

    def load(self) -> list[Job]:
        """Every job, oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(jobs).order_by(jobs.c.id)).mappings().all()
        return [_from_row(dict(row)) for row in rows]

    def insert(self, job: Job) -> None:
        """Accepts a job: once this returns, it survives."""
        with self._engine.begin() as connection:
            connection.execute(sa.insert(jobs).values(_to_row(job)))

    def update(self, job: Job) -> None:
        """Writes a job's new state."""
        row = _to_row(job)
        with self._engine.begin() as connection:
            done = connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(row))
            assert done.rowcount == 1, job.id

    def delete(self, job_ids: list[str]) -> None:
        """Forgets jobs."""
        with self._engine.begin() as connection:
            for start in range(0, len(job_ids), DELETED_AT_ONCE):
                some = job_ids[start : start + DELETED_AT_ONCE]
                connection.execute(sa.delete(jobs).where(jobs.c.id.in_(some)))

    def close(self) -> None:
        """Lets others have it."""
        self._opened.close()

    def _lock_database(self, connection: Connection) -> None:
        """Two servers may share a PostgreSQL but not a database; held while the connection is."""
        locked = sa.select(sa.func.pg_try_advisory_lock(ADVISORY_LOCK))
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        if not connection.execute(locked).scalar_one():
            raise StoreError(
                f"another server uses the database {self._engine.url.database!r}; "
                "give this one its own in WAN_TPU_DATABASE_URL"
            )

    def _migrate(self) -> None:
        config = alembic.config.Config()
        config.set_main_option("script_location", str(pathlib.Path(__file__).parent / "migrations"))
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            try:
                alembic.command.upgrade(config, "head")
            except CommandError as error:
                raise StoreError(
                    f"the database is not one of this version ({error}); "
                    "run the version of wan-tpu that wrote it, or a newer one"
                ) from error


def _make_engine(url: str) -> Engine:
    """An engine whose commits survive a loss of power."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    engine = sa.create_engine(parsed)

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours, below: also before CREATE TABLE
        connection.execute("PRAGMA journal_mode=WAL")
        # NORMAL, WAL's usual companion, may lose the last commits with the power; an accepted job
        # must not be among them. A commit is a handful a second here.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA busy_timeout=5000")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _lock_folder(folder: pathlib.Path) -> int:
    """Locks the data folder until this process ends, however it ends."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(
            f"another server uses the folder {folder}; give this one its own in WAN_TPU_DATA_DIR"
        ) from None
    return descriptor


def _to_row(job: Job) -> dict[str, Any]:
    row = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    row["request"] = json.dumps(dataclasses.asdict(job.request))
    row["metadata"] = None if job.metadata is None else json.dumps(job.metadata)
    return row


def _from_row(row: dict[str, Any]) -> Job:
    row["request"] = VideoRequest(**json.loads(row["request"]))
    row["metadata"] = None if row["metadata"] is None else json.loads(row["metadata"])
    row["state"] = State(row["state"])
    row["error_code"] = None if row["error_code"] is None else Failure(row["error_code"])
    return Job(**row)
