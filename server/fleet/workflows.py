"""Temporal as a server of the API uses it: starts, cancels, forgets and looks at workflows.

Temporal may be away for hours: every call then fails within seconds, and the sweep repeats it.
"""

import asyncio
import dataclasses
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from server.engine.messages import Progress
from server.fleet.connection import connect
from server.fleet.messages import API_QUEUE, Order
from server.fleet.settings import FleetSettings
from server.fleet.workflow import Video
from wan_tpu.fleet.address import FleetError
from wan_tpu.fleet.connection import words_of

logger = logging.getLogger(__name__)

CALL_TIME = timedelta(seconds=4)
CALLS_AT_ONCE = 32
HEALTH_SECONDS = 5.0
RESTART_SECONDS = 2.0
"""Before a worker that ended by itself is started again."""

OTHERS_TIME = timedelta(seconds=2)
"""After which another server takes up a workflow that one had in memory, which may have died."""

GRACE_TIME = timedelta(seconds=10)
"""For notes that are being written when the server ends."""


class TemporalAway(Exception):
    """Temporal did not do what it was asked; says why. Later it may."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What Temporal says of a workflow.

    Attributes:
        ended: how it ended, as one word; None while it runs.
        progress: that the slice reported last; None where none did.
    """

    ended: str | None
    progress: Progress | None


class Workflows:
    """The workflows of a fleet's jobs, and the worker that runs them.

    Attributes:
        trouble: why Temporal does nothing now; None while it does.
        calls: made so far.
    """

    def __init__(self, settings: FleetSettings, record: Callable[..., Awaitable[bool]]):
        """Connects to nothing yet.

        Args:
            settings: of a server with `fleet`.
            record: the activity that writes a note down.
        """
        self._settings = settings
        self._record = record
        self._client: Client | None = None
        self._working: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(CALLS_AT_ONCE)
        self.trouble: str | None = "there is no connection to Temporal yet"
        self.calls = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connects, and runs the worker until the block is left; waits for neither."""
        self._working = asyncio.create_task(self._work(), name="temporal")
        checking = asyncio.create_task(self._check(), name="temporal's health")
        try:
            yield
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)
            await self.drain()

    async def drain(self) -> None:
        """Takes no more notes, and returns once those that are being written are."""
        if self._working is not None:
            self._working.cancel()  # the worker shuts down in good order by that
            await asyncio.gather(self._working, return_exceptions=True)

    async def start(self, order: Order) -> None:
        """Starts the workflow of a job, unless there is or was one.

        Raises:
            TemporalAway: it may not be started.
        """
        async with self._calling() as client:
            with suppress(WorkflowAlreadyStartedError):
                await client.start_workflow(
                    Video.run,
                    order,
                    id=order.id,
                    task_queue=API_QUEUE,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    rpc_timeout=CALL_TIME,
                )

    async def cancel(self, job_id: str) -> bool:
        """Cancels a job's workflow; False if none runs.

        Raises:
            TemporalAway: it may not be cancelled.
        """
        async with self._calling() as client:
            return await _is_found(client.get_workflow_handle(job_id).cancel(rpc_timeout=CALL_TIME))

    async def forget(self, job_id: str) -> bool:
        """Ends a job's workflow and has all that Temporal knows of it deleted; False if none was.

        Raises:
            TemporalAway: it may not be.
        """
        request = DeleteWorkflowExecutionRequest(workflow_execution=WorkflowExecution())
        request.workflow_execution.workflow_id = job_id
        async with self._calling() as client:
            await _is_found(client.get_workflow_handle(job_id).terminate(rpc_timeout=CALL_TIME))
        async with self._calling() as client:
            request.namespace = client.namespace
            service = client.workflow_service
            return await _is_found(service.delete_workflow_execution(request, timeout=CALL_TIME))

    async def look(self, job_id: str) -> Look | None:
        """Where a job's workflow is; None if Temporal knows of none.

        Raises:
            TemporalAway: it does not say.
        """
        async with self._calling() as client:
            try:
                handle = client.get_workflow_handle(job_id)
                found = await handle.describe(rpc_timeout=CALL_TIME)
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    return None
                raise
            is_over = found.status not in (None, WorkflowExecutionStatus.RUNNING)
            ended = found.status.name.lower() if found.status is not None and is_over else None
            return Look(ended=ended, progress=await _progress(client, found))

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[Client]:
        """A place for a call, and what its failure means."""
        async with self._places:
            if self._client is None:
                raise TemporalAway(self.trouble)
            self.calls += 1
            try:
                yield self._client
            except (RPCError, RuntimeError) as error:
                self._note(f"Temporal does not answer: {words_of(error)}")
                raise TemporalAway(self.trouble) from error
            self._note(None)

    async def _check(self) -> None:
        """Finds out that Temporal is away, or is there again, where nothing else asks it."""
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            if self._client is None:
                continue
            try:
                async with self._calling() as client:
                    await client.service_client.check_health(timeout=CALL_TIME)
            except TemporalAway:
                pass

    async def _work(self) -> None:
        """Runs the worker; Temporal may be away for as long as it wants."""
        identity = f"api {socket.gethostname()}:{os.getpid()}"
        while True:
            try:
                self._client = await connect(self._settings, identity=identity)
                worker = Worker(
                    self._client,
                    task_queue=API_QUEUE,
                    workflows=[Video],
                    activities=[self._record],
                    graceful_shutdown_timeout=GRACE_TIME,
                    sticky_queue_schedule_to_start_timeout=OTHERS_TIME,
                )
                self._note(None)
                await worker.run()
            except FleetError as error:
                self._note(str(error))
            except Exception as error:
                logger.exception("the worker of the queue %r failed", API_QUEUE)
                self._note(f"the worker of the queue {API_QUEUE!r} failed: {error}")
            await asyncio.sleep(RESTART_SECONDS)

    def _note(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:
            logger.error("%s; jobs are taken, and wait", trouble)
        elif trouble is None and self.trouble is not None:
            logger.info("Temporal answers")
        self.trouble = trouble


async def _is_found(call: Awaitable[Any]) -> bool:
    """Whether there was a workflow to do this to."""
    try:
        await call
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


async def _progress(client: Client, found: WorkflowExecutionDescription) -> Progress | None:
    """What the slice said last, in its heartbeat."""
    for pending in found.raw_description.pending_activities:
        payloads = pending.heartbeat_details.payloads
        if pending.activity_type.name == "generate" and payloads:
            told = (await client.data_converter.decode(payloads))[0]
            return Progress(
                job=found.id,
                stage=str(told["stage"]),
                done=int(told["done"]),
                total=int(told["total"]),
                seconds=float(told["seconds"]),
            )
    return None
