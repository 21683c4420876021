"""What becomes of one job of a fleet, from its acceptance to the last row: durable, and no more.

Temporal runs this again from a job's history whenever a server of the API starts: what it decides
must follow from the history alone. It therefore knows no clock, no setting and no file; what it
needs of them stands in the order. A job lives through releases of this code. A change of the order
in which activities are started, or of which are, goes behind `workflow.patched("name of the
change")`, and the former way is taken out once no job of before it is left. The histories that
`tests/server/fleet/histories` holds are replayed at every run of the tests.
"""

import asyncio
import contextlib
import dataclasses
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError, TimeoutType

with workflow.unsafe.imports_passed_through():
    from server.engine.failure import Failure
    from server.fleet.messages import API_QUEUE, Note, Order, Outcome, slice_queue

GRACE_SECONDS = 900.0
"""For a start past the time that its video may take: to stop, and to get its files to a bucket that
is away. Whoever does not answer by then is not heard any more."""

RECORD_SECONDS = 15.0
"""For one try, the database's own bound and more. Should the server that has it die, it takes so
long until another writes the note."""

RECORD_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=0.5), maximum_interval=timedelta(seconds=10)
)
"""For ever: the database may be away for hours, and what is to be written is nowhere else."""

ONCE = RetryPolicy(maximum_attempts=1)
"""Which starts count, and how many there are, is decided here."""


@workflow.defn
class Video:
    """One job; its id is the workflow's."""

    def __init__(self) -> None:
        self._slice: str | None = None
        self._start = 0
        self._attempts = 0
        self._crashes = 0

    @workflow.signal
    def started(self, start: int, slice: str) -> None:
        """A slice has taken the job up; one that has been given up since is not heard."""
        if start == self._start:
            self._slice = slice

    @workflow.run
    async def run(self, order: Order) -> str:
        """Has the video made, and what became of it written down.

        Returns:
            The state that the job ended in.
        """
        try:
            last = await self._make(order)
        except asyncio.CancelledError:
            last = self._failed(order, Failure.CANCELLED, "the job was cancelled")
        await _to_the_end(last)
        return last.state

    async def _make(self, order: Order) -> Note:
        """Starts it until there is an outcome.

        Raises:
            CancelledError: the workflow was cancelled, or nobody wants the job any more.
        """
        while True:
            self._start, self._slice = self._start + 1, None
            making = _start_making(dataclasses.replace(order, start=self._start))
            try:
                metadata = await self._watch(order, making)
            except ActivityError as error:
                last = self._after(order, error)
                if last is not None:
                    return last
                if not await _record(Note(id=order.id, state="queued", attempts=self._attempts)):
                    raise asyncio.CancelledError from None
            else:
                state, attempts = "completed", self._attempts + 1
                return Note(id=order.id, state=state, attempts=attempts, metadata=metadata)

    async def _watch(
        self, order: Order, making: workflow.ActivityHandle[dict[str, Any]]
    ) -> dict[str, Any]:
        """Waits for one start; writes down who makes it once somebody does."""
        try:
            await workflow.wait_condition(lambda: self._slice is not None or making.done())
            if self._slice is not None and not making.done():
                attempts = self._attempts + 1
                note = Note(id=order.id, state="in_progress", attempts=attempts, slice=self._slice)
                if not await _record(note):
                    making.cancel()  # nobody wants it
            await workflow.wait_condition(making.done)
        except asyncio.CancelledError:
            making.cancel()
            await workflow.wait_condition(making.done)
            if making.cancelled() or making.exception() is not None:
                raise
        return making.result()  # a video that was there before the cancellation came, too

    def _after(self, order: Order, error: ActivityError) -> Note | None:
        """The last row of a job after a start that failed; None if it is to be started again."""
        cause = error.cause
        match cause:
            case ApplicationError(type=Outcome.GIVEN_BACK):
                return None
            case ApplicationError(type=Outcome.CRASHED):
                self._attempts += 1
                self._crashes += 1
                # The first time the engine may have crashed for another reason than this job.
                if self._crashes > 1 or self._attempts >= order.max_attempts:
                    return self._failed(order, Failure.ENGINE_CRASHED, cause.message)
                return None
            case ApplicationError(type=Outcome.LOST):
                return self._after_interruption(order)
            case TimeoutError(type=TimeoutType.HEARTBEAT):
                # Whoever was lost before it took the job up has done nothing to it, nor it to them.
                return None if self._slice is None else self._after_interruption(order)
            case TimeoutError():
                self._attempts += 1
                words = f"the video took longer than {order.job_seconds:g} seconds"
                return self._failed(order, Failure.TIMEOUT, words)
            case ApplicationError(type=Outcome.FAILED, details=[str(code), *_]):
                self._attempts += 1
                return self._failed(order, code, cause.message)
            case ApplicationError(type=kind):
                self._attempts += 1
                words = f"the slice failed with {kind}; its log says more"
                return self._failed(order, Failure.ENGINE_ERROR, words)
            case _:  # the slice was told to stop, which it has done
                return self._failed(order, Failure.CANCELLED, "the job was cancelled")

    def _after_interruption(self, order: Order) -> Note | None:
        self._attempts += 1
        if self._attempts < order.max_attempts:
            return None
        words = f"the server ended {self._attempts} times while it made this video"
        return self._failed(order, Failure.INTERRUPTED, words)

    def _failed(self, order: Order, code: str, message: str) -> Note:
        attempts = self._attempts
        return Note(id=order.id, state="failed", attempts=attempts, code=code, message=message)


def _start_making(order: Order) -> workflow.ActivityHandle[dict[str, Any]]:
    return workflow.start_activity(
        "generate",
        order,
        result_type=dict[str, Any],
        task_queue=slice_queue(order.model),
        heartbeat_timeout=timedelta(seconds=order.heartbeat_seconds),
        start_to_close_timeout=timedelta(seconds=order.job_seconds + GRACE_SECONDS),
        retry_policy=ONCE,
        priority=Priority(fairness_key=order.owner),
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


def _start_record(note: Note) -> workflow.ActivityHandle[bool]:
    return workflow.start_activity(
        "record",
        note,
        result_type=bool,
        task_queue=API_QUEUE,
        start_to_close_timeout=timedelta(seconds=RECORD_SECONDS),
        retry_policy=RECORD_RETRY,
    )


async def _record(note: Note) -> bool:
    """Has a row written; whether anybody wants the job still."""
    recording = _start_record(note)
    await workflow.wait_condition(recording.done)  # which a cancellation leaves alone
    return recording.result()


async def _to_the_end(note: Note) -> None:
    """Has the last row written, whoever cancels meanwhile."""
    recording = _start_record(note)
    while not recording.done():
        with contextlib.suppress(asyncio.CancelledError):
            await workflow.wait_condition(recording.done)
