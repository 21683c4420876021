"""What a fleet's servers do to the table beside the requests. Blocking."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from server.fleet.messages import Note
from server.fleet.store import NOW, UNFINISHED, FleetStore, finished, note, read_jobs
from server.jobs.job import FINISHED, Job, State
from server.jobs.shelf import sum_bytes
from server.jobs.tables import cancellations, deletions, jobs

AT_ONCE = 200
"""Rows of one statement."""

CODE_CHARACTERS, SLICE_CHARACTERS = 32, 63


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a note.

    Attributes:
        is_wanted: whether the job was still to be made, or the note was written before.
        was_before: whether nothing was written, since it was written before.
        waited_seconds: of a job that was started for the first time.
    """

    is_wanted: bool
    was_before: bool = False
    waited_seconds: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A job whose workflow is to be ended.

    Attributes:
        is_certain: whether a workflow that is not there will not be there later either.
    """

    job_id: str
    is_certain: bool


class Upkeep:
    """Reads and writes of the sweep, the mirror and the workflows."""

    def __init__(self, store: FleetStore):
        self._store = store

    def record(self, told: Note, keep_seconds: float | None) -> Recorded:
        """Writes a move of a job, unless it has ended by now.

        Args:
            told: by the job's workflow.
            keep_seconds: how long a finished job is kept; None keeps it.
        """
        wanted = sa.select(
            jobs.c.state, jobs.c.attempts, jobs.c.metadata, NOW - jobs.c.created_at
        ).where(jobs.c.id == told.id)
        with self._store.writing() as connection:
            row = connection.execute(wanted.with_for_update()).one_or_none()
            if row is None:
                return Recorded(is_wanted=False)
            if row.state in FINISHED:
                is_ours = row.state == State.COMPLETED == told.state
                same = is_ours and _start(row.metadata) == (told.metadata or {}).get("start")
                return Recorded(is_wanted=same, was_before=same)
            connection.execute(
                sa.update(jobs).where(jobs.c.id == told.id).values(_columns(told, keep_seconds))
            )
        is_first = told.state == State.IN_PROGRESS and not row.attempts
        return Recorded(is_wanted=True, waited_seconds=max(row[3], 0.0) if is_first else None)

    def states(self) -> dict[str, tuple[str, int, str | None]]:
        """State, attempts and slice of each job that is not finished."""
        wanted = sa.select(jobs.c.id, jobs.c.state, jobs.c.attempts, jobs.c.slice).where(UNFINISHED)
        with self._store.reading() as connection:
            return {
                row.id: (row.state, row.attempts, row.slice) for row in connection.execute(wanted)
            }

    def rows(self, job_ids: Sequence[str]) -> list[Job]:
        """Whole jobs."""
        found: list[Job] = []
        with self._store.reading() as connection:
            for begin in range(0, len(job_ids), AT_ONCE):
                some = jobs.c.id.in_(job_ids[begin : begin + AT_ONCE])
                found += read_jobs(connection, sa.select(jobs).where(some))
        return found

    def completed_last(self, number: int) -> list[Job]:
        """So many completed jobs, the newest, oldest first."""
        wanted = sa.select(jobs).where(jobs.c.state == State.COMPLETED)
        with self._store.reading() as connection:
            return read_jobs(connection, wanted.order_by(jobs.c.id.desc()).limit(number))[::-1]

    def not_started(self) -> list[Job]:
        """Jobs whose workflow may not have been started, oldest first."""
        wanted = sa.select(jobs).where(UNFINISHED, jobs.c.workflow_at.is_(None))
        with self._store.reading() as connection:
            found = read_jobs(connection, wanted.order_by(jobs.c.id).limit(AT_ONCE))
        return [job for job in found if not job.is_unreadable]  # a newer server starts those

    def note_started(self, job_ids: Sequence[str]) -> list[str]:
        """Notes that workflows were started; those that nobody wants any more, which are to end."""
        started = sa.update(jobs).where(jobs.c.id.in_(job_ids)).values(workflow_at=NOW)
        with self._store.writing() as connection:
            rows = connection.execute(
                started.returning(jobs.c.id, jobs.c.state, jobs.c.error_code)
            ).all()
            cancelled = [row.id for row in rows if row.error_code == "cancelled"]
            gone = sorted(set(job_ids) - {row.id for row in rows})
            note(connection, cancellations, dict.fromkeys(cancelled, True))
            note(connection, deletions, dict.fromkeys(gone, True))
        return cancelled + gone

    def forget_start(self, job_id: str) -> None:
        """Has a job's workflow started anew, of which Temporal knows nothing."""
        unfinished = sa.update(jobs).where(jobs.c.id == job_id, UNFINISHED)
        with self._store.writing() as connection:
            connection.execute(unfinished.values(workflow_at=None))

    def to_end(
        self, table: sa.Table, *, age_seconds: float, settle_seconds: float
    ) -> list[Waiting]:
        """Jobs that were cancelled or deleted, and whose workflows are not known to have ended.

        Args:
            table: `cancellations` or `deletions`.
            age_seconds: of the note: whoever wrote it carries it out at once.
            settle_seconds: after which no start can be under way any more.
        """
        is_certain = sa.or_(table.c.was_started, table.c.noted_at < NOW - settle_seconds)
        wanted = (
            sa.select(table.c.job_id, is_certain.label("is_certain"))
            .where(table.c.noted_at <= NOW - age_seconds)
            .order_by(table.c.noted_at)
            .limit(AT_ONCE)
        )
        with self._store.reading() as connection:
            rows = connection.execute(wanted).all()
        return [Waiting(job_id=row.job_id, is_certain=row.is_certain) for row in rows]

    def ended(self, table: sa.Table, job_id: str) -> None:
        """Takes the note of a job out: it is carried out."""
        with self._store.writing() as connection:
            connection.execute(sa.delete(table).where(table.c.job_id == job_id))

    def starts(self, job_ids: Sequence[str]) -> dict[str, int | None]:
        """Of those of these jobs that are known, the start whose files count; None if none does,
        and -1 where that is not decided yet."""
        found: dict[str, int | None] = {}
        with self._store.reading() as connection:
            for begin in range(0, len(job_ids), AT_ONCE):
                some = job_ids[begin : begin + AT_ONCE]
                wanted = sa.select(jobs.c.id, jobs.c.state, jobs.c.metadata)
                for row in connection.execute(wanted.where(jobs.c.id.in_(some))):
                    is_over = row.state in FINISHED
                    found[row.id] = _start(row.metadata) if is_over else -1
                noted = sa.select(deletions.c.job_id).where(deletions.c.job_id.in_(some))
                found |= {row.job_id: -1 for row in connection.execute(noted)}
        return found


def _columns(told: Note, keep_seconds: float | None) -> dict[str, Any]:
    """What a note says of a job."""
    columns: dict[str, Any] = {"state": told.state, "attempts": told.attempts, "slice": None}
    if told.slice is not None:
        columns["slice"] = told.slice[:SLICE_CHARACTERS]
    if told.state not in FINISHED:
        return columns
    columns |= finished(keep_seconds)
    if told.state == State.COMPLETED:
        columns["metadata"] = json.dumps(told.metadata)
        columns["file_bytes"] = sum_bytes(told.metadata)
    else:
        # PostgreSQL's texts hold no NUL, which an engine's error may.
        columns["error_code"] = (told.code or "")[:CODE_CHARACTERS]
        columns["error_message"] = (told.message or "").replace("\0", "")
    return columns


def _start(metadata: str | None) -> int | None:
    """Which start made a job's video, by the column."""
    try:
        return json.loads(metadata or "{}").get("start")
    except (ValueError, AttributeError):  # a hand's
        return None
