"""Jobs in PostgreSQL, for the servers of a fleet: each reads and writes, none owns them. Blocking.

Every write that could go wrong between two servers is one guarded statement, or has a lock of its
transaction. No time of two machines is compared: `now()` is PostgreSQL's.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from server.engine.failure import Failure
from server.jobs.database import Database, StoreError, StoreUnavailable, cut
from server.jobs.job import FINISHED, Job, State
from server.jobs.ownership import ADVISORY_LOCK, PostgresLock, take_epoch
from server.jobs.rows import from_row, to_row
from server.jobs.schema import migrate
from server.jobs.seam import MakeJobs, Standing
from server.jobs.shelf import Kept
from server.jobs.tables import cancellations, deletions, jobs, service

ACCEPT_LOCK = ADVISORY_LOCK + 2
"""PostgreSQL's lock of an acceptance: who counts the jobs counts all that were accepted before."""

NOW = sa.func.extract("epoch", sa.func.now())
UNFINISHED = jobs.c.state.in_([str(state) for state in State if state not in FINISHED])
IS_FRESH = sa.or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > NOW)

CANCELLED_WORDS = "the job was cancelled"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What an acceptance came to.

    Attributes:
        jobs: those that were taken, or that were before.
        are_new: whether they were taken now.
    """

    jobs: list[Job]
    are_new: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A job that was deleted.

    Attributes:
        was_started: whether its workflow is known to have been started.
        was_finished: whether it had ended before.
    """

    job_id: str
    was_started: bool
    was_finished: bool


class FleetStore:
    """The jobs' table of a fleet, brought to this version's schema.

    Attributes:
        database_id: of this database, for good.
        files_id: of the bucket whose files it knows; None where it never had one.
    """

    def __init__(self, url: str, *, timeout_seconds: float):
        """Opens, shares the lock with the fleet's other servers, migrates.

        Args:
            url: SQLAlchemy's, of PostgreSQL.
            timeout_seconds: how long a call may take.

        Raises:
            StoreError: a server of one slice has it, it belongs to a newer version, or it cannot
                be used.
        """
        with contextlib.ExitStack() as opened:
            self._database = Database(url, timeout_seconds=timeout_seconds)
            opened.callback(self._database.close)
            if self._database.is_sqlite:
                raise StoreError(
                    "a fleet's jobs are in a PostgreSQL that all its servers reach; set "
                    "WAN_TPU_DATABASE_URL to postgresql://USER:PASSWORD@HOST/DATABASE"
                )
            self._lines: dict[int, Any] = {}
            self._given_up: set[int] = set()
            self._lock = PostgresLock(self._database, shared=True)
            opened.callback(self._lock.close)
            opened.callback(self._database.close)
            migrate(self._database)
            self.database_id, self.files_id = self._take()
            self._opened = opened.pop_all()

    @property
    def name(self) -> str:
        """What to call the database in messages."""
        return self._database.name

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with, each statement for itself.

        Raises:
            StoreUnavailable: it cannot be reached.
        """
        with self._database.reading() as connection, self._cut_by(_line(connection)):
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, while no server of one slice has the database.

        Raises:
            StoreUnavailable: it was not committed, or it is not known whether it was.
            StoreRefused: it never will be.
        """
        with self._database.writing() as connection, self._cut_by(_line(connection)):
            shared = sa.func.pg_try_advisory_xact_lock_shared(ADVISORY_LOCK)
            if not connection.execute(sa.select(shared)).scalar():
                raise StoreUnavailable(f"a server of one slice uses {self.name}")
            yield connection

    def find(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Those of these jobs that are there and have not expired."""
        with self.reading() as connection:
            found = read_jobs(connection, sa.select(jobs).where(jobs.c.id.in_(job_ids), IS_FRESH))
        return {job.id: job for job in found}

    def find_idempotent(self, owner: str, key: str) -> list[Job]:
        """The jobs that were accepted with this idempotency key, the first of them first."""
        with self.reading() as connection:
            return _accepted_before(connection, owner, key)

    def group_of(self, first: Job) -> list[Job]:
        """A job and those that the same request asked for, as far as they are there."""
        with self.reading() as connection:
            return [first, *_rest_of_group(connection, first)]

    def page(
        self, owner: str, *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Job], bool]:
        """An owner's jobs, and whether there are more; see `server.jobs.seam.Jobs.page`."""
        order = jobs.c.id.desc() if newest_first else jobs.c.id
        wanted = sa.select(jobs).where(jobs.c.owner == owner, IS_FRESH).order_by(order)
        if after is not None:
            wanted = wanted.where(jobs.c.id < after if newest_first else jobs.c.id > after)
        with self.reading() as connection:
            found = read_jobs(connection, wanted.limit(limit + 1))
        return found[:limit], len(found) > limit

    def standing(self, owner: str) -> Standing:
        """What counts against an owner's next job."""
        with self.reading() as connection:
            return _standing(connection, owner)

    def accept(
        self, owner: str, key: str | None, make: MakeJobs, *, upload_bytes: int = 0
    ) -> Accepted:
        """Takes jobs, all or none: once this returns, they survive.

        Args:
            owner: whose they are.
            key: the client's idempotency key.
            make: see `server.jobs.seam.MakeJobs`; asked once, and nothing is accepted meanwhile.
            upload_bytes: of the pictures and clips that each is made from.
        """
        with self.writing() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ACCEPT_LOCK)))
            before = _accepted_before(connection, owner, key)
            made = list(make(before, _standing(connection, owner), _newest(connection)))
            if before and made[0].id == before[0].id:
                return Accepted(jobs=made, are_new=False)
            rows = [to_row(job) | {"upload_bytes": upload_bytes} for job in made]
            connection.execute(sa.insert(jobs), rows)
            return Accepted(jobs=made, are_new=True)

    def ask(self, owner: str, key: str | None) -> tuple[list[Job], Standing, str | None]:
        """What `accept` would tell `make`, without a lock: it may be different a moment later."""
        with self.reading() as connection:
            before = _accepted_before(connection, owner, key)
            return before, _standing(connection, owner), _newest(connection)

    def were_accepted(self, job_ids: Sequence[str]) -> bool:
        """What became of an acceptance that gave no answer, once it is not under way any more."""
        with self.writing() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ACCEPT_LOCK)))
            wanted = sa.select(sa.func.count()).where(jobs.c.id.in_(job_ids))
            return connection.execute(wanted).scalar_one() > 0

    def cancel(self, job_id: str, keep_seconds: float | None) -> tuple[Job | None, bool | None]:
        """Fails a job that is not finished.

        Returns:
            The job as it then is, and whether its workflow is known to have been started; None
            where it had ended before.
        """
        ended: dict[str, Any] = {
            "state": str(State.FAILED),
            "error_code": str(Failure.CANCELLED),
            "error_message": CANCELLED_WORDS,
            "metadata": None,
            "slice": None,
            **finished(keep_seconds),
        }
        with self.writing() as connection:
            cancelled = sa.update(jobs).where(jobs.c.id == job_id, UNFINISHED).values(ended)
            row = connection.execute(cancelled.returning(jobs.c.workflow_at)).one_or_none()
            started = None if row is None else row.workflow_at is not None
            if started is not None:
                note(connection, cancellations, {job_id: started})
            found = read_jobs(connection, sa.select(jobs).where(jobs.c.id == job_id))
        return (found[0] if found else None), started

    def delete(self, job_ids: Sequence[str]) -> list[Gone]:
        """Forgets jobs and notes that their workflows and files go; those that were there."""
        with self.writing() as connection:
            return _delete(connection, jobs.c.id.in_(job_ids))

    def delete_failed(self, owner: str, number: int) -> list[Gone]:
        """The same for so many of an owner's jobs that ended without a video, oldest first."""
        failed = sa.select(jobs.c.id).where(jobs.c.owner == owner, jobs.c.state == State.FAILED)
        with self.writing() as connection:
            return _delete(connection, jobs.c.id.in_(failed.order_by(jobs.c.id).limit(number)))

    def delete_expired(self, number: int) -> list[Gone]:
        """The same for so many jobs at most whose time is over."""
        over = sa.select(jobs.c.id).where(jobs.c.expires_at <= NOW).limit(number)
        with self.writing() as connection:
            # Two servers that come at the same time take different ones.
            over = over.with_for_update(skip_locked=True)
            return _delete(connection, jobs.c.id.in_(over))

    def bind(self, files_id: str) -> None:
        """Notes the bucket that has the files of these jobs."""
        with self.writing() as connection:
            row = sa.update(service).where(service.c.id == 1).values(folder_id=files_id)
            connection.execute(row)
        self.files_id = files_id

    def check(self) -> None:
        """Finds out whether the database can be written.

        Raises:
            StoreUnavailable: it cannot be written now.
        """
        with self._cut_by(self._lock.line):
            was_lost = self._lock.check()
        if was_lost:
            self._take()
        with self.writing():
            pass

    def cut(self, thread: int) -> None:
        """Has the call of that thread fail, whatever it waits for; from any thread."""
        self._given_up.add(thread)
        line = self._lines.get(thread)
        if line is not None:
            cut(line)

    def begin(self) -> None:
        """To be called before each call of a thread that may be cut."""
        self._given_up.discard(threading.get_ident())

    def close(self) -> None:
        """Lets others have it."""
        self._opened.close()

    def _take(self) -> tuple[str, str | None]:
        """Has a server of one slice that was there before, and does not know it, write no more."""
        with self.writing() as connection:
            _, database_id, files_id = take_epoch(connection)
        known = getattr(self, "database_id", database_id)
        if database_id != known:
            raise StoreUnavailable(f"{self.name} is another database than it was")
        return database_id, files_id

    @contextlib.contextmanager
    def _cut_by(self, line: Any) -> Iterator[None]:
        """Lets `cut` end what this thread waits for on a driver's connection."""
        thread = threading.get_ident()
        self._lines[thread] = line
        try:
            if thread in self._given_up:  # it waited for the line itself
                raise StoreUnavailable(f"{self.name} does not answer")
            yield
        finally:
            del self._lines[thread]


def finished(keep_seconds: float | None) -> dict[str, Any]:
    """The columns that say when a job ended and how long it is kept; None keeps it."""
    expires_at = None if keep_seconds is None else NOW + keep_seconds
    return {"finished_at": NOW, "expires_at": expires_at}


def note(connection: Connection, table: sa.Table, was_started: dict[str, bool]) -> None:
    """Notes what is still to be done; noted again, a job counts as started if it ever did."""
    if not was_started:
        return
    rows = [
        {"job_id": job_id, "noted_at": NOW, "was_started": started}
        for job_id, started in sorted(was_started.items())
    ]
    values = insert(table).values(rows)
    either = sa.or_(table.c.was_started, values.excluded.was_started)
    again = {"was_started": either}
    connection.execute(values.on_conflict_do_update(index_elements=["job_id"], set_=again))


def _delete(connection: Connection, which: sa.ColumnElement[bool]) -> list[Gone]:
    deleted = sa.delete(jobs).where(which)
    rows = connection.execute(
        deleted.returning(jobs.c.id, jobs.c.workflow_at.is_not(None).label("started"), jobs.c.state)
    ).all()
    note(connection, deletions, {row.id: row.started for row in rows})
    ids = [row.id for row in rows]
    connection.execute(sa.delete(cancellations).where(cancellations.c.job_id.in_(ids)))
    return [
        Gone(job_id=row.id, was_started=row.started, was_finished=row.state in FINISHED)
        for row in rows
    ]


def read_jobs(connection: Connection, wanted: sa.Select[Any]) -> list[Job]:
    """The jobs of whole rows; a row whose id is no job's is none."""
    rows = connection.execute(wanted).mappings().all()
    found = (from_row(dict(row)) for row in rows)
    return [job for job in found if job is not None]


def _accepted_before(connection: Connection, owner: str, key: str | None) -> list[Job]:
    if key is None:
        return []
    wanted = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
    first = read_jobs(connection, wanted)
    return first + _rest_of_group(connection, first[0]) if first else []


def _rest_of_group(connection: Connection, first: Job) -> list[Job]:
    is_of_it = (jobs.c.owner == first.owner, jobs.c.id > first.id, jobs.c.first_id == first.id)
    return read_jobs(connection, sa.select(jobs).where(*is_of_it).order_by(jobs.c.id))


def _newest(connection: Connection) -> str | None:
    is_id = jobs.c.id.regexp_match("^video_[0-9a-f]{32}$")
    wanted = sa.select(jobs.c.id).where(is_id).order_by(jobs.c.id.desc()).limit(1)
    return connection.execute(wanted).scalar()


def _standing(connection: Connection, owner: str) -> Standing:
    count, is_theirs = sa.func.count(), jobs.c.owner == owner
    queued = jobs.c.state == State.QUEUED
    waiting = connection.execute(
        sa.select(count, count.filter(is_theirs)).where(UNFINISHED, queued)
    ).one()
    ended = sa.not_(UNFINISHED)
    theirs = connection.execute(
        sa.select(
            count.filter(ended),
            count.filter(jobs.c.state == State.FAILED),
            sa.func.coalesce(sa.func.sum(jobs.c.file_bytes).filter(ended), 0),
            sa.func.coalesce(sa.func.sum(jobs.c.upload_bytes), 0),
        ).where(is_theirs)
    ).one()
    return Standing(
        waiting=waiting[0],
        waiting_of_owner=waiting[1],
        kept=Kept(jobs=theirs[0], failed=theirs[1], file_bytes=int(theirs[2])),
        upload_bytes=int(theirs[3]),
    )


def _line(connection: Connection) -> Any:
    return connection.connection.dbapi_connection
