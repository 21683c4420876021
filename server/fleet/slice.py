"""A slice of a fleet: an engine, and a worker that takes jobs from Temporal while it works.

One job at a time. It takes none while its engine loads, has to prove itself, or its disk is full:
a broken slice does not use up the queue. It has no database and knows of no job but its own.
"""

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError
from temporalio.worker import Worker

from server.engine.bounds import Why, unless
from server.engine.client import EngineClient
from server.engine.failure import ProcessLost
from server.engine.supervisor import USUAL_RETRY_SECONDS, Supervisor, patience_of
from server.files.job_files import JobFiles
from server.fleet.connection import connect
from server.fleet.messages import Order, Outcome, slice_queue
from server.fleet.scratch import Scratch
from server.fleet.showing import Showing, Shown
from server.fleet.start import Room, Start
from server.jobs.seam import Queue
from server.metrics import Metrics
from server.settings import Settings
from server.slices import SliceState
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.fleet.address import FleetError
from wan_tpu.fleet.connection import words_of
from wan_tpu.storage.bucket import BucketError, check_bucket, open_bucket

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
HEALTH_TICKS = 10
"""Looks between two questions whether Temporal is there."""

AFTER_FAILURE_SECONDS = 1.0
GIVE_BACK_SECONDS = 10.0
"""For Temporal to hear of a job that goes back; else it finds out by the heartbeats."""


class Slice:
    """Makes the jobs of a fleet that come to it.

    Attributes:
        fatal: why the server must end at once, with an error; None while it need not.
        has_lost_process: whether the server must end so that all processes of the slice start anew.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        model: str,
        description: ModelDescription,
        warm_sizes: tuple[str, ...],
    ):
        """Opens what it has on this machine.

        Args:
            settings: of this server.
            metrics: of this server.
            model: as clients call it.
            description: of the model.
            warm_sizes: `WxH` that are compiled at start.

        Raises:
            DataFolderError: the data folder cannot be used.
            BucketError: the bucket cannot be used as it is named.
        """
        assert settings.files is not None
        self.fatal: str | None = None
        self.has_lost_process = False
        self._settings = settings
        self._metrics = metrics
        self._model = model
        self._bucket = open_bucket(settings.files)
        self._scratch = Scratch(settings.data_dir, min_free_bytes=settings.min_free_bytes)
        self._engine = EngineClient(patience_of(settings))
        self._supervisor = Supervisor(self._engine, settings, metrics)
        shown = Shown(
            name=settings.slice_name or default_name(),
            model=model,
            description=description,
            warm_sizes=warm_sizes,
            state="loading",
            words="",
            since=0.0,
            engine={},
            processes=settings.group.num_processes,
        )
        self._name = shown.name
        self._showing = Showing(self._bucket, shown)
        self._temporal: str | None = "Temporal has not answered yet"
        self._room: Room | None = None
        self._start: Start | None = None
        self._takes = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._suspect = asyncio.Event()
        self._draining, self._hurried = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def missing(self) -> list[str]:
        """What stands between the slice and its taking jobs, as sentences; empty if nothing."""
        reasons = ["the service is shutting down"] if self.is_draining else []
        reasons += self._supervisor.missing
        troubles = (self._temporal, self._scratch.trouble, self._showing.trouble)
        return reasons + [trouble for trouble in troubles if trouble is not None]

    @property
    def is_draining(self) -> bool:
        """Whether no jobs are taken any more."""
        return self._draining.is_set()

    @property
    def retry_seconds(self) -> float:
        """When to come again to a slice that is not ready."""
        return USUAL_RETRY_SECONDS if self.is_draining else self._supervisor.retry_seconds

    async def queue(self) -> Queue:
        """What waits here: nothing, the jobs wait in Temporal."""
        return Queue(length=0, oldest_at=None)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block is left."""
        self._tasks = [
            asyncio.create_task(self._run(), name="slice"),
            asyncio.create_task(self._look_after(), name="looks"),
            asyncio.create_task(self._showing.run(), name="showing"),
        ]
        try:
            yield
        finally:
            self.hurry()
            await self.drain()
            self.close()

    def close(self) -> None:
        """Lets others have the data folder."""
        self._scratch.close()

    async def drain(self) -> None:
        """Gives the running job back at once, and then ends the engine."""
        if not self.is_draining:
            logger.info("draining: no new jobs, and the running one goes back")
        self._draining.set()
        if self._start is not None:
            self._start.is_last = True
            self._start.stop(Why.GIVEN_BACK)
        working, *others = self._tasks
        await asyncio.wait({working}, timeout=GIVE_BACK_SECONDS)
        stopping = await unless(self._hurried, self._engine.stop())
        if stopping.cancelled():
            await self._engine.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(others)
        await self._showing.remove()

    def hurry(self) -> None:
        """Ends the time that `drain` gives the engine."""
        self._hurried.set()

    def abandon(self) -> None:
        """Has it end at once."""
        self.hurry()

    async def _run(self) -> None:
        """Works until it is drained, or a process of the slice is lost."""
        connecting = asyncio.create_task(self._join(), name="connection")
        try:
            while not self.is_draining and not self.has_lost_process and self.fatal is None:
                await self._run_once(connecting)
        finally:
            connecting.cancel()

    async def _join(self) -> Client:
        """Connects to all that it needs, while the engine loads; what cannot be used ends it."""
        try:
            await check_bucket(self._bucket, redirect=False)
            return await connect(self._settings, identity=self._name)
        except (BucketError, FleetError) as error:
            self.fatal = str(error)
            raise

    async def _run_once(self, connecting: asyncio.Task[Client]) -> None:
        try:
            ensured = await unless(self._draining, self._supervisor.ensure())
            if ensured.cancelled():
                return
            ensured.result()
            connected = await unless(self._draining, asyncio.shield(connecting))
            if not connected.cancelled():
                await self._take_jobs(connected.result())
        except ProcessLost:
            self.has_lost_process = True
        except (BucketError, FleetError):
            assert self.fatal is not None
        except Exception:
            # A fault of ours must not end the slice: nobody else would do the work.
            logger.exception("the slice failed and goes on")
            self._metrics.worker_failures.inc()
            await unless(self._draining, asyncio.sleep(AFTER_FAILURE_SECONDS))

    async def _take_jobs(self, client: Client) -> None:
        """Takes jobs as long as there is an engine that can be trusted with them."""
        self._temporal = None
        self._room = self._room or self._make_room(client)
        await unless(self._draining, self._wait_for_room())
        reasons = [
            asyncio.ensure_future(what)
            for what in (
                self._engine.ended(),
                self._draining.wait(),
                self._suspect.wait(),
                self._wait_until_full(),
            )
        ]
        worker = self._make_worker(client)
        polling = asyncio.create_task(worker.run(), name="polls")
        self._takes = True
        try:
            await asyncio.wait({polling, *reasons}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._takes = False
            for reason in reasons:
                reason.cancel()
            await self._idle.wait()
            if not polling.done():
                await worker.shutdown()
        await polling
        self._suspect.clear()
        await self._supervisor.end_suspect()

    def _make_worker(self, client: Client) -> Worker:
        return Worker(
            client,
            task_queue=slice_queue(self._model),
            activities=[self.generate],
            max_concurrent_activities=1,
            max_concurrent_activity_task_polls=1,
            max_heartbeat_throttle_interval=timedelta(seconds=1),
            default_heartbeat_throttle_interval=timedelta(seconds=1),
            graceful_shutdown_timeout=timedelta(seconds=GIVE_BACK_SECONDS),
        )

    def _make_room(self, client: Client) -> Room:
        return Room(
            name=self._name,
            client=client,
            files=JobFiles(self._bucket),
            scratch=self._scratch,
            engine=self._engine,
            supervisor=self._supervisor,
            metrics=self._metrics,
            settings=self._settings,
        )

    @activity.defn
    async def generate(self, order: Order) -> dict[str, Any]:
        """Makes a job's video; see `Start`."""
        if not self._takes or not self._engine.is_ready:
            raise ApplicationError(
                "the slice takes no jobs any more",
                type=Outcome.GIVEN_BACK,
                category=ApplicationErrorCategory.BENIGN,
            )
        assert self._room is not None
        self._idle.clear()
        start = self._start = Start(order, self._room)
        try:
            await start.run()
        finally:
            self._start = None
            self.has_lost_process = self.has_lost_process or start.has_lost_process
            if self._supervisor.is_suspect:
                self._suspect.set()
            self._idle.set()

    async def _wait_for_room(self) -> None:
        while self._scratch.trouble is not None:
            await asyncio.sleep(LOOK_SECONDS)

    async def _wait_until_full(self) -> None:
        while self._scratch.trouble is None or not self._idle.is_set():
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_after(self) -> None:
        """Shows how the slice is, and asks now and then whether Temporal is there."""
        ticks = 0
        while True:
            self._showing.update(self._state, "; ".join(self.missing), self._supervisor.description)
            if self._room is not None and ticks % HEALTH_TICKS == 0:
                await self._check_temporal(self._room.client)
            ticks += 1
            await asyncio.sleep(LOOK_SECONDS)

    async def _check_temporal(self, client: Client) -> None:
        try:
            seconds = timedelta(seconds=LOOK_SECONDS)
            await client.service_client.check_health(timeout=seconds)
        except RPCError as error:
            self._temporal = f"Temporal does not answer: {words_of(error)}"
        else:
            self._temporal = None

    @property
    def _state(self) -> SliceState:
        if self._supervisor.is_broken or self._scratch.trouble is not None:
            return "broken"
        if self._start is not None:
            return "busy"
        return "loading" if self._supervisor.missing else "ready"


def default_name() -> str:
    """What a slice is called that was given no name: its host's and the process's."""
    host = re.sub(r"[^\w.-]", "-", socket.gethostname())[:48]
    return f"{host}-{os.getpid()}"
