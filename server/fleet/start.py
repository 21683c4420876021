"""One start of one job at a slice: the activity's side of `server.fleet.workflow`.

However it ends, one error or one result says so, and only Temporal decides whether it counts: a
slice that was away past its lease is not heard, and takes back what it wrote.
"""

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode

from server.engine.bounds import Bounds, Verdict, Why, failure_around, timed_out, unless, verdict_of
from server.engine.client import EngineClient
from server.engine.failure import EngineFailure, Failure, ProcessLost
from server.engine.messages import Progress
from server.engine.supervisor import Supervisor
from server.files.job_files import JobFiles
from server.files.uploads import UploadLost
from server.fleet.messages import Order, Outcome
from server.fleet.scratch import Scratch
from server.fleet.workflow import Video
from server.metrics import Metrics
from server.settings import Settings
from wan_tpu.fleet.connection import words_of
from wan_tpu.request import VideoRequest
from wan_tpu.storage.bucket import BucketError

logger = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_SECONDS = 0.5
"""Between heartbeats; Temporal's library sends one a second at most."""

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.25, 5.0

BUCKET_SECONDS = 600.0
"""That a bucket may be away before the start counts as lost, and the job goes to another slice."""

CLEAN_SECONDS, HASTY_SECONDS = 5.0, 0.5
"""For taking files back that nobody wants, and for that before a job goes back in a hurry; what is
left goes with the job."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a slice has for every job."""

    name: str
    client: Client
    files: JobFiles
    scratch: Scratch
    engine: EngineClient
    supervisor: Supervisor
    metrics: Metrics
    settings: Settings


class Start:
    """One start of an order, in the context of its activity.

    Attributes:
        has_lost_process: whether it ended because another process of the slice was lost.
    """

    def __init__(self, order: Order, room: Room):
        self.order = order
        self.has_lost_process = False
        self.is_last = False
        """Whether the slice is ending."""
        self._room = room
        settings = room.settings
        self._bounds = Bounds(order.id, room.engine, stop_grace_seconds=settings.stop_grace_seconds)
        self._progress: dict[str, Any] | None = None
        self._may_have_files = False
        self._info = activity.info()

    def stop(self, why: Why) -> None:
        """Has it end soon."""
        self._bounds.stop(why)

    async def run(self) -> NoReturn:
        """Makes the video and tells Temporal what became of it.

        Raises:
            ApplicationError: there is none; its type is an `Outcome`.
            CancelledError: nobody wants it any more.
            CompleteAsyncError: Temporal has the result, or has refused it.
        """
        logger.info("job started", extra=self._extra)
        work = asyncio.create_task(self._work(), name=self.order.id)
        beating = asyncio.create_task(self._beat(), name=f"heartbeats of {self.order.id}")
        try:
            while not work.done():
                try:
                    await asyncio.wait({work})
                except asyncio.CancelledError:  # by the job's owner, or somebody else has it now
                    self.stop(Why.UNWANTED)
            metadata = work.result()
        except (ApplicationError, asyncio.CancelledError) as error:
            words = str(error) or "nobody wants it"
            logger.info("job ended without a video: %s", words, extra=self._extra)
            await self._take_back()
            if isinstance(error, asyncio.CancelledError) and not _is_cancelled():
                raise _error(Outcome.LOST, words) from None
            raise
        finally:
            beating.cancel()
            await asyncio.to_thread(self._room.scratch.clear)
        completing = asyncio.create_task(self._complete(metadata))
        while not completing.done():
            with contextlib.suppress(asyncio.CancelledError):  # too late: it is made
                await asyncio.wait({completing})
        completing.result()
        activity.raise_complete_async()

    async def _work(self) -> dict[str, Any]:
        """Everything up to the files in the bucket; returns what is to be said of them."""
        try:
            await self._unless_stopped(self._announce())
            files, uploads = await asyncio.to_thread(self._room.scratch.begin)
            await self._unless_stopped(self._patiently(lambda: self._fetch(uploads)))
            metadata = await self._generate(files, uploads)
            self._may_have_files = True
            published = await self._unless_stopped(self._patiently(lambda: self._publish(files)))
            kept = {name: v for name, v in metadata.items() if name not in ("request", "model")}
            made = {"files": published, "start": self.order.start, "slice": self._room.name}
            return kept | made
        except ApplicationError:
            raise
        except UploadLost as error:
            raise _failed(EngineFailure(Failure.UPLOAD_LOST, str(error))) from None
        except Exception as error:  # the boundary of jobs: the next one must be able to run
            logger.exception("the job could not be handled", extra=self._extra)
            raise _failed(failure_around(error)) from None

    async def _announce(self) -> None:
        """Has Temporal note who makes the job, before anything is done for it."""
        job = self._room.client.get_workflow_handle(
            self.order.id, run_id=self._info.workflow_run_id
        )
        await self._until_heard(
            lambda: job.signal(Video.started, args=[self.order.start, self._room.name])
        )

    async def _fetch(self, folder: pathlib.Path) -> None:
        request, extended = self.order.request, self.order.extended
        wanted = set(VideoRequest(**request).media.values())
        if extended is not None:
            wanted.add(extended["video"])
        if wanted:
            await self._room.files.fetch_uploads(self.order.id, wanted, folder)

    async def _publish(self, folder: pathlib.Path) -> dict[str, Any]:
        return await self._room.files.publish(self.order.id, self.order.start, folder)

    async def _generate(self, folder: pathlib.Path, uploads: pathlib.Path) -> dict[str, Any]:
        """The engine's part, within the bounds of the job."""
        seconds = self.order.job_seconds
        work = asyncio.create_task(
            self._room.engine.generate(
                self.order.id,
                VideoRequest(**self.order.request),
                folder,
                self._note_progress,
                uploads=uploads,
                extended=self.order.extended,
                timeout_seconds=seconds,
            )
        )
        try:
            await self._bounds.watch(
                work, seconds, on_timeout=lambda: None, give_back=self._give_back
            )
            self._check_wanted()
            metadata = work.result()
        except (EngineFailure, ProcessLost) as error:
            self._conclude(error)
        finally:
            if not work.done():
                work.cancel()
            elif not work.cancelled():
                work.exception()  # it is looked at, also where the outcome was decided before
        self._note_success(metadata)
        return metadata

    def _check_wanted(self) -> None:
        """Raises what a start ends with that was stopped."""
        match self._bounds.why:
            case Why.UNWANTED:
                raise asyncio.CancelledError
            case Why.GIVEN_BACK | Why.ABANDONED:
                raise _error(Outcome.GIVEN_BACK, "the slice ends")
            case Why.TIMEOUT:
                raise _failed(timed_out(self.order.job_seconds))

    async def _give_back(self) -> None:
        self._check_wanted()

    def _conclude(self, error: EngineFailure | ProcessLost) -> NoReturn:
        """Says what a failure of the engine means for the job."""
        verdict = verdict_of(
            error,
            is_stopped=False,
            is_last=self.is_last,
            num_processes=self._room.settings.group.num_processes,
        )
        self.has_lost_process = isinstance(error, ProcessLost)
        match verdict:
            case Verdict.GIVEN_BACK:
                raise _error(Outcome.GIVEN_BACK, "the slice ends") from None
            case Verdict.LOST:
                raise _error(Outcome.LOST, "a process of the slice was lost") from None
        assert isinstance(error, EngineFailure)
        self._room.supervisor.note_failure(self.order.id, error)
        if verdict == Verdict.CRASHED:
            raise _error(Outcome.CRASHED, str(error)) from None
        raise _failed(error) from None

    async def _complete(self, metadata: dict[str, Any]) -> None:
        """Gives Temporal the result by itself, for only so it is known whether it was taken."""
        handle = self._room.client.get_async_activity_handle(task_token=self._info.task_token)
        try:
            await self._until_heard(lambda: handle.complete(metadata))
        except ApplicationError:
            if await self._was_taken():
                return
            logger.warning(
                "the video came too late, and another slice has the job", extra=self._extra
            )
            await self._take_back()
        else:
            logger.info("job ended", extra=self._extra)

    async def _was_taken(self) -> bool:
        """Whether a result that was refused had been taken before, and only the answer was lost."""
        job = self._room.client.get_workflow_handle(
            self.order.id, run_id=self._info.workflow_run_id
        )
        try:
            history = await job.fetch_history()
        except RPCError as error:
            return error.status != RPCStatusCode.NOT_FOUND  # in doubt the files stay
        ours = {
            event.event_id
            for event in history.events
            if event.activity_task_scheduled_event_attributes.activity_id == self._info.activity_id
        }
        return any(
            event.activity_task_completed_event_attributes.scheduled_event_id in ours
            for event in history.events
        )

    async def _take_back(self) -> None:
        """Removes what this start has written."""
        if not self._may_have_files:
            return
        seconds = HASTY_SECONDS if self._bounds.why == Why.GIVEN_BACK else CLEAN_SECONDS
        with contextlib.suppress(BucketError, TimeoutError):
            async with asyncio.timeout(seconds):
                await self._room.files.remove_start(self.order.id, self.order.start)

    async def _unless_stopped(self, what: Awaitable[T]) -> T:
        """Does something that ends when the start is stopped."""
        doing = await unless(self._bounds.stopped, what)
        self._check_wanted()
        return doing.result()

    async def _patiently(self, what: Callable[[], Awaitable[T]]) -> T:
        """Does something with the bucket, again and again while it is away."""
        delay = FIRST_RETRY_SECONDS
        try:
            async with asyncio.timeout(BUCKET_SECONDS):
                while True:
                    try:
                        return await what()
                    except BucketError as error:
                        logger.warning("trying again: %s", error, extra=self._extra)
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, LAST_RETRY_SECONDS)
        except TimeoutError:
            raise _error(Outcome.LOST, "the bucket was away for too long") from None

    async def _until_heard(self, call: Callable[[], Awaitable[None]]) -> None:
        """Says something to Temporal, again while it is away.

        Raises:
            ApplicationError: it does not want to hear it: the job is over, or is another's.
        """
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                return await call()
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    raise _error(Outcome.LOST, words_of(error)) from None
                logger.warning("Temporal does not answer: %s", words_of(error), extra=self._extra)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY_SECONDS)

    async def _beat(self) -> None:
        while True:
            details = () if self._progress is None else (self._progress,)
            activity.heartbeat(*details)
            await asyncio.sleep(BEAT_SECONDS)

    def _note_progress(self, progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done:
            self._room.metrics.steps.inc()
        fields = dataclasses.asdict(progress)
        self._progress = {name: value for name, value in fields.items() if name != "job"}

    def _note_success(self, metadata: dict[str, Any]) -> None:
        self._room.supervisor.note_success()
        for stage, seconds in metadata.get("seconds", {}).items():
            self._room.metrics.stage_seconds.labels(stage.partition(" ")[0]).observe(seconds)

    @property
    def _extra(self) -> dict[str, Any]:
        return {"job": self.order.id, "attempt": self.order.start}


def _is_cancelled() -> bool:
    """Whether Temporal waits to hear that the activity was cancelled. Of a job that was deleted,
    or that is another's, it hears nothing, and its library would call that a failure of ours."""
    details = activity.cancellation_details()
    return details is not None and (details.cancel_requested or details.worker_shutdown)


def _error(outcome: Outcome, message: str, *details: str) -> ApplicationError:
    """As the workflow hears it; an outcome is no fault that the log of the library is to show."""
    return ApplicationError(
        message, *details, type=outcome, category=ApplicationErrorCategory.BENIGN
    )


def _failed(failure: EngineFailure) -> ApplicationError:
    return _error(Outcome.FAILED, str(failure), str(failure.code))
