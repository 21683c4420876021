"""The activity `record`: what a job's workflow says of it is written into the table."""

import logging

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from server.files.job_files import JobFiles
from server.fleet.calls import FleetCalls
from server.fleet.messages import Note
from server.fleet.upkeep import Recorded, Upkeep
from server.jobs.database import StoreUnavailable
from server.jobs.job import FINISHED, State
from server.metrics import Metrics
from wan_tpu.storage.bucket import BucketError

logger = logging.getLogger(__name__)


class Recorder:
    """Writes notes down; Temporal repeats whatever raises, for ever."""

    def __init__(
        self,
        calls: FleetCalls,
        upkeep: Upkeep,
        files: JobFiles,
        metrics: Metrics,
        *,
        keep_seconds: float | None,
    ):
        """Writes nothing yet; `keep_seconds` is how long a finished job is kept, None for ever."""
        self._calls, self._upkeep, self._files = calls, upkeep, files
        self._metrics = metrics
        self._keep_seconds = keep_seconds

    @activity.defn
    async def record(self, note: Note) -> bool:
        """Writes a move of a job; False if nobody wants the job any more.

        The files of a start that nobody wants are removed.

        Raises:
            ApplicationError: it is not written, it is not known whether it is, or the files are
                still there.
        """
        try:
            return await self._record(note)
        except (StoreUnavailable, BucketError) as error:
            logger.warning("a note is left for later: %s", error, extra={"job": note.id})
            # Benign: the library would log every repetition with a traceback.
            raise ApplicationError(
                str(error), type=type(error).__name__, category=ApplicationErrorCategory.BENIGN
            ) from None

    async def _record(self, note: Note) -> bool:
        told = await self._calls.call(self._upkeep.record, note, self._keep_seconds)
        if not told.is_wanted:
            start = (note.metadata or {}).get("start")
            if isinstance(start, int):
                await self._files.remove_start(note.id, start)
            return False
        if not told.was_before:
            self._measure(note, told)
        return True

    def _measure(self, note: Note, told: Recorded) -> None:
        if told.waited_seconds is not None:
            self._metrics.waiting_seconds.observe(told.waited_seconds)
        if note.state not in FINISHED:
            return
        is_made = note.state == State.COMPLETED
        outcome = note.state if is_made else note.code
        self._metrics.jobs.labels(str(outcome)).inc()
        extra = {"job": note.id, "code": str(outcome)}
        logger.info("job ended", extra=extra)
